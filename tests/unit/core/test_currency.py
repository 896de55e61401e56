"""Currencies: rates that are dated, amounts that are exact, and nothing where no rate is known."""

from dataclasses import replace
from decimal import Decimal
from fractions import Fraction
from itertools import pairwise

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from proxy.core.cells import AT, FIELDS, Place, Slice
from proxy.core.currency import DOLLARS, MINOR, Currency, MissingRate, Rate, converted, factor, plain, rate_of
from proxy.core.gpucost import GpuShare
from proxy.core.money import NS_PER_HOUR, usd_string

DAY = 24 * NS_PER_HOUR
moments = st.integers(0, 40 * DAY)
numbers = st.integers(1, 10**17).map(lambda units: Decimal(units).scaleb(-9))
dated = st.dictionaries(moments, numbers, min_size=1, max_size=6)


def rate(from_ns, per_usd="0.9217", source="ECB"):
    return Rate(f"day {from_ns}", from_ns, Decimal(per_usd), source)


def euro(*rates):
    return Currency.since("EUR", rates, "a.yaml:7")


def made(rates):
    return euro(*(rate(at, per_usd) for at, per_usd in rates.items()))


def test_the_codes_are_those_of_iso_4217():
    assert len(MINOR) == 155 and all(len(code) == 3 and code.isalpha() and code.isupper() for code in MINOR)
    assert (MINOR["EUR"], MINOR["USD"], MINOR["JPY"], MINOR["KWD"]) == (2, 2, 0, 3)
    assert (euro(rate(0, "999")).minor, euro(rate(0, "1000")).minor) == (2, 0), "nobody pays with so little"
    assert not {"BGN", "HRK", "DEM", "XAU", "XTS", "BTC"} & MINOR.keys(), "withdrawn, metals, tests, no currencies"


def test_dollars_are_the_books_own_and_need_no_rate():
    assert DOLLARS.stretches(3, 9) == [(3, 9, None)] and DOLLARS.used(3, 9) == []
    assert (DOLLARS.digits, DOLLARS.unit, DOLLARS.most, DOLLARS.smallest) == (9, 10**9, 1, "nano-USD")
    assert DOLLARS.text(-1234567891) == usd_string(-1234567891) == "-1.234567891"
    part = Slice(0, 1)
    assert converted(part, None) is part and DOLLARS.of(7, 0) == 7


@given(nano=st.integers(-10**19, 10**19), per_usd=numbers)
def test_an_amount_times_a_rate_is_whole_and_is_printed_with_every_digit(nano, per_usd):
    currency = euro(rate(0, per_usd))
    amount = currency.of(nano, 5)
    assert Fraction(amount, 10**18) == Fraction(nano, 10**9) * Fraction(per_usd)
    text = currency.text(amount)
    assert Fraction(text) == Fraction(amount, 10**18) and len(text.partition(".")[2]) == 18


@given(dated, st.lists(moments, min_size=2, max_size=9, unique=True))
def test_any_cut_of_a_period_comes_to_the_same(rates, cuts):
    """A nano-dollar a nanosecond, converted."""
    currency, cuts = made(rates), sorted(cuts)
    assume(cuts[0] >= min(rates))

    def worth(start, end):
        pieces = currency.stretches(start, end)
        assert [pieces[0][0], pieces[-1][1]] == [start, end]
        assert all(one[1] == other[0] for one, other in pairwise(pieces))
        return sum((end - begin) * factor(rate) for begin, end, rate in pieces)

    assert sum(worth(start, end) for start, end in pairwise(cuts)) == worth(cuts[0], cuts[-1])


@given(dated, moments)
def test_the_rate_is_the_last_one_that_began(rates, at):
    currency = made(rates)
    begun = [begin for begin in rates if begin <= at]
    if not begun:
        with pytest.raises(MissingRate, match=r"^a\.yaml:7: report\.exchange_rates: no rate of EUR holds at 1970-"):
            currency.stretches(at, at + 1)
    else:
        assert currency.of(1, at) == rates[max(begun)] * 10**9


def test_a_missing_rate_names_the_file_the_field_the_moment_and_what_is_known():
    with pytest.raises(MissingRate) as missing:
        euro(rate(20 * DAY), rate(30 * DAY)).stretches(DAY, 25 * DAY)
    assert str(missing.value) == ("a.yaml:7: report.exchange_rates: no rate of EUR holds at 1970-01-02T00:00Z, and the "
                                  f"next is from day {20 * DAY}; add the one of then")
    with pytest.raises(MissingRate, match="no rate of EUR holds at 1970-01-01T00:00Z; add"):
        Currency("EUR").stretches(0, 1)
    gap = euro(rate(20 * DAY)).fixed(0, 10 * DAY, [rate(0)])
    with pytest.raises(MissingRate, match="holds at 1970-01-11T00:00Z"):
        gap.stretches(0, 30 * DAY)


@given(dated, dated, moments, moments, moments)
def test_what_was_fixed_holds_in_its_time_and_nowhere_else(rates, later, one, other, at):
    begin, end = sorted((one, other))
    assume(min(rates) <= begin < end)
    closed = made(rates).used(begin, end)
    now = made(later).fixed(begin, end, closed)
    assert now.used(begin, end) == closed and now.fixed(begin, end, closed) == now
    if begin <= at < end:
        assert now.of(1, at) == made(rates).of(1, at)
    elif at >= min(later):
        assert now.of(1, at) == made(later).of(1, at)
    else:
        with pytest.raises(MissingRate):
            now.of(1, at)


def test_a_rate_that_was_not_changed_is_told_as_before():
    """Closing within its time leaves one rate, not two or three."""
    one = euro(rate(0))
    closed = one.fixed(5 * DAY, 9 * DAY, one.used(5 * DAY, 9 * DAY))
    assert closed.used(0, 20 * DAY) == one.used(0, 20 * DAY) == [rate(0)]


def test_money_is_converted_and_counts_are_not():
    place = Place("b", "gpu", "r", "", "", "m", "v", "v")
    part = Slice(0, 9, {place: list(range(len(FIELDS)))}, {"b": GpuShare(1, 2, 3, 4, 5, 6, 7, 8)}, {"c"})
    found = converted(part, rate(0, "2"))
    assert (found.from_ns, found.to_ns, found.unpriced) == (0, 9, {"c"})
    for name, at in AT.items():
        assert found.cells[place][at] == at * (2 * 10**9 if name.endswith("_nano") else 1), name
    each = 2 * 10**9
    assert found.gpus["b"] == GpuShare(each, 2 * each, 3 * each, 4 * each, 5 * each, 6 * each, 7, 8)
    assert {name for name in FIELDS if not name.endswith("_nano")} == {
        "requests", "finals", "succeeded", "input_text", "cache_read", "cache_write_5m", "cache_write_1h",
        "input_audio", "input_image", "output_text", "reasoning", "output_audio", "api_unknown", "baseline_unknown",
        "estimated", "estimated_tokens", "work_ns", "failed_work_ns", "substituted", "trial", "trial_output",
        "trial_squares", "prompt_bytes", "prompt_tokens", "recounted_tokens", "recounted_input"}, "a sum of no money"


@given(numbers)
def test_a_rate_survives_being_kept(per_usd):
    one = replace(rate(5), per_usd=per_usd)
    assert rate_of(one.to_dict()) == one and Decimal(plain(per_usd)) == per_usd and "E" not in plain(per_usd)
