"""Each of the article's 27 claims, recomputed to the figure that the economics reference has for it."""

from __future__ import annotations

from decimal import Decimal
from fractions import Fraction

import pytest

from proxy.config.prices import package_prices
from proxy.planner.article import APIS, claims
from tests.support.economics import EXPECTED, VERDICTS, matches

CLAIMS = {claim.number: claim for claim in claims()}


def test_there_are_27_in_order():
    assert [claim.number for claim in claims()] == list(range(1, 28)) == list(EXPECTED)


@pytest.mark.parametrize("number", EXPECTED)
def test_claim(number):
    found = CLAIMS[number].found
    assert found.keys() == EXPECTED[number].keys()
    off = {name: float(found[name]) for name, printed in EXPECTED[number].items() if not matches(found[name], printed)}
    assert not off


@pytest.mark.parametrize("number", EXPECTED)
def test_verdict(number):
    assert CLAIMS[number].verdict.startswith(VERDICTS.get(number, "right"))
    assert CLAIMS[number].why or CLAIMS[number].verdict == "right"


def test_the_h200_row_is_flagged_as_not_runnable():
    assert "cannot run" in CLAIMS[8].why


def test_list_prices_are_the_packages():
    listed = {}
    for name in APIS:
        provider = "anthropic" if name.startswith("claude") else "openai"
        if prices := [one for one in package_prices(provider, name) if one.service_tier == "default"]:
            tier = prices[-1].tiers[0]
            listed[name] = (Fraction(tier.of("input_text")), Fraction(tier.of("output_text")))
    assert len(listed) >= 2 and listed == {name: APIS[name] for name in listed}


def test_a_figure_that_is_off_does_not_match():
    assert matches(Fraction(1, 3), "0.33") and not matches(Fraction(1, 3), "0.34")
    assert matches(Fraction(Decimal("0.625")), "0.63") and not matches(Fraction(5), "5.1")
