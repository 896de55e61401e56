"""`contracts:` in the price file: what is refused, with its line, and what each makes of a price."""

from __future__ import annotations

from decimal import Decimal

import pytest
from test_discounts import at, book

from proxy.config import ConfigError
from proxy.config.operator_prices import read_operator_prices
from proxy.core.contracts import Standing
from proxy.core.usage import Usage

FROM = "from: 2026-01-01, source: x"
VOLUME = f"provider: o, kind: volume, {FROM}, steps: [{{above_tokens: 1000, percent: 10}}]"
COMMIT = f"provider: o, kind: commitment, {FROM}, usd_per_month: 5"
RESERVE = f"provider: o, kind: provisioned, {FROM}, usd_per_hour: 5, tokens_per_minute: 600"


@pytest.mark.parametrize(("line", "field", "message"), [
    (VOLUME.replace("1000", "0"), "contracts[0].steps[0].above_tokens", "at least 1"),
    (VOLUME.replace("percent: 10", "percent: 0"), "contracts[0].steps[0].percent", "more than 0"),
    (VOLUME.replace("}]", "}, {above_tokens: 2000, percent: 5}]"), "contracts[0].steps", "must rise"),
    (VOLUME.replace("}]", "}, {above_tokens: 900, percent: 15}]"), "contracts[0].steps", "must rise"),
    (VOLUME.replace("steps", "usd_per_month: 5, steps"), "contracts[0].usd_per_month", "is of kind commitment, not"),
    (COMMIT.replace(", usd_per_month: 5", ""), "contracts[0].usd_per_month", "commitment needs it"),
    (RESERVE.replace(", tokens_per_minute: 600", ""), "contracts[0].tokens_per_minute", "provisioned needs it"),
    (COMMIT.replace("5", "-5"), "contracts[0].usd_per_month", "more than 0"),
    (COMMIT + ", until: 2025-01-01", "contracts[0].until", "after from"),
    (COMMIT + "}, {" + COMMIT + ", model: m", "contracts[1]", "that the contract on line 3 reaches too"),
    (VOLUME + "}, {" + RESERVE + ", model: m", "contracts[1]", "that the contract on line 3 reaches too"),
    (VOLUME.replace("volume", "volumes"), "contracts[0].kind", "not one of volume, commitment, provisioned"),
    (VOLUME.replace("percent: 10", "percent: 10, off: 3"), "contracts[0].steps[0].off", "unknown key"),
])
def test_a_contract_that_cannot_be_meant_is_refused_with_its_line(tmp_path, line, field, message):
    (tmp_path / "p.yaml").write_text(f"version: 1\ncontracts:\n  [{{{line}}}]\n")
    with pytest.raises(ConfigError) as caught:
        read_operator_prices(tmp_path / "p.yaml")
    [problem] = [p for p in caught.value.problems if message in p.message]
    assert (problem.line, problem.field) == (3, field)


@pytest.mark.parametrize("lines", [
    COMMIT + "}, {" + VOLUME, COMMIT + "}, {" + RESERVE, COMMIT + ", model: a}, {" + COMMIT + ", model: b",
    COMMIT + ", until: 2026-05-01}, {" + COMMIT.replace("2026-01-01", "2026-05-01"),
    COMMIT + "}, {" + COMMIT.replace("provider: o", "provider: p"),
])
def test_contracts_that_do_not_meet_stand_side_by_side(tmp_path, lines):
    (tmp_path / "p.yaml").write_text(f"contracts:\n  [{{{lines}}}]\n")
    assert len(read_operator_prices(tmp_path / "p.yaml").contracts) == 2


PRICES = ("prices: {o: {m: [{from: 2026-01-01, kind: list, input: 4, output: 8, usd_per_request: 0.01, "
          "source: page}]}}\n")
USAGE = Usage(input_text=1000, output_text=100)  # 4,800,000, and a cent: 14,800,000 nano-dollars


def paid(tmp_path, lines: str, tokens: int, when: str = "2026-02-10"):
    """What the next request is billed by once so many tokens have ended at that moment."""
    prices = book(tmp_path, PRICES + f"contracts: [{{{lines}}}]\n", "m", "o")
    dated, standing = prices.dated("o", "m"), Standing()
    if tokens:
        standing.add(dated.terms.contracts[0], at(when), tokens, tokens * 4_000)
    price = dated.terms.paid(dated.find(at(when), "default"), at(when), standing)
    assert price.version in {one.version for one in prices.all()}, "or no row could name it"
    return price


@pytest.mark.parametrize(("tokens", "cost"), [
    (0, 14_800_000), (999, 14_800_000), (1_000, 13_320_000), (10**9, 13_320_000)])
def test_volume_takes_its_percent_off_what_is_paid(tmp_path, tokens, cost):
    assert paid(tmp_path, VOLUME, tokens).cost_nano(USAGE) == cost


def test_what_is_provisioned_costs_nothing_more_until_the_minute_is_exceeded(tmp_path):
    within, beyond = (paid(tmp_path, RESERVE, tokens) for tokens in (599, 600))
    assert (within.cost_nano(USAGE), beyond.cost_nano(USAGE)) == (0, 14_800_000)
    assert within.version != beyond.version and "within 600 tokens a minute" in within.source


def test_before_and_after_the_contract_nothing_is_different(tmp_path):
    lines = RESERVE.replace("2026-01-01", "2026-02-01") + ", until: 2026-03-01"
    assert [paid(tmp_path, lines, 0, when).cost_nano(USAGE) for when in ("2026-01-31", "2026-02-01", "2026-03-01")] == [
        14_800_000, 0, 14_800_000]


def test_a_commitment_leaves_prices_alone_and_makes_them_free_at_the_margin_when_it_lags(tmp_path):
    prices = book(tmp_path, PRICES + f"contracts: [{{{COMMIT}}}]\n", "m", "o")
    dated, standing = prices.dated("o", "m"), Standing()
    price = dated.find(at("2026-04-11"), "default")
    assert dated.terms.paid(price, at("2026-04-11"), standing) is price
    # Ten days of thirty: a third of 5 USD is the pace.
    standing.add(dated.terms.contracts[0], at("2026-04-03"), 1, 1_600_000_000)
    assert dated.terms.free(at("2026-04-11"), standing)
    standing.add(dated.terms.contracts[0], at("2026-04-04"), 1, 100_000_000)
    assert not dated.terms.free(at("2026-04-11"), standing)


def test_what_a_contract_costs_beside_requests_must_be_in_pure_api_billing_too(tmp_path):
    with pytest.raises(ConfigError, match=r"p\.yaml:2: contracts: commitment of o/other reaches no route's baseline"):
        book(tmp_path, PRICES + f"contracts: [{{{COMMIT}, model: other}}]\n", "m", "o")


def test_percent_is_exact(tmp_path):
    price = paid(tmp_path, VOLUME.replace("percent: 10", "percent: 33.333333333333333333"), 5_000)
    assert price.tiers[0].usd_per_mtok["output_text"] == Decimal("5.33333333333333333336")
