"""The acceptance run's own arithmetic: what it compares must be able to differ."""

from __future__ import annotations

from tests.acceptance import checks

HOUR_NS = 3600 * 10**9


def row(request_id, source="upstream_final", api_nano=10, backend="openai"):
    return {"request_id": request_id, "backend": backend, "usage_source": source, "api_nano": api_nano}


def entry(request_id, billed=10):
    return {"request_id": request_id, "billed_nano_usd": billed}


def test_an_upstream_entry_without_a_row_of_its_own_is_an_orphan():
    verdict = checks.Verdict()
    books = {"openai": [entry("a", 5), entry("a", 5), entry("b", 5), entry("c", 5), entry("a", 0)],
             "llama": [entry(checks.PROBE, 5), entry("c", 5)]}
    checks.nothing_unbooked([row("a"), row("b"), row("c", backend="llama")], books, verdict)
    assert verdict.orphans == 2 and len(verdict.notes) == 2


def test_only_what_had_to_be_estimated_explains_a_difference_of_the_bill():
    rows = [row("a"), row("b", "estimated", 7), row("c", "none", None)]
    entries = [entry("a"), entry("b"), entry("c", 4)]
    assert checks.unreported_nano(rows, entries, billed_nano=24, reported_nano=17) == 0
    assert checks.unreported_nano(rows, entries, billed_nano=24, reported_nano=18) == 1
    assert checks.unreported_nano([row("a", api_nano=9)], [entry("a")], billed_nano=10, reported_nano=9) == 1


def test_the_rate_card_is_computed_from_the_configuration():
    backends = {"llama": {"gpu": {"usd_per_hour": "1.39", "from": "1970-01-01T01:00:00+00:00"}}, "openai": {}}
    assert checks.gpu_nano(backends, 0, 2 * HOUR_NS) == 1_390_000_000
