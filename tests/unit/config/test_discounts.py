"""Contracted prices from discounts and lines, list prices from the package and lines: dated, exact, by hand."""

from __future__ import annotations

import datetime as dt
from decimal import Decimal
from pathlib import Path

import pytest

from proxy.config import ConfigError, load
from proxy.config.fields import epoch_ns
from proxy.config.operator_prices import read_operator_prices
from proxy.config.prices import load_price_book
from proxy.core.pricing import PriceBook
from proxy.core.usage import Usage

CONFIG = """\
prices: {0}/p.yaml
backends:
  llama:
    kind: vllm
    url: http://10.0.0.5:8000
    model: llama-8b
    gpu: {{type: L4, usd_per_hour: 0.70, from: 2026-01-01}}
  api: {{kind: openai, model: {1}, provider: {2}}}
routes:
  chat: {{backends: [llama, api], baseline: api}}
"""
USAGE = Usage(input_text=1000, cache_read=500, output_text=200)  # gpt-4o at 2.50 / 1.25 / 10: 5,125,000 nano-dollars


def at(text: str) -> int:
    return epoch_ns(dt.datetime.fromisoformat(text).replace(tzinfo=dt.UTC))


def book(folder: Path, own: str, model: str = "gpt-4o", provider: str = "openai") -> PriceBook:
    (folder / "p.yaml").write_text(own)
    (folder / "c.yaml").write_text(CONFIG.format(folder, model, provider))
    return load_price_book(load(folder / "c.yaml", {}))


def costs(prices: PriceBook, when: str, model: str = "gpt-4o", provider: str = "openai", tier: str = "default",
          usage: Usage = USAGE) -> tuple[int | None, int | None]:
    """(contracted, list), nano-USD."""
    paid, listed = (find(provider, model, at(when), tier) for find in (prices.find, prices.find_listed))
    return paid and paid.cost_nano(usage), listed and listed.cost_nano(usage)


def test_a_discount_begins_and_ends_and_the_list_price_stands_beside_it(tmp_path):
    prices = book(tmp_path, "discounts:\n  - {provider: openai, percent: 12.5, from: 2026-03-01, until: 2026-09-01, "
                            "source: contract 17}\n")
    # An eighth off 5,125,000: 4,484,375.
    days = ("2026-02-28T23:59:59", "2026-03-01", "2026-08-31T23:59:59", "2026-09-01")
    assert [costs(prices, day) for day in days] == [
        (5_125_000, 5_125_000), (4_484_375, 5_125_000), (4_484_375, 5_125_000), (5_125_000, 5_125_000)]
    paid = prices.find("openai", "gpt-4o", at("2026-04-01"))
    assert paid.source.startswith(f"{tmp_path}/p.yaml:2 contract 17: 12.5 % off genai-prices ")
    assert paid.version not in ("", prices.find_listed("openai", "gpt-4o", at("2026-04-01")).version)


def test_a_discount_is_exact_whatever_its_digits(tmp_path):
    prices = book(tmp_path, """\
prices:
  o: {m: [{from: 2026-01-01, kind: list, input: 0.1000000000000000000001, output: 7, usd_per_request: 1, source: page}]}
discounts: [{provider: o, percent: 33.333333333333333333, from: 2026-01-01, source: x}]
""", "m", "o")
    tier = prices.find("o", "m", at("2026-01-01")).tiers[0]
    assert tier.usd_per_mtok["output_text"] == Decimal("4.66666666666666666669")
    assert tier.usd_per_mtok["input_text"] == Decimal("0.066666666666666666667066666666666666666667")
    assert prices.find("o", "m", at("2026-01-01")).usd_per_request == Decimal("0.66666666666666666667")


OWN = """\
prices:
  o:
    m:
      - {from: 2026-01-01, kind: list, input: 4, output: 8, source: page}
      - {from: 2026-05-01, kind: list, input: 2, output: 4, source: page of May}
      - {from: 2026-07-01, input: 3, output: 6, source: contract 18}
      - {from: 2026-01-01, kind: list, service_tier: batch, input: 2, output: 4, source: page}
    gone: [{from: 2026-01-01, input: 1, output: 1, source: nothing public}]
discounts:
  - {provider: o, percent: 10, from: 2026-03-01, source: all}
  - {provider: o, model: "m*", percent: 20, from: 2026-04-01, until: 2026-06-01, service_tier: default, source: glob}
  - {provider: p, percent: 50, from: 2026-01-01, source: another provider}
"""


@pytest.mark.parametrize(("when", "tier", "contracted", "listed"), [
    ("2026-02-01", "default", 4_000_000, 4_000_000),
    ("2026-03-01", "default", 3_600_000, 4_000_000),  # 10 % for the provider
    ("2026-04-01", "default", 3_200_000, 4_000_000),  # 20 % for the model: they do not add up
    ("2026-04-01", "batch", 1_800_000, 2_000_000),  # of another service tier: 10 %
    ("2026-05-01", "default", 1_600_000, 2_000_000),  # 20 % of the new list price
    ("2026-06-01", "default", 1_800_000, 2_000_000),  # the glob's has ended
    ("2026-07-01", "default", 3_000_000, 2_000_000),  # a contracted price wins, also where it is the higher one
    ("2026-07-01", "batch", 1_800_000, 2_000_000),
])
def test_what_is_paid_and_what_is_listed_on_each_day(tmp_path, when, tier, contracted, listed):
    prices = book(tmp_path, OWN, "m", "o")
    assert costs(prices, when, "m", "o", tier, Usage(input_text=1000)) == (contracted, listed)


def test_without_a_public_price_there_is_no_list_price(tmp_path):
    prices = book(tmp_path, OWN, "m", "o")
    assert costs(prices, "2026-02-01", "gone", "o", usage=Usage(input_text=1000)) == (1_000_000, None)


def test_every_price_that_a_booking_may_name_is_in_the_list_of_all(tmp_path):
    prices = book(tmp_path, OWN, "m", "o")
    named = {price.version for day in ("2026-02-01", "2026-03-01", "2026-04-01", "2026-05-01", "2026-06-01",
                                       "2026-07-01") for find in (prices.find, prices.find_listed)
             for price in [find("o", "m", at(day))]}
    everything = [price.version for price in prices.all()]
    assert named < set(everything) and len(set(everything)) == len(everything)


def test_a_discount_reaches_what_is_listed_under_a_stripped_name(tmp_path):
    own = "discounts: [{provider: aws, model: 'amazon.nova*', percent: 50, from: 2026-01-01, source: x}]\n"
    (tmp_path / "p.yaml").write_text(own)
    (tmp_path / "c.yaml").write_text(CONFIG.format(tmp_path, "bedrock/amazon.nova-lite-v1:0", "aws").replace(
        "kind: openai", "kind: litellm"))
    paid, listed = costs(load_price_book(load(tmp_path / "c.yaml", {})), "2026-04-01", "bedrock/amazon.nova-lite-v1:0",
                         "aws", usage=Usage(output_text=2000))
    assert listed and paid == listed / 2


@pytest.mark.parametrize(("line", "field", "message"), [
    ("provider: o, percent: 0, from: 2026-01-01, source: x", "discounts[0].percent", "more than 0"),
    ("provider: o, percent: 101, from: 2026-01-01, source: x", "discounts[0].percent", "at most 100"),
    ("provider: o, percent: ten, from: 2026-01-01, source: x", "discounts[0].percent", "must be a number"),
    ("provider: o, percent: 5, from: 2026-01-01", "discounts[0].source", "source is missing"),
    ("provider: o, percent: 5, from: 2026-02-01, until: 2026-02-01, source: x", "discounts[0].until", "after from"),
    ("provider: o, percent: 5, from: 2026-01-01, source: x}, {provider: o, percent: 6, from: 2026-02-01, source: y",
     "discounts[1].from", "overlaps"),
    ("provider: o, percent: 5, from: 2026-01-01, source: x}, {provider: o, service_tier: flex, percent: 6, "
     "from: 2026-02-01, source: y", "discounts[1].from", "overlaps"),
    ("provider: o, percent: 5, since: 2026-01-01, from: 2026-01-01, source: x", "discounts[0].since", "unknown key"),
])
def test_a_discount_that_cannot_be_meant_is_refused_with_its_line(tmp_path, line, field, message):
    (tmp_path / "p.yaml").write_text(f"version: 1\ndiscounts:\n  [{{{line}}}]\n")
    with pytest.raises(ConfigError) as caught:
        read_operator_prices(tmp_path / "p.yaml")
    [problem] = [p for p in caught.value.problems if message in p.message]
    assert (problem.line, problem.field) == (3, field)


def test_discounts_that_follow_each_other_do_not_overlap(tmp_path):
    (tmp_path / "p.yaml").write_text("""\
discounts:
  - {provider: o, percent: 6, from: 2026-02-01, source: y}
  - {provider: o, percent: 5, from: 2026-01-01, until: 2026-02-01, source: x}
""")
    assert [one.percent for one in read_operator_prices(tmp_path / "p.yaml").discounts] == [6, 5]
