"""What a provider's prompt cache would have recognised."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from proxy.core.prefix import BLOCK_BYTES, KEPT_S, PrefixIndex, billed_as_cached

SYSTEM = bytes(range(256)) * 20  # ten blocks


def test_a_repeated_beginning_is_recognised_and_a_new_one_is_not():
    index = PrefixIndex()
    assert index.repeated("r", SYSTEM + b"a" * 512, 0.0) == 0.0
    assert index.repeated("r", SYSTEM + b"b" * 512, 1.0) == len(SYSTEM) / (len(SYSTEM) + 512)
    assert index.repeated("other", SYSTEM, 2.0) == 0.0
    assert index.repeated("r", b"x" + SYSTEM, 3.0) == 0.0


def test_a_prefix_is_forgotten_after_the_providers_time():
    index = PrefixIndex()
    index.repeated("r", SYSTEM, 0.0)
    assert index.repeated("r", SYSTEM, KEPT_S + 1) == 0.0
    assert index.repeated("r", SYSTEM, KEPT_S + 2) == 1.0


def test_the_index_is_bounded():
    index = PrefixIndex(prefixes_max=100)
    for number in range(1000):
        index.repeated("r", str(number).encode() * BLOCK_BYTES, float(number))
    assert len(index) == 100


def test_the_providers_rule_is_from_1024_tokens_on_in_steps_of_128():
    assert [billed_as_cached(tokens) for tokens in (0, 1023.9, 1024, 1151, 1152, 5000)] == [
        0, 0, 1024, 1024, 1152, 4992]


@given(st.binary(max_size=4000), st.binary(max_size=4000))
def test_the_share_is_never_more_than_what_the_two_have_in_common(one, other):
    index = PrefixIndex()
    index.repeated("r", one, 0.0)
    common = next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))
    assert index.repeated("r", other, 1.0) * len(other) <= common
