"""The pure batching model: its invariants under random load, and its arithmetic on small cases."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from proxy.demo import tokens
from proxy.demo.engine_kv import BlockPool
from proxy.demo.engine_model import EngineModel, EngineProfile, Sequence, State


def profile(**changes) -> EngineProfile:
    base = {"model": "m", "alpha_ms": 10.0, "beta_ms": 1.0, "kappa_ms_per_1k": 0.0, "prefill_tokens_per_s": 1000.0,
            "chunk_tokens": 64, "kv_tokens": 4096, "block_size": 16, "max_num_seqs": 8, "max_model_len": 1024}
    return EngineProfile(**base | changes)


def prompt(count: int, which: int = 0) -> bytes:
    return tokens.words(which, which, count)


def submit(model: EngineModel, prompt_tokens: int, target: int, which: int = 0, now: float = 0.0) -> Sequence:
    return model.submit(prompt(prompt_tokens, which), prompt(target, which + 999), now)


def step(model: EngineModel, now: float):
    seconds = model.begin_step(now)
    assert seconds is not None
    return now + seconds, model.end_step(now + seconds)


def drain(model: EngineModel, now: float = 0.0) -> float:
    while model.running or model.waiting:
        now, _ = step(model, now)
    return now


def assert_consistent(model: EngineModel) -> None:
    """Every block is free or owned, owners agree with the pool, and nothing exceeds capacity."""
    pool, size = model.pool, model.profile.block_size
    owners = Counter(block for seq in model.running for block in seq.blocks)
    assert {b: n for b, n in enumerate(pool._users) if n} == dict(owners)
    assert set(pool._free).isdisjoint(owners) and len(pool._free) + len(owners) == pool.capacity
    assert 0.0 <= model.kv_usage <= 1.0
    assert model.kv_resident == sum(s.computed for s in model.running)
    assert len(model.running) <= model.profile.max_num_seqs
    for seq in model.running:
        assert seq.computed <= len(seq.blocks) * size and seq.state is State.RUNNING
    assert not any(seq.blocks for seq in model.waiting)


REQUESTS = st.lists(st.tuples(st.integers(1, 60), st.integers(0, 40), st.integers(0, 3), st.integers(0, 30)),
                    min_size=1, max_size=14)


@settings(max_examples=120, deadline=None)
@given(requests=REQUESTS, blocks=st.integers(27, 60), size=st.sampled_from([4, 8]), seqs=st.integers(1, 6),
       chunk=st.integers(6, 50), aborted=st.sets(st.integers(0, 13), max_size=4), abort_at=st.integers(0, 25))
def test_kv_stays_within_capacity_and_every_token_is_counted_once(requests, blocks, size, seqs, chunk, aborted,
                                                                 abort_at):
    model = EngineModel(profile(kv_tokens=blocks * size, block_size=size, max_num_seqs=seqs, chunk_tokens=chunk,
                                max_model_len=100))
    waiting = sorted(enumerate(requests), key=lambda r: r[1][3])
    submitted: dict[int, Sequence] = {}
    got: Counter[int] = Counter()
    finished: list[int] = []
    now, steps = 0.0, 0
    while waiting or model.running or model.waiting:
        while waiting and waiting[0][1][3] <= steps:
            index, (length, target, family, _) = waiting.pop(0)
            submitted[index] = model.submit(prompt(length, family), prompt(target, index), now, index)
        if steps == abort_at:
            for index in aborted & set(submitted):
                model.abort(submitted[index])
        seconds = model.begin_step(now)
        assert_consistent(model)
        if seconds is not None:
            assert seconds > 0
            now += seconds
            report = model.end_step(now)
            got.update(seq.owner for seq in report.tokens)
            finished += [seq.owner for seq in report.finished]
            assert report.prefill_tokens <= chunk
            assert_consistent(model)
        steps += 1
        assert steps < 20_000, "no progress"
    assert len(finished) == len(set(finished))
    for index, seq in submitted.items():
        if seq.state is State.ABORTED:
            assert index not in finished and got[index] == seq.generated <= seq.target
        else:
            assert seq.state is State.FINISHED and index in finished
            assert got[index] == seq.generated == seq.target
    assert model.kv_resident == 0 and model.pool.free_count == model.pool.capacity


def test_a_step_takes_alpha_plus_beta_per_sequence_plus_kv_plus_prefill():
    model = EngineModel(profile(kappa_ms_per_1k=2.0, chunk_tokens=512))
    submit(model, 100, 3)
    assert model.begin_step(0.0) == pytest.approx(0.010 + 0.001 + 100 / 1000)  # prefill at 1000 tokens/s
    model.end_step(0.111)
    submit(model, 50, 3, which=1)
    assert model.begin_step(0.111) == pytest.approx(0.010 + 0.002 + 2.0e-3 * 100 / 1000 + 50 / 1000)


def test_prefills_are_serialised_and_chunked_into_what_decodes_leave():
    model = EngineModel(profile(chunk_tokens=64))
    first, second = submit(model, 100, 5), submit(model, 100, 5, which=1)
    now, report = step(model, 0.0)
    assert (report.prefill_tokens, first.computed, second.computed) == (64, 64, 0)
    now, report = step(model, now)
    assert (report.first_tokens, second.computed) == ([first], 28)
    now, report = step(model, now)  # one token of the budget goes to the decode
    assert (report.prefill_tokens, second.computed) == (63, 91)
    now, report = step(model, now)
    assert report.first_tokens == [second] and first.generated == 3


def test_the_newest_sequence_is_preempted_and_still_finishes():
    model = EngineModel(profile(kv_tokens=16 * 9, max_model_len=128))
    old, new = submit(model, 60, 60), submit(model, 60, 60, which=1)
    drain(model)
    assert old.preemptions == 0 and new.preemptions > 0
    assert model.preemptions == new.preemptions
    assert old.generated == new.generated == 60
    assert old.finished < new.finished


def test_a_known_prefix_is_found_again_and_counts_as_free():
    model = EngineModel(profile())
    submit(model, 100, 1)
    drain(model)
    assert model.kv_usage == 0.0
    again = submit(model, 100, 1)
    seconds = model.begin_step(1.0)
    assert again.cached == 96 and seconds == pytest.approx(0.011 + 4 / 1000)
    assert (model.cache_queries, model.cache_hits) == (200, 96)


def test_at_least_one_token_of_a_cached_prompt_is_computed():
    model = EngineModel(profile())
    submit(model, 96, 1)
    drain(model)
    again = submit(model, 96, 1)
    drain(model)
    assert again.cached == 80


def test_the_next_turn_of_a_conversation_finds_prompt_and_answer_in_the_cache():
    model = EngineModel(profile())
    turn = [{"role": "user", "content": "tell me more about the sea and the sky " * 5}]
    answer = tokens.words(0, 3, 40)
    first = model.submit(tokens.render_chat(turn), answer, 0.0)
    drain(model)
    turn += [{"role": "assistant", "content": answer.decode()}, {"role": "user", "content": "and then?"}]
    second = model.submit(tokens.render_chat(turn), b"done", 1.0)
    drain(model)
    known = first.prompt_tokens + 40 - 1  # the last token's KV is never computed
    assert second.cached == known // 16 * 16


def test_cached_blocks_are_given_away_when_room_is_needed():
    model = EngineModel(profile(kv_tokens=16 * 9, max_model_len=128))
    submit(model, 100, 1)
    drain(model)
    submit(model, 120, 1, which=5)
    drain(model)
    again = submit(model, 100, 1)
    drain(model)
    assert again.cached < 96


def test_an_aborted_sequence_frees_its_blocks_within_the_step():
    model = EngineModel(profile())
    seq = submit(model, 50, 50)
    now, _ = step(model, 0.0)
    model.begin_step(now)
    assert model.abort(seq) and not model.abort(seq)
    assert model.kv_usage == 0.0
    assert model.end_step(now + 0.01).tokens == []
    assert not model.running and not model.waiting


def test_the_queue_limit_counts_waiting_and_running():
    model = EngineModel(profile(queue_max=3, max_num_seqs=2))
    for which in range(3):
        assert model.has_room_for(1)
        submit(model, 10, 10, which)
    step(model, 0.0)
    assert not model.has_room_for(1)
    drain(model)
    assert model.has_room_for(3) and not model.has_room_for(4)


def test_a_prefill_alone_ends_without_a_token():
    model = EngineModel(profile())
    seq = submit(model, 100, 0)
    reports = []
    now = 0.0
    while model.running or model.waiting:
        now, report = step(model, now)
        reports.append(report)
    assert seq.state is State.FINISHED and not any(r.tokens for r in reports)


@pytest.mark.parametrize(("field", "value"), [
    ("chunk_tokens", 4), ("kv_tokens", 1024), ("alpha_ms", -1.0), ("prefill_tokens_per_s", 0.0), ("model", "")])
def test_a_profile_that_cannot_work_is_refused_by_name(field, value):
    with pytest.raises(ValueError, match=field):
        profile(**{field: value})


def test_the_least_recently_freed_block_is_given_away_first():
    pool = BlockPool(3)
    first, second = pool.take(), pool.take()
    pool.register(first, 11)
    pool.release([first])
    pool.release([second])
    assert pool.take() not in (first, second)
    assert pool.find([11]) == [first]
    assert pool.take() == first and pool.find([11]) == []


def test_a_message_is_four_tokens_more_than_its_text_and_a_conversation_three():
    chat = [{"role": "user", "content": "héllo"}, {"role": "assistant", "content": None}]
    assert len(tokens.render_chat(chat)) == tokens.BYTES_PER_TOKEN * (2 + 0 + 2 * 4 + 3)


@given(st.text(max_size=200).filter(lambda t: "\0" not in t))
def test_detokenising_returns_the_text(text):
    assert tokens.detokenize(tokens.token_ids(tokens.render_text(text))) == text
