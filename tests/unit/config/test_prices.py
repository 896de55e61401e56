"""Prices: the package's, the operator's over them, dated and tiered, against figures worked out by hand."""

from __future__ import annotations

import datetime as dt
from decimal import Decimal
from pathlib import Path

import pytest

from proxy.config import ConfigError, load, warnings
from proxy.config.fields import epoch_ns
from proxy.config.operator_prices import read_operator_prices
from proxy.config.prices import baseline_price, load_price_book, package_prices
from proxy.core.pricing import Price, PriceBook
from proxy.core.usage import Usage

CONFIG = """\
backends:
  llama:
    kind: vllm
    url: http://10.0.0.5:8000
    model: llama-8b
    gpu: {{type: L4, usd_per_hour: 0.70, from: 2026-01-01}}
  api: {{kind: {kind}, model: {model}{more}}}
routes:
  chat: {{backends: [llama, api], baseline: api}}
"""


def at(text: str) -> int:
    return epoch_ns(dt.datetime.fromisoformat(text).replace(tzinfo=dt.UTC))


def book(tmp_path: Path, kind: str = "openai", model: str = "gpt-4o", more: str = "", own: str | None = None):
    text = CONFIG.format(kind=kind, model=model, more=more)
    if own is not None:
        (tmp_path / "p.yaml").write_text(own)
        text = f"prices: {tmp_path}/p.yaml\n" + text
    (tmp_path / "c.yaml").write_text(text)
    settings = load(tmp_path / "c.yaml", {})
    return settings, load_price_book(settings)


def found(pair, when: str = "2026-11-01", tier: str = "default") -> Price:
    settings, prices = pair
    price = baseline_price(settings, prices, settings.routes["chat"], at(when), service_tier=tier)
    assert price is not None
    return price


def test_gpt_4o_costs_what_openai_says(tmp_path):
    price = found(book(tmp_path))
    assert price.tiers[0].usd_per_mtok == {
        "input_text": Decimal("2.50"), "cache_read": Decimal("1.25"), "output_text": Decimal(10)}
    # 1,000 x 2.50 + 500 x 1.25 + 200 x 10 = 5,125 millionths of a dollar
    assert price.cost_nano(Usage(input_text=1000, cache_read=500, output_text=200)) == 5_125_000
    assert price.source.startswith("genai-prices ") and price.source.endswith(" openai/gpt-4o")
    assert len(price.version) == 12 and int(price.version, 16)


@pytest.mark.parametrize(("kind", "model", "more", "provider", "listed"), [
    ("openai", "gpt-4o-2024-08-06", "", "openai", "openai/gpt-4o"),
    ("anthropic", "claude-sonnet-4-5-20250929", "", "anthropic", "anthropic/claude-sonnet-4-5"),
    ("openai", "gpt-4o", ", url: https://me.openai.azure.com", "azure", "openai/gpt-4o"),
    ("openai", "gpt-4o", ", url: https://egress.internal, provider: azure", "azure", "openai/gpt-4o"),
    ("litellm", "openai/gpt-4o", "", "openai", "openai/gpt-4o"),
    ("litellm", "gemini/gemini-2.5-pro", "", "google", "google/gemini-2.5-pro"),
])
def test_a_model_is_found_under_its_dated_prefixed_and_resold_names(tmp_path, kind, model, more, provider, listed):
    price = found(book(tmp_path, kind, model, more))
    assert (price.provider, price.model) == (provider, model)
    assert price.source.endswith(" " + listed)


def test_an_unknown_model_has_no_price_and_a_warning(tmp_path):
    settings, prices = book(tmp_path, model="gpt-of-tomorrow")
    assert baseline_price(settings, prices, settings.routes["chat"], at("2026-11-01")) is None
    told = [p for p in warnings(settings, prices) if p.field == "backends.api.model"]
    assert len(told) == 1 and "openai/gpt-of-tomorrow" in told[0].message and told[0].line == 7


def test_a_long_prompt_is_billed_whole_at_the_long_price(tmp_path):
    price = found(book(tmp_path, model="gpt-5.4"))
    assert [tier.above_input_tokens for tier in price.tiers] == [0, 272_000]
    # 272,000 x 2.50 + 1,000 x 15 = 695,000 millionths; one token more: 272,001 x 5 + 1,000 x 22.50 = 1,382,505
    assert price.cost_nano(Usage(input_text=272_000, output_text=1000)) == 695_000_000
    assert price.cost_nano(Usage(input_text=272_001, output_text=1000)) == 1_382_505_000


def test_batch_is_a_service_tier_of_its_own(tmp_path):
    pair = book(tmp_path)
    assert found(pair, tier="batch").tiers[0].usd_per_mtok["output_text"] == 5
    assert pair[1].find("openai", "gpt-4o", at("2026-11-01"), "no-such-tier") is None


OWN = """\
prices:
  openai:
    gpt-4o:
      - {from: 2026-03-01, input: 2.25, cached_input: 1.125, output: 9, source: contract 17}
      - {from: 2026-06-01, input: 0, output: 0, source: a gift}
      - from: 2026-09-01
        source: contract 18
        input: 0.1000000000000000000001
        output: "8.00"
        usd_per_request: 0.01
        tiers: [{above_input_tokens: 1000, input: 0.2}]
"""


def test_the_operators_price_wins_from_its_day_on(tmp_path):
    pair = book(tmp_path, own=OWN)
    thousand = Usage(input_text=1000, cache_read=1000, output_text=1000)
    costs = {when: found(pair, when).cost_nano(thousand)
             for when in ("2026-02-28", "2026-03-01", "2026-05-31", "2026-06-01")}
    assert costs == {"2026-02-28": 13_750_000, "2026-03-01": 12_375_000, "2026-05-31": 12_375_000, "2026-06-01": 0}
    assert found(pair, "2026-03-01").source == f"{tmp_path}/p.yaml:4 contract 17"
    assert found(pair, "2026-11-01", "batch").source.startswith("genai-prices"), "other tiers stay as listed"


def test_a_price_is_exactly_what_is_written_and_a_tier_changes_what_it_names(tmp_path):
    price = found(book(tmp_path, own=OWN))
    assert price.tiers[0].usd_per_mtok["input_text"] == Decimal("0.1000000000000000000001")
    assert price.tiers[1].usd_per_mtok == {"input_text": Decimal("0.2"), "output_text": Decimal(8)}
    # 2,000 x 0.2 + 100 x 8 = 1,200 millionths, and a cent for the request
    assert price.cost_nano(Usage(input_text=2000, output_text=100)) == 1_200_000 + 10_000_000


def test_own_prices_reach_dated_names_through_a_glob_and_exact_names_come_first(tmp_path):
    own = """\
prices:
  openai:
    "gpt-4o*": [{from: 2026-01-01, input: 7, output: 7, source: glob}]
    gpt-4o: [{from: 2026-01-01, input: 3, output: 3, source: exact}]
  aws:
    nova: [{from: 2026-01-01, input: 1, output: 1, source: stripped}]
"""
    assert found(book(tmp_path, own=own)).tiers[0].usd_per_mtok["input_text"] == 3
    dated = found(book(tmp_path, model="gpt-4o-2024-08-06", own=own))
    assert (dated.model, dated.tiers[0].usd_per_mtok["input_text"]) == ("gpt-4o-2024-08-06", 7)
    assert found(book(tmp_path, "litellm", "bedrock/nova", own=own)).model == "bedrock/nova"


def test_a_version_changes_with_the_price_and_with_nothing_else(tmp_path):
    def version(line: str) -> str:
        (tmp_path / "v.yaml").write_text(f"prices: {{o: {{m: [{{from: 2026-01-01, {line}}}]}}}}")
        return read_operator_prices(tmp_path / "v.yaml").all()[0].version
    first = version("input: 2.5, output: 10, source: a")
    assert first == version("output: 10.0, input: 2.50, source: b")
    assert first != version("input: 2.51, output: 10, source: a")


def test_a_backend_that_passes_names_on_knows_every_name_of_its_provider(tmp_path):
    settings, prices = book(tmp_path, model='"*"')
    route = settings.routes["chat"]
    for name in ("gpt-4o", "gpt-4o-2024-08-06", "gpt-4o-mini"):
        assert baseline_price(settings, prices, route, at("2026-11-01"), name) is not None
    assert baseline_price(settings, prices, route, at("2026-11-01")) is None


@pytest.mark.parametrize(("line", "field", "message"), [
    ("input: 25000, output: 1, source: x", "prices.o.m[0].input", "over 10,000 USD"),
    ("input: -1, output: 1, source: x", "prices.o.m[0].input", "must not be negative"),
    ("input: 0.0000025, output: 1, source: x", "prices.o.m[0].input", "under 0.0001"),
    ("input: free, output: 1, source: x", "prices.o.m[0].input", "must be a number"),
    ("input: .nan, output: 1, source: x", "prices.o.m[0].input", "must be a number"),
    ("source: x", "prices.o.m[0]", "needs input or output"),
    ("input: 1, output: 1", "prices.o.m[0].source", "source is missing"),
    ("input: 1, ouput: 1, source: x", "prices.o.m[0].ouput", "unknown key"),
    ("input: 1, source: x, tiers: [{above_input_tokens: 5}, {above_input_tokens: 5}]", "prices.o.m[0].tiers", "twice"),
    ("input: 1, source: x}, {from: 2026-01-01, input: 2, source: x", "prices.o.m[1].from", "same time"),
    ("input: 1, source: sk-canary3f9a1c0123456789", "prices.o.m[0].source", "looks like a secret"),
])
def test_a_price_that_cannot_be_meant_is_refused(tmp_path, line, field, message):
    (tmp_path / "p.yaml").write_text(f"prices:\n  o:\n    m:\n      [{{from: 2026-01-01, {line}}}]\n")
    with pytest.raises(ConfigError) as caught:
        read_operator_prices(tmp_path / "p.yaml")
    [problem] = [p for p in caught.value.problems if message in p.message]
    assert (problem.line, problem.field) == (4, field)
    assert "3f9a1c" not in str(caught.value)


def test_every_price_of_the_package_is_taken_as_the_package_computes_it():
    """Our entries against the package's own arithmetic, for all OpenAI and Anthropic models, on three days."""
    from genai_prices import Usage as TheirUsage
    from genai_prices.data import providers

    compared = 0
    for provider in (p for p in providers if p.id in ("openai", "anthropic", "deepseek", "google")):
        for model in provider.models:
            ours = PriceBook({(provider.id, model.id): package_prices(provider.id, model.id)})
            owner = provider.find_model(model.id, all_providers=providers)
            for day in ("2025-07-01", "2026-08-20", "2026-11-20"):
                price = ours.find(provider.id, model.id, at(day))
                if price is None or price.cost_nano(Usage(input_text=1, output_text=1)) is None:
                    continue
                noon = dt.datetime.fromisoformat(day + "T20:00:00+00:00")
                for tokens in (1000, 300_000):
                    theirs = owner.calc_price(TheirUsage(input_tokens=tokens, output_tokens=500), provider,
                                              genai_request_timestamp=noon).total_price
                    assert price.cost_nano(Usage(input_text=tokens, output_text=500)) == round(theirs * 10**9), (
                        provider.id, model.id, day, tokens)
                    compared += 1
    assert compared > 500


def test_prices_by_the_hour_are_taken_at_their_lowest():
    from genai_prices.data import providers

    for provider in providers:
        for model in provider.models:
            conditional = model.prices if isinstance(model.prices, list) else []
            hourly = [c for c in conditional if hasattr(c.constraint, "start_time")]
            if hourly and provider.find_model(model.id) is model:
                last = [p for p in package_prices(provider.id, model.id) if p.service_tier == "default"][-1]
                assert all(last.tiers[0].usd_per_mtok["input_text"] <= c.prices.input_mtok for c in hourly), model.id
