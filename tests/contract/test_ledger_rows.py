"""Entries become rows and come back; what they add to the rollups adds up.

`entry`, `on_api`, `intent` and `some_entries` serve the other files too.
"""

import random
import sqlite3
from dataclasses import replace
from itertools import count

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.core.entries import Intent, RequestEntry
from proxy.core.money import NS_PER_MINUTE, NS_PER_S
from proxy.core.usage import BUCKETS, Usage
from proxy.ledger.rows import REQUEST_COLUMNS, deltas, entry_of, row_of
from proxy.ledger.schema import ROLLUP_SUMS

T0 = 1_793_491_200 * NS_PER_S  # 2026-11-01T00:00Z
_numbers = count()


def entry(**changes):
    """One answer served by a GPU; every call another request."""
    number = next(_numbers)
    at = changes.pop("at_ns", T0)
    made = RequestEntry(
        request_id=f"req-{number}", attempt=1, final=True, started_ns=at, sent_ns=at, first_token_ns=at + NS_PER_S,
        ended_ns=at + 3 * NS_PER_S, endpoint="/v1/chat/completions", stream=True, route="chat", key_id="key_a",
        tags="app=chat,team=search", client_model="gpt-4o", backend="llama", backend_kind="gpu", model="llama-70b",
        status=200, end_reason="complete", usage=Usage(input_text=1000, cache_read=24, output_text=200),
        usage_source="upstream_final", output_tokens_delivered=200, api_nano=0, price_version="", marginal_nano=12_345,
        work_ns=2 * NS_PER_S, baseline_nano=4_530_000, baseline_model="gpt-4o", baseline_price_version="v1",
        baseline_cached_tokens=0, slo_met=True, reason="cheapest", decision='{"lambda": "0"}')
    return replace(made, **changes)


def on_api(**changes):
    return entry(**{"backend": "openai", "backend_kind": "api", "model": "gpt-4o", "api_nano": 4_530_000,
                    "work_ns": 0, "marginal_nano": 0, **changes})


def uses(journal):
    """(posted, pending) nano-dollars by scope, as the ledger has them."""
    with sqlite3.connect(journal.path) as connection:
        return {row[0]: row[1:] for row in connection.execute(
            "SELECT scope, posted_nano, pending_nano FROM budget_use")}


def intent(of, **changes):
    made = Intent(of.request_id, of.attempt, of.started_ns, of.route, of.key_id, of.tags, of.backend,
                  of.backend_kind, of.model, of.endpoint, 1000, 512, "v1")
    return replace(made, **changes)


def some_entries(seed, number):
    """Entries of every kind, spread over ten minutes."""
    rng = random.Random(seed)
    made = []
    for _ in range(number):
        at = T0 + rng.randrange(10 * NS_PER_MINUTE)
        kind = rng.choice((entry, entry, on_api))
        made.append(kind(
            at_ns=at, sent_ns=at + rng.randrange(10**9), ended_ns=at + rng.randrange(10**9, 150 * NS_PER_S),
            route=rng.choice(("chat", "code")), key_id=rng.choice(("key_a", "key_b", "")),
            tags=rng.choice(("", "app=chat", "app=mail,team=ops")), final=rng.random() < 0.9,
            status=rng.choice((200, 200, 200, 502)), slo_met=rng.choice((True, True, False, None)),
            end_reason=rng.choice(("complete", "complete", "client_abort", "upstream_error", "interrupted")),
            baseline_nano=rng.choice((None, rng.randrange(10**8))),
            usage_source=rng.choice(("upstream_final", "estimated"))))
    return [replace(one, api_nano=rng.choice((None, 0, 77))) if one.backend_kind == "api" else one for one in made]


nano = st.none() | st.integers(0, 10**15)


@given(st.builds(Usage, *[st.integers(0, 10**9)] * len(BUCKETS), consistent=st.booleans()), nano, nano,
       st.none() | st.booleans(), st.booleans(), st.text(alphabet=st.characters(exclude_categories=["Cs"])))
def test_a_row_gives_its_entry_back(usage, api, baseline, met, flag, text):
    made = entry(usage=usage, api_nano=api, baseline_nano=baseline, slo_met=met, final=flag, stream=flag, tags=text)
    assert entry_of(dict(zip(REQUEST_COLUMNS, row_of(made), strict=True))) == made


@pytest.mark.parametrize("changes", [
    {"api_nano": -1}, {"work_ns": 2**63}, {"marginal_nano": 1.5}, {"usage": Usage(input_text=-1)},
    {"sent_ns": 0}], ids=str)
def test_what_can_never_be_booked_right_is_refused(changes):
    with pytest.raises(ValueError):
        row_of(entry(**changes))


ALL_DIFFERENT = {
    **{name: 1000 + number for number, name in enumerate(
        ("attempt", "started_ns", "sent_ns", "first_token_ns", "ended_ns", "status", "output_tokens_delivered",
         "api_nano", "marginal_nano", "work_ns", "baseline_nano", "baseline_cached_tokens", "hold_nano",
         "internal_nano", "posted_nano"))},
    **{name: f"{name} of it" for name in (
        "endpoint", "route", "key_id", "tags", "client_model", "backend", "backend_kind", "model", "end_reason",
        "usage_source", "price_version", "baseline_model", "baseline_price_version", "reason", "decision")},
    "usage": Usage(*range(1, len(BUCKETS) + 1)),
}


@pytest.mark.parametrize("flags", [{"final": True, "stream": False, "slo_met": False, "consistent": True},
                                   {"final": False, "stream": True, "slo_met": True, "consistent": False},
                                   {"final": True, "stream": True, "slo_met": None, "consistent": True}])
def test_every_column_holds_the_field_of_its_name(flags):
    flags = dict(flags)
    usage = replace(ALL_DIFFERENT["usage"], consistent=flags.pop("consistent"))
    made = entry(**{**ALL_DIFFERENT, **flags, "usage": usage})
    for name, value in zip(REQUEST_COLUMNS, row_of(made), strict=True):
        holder = usage if name in BUCKETS else made
        wanted = usage.consistent if name == "usage_consistent" else getattr(holder, name)
        assert value == wanted and type(value) is not bool, name
    assert entry_of(dict(zip(REQUEST_COLUMNS, row_of(made), strict=True))) == made


def test_each_bucket_is_summed_under_its_name():
    totals = summed([entry(usage=ALL_DIFFERENT["usage"])] * 3)
    assert [totals[bucket] for bucket in BUCKETS] == [3 * number for number in range(1, len(BUCKETS) + 1)]


def summed(entries):
    totals = dict.fromkeys(ROLLUP_SUMS, 0)
    for sums in deltas(entries).values():
        for name, amount in zip(ROLLUP_SUMS, sums, strict=True):
            totals[name] += amount
    return totals


@given(st.integers(0, 10**6))
def test_rollups_hold_every_token_dollar_and_nanosecond_once(seed):
    entries = some_entries(seed, 30)
    totals = summed(entries)
    assert totals["requests"] == len(entries)
    assert totals["finals"] == sum(one.final for one in entries)
    for bucket in BUCKETS:
        assert totals[bucket] == sum(getattr(one.usage, bucket) for one in entries)
    assert totals["api_nano"] == sum(one.api_nano or 0 for one in entries)
    assert totals["api_unknown"] == sum(one.api_nano is None for one in entries)
    assert totals["work_ns"] == sum(one.work_ns for one in entries if not one.failed_work)
    assert totals["failed_work_ns"] == sum(one.work_ns for one in entries if one.failed_work)
    billed = [one for one in entries if one.final and one.succeeded]
    assert totals["baseline_nano"] == sum(one.baseline_nano or 0 for one in billed)
    assert totals["baseline_unknown"] == sum(one.baseline_nano is None for one in billed)


def test_an_unknown_baseline_stands_at_what_the_api_cost_and_saves_nothing():
    totals = summed([on_api(api_nano=900, baseline_nano=None), entry(baseline_nano=None)])
    assert (totals["baseline_nano"], totals["baseline_unknown"], totals["baseline_unknown_nano"]) == (0, 2, 900)


def test_failed_and_superseded_attempts_have_no_baseline():
    totals = summed([entry(status=502, end_reason="upstream_error"), on_api(final=False, api_nano=5)])
    assert (totals["baseline_nano"], totals["baseline_unknown"], totals["api_retry_nano"]) == (0, 0, 5)


def test_work_is_booked_in_the_minutes_it_was_in_flight_and_money_when_it_ended():
    made = entry(sent_ns=T0 + 30 * NS_PER_S, ended_ns=T0 + 120 * NS_PER_S, work_ns=90)
    minute = T0 // NS_PER_MINUTE
    work, ended = ROLLUP_SUMS.index("work_ns"), ROLLUP_SUMS.index("requests")
    by_minute = {key[0] - minute: (sums[work], sums[ended]) for key, sums in deltas([made]).items()}
    assert by_minute == {0: (30, 0), 1: (60, 0), 2: (0, 1)}
