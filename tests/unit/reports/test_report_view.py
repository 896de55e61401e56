"""What pages show is what the statement says: both savings, the waterfall, spans of time, short lists, ranges."""

import datetime as dt
from dataclasses import replace
from decimal import Decimal
from zoneinfo import ZoneInfo

import pytest
from test_report_statement import CARD, DAY, ENTRIES, T0
from test_report_statement import url as url  # the ledger of those tests

from proxy.core.marginal import BackendSums, marginal
from proxy.core.money import NS_PER_MINUTE, nano
from proxy.core.savings import UNALLOCATED, GroupRow, IdentityBroken, Statement
from proxy.reports import view
from proxy.reports.books import spans_of
from proxy.reports.figures import Amount, money, percent, printable, unit
from proxy.reports.statement import build, epoch_ns
from proxy.reports.view import AMOUNTS
from tests.support.ledgers import open_books

EMPTY = GroupRow("", *[0] * 11)
BERLIN = ZoneInfo("Europe/Berlin")


@pytest.fixture(scope="module")
def books(url):
    return open_books(url, T0, T0 + 3 * DAY, time_zone="UTC", tag="tag:team")


def test_the_marginal_saving_is_what_own_gpus_displaced_less_what_varied(books):
    on_gpu = [one for one in ENTRIES if one.backend_kind == "gpu"]
    at_api = [one for one in ENTRIES if one.backend_kind == "api"]
    of = books.marginal
    assert of.displaced == sum(one.baseline_nano or 0 for one in on_gpu)
    assert of.varying == sum(one.marginal_nano for one in on_gpu)
    assert of.retries == sum(one.api_nano or 0 for one in at_api if not one.final) > 0
    assert of.saving == of.displaced - of.varying - of.retries > 0 > of.fully_loaded


def test_both_savings_are_joined_by_an_identity_in_every_period(url, books):
    at_api = [one for one in ENTRIES if one.backend_kind == "api" and one.final]
    charged = sum((one.baseline_nano if one.baseline_nano is not None else one.api_nano) - (one.api_nano or 0)
                  for one in at_api)
    assert books.marginal.api_difference == charged
    assert books.marginal.fully_loaded == books.statement.total.savings
    halves = [open_books(url, *period) for period in ((T0, T0 + DAY + 7 * NS_PER_MINUTE),
                                                      (T0 + DAY + 7 * NS_PER_MINUTE, T0 + 3 * DAY))]
    for name in ("saving", "api_difference", "paid_anyway", "fully_loaded"):
        assert sum(getattr(half.marginal, name) for half in halves) == getattr(books.marginal, name)


def test_a_marginal_saving_that_does_not_come_to_the_net_one_is_not_shown(books):
    wrong = [replace(books.backends[0], baseline=books.backends[0].baseline + 1), *books.backends[1:]]
    with pytest.raises(IdentityBroken, match="marginal saving: the backends add up to"):
        marginal(books.statement, wrong)
    wrong = [replace(one, api=one.api + (one.backend == "openai")) for one in books.backends]
    with pytest.raises(IdentityBroken, match="by way of the marginal saving"):
        marginal(books.statement, wrong)
    wrong = [replace(books.backends[0], retries=books.backends[0].retries + 1), *books.backends[1:]]
    with pytest.raises(IdentityBroken, match="retries"):
        marginal(books.statement, wrong)


def test_idle_time_says_how_much_of_it_nobody_watched(books):
    def note(statement):
        return next(step.note for step in view.waterfall(statement) if step.name == "gpu_idle")

    minutes = books.statement.coverage["unobserved_minutes"]
    assert note(books.statement) == f"{minutes:,} minutes of it unwatched" and minutes > 1_000
    assert note(replace(books.statement, backends={})) == ""


@pytest.mark.parametrize("steps", [lambda books: view.waterfall(books.statement), view.bridge])
def test_a_waterfall_ends_where_its_steps_lead(books, steps):
    at = None
    for step in steps(books):
        if step.kind == "total":
            assert at in (None, step.amount.nano), step
            at = step.amount.nano
        else:
            at += step.amount.nano
            assert (step.kind == "cost") == (step.amount.nano <= 0 and step.kind != "gain")
    assert at == books.statement.total.savings < 0


def test_a_share_of_next_to_nothing_is_not_shown(books):
    one = view.lines(books.by["key"])[0]
    tiny = replace(one, baseline=view.Amount(99), actual=view.Amount(10_000), savings=view.Amount(99 - 10_000))
    assert tiny.percent is None and replace(tiny, baseline=view.Amount(100)).percent is not None


def test_what_contracts_owe_anyway_is_not_called_a_price(books):
    total = books.statement.total
    assert view.contracted(replace(total, baseline=1_001, baseline_list=1_000)).startswith("Owed by contracts anyway")
    assert view.contracted(replace(total, baseline=999, baseline_list=1_000)) == "Contracted prices"


def test_spans_are_whole_and_add_up(books):
    found, total = view.span_lines(books), books.statement.total
    assert [one.name for one in found] == ["2026-11-01", "2026-11-02", "2026-11-03"]
    for name in AMOUNTS:
        assert sum(getattr(one, name).nano for one in found) == getattr(total, name)


def test_lines_add_up_also_when_most_are_joined(books):
    found = view.lines(books.by["key"])
    short, rest = view.shortened(found, 2)
    others = view.joined(rest)
    assert len(short) == 1 and others.label == "2 others" and not found[-1].allocated
    for name in AMOUNTS:
        whole = getattr(books.statement.total, name)
        assert sum(getattr(one, name).nano for one in found) == whole
        assert sum(getattr(one, name).nano for one in (*short, others, found[-1])) == whole
    assert view.shortened(found, 3) == (found[:-1], []) and view.joined([]) is None


def test_days_become_weeks_months_and_years_when_there_are_too_many():
    def at(text):
        return epoch_ns(dt.datetime.fromisoformat(text).replace(tzinfo=BERLIN))

    assert [spans_of(at("2026-10-01"), at(to), BERLIN)[0] for to in (
        "2026-11-01", "2026-11-02", "2027-04-01", "2027-06-01", "2028-12-01", "2029-06-01")] == [
            "day", "week", "week", "month", "month", "year"]
    _, cuts = spans_of(at("2026-10-01"), at("2026-11-02"), BERLIN)
    assert [name for name, _, _ in cuts] == ["2026-W40", "2026-W41", "2026-W42", "2026-W43", "2026-W44"]
    assert [one[2] for one in cuts[:-1]] == [one[1] for one in cuts[1:]]
    assert (cuts[0][1], cuts[-1][2]) == (at("2026-10-01") // NS_PER_MINUTE, at("2026-11-02") // NS_PER_MINUTE)


def test_breakeven_is_where_what_was_displaced_pays_for_the_gpus(books):
    llama, own = (one for one in view.backend_lines(books) if one.name in ("llama", "own"))
    share = books.statement.backends["llama"]
    used = share.serving + share.failed
    assert llama.utilization == Decimal(round(1000 * used / share.gpu)).scaleb(-1)
    assert llama.breakeven > 100 and llama.pays is False, "three days of rent, an hour of work"
    assert float(llama.breakeven) == pytest.approx(100 * used / llama.baseline.nano, rel=1e-3)
    assert own.cost.nano == books.statement.backends["own"].gpu + books.statement.backends["own"].energy


def test_an_elastic_gpu_and_an_api_have_no_breakeven(books):
    found = {one.name: one for one in view.backend_lines(books)}
    assert found["burst"].breakeven is None and found["burst"].pays is None
    assert found["openai"].breakeven is found["openai"].utilization is None
    assert sum(one.cost.nano for one in found.values()) + books.statement.total.overhead == books.statement.total.actual


def test_units_are_fully_loaded(books):
    whole, baseline, gpus, apis = view.units(books)
    total = books.statement.total
    assert whole.per_million == round(Decimal(total.actual) * 1_000_000 / total.tokens)
    assert baseline.per_request == round(Decimal(total.baseline) / total.requests)
    assert gpus.cost.nano + apis.cost.nano + total.overhead == total.actual
    assert gpus.requests + apis.requests == total.requests


def test_the_marginal_savings_of_groups_add_up_in_every_grouping(books):
    for by in books.by.values():
        assert sum(one.marginal_saving.nano for one in view.lines(by)) == books.marginal.saving
    assert sum(one.marginal_saving.nano for one in view.span_lines(books)) == books.marginal.saving


def test_a_loaded_cost_holds_a_share_of_what_belongs_to_nobody(books):
    for by in books.by.values():
        found = view.lines(by)
        assert sum(one.loaded.nano for one in found) == books.statement.total.actual
        assert found[-1].loaded.nano == 0, "nothing is nobody's any more"
    by_backend = {one.name: one for one in view.lines(books.by["backend"])}
    total = books.statement.total
    nobodys_gpu = total.gpu_idle + total.gpu_foreign + total.gpu_startup
    assert by_backend["openai"].loaded.nano < by_backend["openai"].actual.nano + total.overhead
    assert by_backend["llama"].loaded.nano > by_backend["llama"].actual.nano + nobodys_gpu // 4


def test_what_contracts_owe_is_shared_by_what_apis_charged():
    rows = (replace(EMPTY, group="a", api=30, baseline=10), replace(EMPTY, group="b", api=10, baseline=90),
            replace(EMPTY, group=UNALLOCATED, allocated=False, api=400, contracts=400, gpu_idle=7))
    total = replace(EMPTY, group="total", api=440, baseline=100, contracts=400, gpu_idle=7)
    found = {one.name: one.loaded.nano for one in view.lines(Statement(0, 1, "route", total, rows))}
    assert found == {"a": 330, "b": 110, UNALLOCATED: 7}, "no group used a GPU: its idle time stays nobody's"


def test_the_range_is_as_wide_as_its_doubts_and_open_where_one_has_no_bound(books):
    found, total = view.spread(books), books.statement.total
    late = sum(one.baseline_nano or 0 for one in ENTRIES if one.final and one.succeeded and one.slo_met is False)
    estimated = ENTRIES[-1].baseline_nano
    assert (found.net.nano, found.low.nano, found.high.nano) == (
        total.savings, total.savings - late - estimated, total.savings + estimated)
    assert found.open_low and found.open_high
    assert {one.name for one in found.doubts} == {"late", "estimated", "unpriced", "baseline"}


def test_an_estimate_that_an_api_answered_moves_baseline_and_bill_alike(books):
    api = BackendSums("openai", False, estimated_swing=100, estimated_api=900, estimated_baseline=1000)
    own = BackendSums("llama", True, estimated_swing=70, estimated_baseline=70)
    statement = replace(books.statement, unpriced_backends=("ghost",),
                        total=replace(books.statement.total, baseline_late=0, unpriced=0, unknown_baseline=0))
    found = view.spread(replace(books, by={"route": statement}, backends=(api, own)))
    assert (found.net.nano - found.low.nano, found.high.nano - found.net.nano) == (170, 170)
    assert found.open_low and not found.open_high and found.doubts[-1].count == "ghost"


def test_input_and_output_share_a_cost_as_they_would_at_the_baselines_price():
    rows = [BackendSums("a", True, 3, input_tokens=1_000_000, output_tokens=500_000, input_worth=4, output_worth=12),
            BackendSums("b", False, 1, input_tokens=1_000_000, output_tokens=0)]
    unit = view._unit("actual", "All", rows, nano("8"), 2)
    assert (unit.per_million_input, unit.per_million_output) == (nano("1"), nano("12"))
    assert unit.per_million_input * 2 + unit.per_million_output // 2 == unit.cost.nano
    assert view._unit("api", "APIs", rows[1:], nano("8"), 2).per_million_input is None, "no price is known"


def test_amounts_are_written_for_people():
    assert [money(one) for one in (0, -1, 1_234_565_000_000, -1_234_575_000_000)] == [
        "0.00", "0.00", "1,234.56", "−1,234.58"]
    assert str(Amount(nano("-0.5"))) == "−0.50"
    assert [Amount(one).signed for one in (1, nano("1"), nano("-1"))] == ["0.00", "+1.00", "−1.00"]
    assert [unit(one) for one in (None, 0, nano("12.3"), nano("0.41234"), nano("0.000205"), 7)] == [
        "–", "0.00", "12.30", "0.412", "0.000205", "0.000000007"]
    assert [percent(one, sign=True) for one in (None, Decimal("1.5"), Decimal("-1.5"))] == ["–", "+1.5 %", "−1.5 %"]
    assert printable("a\x1b[31m\u202e\u2066b\x00\nק") == "a?[31m??b??ק" and len(printable("x" * 500)) == 120


def test_the_statement_of_a_grouping_is_the_one_the_command_shows(url, books):
    assert books.by["tag:team"] == build(url, T0, T0 + 3 * DAY, by="tag:team")
    assert {line.name for line in CARD if line.kind == "gpu"} == books.statement.backends.keys()
    assert books.spans[0].statement.total.gpu == nano("1.39") * 24 + nano("0.31") * 24 + (
        books.spans[0].statement.backends["burst"].gpu)
