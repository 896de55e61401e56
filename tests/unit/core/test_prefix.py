"""What a provider's prompt cache would have recognised."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from proxy.core.prefix import BLOCK_BYTES, KEPT_S, PrefixIndex, billed_as_cached

SYSTEM = bytes(range(256)) * 20  # ten blocks


def test_a_repeated_beginning_is_recognised_and_a_new_one_is_not():
    index = PrefixIndex()
    assert index.look("r", SYSTEM + b"a" * 512, 0.0).repeated == 0.0
    assert index.look("r", SYSTEM + b"b" * 512, 1.0).repeated == len(SYSTEM) / (len(SYSTEM) + 512)
    assert index.look("other", SYSTEM, 2.0).repeated == 0.0
    assert index.look("r", b"x" + SYSTEM, 3.0).repeated == 0.0


def test_a_prefix_is_forgotten_after_the_providers_time():
    index = PrefixIndex()
    index.look("r", SYSTEM, 0.0)
    assert index.look("r", SYSTEM, KEPT_S + 1).repeated == 0.0
    assert index.look("r", SYSTEM, KEPT_S + 2).repeated == 1.0


def test_the_index_is_bounded():
    index = PrefixIndex(prefixes_max=100)
    for number in range(1000):
        index.look("r", str(number).encode() * BLOCK_BYTES, float(number))
    assert len(index) == 100


def test_the_providers_rule_is_from_1024_tokens_on_in_steps_of_128():
    assert [billed_as_cached(tokens) for tokens in (0, 1023.9, 1024, 1151, 1152, 5000)] == [
        0, 0, 1024, 1024, 1152, 4992]


@given(st.binary(max_size=4000), st.binary(max_size=4000))
def test_the_share_is_never_more_than_what_the_two_have_in_common(one, other):
    index = PrefixIndex()
    index.look("r", one, 0.0)
    common = next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))
    assert index.look("r", other, 1.0).repeated * len(other) <= common


def test_a_replica_that_computed_a_prefix_is_known_to_have_it_and_no_other_is():
    index = PrefixIndex()
    index.went(index.look("r", SYSTEM + b"a" * 512, 0.0), "gpu/0")
    seen = index.look("r", SYSTEM + b"b" * 512, 1.0)
    assert seen.at == {"gpu/0": seen.repeated} and seen.repeated > 0.8
    index.went(seen, "gpu/1")
    assert set(index.look("r", SYSTEM + b"c" * 512, 2.0).at) == {"gpu/0", "gpu/1"}
    assert index.look("r", b"x" + SYSTEM, 3.0).at == {}


def test_what_is_too_old_to_be_known_takes_no_memory():
    index = PrefixIndex()
    for second in range(3000):
        index.look("chat", f"{second:08d}".encode() * 200, float(second))
    assert len(index) <= 3 * (KEPT_S + 1)
