"""The fairness of the baseline, read from a ledger: the same from hours that were summed up and from minutes."""

from dataclasses import replace
from decimal import Decimal

import pytest

from proxy.config.versions import versioned
from proxy.core.entries import COMPARED, CONTROL, RequestEntry
from proxy.core.money import NS_PER_HOUR, NS_PER_S
from proxy.core.pricing import Price, Tier
from proxy.core.usage import Usage
from proxy.ledger import hours
from proxy.reports import view
from tests.support.ledgers import booked, open_books

T0 = 1_772_323_200 * NS_PER_S  # 2026-03-01T00:00Z
PRICE = versioned(Price("openai", "gpt-4o", (Tier({"input_text": Decimal("2.5"), "output_text": Decimal(10)}),)))


def entry(number, *, trial, api=False, size=4_000):
    """Our engines count a token for 5 bytes of prompt and write 100 tokens; the API for 4, and writes 150."""
    at = T0 + number % 12 * NS_PER_HOUR + number * NS_PER_S
    usage = Usage(input_text=size // (4 if api else 5), output_text=(150 if api else 100) + number % 3 - 1)
    cost = PRICE.cost_nano(usage)
    return RequestEntry(
        request_id=f"r{number}-{api}", attempt=1, final=True, started_ns=at, sent_ns=at, first_token_ns=at,
        ended_ns=at + NS_PER_S, endpoint="/v1/chat/completions", stream=True, route="chat", key_id="k", tags="",
        client_model="gpt-4o", backend="api" if api else "llama", backend_kind="api" if api else "gpu",
        model="gpt-4o" if api else "llama", status=200, end_reason="complete", usage=usage,
        usage_source="upstream_final", output_tokens_delivered=10, api_nano=cost if api else 0,
        price_version=PRICE.version if api else "", marginal_nano=0, work_ns=0, baseline_nano=cost,
        baseline_model="gpt-4o", baseline_price_version=PRICE.version, baseline_cached_tokens=0, slo_met=True,
        reason="control_group" if api else "cheaper_at_the_margin", prompt_bytes=size, trial=trial)


@pytest.fixture(scope="module")
def url(tmp_path_factory):
    return booked(f"sqlite:///{tmp_path_factory.mktemp('fair')}/ledger.db", [
        *(entry(number, trial=COMPARED) for number in range(600)),
        *(entry(number, trial=CONTROL, api=True) for number in range(60)),
        replace(entry(900, trial=0), prompt_bytes=0, usage=Usage(input_text=9, output_text=9)),
        replace(entry(901, trial=COMPARED), final=False, status=502, end_reason="upstream_error", baseline_nano=None)],
        prices=[PRICE])


def read(url):
    (found,) = open_books(url, T0 - NS_PER_HOUR, T0 + 14 * NS_PER_HOUR).fairness
    return found


def test_both_ratios_and_what_they_bear_on(url):
    found = read(url)
    assert found.tokens.value == pytest.approx(1.25) and found.tokens.low == pytest.approx(found.tokens.high)
    assert found.length.value == pytest.approx(1.5) and found.length.low < 1.5 < found.length.high < 1.51
    assert (found.route, found.requests, found.length.of, found.tokens.of) == ("chat", 601, 60, 12)
    # Split by what the cell's tokens cost, the one failed attempt's among them.
    assert found.input_nano == pytest.approx(600 * 800 * 2500, rel=0.002)
    assert found.input_nano + found.output_nano == sum(
        PRICE.cost_nano(Usage(input_text=800, output_text=100 + number % 3 - 1)) for number in (*range(600), 900))
    low, high = found.effect[1:]
    assert low < found.effect[0] < high


def test_the_range_of_the_saving_says_so(url):
    books = open_books(url, T0 - NS_PER_HOUR, T0 + 14 * NS_PER_HOUR)
    (doubt,) = view.spread(books).doubts
    assert "prompt tokens × 1.250" in doubt.count and "answers × 1.500 (1.498 to 1.502, control group)" in doubt.count
    assert (doubt.low.nano, doubt.high.nano) == (0, read(url).effect[2])


def test_hours_that_were_summed_up_say_the_same(url):
    before = read(url)
    assert hours.close(url, T0 + 7 * NS_PER_HOUR) > 0
    assert read(url) == before
    hours.close(url, T0 + 50 * NS_PER_HOUR)
    assert read(url) == before
