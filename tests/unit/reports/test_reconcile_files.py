"""Bills are read as providers write them, and refused with file, line and field where they cannot be used."""

import json
from decimal import Decimal

import pytest

from proxy.reports.reconcile.bill import BadBill, Tokens
from proxy.reports.reconcile.files import read
from proxy.reports.reconcile.openai import line_item

START = 1_793_664_000  # 2026-11-03T00:00Z
RESULT = {"object": "organization.usage.completions.result", "input_tokens": 1_000, "output_tokens": 500,
          "input_cached_tokens": 800, "num_model_requests": 5, "project_id": None, "model": "gpt-4o", "batch": None,
          "service_tier": "default"}
COST = {"object": "organization.costs.result", "amount": {"value": 0.06, "currency": "usd"},
        "line_item": "gpt-4o-2024-08-06, cached input", "project_id": "proj_a"}


def page(*results, start=START, **more):
    return {"object": "page", "has_more": False, "next_page": None, "data": [
        {"object": "bucket", "start_time": start, "end_time": start + 86_400, "results": list(results)}], **more}


@pytest.fixture
def write(tmp_path):
    def written(content, name="bill"):
        path = tmp_path / name
        path.write_text(content if isinstance(content, str) else json.dumps(content, indent=1), encoding="utf-8")
        return path
    return written


def test_usage_and_costs_pages_make_one_bill(write):
    bill = read([write(page(RESULT), "usage.json"), write(page(COST), "costs.json")])
    assert [(one.day, one.model, one.tokens, one.tier) for one in bill.usage] == [
        ("2026-11-03", "gpt-4o", Tokens(5, 200, 800, 0, 500), "default")]
    assert [(one.model, one.kind, one.usd, one.project) for one in bill.charges] == [
        ("gpt-4o-2024-08-06", "cached", Decimal("0.06"), "proj_a")]
    assert (bill.provider, bill.beyond - bill.first) == ("openai", 86_400)
    assert [file.what for file in bill.files] == ["OpenAI usage", "OpenAI costs"]


def test_pages_may_come_in_an_array_or_one_a_line_and_amounts_as_text(write):
    two = [page(RESULT), page(RESULT, start=START + 86_400)]
    assert len(read([write(two)]).usage) == 2
    assert len(read([write("\n".join(map(json.dumps, two)), "lines")]).usage) == 2
    as_text = page({**COST, "amount": {"value": "1.5000", "currency": "USD"}})
    assert read([write(as_text)]).charges[0].usd == Decimal("1.5")


@pytest.mark.parametrize(("item", "parts"), [
    ("gpt-4o-2024-08-06, input", ("gpt-4o-2024-08-06", "input", "default")),
    ("gpt-4o-mini-2024-07-18, cached input", ("gpt-4o-mini-2024-07-18", "cached", "default")),
    ("priority | gpt-5, output, long context", ("gpt-5", "output", "priority")),
    ("Batch API | gpt-4o, cache writes", ("gpt-4o", "written", "batch")),
    ("gpt-audio-mini-2025-12-15 audio, input", ("gpt-audio-mini-2025-12-15", "input", "default")),
    ("web search tool calls", ("web search tool calls", "", "default")), ("", ("", "", "default"))])
def test_line_items_are_taken_apart(item, parts):
    assert line_item(item) == parts


USAGE_CSV = """start_time\tend_time\tstart_time_iso\tproject_id\tnum_model_requests\tmodel\tbatch\tservice_tier\
\tinput_tokens\toutput_tokens\tinput_cached_tokens
1793664000\t1793750400\t2026-11-03T00:00:00+00:00\tproj_a\t10.0\tgpt-4o-2024-08-06\tFALSE\tdefault\t59200.0\t10646.0\t5760.0
1793750400\t1793836800\t2026-11-04T00:00:00+00:00\t\t\t\t\t\t\t\t
"""
COSTS_CSV = """start_time,end_time,amount_value,amount_currency,line_item,project_id,organization_id
1793664000,1793750400,0.8958740000000000,usd,,,org-a
1793750400,1793836800,,,,,
"""


def test_the_dashboards_csv_is_read_days_without_anything_included(write):
    bill = read([write(USAGE_CSV, "usage.csv"), write(COSTS_CSV, "costs.csv")])
    assert bill.usage[0].tokens == Tokens(10, 53_440, 5_760, 0, 10_646)
    assert (bill.charges[0].usd, bill.charges[0].item) == (Decimal("0.895874"), "")
    assert bill.beyond - bill.first == 2 * 86_400


def test_the_generic_csv_needs_only_what_there_is(write):
    bill = read([write("day;model;input_tokens;output_tokens;cost\n2026-11-03;m;10;2;0.5\n")])
    assert (bill.usage[0].tokens, bill.charges[0].usd, bill.provider) == (Tokens(None, 10, 0, 0, 2), Decimal("0.5"), "")


FOCUS = """BilledCost,BillingCurrency,ChargeCategory,ChargePeriodStart,ConsumedQuantity,ConsumedUnit,\
ContractedUnitPrice,ResourceId
33.36,USD,Usage,2026-11-03T00:00:00Z,24,Hours,1.39,llama
9.99,USD,Tax,2026-11-03T00:00:00Z,,,,llama
1.00,USD,Usage,2026-11-03T00:00:00Z,50,GB,0.02,llama
"""
CUR = """lineItem/UsageStartDate,lineItem/ResourceId,lineItem/UsageAmount,lineItem/UnblendedRate,\
lineItem/UnblendedCost,lineItem/CurrencyCode,lineItem/LineItemType,pricing/unit
2026-11-03T00:00:00Z,i-1,1,1.39,1.39,USD,Usage,Hrs
2026-11-03T01:00:00Z,i-1,1,1.39,1.39,USD,Usage,Hrs
"""


def test_gpu_bills_of_clouds_are_read(write):
    (line,) = read([write(FOCUS)]).gpu
    assert (line.day, line.resource, line.hours, line.usd_per_hour, line.usd) == (
        "2026-11-03", "llama", 24, Decimal("1.39"), Decimal("33.36"))
    assert [one.start[11:13] for one in read([write(CUR)]).gpu] == ["00", "01"]
    assert read([write("day,resource,hours,rate,cost\n2026-11-03,llama,24,1.39,33.36\n")]).gpu[0].hours == 24


BAD = {
    "nothing": ("", "no bill that is known"),
    "no bill": ("a,b\n1,2\n", "line 1, a, b: no bill that is known"),
    "broken JSON": ('{"object": "page",\n "data": [}\n', "line 2: not valid JSON"),
    "NaN": ('{"data": [NaN]}', "not valid JSON: NaN is no number"),
    "deep": ("[" * 200_000, "not valid JSON"),
    "more pages": (page(RESULT, has_more=True), "has_more: there are more pages"),
    "no list": ({"object": "page"}, "data: no page"),
    "a hole": ([page(RESULT), page(RESULT, start=START + 3 * 86_400)], "nothing is said of 2026-11-04 until"),
    "negative": (page({**RESULT, "output_tokens": -1}), "line 14, data[0].results[0].output_tokens: '-1' is not"),
    "part": (page({**RESULT, "input_cached_tokens": 1_001}), "1001 tokens to and from the cache are more than"),
    "no model": (page({**RESULT, "model": None}), "model: usage is compared by model: export it with group_by=model"),
    "images": (page({**RESULT, "object": "organization.usage.images.result"}), "is not counted in tokens"),
    "euro": (page({**COST, "amount": {"value": 1, "currency": "eur"}}),
             "amount.currency: 'eur' is not USD; the books are in USD, and the bill's exchange rate is not known: ask"),
    "no amount": (page({**COST, "amount": None}), "amount: must be an object"),
    "true": (page({**COST, "amount": {"value": True}}), "value: must be a number, not bool"),
    "control": (page({**RESULT, "model": "a\x1b[31mb"}), "model: must be printable text"),
    "long": (page({**RESULT, "model": "m" * 257}), "model: must be printable text of at most 256"),
    "week": (page(RESULT) | {"data": [{"start_time": 0, "end_time": 10**6, "results": []}]}, "a bucket is of a minute"),
    "no day": ("day,model,cost\n3.11.2026,m,1\n", "line 2, day: '3.11.2026' is not a day"),
    "no number": ("day,model,cost\n2026-11-03,m,1\n2026-11-03,m,x\n", "line 3, cost: 'x' is not a number"),
    "infinite": ("day,model,cost\n2026-11-03,m,1e999999\n", "line 2, cost: '1e999999' is not a number"),
    "twice": ("day,model,cost,cost\n", "line 1, cost: this column is there twice"),
    "cells": ("day,model,cost\n2026-11-03,m,1,2\n", "line 2, column 4: the row has more cells"),
    "empty": ("day,model,cost\n", "there is no row in it"),
    "quote": ('day,model,cost\n2026-11-03,"m,1\n', "not valid CSV"),
    "hours": ("day,resource,hours,cost\n2026-11-03,a,-1,1\n", "line 2, hours: must not be negative"),
    "kind": ("day,model,kind,cost\n2026-11-03,m,tea,1\n", "line 2, kind: 'tea' is none of input"),
    "amount": ("day,model,requests,input_tokens,cached_tokens,output_tokens,amount\n2026-11-03,m,1,2,0,3,0.8\n",
               "line 1: column 'amount' is not known; did you mean cost? Known are day, model, requests, input_tokens"),
    "kosten": ("day,model,output_tokens,kosten\n2026-11-03,m,3,0.8\n", "'kosten' is not known; did you mean cost?"),
    "outptu": ("day,model,outptu_tokens,cost\n2026-11-03,m,3,1\n", "did you mean output_tokens?"),
    "team": ("day,model,cost,floor\n2026-11-03,m,3,1\n", "column 'floor' is not known. Known are day"),
    "hour": ("day,resource,hour,rate,cost\n2026-11-03,a,1,1,1\n", "column 'hour' is not known; did you mean hours?"),
    "no money": ("day,model\n2026-11-03,m\n", "line 1, cost: give cost, tokens, or both"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_file_is_named_with_line_and_field(write, name):
    content, message = BAD[name]
    with pytest.raises(BadBill) as caught:
        read([write(content, "bad.file")])
    said = str(caught.value)
    assert "bad.file" in said and message in said and said.isprintable()


def test_files_that_do_not_belong_together_are_refused(write, tmp_path):
    usage, later = write(page(RESULT), "a"), write(page(COST, start=START + 86_400), "b")
    with pytest.raises(BadBill, match="export both for the same days"):
        read([usage, later])
    with pytest.raises(BadBill, match="the same file twice"):
        read([usage, usage])
    with pytest.raises(BadBill, match="one after the other"):
        read([usage, write(FOCUS, "gpu.csv")])
    with pytest.raises(BadBill, match="No such file"):
        read([tmp_path / "nowhere"])
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(BadBill, match="not UTF-8"):
        read([tmp_path / "binary"])
