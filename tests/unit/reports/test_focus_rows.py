"""A FOCUS row for each hour, app, backend, model and meter: sums to the nano-dollar, held to the specification."""

import csv
import io
import json
from collections import defaultdict
from dataclasses import replace
from decimal import Decimal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from proxy.core.gpucost import GpuShare, RateLine, overheads
from proxy.core.money import NS_PER_HOUR, NS_PER_S, nano
from proxy.core.pricing import Price, PriceBook, Tier, discounted
from proxy.core.usage import BUCKETS, Usage
from proxy.ledger.reconciliations import Reconciled
from proxy.reports.focus import allocation
from proxy.reports.focus.columns import VERSIONS, columns
from proxy.reports.focus.meters import metered
from proxy.reports.focus.rows import month_of, rows, tags_of
from proxy.reports.focus.slices import Book, Cell, Slice
from proxy.reports.focus.writers import plain, write_csv, write_parquet
from tests.support.focus_model import problems

T0 = 1_793_491_200 * NS_PER_S  # 2026-11-01T00:00Z
HOUR = (T0 + 9 * NS_PER_HOUR, T0 + 10 * NS_PER_HOUR)
GPT = Price("openai", "gpt-4o", (Tier({"input_text": Decimal("2.5"), "cache_read": Decimal("1.25"),
                                       "output_text": Decimal(10)}),), version="aaa")
LONG = Price("google", "gemini", (Tier({"input_text": Decimal("1.25"), "output_text": Decimal(10)}),
                                  Tier({"input_text": Decimal("2.5"), "output_text": Decimal(15)}, 200_000)),
             version="bbb", usd_per_request=Decimal("0.0001"))
CARD = [RateLine("gpu", "llama", Decimal("1.39"), T0),
        RateLine("gpu", "own", Decimal("0.31"), T0, energy="metered", idle_watts=Decimal(150)),
        RateLine("gpu", "burst", Decimal("7.77"), T0, billing="elastic"),
        RateLine("electricity", "electricity", Decimal("0.123"), T0, pue=Decimal("1.3")),
        RateLine("overhead", "engineering", Decimal(1000), T0)]
BOOK = Book({"aaa": GPT, "bbb": LONG}, rates=CARD, keys={"key_1": "search", "key_2": "=HYPERLINK(1)"})


def tokens(**counts):
    return tuple(counts.get(bucket, 0) for bucket in BUCKETS)


def api(**changes):
    made = Cell("gpt-4o", "api", "gpt-4o", "key_1", "team=search,app=chat", "gpt-4o", "aaa", "aaa", attempts=3,
                tokens=tokens(input_text=1000, cache_read=512, output_text=77), baseline=4_000_001)
    return replace(made, **{"api": cost(GPT, made.tokens), **changes})


def cost(price, counts):
    return price.cost_nano(Usage(**dict(zip(BUCKETS, counts, strict=True))))


def gpu(backend="llama", **changes):
    made = Cell(backend, "gpu", "gpt-4o", "key_2", "team=ads", "llama-3.3", "", "aaa", attempts=5,
                tokens=tokens(input_text=5000, output_text=500), baseline=17_500_001, work_ns=600 * NS_PER_S,
                gpu_serving=231_666_667)
    return replace(made, **changes)


OVERHEADS = overheads(CARD, *HOUR)
WHOLE = Slice(*HOUR, (
    api(), api(key="key_2", tags="", corrected_api=-5, corrected_baseline=7),
    api(backend="gemini", model="gemini", price_version="bbb", api=1_754_321,
        tokens=tokens(input_text=1001, output_text=10, reasoning=3)),
    api(price_version="", api=0, api_unknown=3, baseline=0), api(price_version="gone", api=12_345, baseline=12_345),
    gpu(), gpu(key="key_1", tags="team=search", gpu_serving=100_000_001, gpu_failed=50_000_002, failed_work_ns=NS_PER_S,
               estimated_tokens=100),
    gpu("own", gpu_serving=77_777_777, energy=1_111_111), gpu("burst", gpu_serving=123_456_789),
    gpu("ghost", gpu_serving=0), replace(gpu(), backend="none", kind="none", baseline=0),
), {
    "llama": GpuShare(331_666_668, 50_000_002, 12_345_678, 5, 1_390_000_000 - 331_666_668 - 50_000_002 - 12_345_683),
    "own": GpuShare(77_777_777, 0, 0, 0, 310_000_000 - 77_777_777, energy=23_985_000),
    "burst": GpuShare(123_456_789),
}, OVERHEADS)
ACTUAL = (sum(cell.api for cell in WHOLE.cells) + sum(share.gpu + share.energy for share in WHOLE.backends.values())
          + sum(OVERHEADS.values()))
BASELINE = sum(cell.baseline for cell in WHOLE.cells)


def as_csv(pieces, version="1.3", book=BOOK):
    out = io.StringIO()
    count = write_csv((row for piece in pieces for row in rows(piece, book)), out, version)
    reader = csv.DictReader(io.StringIO(out.getvalue()))
    found = list(reader)
    assert count == len(found)
    return list(reader.fieldnames), found


def total(found, name, kind=""):
    return sum((nano(row[name]) for row in found if row[name] and row["ChargeClass"] == kind), 0)


@pytest.mark.parametrize("version", VERSIONS)
def test_every_row_is_what_the_specification_asks_for(version):
    header, found = as_csv([WHOLE], version)
    assert problems(header, found, version) == []
    assert header == [column.name for column in columns(version)]
    assert ("ProviderName" in header) == (version != "1.4")


@pytest.mark.parametrize("version", VERSIONS)
def test_the_rows_add_up_to_the_statement_to_the_nano_dollar(version):
    _, found = as_csv([WHOLE], version)
    assert total(found, "BilledCost") == total(found, "EffectiveCost") == ACTUAL
    assert total(found, "x_CounterfactualCost") == BASELINE
    assert total(found, "BilledCost", "Correction") == -5
    assert total(found, "x_CounterfactualCost", "Correction") == 7


def test_each_meter_of_a_call_is_a_row_of_its_own():
    _, found = as_csv([Slice(*HOUR, (api(),))])
    by_meter = {row["SkuMeter"]: row for row in found}
    assert set(by_meter) == {"Input", "Input Cache", "Output"}
    cached = by_meter["Input Cache"]
    assert (cached["ConsumedQuantity"], cached["ConsumedUnit"]) == ("512", "Tokens")
    assert (cached["PricingQuantity"], cached["PricingUnit"]) == ("0.000512", "1000000 Tokens")
    assert (cached["ListUnitPrice"], cached["BilledCost"]) == ("1.25", "0.00064")
    assert cached["SkuPriceId"] == "openai/gpt-4o/Input Cache/default" and cached["x_PriceBookHash"] == "aaa"
    assert json.loads(cached["Tags"]) == {"team": "search", "app": "chat"}
    assert (cached["SubAccountId"], cached["SubAccountName"]) == ("key_1", "search")
    assert cached["InvoiceId"] == "" and cached["x_CostBasis"] == "estimated"


def test_the_tier_is_the_one_that_the_amount_was_made_with():
    counts = tokens(input_text=250_000, output_text=1000)
    whole = cost(LONG, counts)
    cell = api(price_version="bbb", tokens=counts, attempts=1, api=whole)
    prices = {part.meter: part.price for part in metered(cell, LONG, None, None)}
    assert prices == {"Input": Decimal("2.5"), "Output": Decimal(15), "Requests": Decimal("0.0001")}
    mixed = replace(cell, tokens=tokens(input_text=260_000, output_text=1000), attempts=2,
                    api=whole + cost(LONG, tokens(input_text=10_000)))
    parts = metered(mixed, LONG, None, None)
    assert sum(part.api for part in parts) == mixed.api
    assert Decimal("1.25") < parts[0].price < Decimal("2.5")


@settings(max_examples=200, deadline=None)
@given(st.lists(st.integers(0, 10**7), min_size=len(BUCKETS), max_size=len(BUCKETS)), st.integers(0, 10**12),
       st.integers(-10**12, 10**12), st.sampled_from([GPT, LONG, None]), st.sampled_from([GPT, None]),
       st.sampled_from([GPT, LONG, None]))
def test_no_split_loses_or_makes_a_nano_dollar(counts, amount, baseline, price, listed, against):
    parts = metered(api(tokens=tuple(counts), api=amount, baseline=baseline), price, listed, against)
    assert sum(part.api for part in parts) == (amount if parts else 0)
    assert sum(part.baseline for part in parts) == (baseline if parts else 0)
    assert parts or not (amount or baseline)


def test_a_contracted_price_stands_beside_the_list_price():
    paid = discounted(GPT, Decimal(12), 0, "contract")
    cell = api(price_version="ccc")
    public = PriceBook({("openai", "gpt-4o"): (paid,)}, {("openai", "gpt-4o"): (GPT,)})
    book = replace(BOOK, prices={**BOOK.prices, "ccc": paid}, public=public)
    header, found = as_csv([Slice(*HOUR, (replace(cell, api=cost(paid, cell.tokens)),))], book=book)
    assert problems(header, found, "1.3") == []
    assert [(row["ListUnitPrice"], row["ContractedUnitPrice"]) for row in found] == [
        ("2.5", "2.2"), ("1.25", "1.1"), ("10", "8.8")]
    assert sum(Decimal(row["ContractedCost"]) for row in found) == sum(Decimal(row["BilledCost"]) for row in found)


def test_an_hour_of_gpus_is_split_to_apps_and_to_nobody():
    _, found = as_csv([WHOLE])
    mine = [row for row in found if row["ResourceId"] == "llama" and row["SkuMeter"] == "GPU Time"]
    assert [row["x_AllocationPart"] for row in mine] == ["serving", "serving", "failed", "foreign", "startup", "idle"]
    assert sum(Decimal(row["PricingQuantity"]) for row in mine) == 1
    assert {row["AllocatedMethodId"] for row in mine} == {allocation.METHOD}
    assert sum(Decimal(row["ListCost"]) for row in mine) == Decimal("1.39")
    assert [bool(row["AllocatedResourceId"]) for row in mine] == [True, True, True, False, False, False]
    assert json.loads(mine[0]["AllocatedTags"]) == {"team": "ads"} and mine[0]["Tags"] == ""
    element = json.loads(mine[0]["AllocatedMethodDetails"], parse_float=str)["Elements"][0]
    assert element == {"AllocatedRatio": "0.166666666906", "UsageUnit": "Seconds", "UsageQuantity": "600.000000000"}
    assert mine[1]["x_TokenCountBasis"] == "mixed" and mine[0]["x_TokenCountBasis"] == "reported"


def test_version_1_2_has_the_allocation_in_columns_of_our_own():
    header, found = as_csv([WHOLE], "1.2")
    mine = next(row for row in found if row["ResourceId"] == "llama")
    assert "AllocatedMethodId" not in header and mine["x_AllocatedMethodId"] == allocation.METHOD
    assert json.loads(mine["Tags"]) == {"team": "ads"}


def test_what_has_no_price_is_named_and_costs_nothing_known():
    _, found = as_csv([WHOLE])
    unknown = [row for row in found if row["ChargeCategory"] == "Adjustment"]
    assert {row["x_UnpricedTokens"] for row in unknown} == {"1000", "512", "77", "5500"}
    assert all(row["ListUnitPrice"] == row["SkuPriceId"] == row["PricingQuantity"] == "" for row in unknown)
    assert sum(nano(row["BilledCost"]) for row in unknown) == 12_345  # its price is no longer in the book


def test_electricity_is_in_kilowatt_hours_and_adds_up():
    _, found = as_csv([WHOLE])
    mine = [row for row in found if row["SkuMeter"] == "Electricity"]
    assert [row["x_AllocationPart"] for row in mine] == ["serving", "idle"]
    assert total(mine, "BilledCost") == 23_985_000
    assert {row["PricingUnit"] for row in mine} == {"Kilowatt-Hours"} and {row["ListUnitPrice"] for row in mine} == {
        "0.1599"}
    assert sum(Decimal(row["PricingQuantity"]) for row in mine) == Decimal("0.15")  # an hour at 150 W


def test_an_overheads_months_add_up_however_the_period_is_cut():
    hours = [Slice(T0 + at * NS_PER_HOUR, T0 + (at + 1) * NS_PER_HOUR, (), {},
                   overheads(CARD, T0 + at * NS_PER_HOUR, T0 + (at + 1) * NS_PER_HOUR)) for at in range(730)]
    _, found = as_csv(hours)
    assert sum(Decimal(row["PricingQuantity"]) for row in found) == 1
    assert total(found, "BilledCost") == 1000 * 10**9
    assert {row["ChargeCategory"] for row in found} == {"Purchase"}


def test_a_rate_that_changes_within_the_hour_is_a_mean_price():
    card = [*CARD, RateLine("gpu", "llama", Decimal("2.78"), HOUR[0] + NS_PER_HOUR // 2)]
    piece = Slice(*HOUR, (gpu(gpu_serving=2_000_000),), {"llama": GpuShare(2_000_000, idle=2_083_000_000)})
    header, found = as_csv([piece], book=replace(BOOK, rates=card))
    assert {row["ListUnitPrice"] for row in found} == {"2.085"}
    assert problems(header, found, "1.3") == []


def test_no_cell_is_a_formula_in_csv_and_every_text_is_kept_in_parquet(tmp_path):
    book = replace(BOOK, keys={"key_1": "@SUM(A1)", "key_2": "=HYPERLINK(1)"})
    piece = replace(WHOLE, cells=tuple(replace(cell, route="=1+1", model="<script>", tags="=x=-1")
                                       for cell in WHOLE.cells))
    _, found = as_csv([piece], book=book)
    assert not [value for row in found for name, value in row.items()
                if value.startswith(("=", "+", "@", "-")) and not _number(value)]
    assert "'=HYPERLINK(1)" in {row["SubAccountName"] for row in found}
    pq = pytest.importorskip("pyarrow.parquet")
    with (tmp_path / "f.parquet").open("wb") as out:
        write_parquet(rows(piece, book), out, "1.3")
    assert "=HYPERLINK(1)" in pq.read_table(tmp_path / "f.parquet")["SubAccountName"].to_pylist()


def _number(text):
    try:
        return Decimal(text) is not None
    except ArithmeticError:
        return False


@pytest.mark.parametrize("version", VERSIONS)
def test_parquet_holds_the_same_as_csv_with_types(tmp_path, version):
    pq, pa = pytest.importorskip("pyarrow.parquet"), pytest.importorskip("pyarrow")
    with (tmp_path / "f.parquet").open("wb") as out:
        count = write_parquet(rows(WHOLE, BOOK), out, version)
    table = pq.read_table(tmp_path / "f.parquet")
    header, found = as_csv([WHOLE], version)
    assert table.column_names == header and table.num_rows == count == len(found)
    assert table.schema.field("BilledCost").type == pa.decimal128(38, 18)
    assert table.schema.metadata[b"focus_version"] == version.encode()
    for one, other in zip(table.to_pylist(), found, strict=True):
        for name, value in one.items():
            text = ("" if value is None else plain(value) if isinstance(value, Decimal)
                    else value if isinstance(value, str) else f"{value:%Y-%m-%dT%H:%M:%SZ}")
            assert text == other[name].removeprefix("'"), name


def test_an_api_hour_is_reconciled_where_the_newest_bill_covers_it_and_agrees():
    def bill(from_ns, to_ns, within=True, provider="openai"):
        return Reconciled("api", provider, from_ns, to_ns, (), "0.5", within, 0, 0, 0, {}, (), "me")

    def basis(*bills):
        _, found = as_csv([Slice(*HOUR, (api(), gpu()), {"llama": GpuShare(231_666_667)})],
                          book=replace(BOOK, bills=bills))
        assert {row["x_CostBasis"] for row in found if row["SkuMeter"] == "GPU Time"} == {"estimated"}
        return {row["x_CostBasis"] for row in found if row["SkuMeter"] == "Input"}

    day = (T0, T0 + 24 * NS_PER_HOUR)
    assert basis() == basis(bill(*day, provider="google")) == {"estimated"}
    assert basis(bill(*day)) == basis(bill(*day, provider="")) == {"reconciled"}
    assert basis(bill(*day), bill(*day, within=False)) == {"estimated"}
    assert basis(bill(HOUR[0] + 1, day[1])) == {"estimated"}


def test_what_a_closed_period_was_found_to_cost_more_is_a_correction():
    piece = Slice(*HOUR, adjustments={
        ("gpu", "llama"): 7, ("overhead", "staff"): -3, ("contract", "commitment a/*"): 1})
    header, found = as_csv([piece])
    assert problems(header, found, "1.3") == []
    assert total(found, "BilledCost", "Correction") == 5 and total(found, "BilledCost") == 0
    assert {row["ResourceId"] for row in found} == {"llama", ""}


def test_months_are_those_of_utc():
    assert month_of(T0) == (T0, T0 + 30 * 24 * NS_PER_HOUR)
    december = month_of(T0 + 30 * 24 * NS_PER_HOUR)
    assert december[1] - december[0] == 31 * 24 * NS_PER_HOUR


def test_tags_are_an_object_of_their_values():
    assert tags_of("team=search,app=chat,beta") == {"team": "search", "app": "chat", "beta": True}
    assert tags_of("") is None


def test_a_version_that_is_not_known_is_refused():
    with pytest.raises(ValueError, match=r"'1\.1' is not known; use 1\.2, 1\.3, 1\.4"):
        columns("1.1")


# ---------------------------------------------------------------- the model can fail

SPOILT = [
    ("BilledCost", "", "BilledCost is null"), ("BilledCost", "1e3", "no plain number"),
    ("ListCost", "0.9", "not"), ("ChargeCategory", "Discount", "not one of"), ("BillingCurrency", "usd", "currency"),
    ("ChargePeriodStart", "2026-11-01 09:00:00", "no time in UTC"),
    ("ChargePeriodEnd", "2026-12-01T01:00:00Z", "within"),
    ("ListUnitPrice", "-1", "less than 0"), ("SkuPriceId", "", "null when"), ("ConsumedUnit", "", "null when"),
    ("Tags", '{"a":1,"a":2}', "a key twice"), ("Tags", '{"a":[1]}', "plain values"),
    ("HostProviderName", "N/A", "placeholder"),
    ("PricingUnit", "Token-thousands", "no unit"), ("ChargeClass", "Refund", "not one of"),
]


@pytest.mark.parametrize("name, value, says", SPOILT)
def test_the_model_finds_a_spoilt_cell(name, value, says):
    header, found = as_csv([Slice(*HOUR, (api(),))])
    found[0][name] = value
    assert any(says in problem and (name in problem or says == "within") for problem in problems(header, found, "1.3"))


def test_the_model_finds_a_missing_column_a_strange_one_and_ratios_that_do_not_add_up():
    header, found = as_csv([WHOLE])
    assert any("ListCost: is missing" in problem for problem in problems([one for one in header if one != "ListCost"],
                                                                       found, "1.3"))
    assert any("Savings: is no column" in problem for problem in problems([*header, "Savings"], found, "1.3"))
    mine = defaultdict(list)
    for row in found:
        mine[row["x_AllocationPart"]].append(row)
    mine["idle"][0]["AllocatedMethodDetails"] = '{"Elements":[{"AllocatedRatio":0.5}]}'
    assert any("the ratios add up to" in problem for problem in problems(header, found, "1.3"))
