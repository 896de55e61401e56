"""What the next request is billed by where that depends on how much was used: by the ledger, so restarts and other
workers change nothing; and each amount can be computed again."""

from __future__ import annotations

import csv
import io
import re
from dataclasses import replace
from decimal import Decimal

import pytest
from test_baselines import CONFIG, PRICES, TEXT, Books, ns

from proxy.core.contracts import card
from proxy.core.money import nano
from proxy.ledger import hours, standing, store
from proxy.ledger.journal import Journal
from proxy.ledger.verify import verify
from proxy.reports import view
from proxy.reports.audit import audit
from proxy.reports.focus.columns import VERSIONS
from proxy.reports.focus.export import Export
from proxy.reports.focus.writers import write_csv
from proxy.reports.render import print_table, to_dict
from proxy.reports.statement import GROUPS, build
from proxy.server.planning import api_usd
from proxy.server.standing import REACHING_KEPT
from tests.support.focus_model import problems
from tests.support.ledgers import open_books

# m at 3 / 6 from August on: a request of 1,000 + 100 tokens is 3,600,000. n at 1 / 2: 1,200,000.
VOLUME = """\
contracts:
  - {provider: o, model: n, kind: volume, from: 2026-01-01, source: contract 20, steps: [
      {above_tokens: 2200, percent: 10}, {above_tokens: 5500, percent: 50}]}
"""
RESERVE = """\
contracts:
  - {provider: o, model: m, kind: provisioned, from: 2026-01-01, source: contract 21, usd_per_hour: 5,
     tokens_per_minute: 2000}
"""
OTHER_BASELINE = ("baseline: api}}\n  lost", "baseline: other}}\n  lost")  # of route chat: n instead of m


class Gateway:
    """A gateway's books and its ledger, request by request."""

    def __init__(self, folder, contracts: str, *, baseline_n: bool = True) -> None:
        config = CONFIG.replace(*OTHER_BASELINE) if baseline_n else CONFIG
        self.folder, self.url = folder, f"sqlite:///{folder}/ledger.db"
        self.books = Books(folder, PRICES + contracts, config)
        self.number = 0

    async def begin(self, now: str) -> None:
        """As at the start of a process."""
        async with Journal(self.url) as journal:
            for price in self.books.prices.all():
                await journal.record_price(price)
        await self.look(now)

        async with Journal(self.url) as journal:
            await journal.record_rates(card(self.books.prices.contracts()), ns(now), complete=True)

    async def look(self, now: str) -> None:
        await self.books.planner.standings.look(self.url, ns(now))

    async def serve(self, when: str, backend: str, *, book: bool = True):
        self.number += 1
        entry = self.books.book(when, backend)
        entry = replace(entry, request_id=f"{id(self)}-{self.number}", decision="{}")
        if book:
            async with Journal(self.url) as journal:
                await journal.settle(entry)
        return entry


async def bills(gateway: Gateway, when: str, count: int, backend: str = "other") -> list[int]:
    return [(await gateway.serve(when, backend)).api_nano for _ in range(count)]


async def test_each_request_is_billed_by_the_step_that_the_month_stands_at(tmp_path):
    gateway = Gateway(tmp_path, VOLUME)
    await gateway.begin("2026-09-01")
    # 1,100 tokens each: the third finds 2,200, the sixth 5,500.
    assert await bills(gateway, "2026-09-03", 7) == [1_200_000] * 2 + [1_080_000] * 3 + [600_000] * 2
    assert await bills(gateway, "2026-10-01", 2) == [1_200_000] * 2, "another month begins at the first step"
    assert verify(gateway.url) == []


@pytest.mark.parametrize("summed", [False, True])
async def test_the_standing_survives_a_restart(tmp_path, summed):
    first = Gateway(tmp_path, VOLUME)
    await first.begin("2026-09-01")
    await bills(first, "2026-09-03", 3)
    if summed:
        assert hours.close(first.url, ns("2026-09-10")) > 0
    again = Gateway(tmp_path, VOLUME)
    await again.begin("2026-09-05")
    assert await bills(again, "2026-09-05", 3) == [1_080_000] * 2 + [600_000]
    late = Gateway(tmp_path, VOLUME)
    await late.begin("2026-10-02")
    assert await bills(late, "2026-10-02", 1) == [1_200_000]
    assert verify(first.url) == []


async def test_workers_learn_of_each_other_by_the_ledger(tmp_path):
    one, other = Gateway(tmp_path, VOLUME), Gateway(tmp_path, VOLUME)
    await one.begin("2026-09-03")
    await other.begin("2026-09-03")
    assert await bills(one, "2026-09-03", 2) == [1_200_000] * 2
    assert await bills(other, "2026-09-03", 1) == [1_200_000], "has not looked since"
    await other.look("2026-09-03T00:01")
    assert await bills(other, "2026-09-03", 1) == [1_080_000]
    await other.look("2026-09-03T00:01")
    assert await bills(other, "2026-09-03", 2) == [1_080_000, 600_000], "its own are counted once"
    assert verify(one.url) == [], "whatever the standing was, the row says by which price"


async def test_what_went_to_a_model_that_the_configuration_has_no_more_counts_all_the_same(tmp_path):
    contract = VOLUME.replace("model: n", 'model: "*"')
    before = Gateway(tmp_path, contract)
    await before.begin("2026-09-01")
    assert await bills(before, "2026-09-03", 3, "api") == [3_600_000] * 2 + [3_240_000]
    after = Gateway(tmp_path, contract)
    prices = PRICES[:PRICES.index("    m:")] + PRICES[PRICES.index("    n:"):PRICES.index("discounts:")]
    config = CONFIG.replace(*OTHER_BASELINE).replace("model: m,", "model: new,")
    after.books = Books(tmp_path, prices + contract, config)
    await after.begin("2026-09-04")
    assert await bills(after, "2026-09-04", 3) == [1_080_000] * 2 + [600_000]


@pytest.mark.parametrize("model", ["n", "n*"])
async def test_names_that_clients_make_up_are_not_all_remembered(tmp_path, model):
    standings = Gateway(tmp_path, VOLUME.replace("model: n", f'model: "{model}"')).books.planner.standings
    for number in range(2 * REACHING_KEPT + 10):
        standings.add("o", f"n{number}", ns("2026-09-03"), 1, 1, alone=True)
    assert len(standings._reaching) == (0 if model == "n" else 10)
    standings.add("o", "n", ns("2026-09-03"), 5, 7, alone=True)
    (contract,) = standings._of("o", "n")
    tokens = 5 if model == "n" else 2 * REACHING_KEPT + 15
    assert standings.alone.tokens(contract, ns("2026-09-03")) == tokens, "counted all the same"


def shares(gateway: Gateway, now: str) -> dict[str, float]:
    return {f"{one.kind} {one.scope}": float(share)
            for one, share in gateway.books.planner.standings.used(ns(now))}


async def test_how_much_is_used_of_what_is_promised(tmp_path):
    config = CONFIG.replace(*OTHER_BASELINE) + "  big: {{backends: [llama, api], baseline: api}}\n"
    prices = PRICES + COMMIT + RESERVE.partition("\n")[2] + VOLUME.partition("\n")[2].replace("model: n", "model: free")
    gateway, again = Gateway(tmp_path, ""), Gateway(tmp_path, "")
    gateway.books, again.books = (Books(tmp_path, prices, config) for _ in range(2))
    await gateway.begin("2026-09-01")
    assert shares(gateway, "2026-09-01") == {"commitment o/n": 0.0, "provisioned o/m": 0.0}, "a volume is no promise"
    await bills(gateway, "2026-09-03T10:00:30", 5, "other")  # 6,000,000 of 30,000,000
    await bills(gateway, "2026-09-03T10:00:40", 3, "api")  # 3,300 tokens of 2,000
    assert shares(gateway, "2026-09-03T10:00:59") == {"commitment o/n": 0.2, "provisioned o/m": 0.0}, "not over yet"
    assert shares(gateway, "2026-09-03T10:01:00") == {"commitment o/n": 0.2, "provisioned o/m": 1.65}
    await bills(gateway, "2026-09-03T10:01:10", 1, "api")
    assert shares(gateway, "2026-09-03T10:01:20")["provisioned o/m"] == 1.65
    await again.begin("2026-09-03T10:02:10")
    assert shares(again, "2026-09-03T10:02:10") == {"commitment o/n": 0.2, "provisioned o/m": 0.55}
    assert shares(again, "2026-10-01") == {"commitment o/n": 0.0, "provisioned o/m": 0.0}, "another month"


async def test_pure_api_billing_stands_where_all_requests_would_have_brought_it(tmp_path):
    gateway = Gateway(tmp_path, VOLUME)
    await gateway.begin("2026-09-01")
    local = [await gateway.serve("2026-09-03", "llama") for _ in range(5)]
    assert [entry.baseline_contracted_nano for entry in local] == [1_200_000] * 2 + [1_080_000] * 3
    at_api = await gateway.serve("2026-09-03", "other")
    # Nothing was bought so far, so it is billed in full; in pure-API billing it would have been the sixth.
    assert (at_api.api_nano, at_api.baseline_nano, at_api.baseline_list_nano) == (1_200_000, 600_000, None)
    again = Gateway(tmp_path, VOLUME)
    await again.begin("2026-09-04")
    assert (await again.serve("2026-09-04", "llama")).baseline_nano == 600_000
    assert verify(gateway.url) == []


async def test_a_minutes_reserve_is_free_until_it_is_exceeded(tmp_path):
    gateway = Gateway(tmp_path, RESERVE, baseline_n=False)
    await gateway.begin("2026-09-01")
    assert await bills(gateway, "2026-09-03T10:00:30", 3, "api") == [0, 0, 3_600_000]
    assert await bills(gateway, "2026-09-03T10:01:00", 1, "api") == [0], "another minute"
    other = Gateway(tmp_path, RESERVE, baseline_n=False)
    await other.begin("2026-09-03T10:01:10")
    assert await bills(other, "2026-09-03T10:01:20", 2, "api") == [0, 3_600_000]
    entry = await other.serve("2026-09-03T10:05:00", "llama")
    assert (entry.baseline_list_nano, entry.baseline_contracted_nano, entry.baseline_nano) == (2_400_000, 0, 0)
    assert verify(gateway.url) == []


async def test_a_decision_is_made_at_the_margin(tmp_path):
    gateway = Gateway(tmp_path, RESERVE, baseline_n=False)
    await gateway.begin("2026-09-03")
    offer = gateway.books.planner.offers["api"]

    class Demand:
        prompt_tokens, output_tokens = 1000.0, 100.0

    asked = [api_usd(offer, "chat", Demand, ns("2026-09-03T10:00:59"))]
    await bills(gateway, "2026-09-03T10:00:30", 2, "api")
    asked += [api_usd(offer, "chat", Demand, ns(when)) for when in ("2026-09-03T10:00:59", "2026-09-03T10:01:00")]
    assert asked == [0.0, 0.0036, 0.0]
    hold = offer.dearest_nano("chat", ns("2026-09-03"), TEXT.input_text, TEXT.output_text)
    assert hold == 3_600_000, "a budget holds what it costs beyond the reserve"


COMMIT = """\
contracts:
  - {provider: o, model: n, kind: commitment, from: 2026-01-01, source: contract 22, usd_per_month: 0.03}
"""
TWO_DAYS = (("2026-09-03", 5, 2), ("2026-09-21", 5, 3))  # when, how many on a GPU, how many at the API


async def committed(tmp_path, contracts: str = COMMIT) -> Gateway:
    gateway = Gateway(tmp_path, contracts)
    await gateway.begin("2026-09-01")
    for day, local, api in TWO_DAYS:
        for backend, count in (("llama", local), ("other", api)):
            await bills(gateway, day, count, backend)
    return gateway


@pytest.mark.parametrize("summed", [False, True])
async def test_what_a_commitment_falls_short_by_is_on_a_line_of_its_own_in_both_worlds(tmp_path, summed):
    gateway = await committed(tmp_path)
    if summed:
        assert hours.close(gateway.url, ns("2026-10-02")) > 0
    start, end = ns("2026-09-01"), ns("2026-10-01")
    # 30,000,000 are promised. 5 requests at the API are 6,000,000, and all 15 would be 18,000,000.
    total = build(gateway.url, start, end).total
    assert (total.api, total.contracts) == (30_000_000, 24_000_000)
    assert (total.baseline, total.baseline_contracts) == (30_000_000, 12_000_000)
    assert total.savings == 0, "what GPUs took off the API is owed all the same"
    for by in GROUPS:
        statement = build(gateway.url, start, end, by=by)
        assert statement.total == total and statement.rows[-1].contracts == 24_000_000
    assert to_dict(statement)["contracts"] == {"commitment o/n": "0.024000000"}
    assert audit(gateway.url) == [] and verify(gateway.url) == []


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("contracts", [COMMIT, RESERVE.replace("model: m", "model: n")])
async def test_focus_has_what_contracts_owe_as_rows_of_their_own(tmp_path, contracts, version):
    gateway = await committed(tmp_path, contracts)
    start, end = ns("2026-09-02T23:30"), ns("2026-09-03T02:00")
    out = io.StringIO()
    with store.reading(gateway.url) as connection:
        write_csv(Export(connection, start, end, gateway.books.prices), out, version)  # held to the statement
    rows = list(csv.DictReader(io.StringIO(out.getvalue())))
    assert sum(nano(row["BilledCost"]) for row in rows) == build(gateway.url, start, end).total.actual
    fixed = [row for row in rows if row["ChargeFrequency"] == "Recurring"]
    # Of three hours; in the last one more is used than was promised, before it and with it.
    assert len(fixed) == (2 if contracts == COMMIT else 3) and sum(nano(row["BilledCost"]) for row in fixed) == (
        build(gateway.url, start, end).total.contracts)
    assert problems(list(rows[0]), rows, version) == []


async def test_a_contract_that_is_signed_leaves_summed_hours_alone(tmp_path):
    gateway = await committed(tmp_path)
    hours.close(gateway.url, ns("2026-10-02"))
    other = Gateway(tmp_path, COMMIT.replace("0.03", "0.05"))
    await other.begin("2026-10-02")
    assert hours.close(gateway.url, ns("2026-10-02")) == 0 and verify(gateway.url) == []


async def test_days_of_a_commitment_add_up_to_its_month(tmp_path):
    gateway = await committed(tmp_path)
    books = open_books(gateway.url, ns("2026-09-01"), ns("2026-10-01"))
    days = [span.statement.total for span in books.spans]
    assert len(days) == 30 and sum(day.contracts for day in days) == books.statement.total.contracts == 24_000_000
    # A million a day; on the third 2,400,000 are used of the 3,000,000 that are promised by its end.
    assert [day.contracts for day in days[:4]] == [1_000_000, 1_000_000, -1_400_000, 1_000_000]
    assert books.marginal.fully_loaded == books.statement.total.savings
    assert sum(day.savings for day in days) == books.statement.total.savings


async def test_every_form_of_the_report_has_it_in_its_sums(tmp_path):
    gateway = await committed(tmp_path)
    books = open_books(gateway.url, ns("2026-09-01"), ns("2026-10-01"))
    for steps in (view.waterfall(books.statement), view.bridge(books)):
        sums = 0
        for at, one in enumerate(steps):
            if one.kind == "total" and sums and at:
                assert one.amount.nano == sums or one.name == "baseline", one
            sums = one.amount.nano if one.kind == "total" else sums + one.amount.nano
        assert sums == books.statement.total.savings
    assert "contracts beside requests" in str([one.label for one in view.waterfall(books.statement)])
    out = io.StringIO()
    print_table(books.statement, out)
    assert "API, commitment o/n" in out.getvalue() and "of it owed to contracts" in out.getvalue()
    lines = [re.split("  +", line.strip()) for line in out.getvalue().splitlines()]
    amounts = [(name, Decimal(amount.replace(",", ""))) for name, amount, *_ in (
        line for line in lines if len(line) > 1 and re.fullmatch(r"-?[0-9,]+\.[0-9]+", line[1]))]
    names = [name for name, _ in amounts]
    baseline, savings = names.index("Baseline: everything at the API"), names.index("Savings")
    terms = [amount for _, amount in amounts[baseline:savings]]
    assert len(terms) > 4 and abs(sum(terms) - amounts[savings][1]) < Decimal("0.05"), "each line is a term of the sum"


async def test_a_commitment_that_lags_makes_the_next_request_free_at_the_margin(tmp_path):
    gateway = Gateway(tmp_path, COMMIT)
    await gateway.begin("2026-09-20")
    offer = gateway.books.planner.offers["other"]

    class Demand:
        prompt_tokens, output_tokens = 1000.0, 100.0

    # 19 days, a million on each, are the pace.
    assert api_usd(offer, "chat", Demand, ns("2026-09-20")) == 0.0
    await bills(gateway, "2026-09-19", 15)
    assert api_usd(offer, "chat", Demand, ns("2026-09-20")) == 0.0, "18,000,000 is less"
    assert await bills(gateway, "2026-09-19", 1) == [1_200_000], "what is booked is the price all the same"
    assert api_usd(offer, "chat", Demand, ns("2026-09-20")) == 0.0012


async def test_a_reservation_is_paid_by_the_hour_in_both_worlds(tmp_path):
    gateway = Gateway(tmp_path, RESERVE, baseline_n=False)
    await gateway.begin("2026-09-01")
    await bills(gateway, "2026-09-03T10:00:30", 3, "api")
    total = build(gateway.url, ns("2026-09-03"), ns("2026-09-04")).total
    # 5 USD an hour for a day; two requests within it cost nothing more, the third is paid as usual. In pure-API billing
    # it would be the same, but for the list price that is lower than the contract's: 2,400,000.
    assert (total.contracts, total.baseline_contracts, total.api) == (120 * 10**9, 120 * 10**9, 120_003_600_000)
    assert total.baseline == 120_002_400_000


@pytest.mark.parametrize(("closed", "first", "beyond", "open_"), [
    ([], 30, 200, [(30, 200)]),
    ([1, 2], 30, 200, [(30, 60), (180, 200)]),
    ([2, 1], 60, 180, []),
    ([1, 3], 60, 300, [(120, 180), (240, 300)]),
    ([], 60, 60, []),
])
def test_only_minutes_of_hours_that_are_not_summed_up_are_read(closed, first, beyond, open_):
    assert list(standing._open(closed, first, beyond)) == open_
