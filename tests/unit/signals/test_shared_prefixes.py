"""Prefixes that one worker has seen are seen for all; whoever falls behind misses some, and nothing else."""

from __future__ import annotations

import random

from proxy.core.prefix import BLOCK_BYTES
from proxy.signals import shared_prefixes
from proxy.signals.shared_prefixes import RING, Prompts, SharedPrefixes

PROMPT = bytes(range(256)) * 40


def workers(count=2):
    prompts = Prompts(count)
    return [SharedPrefixes(prompts, me, ["llama/0", "llama/1"]) for me in range(1, count + 1)]


def test_a_prompt_that_another_worker_has_seen_is_no_new_one():
    first, second = workers()
    seen = first.look("chat", PROMPT, 0.0)
    first.went(seen, "llama/1")
    assert not seen.repeated
    second.hear(0.0)
    found = second.look("chat", PROMPT + b"more", 1.0)
    assert found.repeated > 0.9 and set(found.at) == {"llama/1"} and found.at["llama/1"] == found.repeated
    assert not second.look("embed", PROMPT, 1.0).repeated, "another route's"
    first.hear(1.0)
    assert first.look("chat", PROMPT + b"more", 1.0).repeated > 0.9


def test_whatever_is_written_round_the_ring_is_heard_in_order():
    first, second = workers()
    chance = random.Random(3)
    for number in range(400):
        prompt = chance.randbytes(BLOCK_BYTES * chance.randrange(1, 400))
        seen = first.look("chat", prompt, float(number))
        for _ in range(3):
            second.hear(float(number))
        assert second.look("chat", prompt, float(number)).repeated == len(seen.chain) * BLOCK_BYTES / len(prompt)
        first.hear(float(number))


def test_who_is_a_ring_behind_goes_on_with_what_comes(monkeypatch):
    first, second = workers()
    for number in range(RING // 100 + 50):
        first.look("chat", number.to_bytes(4) + bytes(BLOCK_BYTES * 100), 0.0)
    for _ in range(100):
        second.hear(0.0)
    assert len(second) < RING
    first.look("chat", PROMPT, 0.0)
    second.hear(0.0)
    assert second.look("chat", PROMPT, 0.0).repeated > 0.9


def test_a_busy_neighbour_is_heard_a_part_at_a_time(monkeypatch):
    monkeypatch.setattr(shared_prefixes, "HEARD_MAX", 100)
    first, second = workers()
    for number in range(8):
        first.look("chat", bytes([number]) + bytes(BLOCK_BYTES * 40), 0.0)
    second.hear(0.0)
    assert 100 <= len(second) < 200
    for _ in range(8):
        second.hear(0.0)
    assert len(second) == 320
