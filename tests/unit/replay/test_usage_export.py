"""Usage exports: what is read, and the one line that says what cannot be."""

from __future__ import annotations

import gzip
import json
import tracemalloc

import pytest

from proxy.replay.trace_file import TraceError
from proxy.replay.usage_export import JSON_CHARS_MAX, read_usage

HEAD = "start_time,end_time,start_time_iso,end_time_iso,num_model_requests,model,batch,input_tokens,output_tokens," \
       "input_cached_tokens\n"
HOUR = 1_761_523_200


def row(at=HOUR, width=3600, requests="10", model="gpt-5", batch="false", tokens=("1000", "200", "300")) -> str:
    return f"{at},{at + width},iso,iso,{requests},{model},{batch},{','.join(tokens)}\n"


def written(tmp_path, text, name="usage.csv"):
    path = tmp_path / name
    path.write_text(text)
    return path


def test_openais_csv_is_read(tmp_path):
    usage = read_usage(written(tmp_path, HEAD + row() + row(HOUR + 3600, model="gpt-5-mini")))
    assert usage.start_s == [HOUR, HOUR + 3600] and usage.dated
    assert usage.model == ["gpt-5", "gpt-5-mini"]
    assert (usage.requests, usage.prompt) == ([10, 10], [1000, 1000])
    assert (usage.cached, usage.output) == ([300, 300], [200, 200])
    assert usage.width_s == 3600 and usage.token_steps is None


def test_openais_json_is_read(tmp_path):
    result = {"object": "organization.usage.completions.result", "input_tokens": 1000, "output_tokens": 500,
              "input_cached_tokens": 800, "num_model_requests": 5, "model": "gpt-5", "batch": None}
    page = {"object": "page", "data": [
        {"object": "bucket", "start_time": HOUR, "end_time": HOUR + 3600, "results": [result]},
        {"object": "bucket", "start_time": HOUR + 3600, "end_time": HOUR + 7200, "results": []}], "has_more": False}
    usage = read_usage(written(tmp_path, json.dumps(page, indent=1), "usage.json"))
    assert (usage.start_s, usage.requests, usage.cached, usage.model) == ([HOUR], [5], [800], ["gpt-5"])


def test_any_csv_with_dates_is_read(tmp_path):
    text = ("hour,requests,prompt_tokens,completion_tokens\n"
            "2026-11-02T00:00:00Z,5,100,50\n2026-11-02T01:00:00Z,6,120,60\n")
    usage = read_usage(written(tmp_path, text))
    assert usage.width_s == 3600 and usage.dated and usage.prompt == [100, 120] and usage.model == ["", ""]


def test_batches_are_left_out_and_said(tmp_path):
    usage = read_usage(written(tmp_path, HEAD + row() + row(batch="true", requests="7")))
    assert usage.requests == [10]
    assert usage.warnings == ["batch requests, left out: 7"]


@pytest.mark.parametrize(("body", "line", "field", "words"), [
    (row(tokens=("1000", "many", "0")), 2, "output_tokens", "'many' is not a number"),
    (row() + row(tokens=("-5", "1", "0")), 3, "input_tokens", "is not a count"),
    (row(tokens=("100", "1", "200")), 2, "input_cached_tokens", "200 cached tokens of 100 input tokens"),
    (row(requests="0"), 2, "num_model_requests", "tokens of no request"),
    (row(batch="perhaps"), 2, "batch", "'perhaps' is neither true nor false"),
    (row(width=7000), 2, "end_time", "a bucket of 116.667 minutes"),
    (row() + row(HOUR + 3600, width=60), 3, "end_time", "a bucket of 1 minutes"),
    (row() + row(HOUR + 1800), 3, "start_time", "does not begin a whole number of 60 minutes"),
    (row() + "1,2,3\n", 3, "", "the line has 3 columns where the header has 10"),
    (row(at=HOUR).replace(str(HOUR), "soon", 1), 2, "start_time", "is not a"),
    ("", 0, "", "only a header"),
    (row(requests="0", tokens=("0", "0", "0")), 0, "", "no requests"),
])
def test_what_cannot_be_read_is_one_line(tmp_path, body, line, field, words):
    path = written(tmp_path, HEAD + body)
    with pytest.raises(TraceError) as caught:
        read_usage(path)
    error = caught.value
    assert (error.line, error.field) == (line, field)
    assert words in str(error) and str(path) in str(error) and "\n" not in str(error)


@pytest.mark.parametrize(("text", "words"), [
    ("day,tokens\n1,2\n", "no column holds it; the file's columns are 'day', 'tokens' (call it requests)"),
    ("start_time,end_time,amount_value,amount_currency,line_item\n1,2,3,usd,x\n", "this is a costs export"),
    ('{"object": "page"}', "this is no page of OpenAI's usage endpoint"),
    ('{"data": [{"start_time": 1}]}', "bucket 1 has no list 'results'"),
    ('{"data": [{"results": []}, {"results": 1}]}', "bucket 2 has no list 'results'"),
    ('{"data": [', "this is not JSON"),
    ('{"data": ' + "[" * 200_000, "nested too deeply"),
    ("", "the file is empty"),
])
def test_other_files_are_told_apart(tmp_path, text, words):
    with pytest.raises(TraceError) as caught:
        read_usage(written(tmp_path, text))
    assert words in str(caught.value) and "\n" not in str(caught.value)


def packed(tmp_path, lines):
    path = tmp_path / "usage.json.gz"
    with gzip.open(path, "wt") as out:
        out.writelines(lines)
    return path


def test_json_is_read_up_to_a_size_that_is_told_however_well_it_was_packed(tmp_path):
    """64 MiB of blank lines are 64 KiB of a file, and a terabyte of them a gigabyte."""
    page = json.dumps({"data": [{"start_time": HOUR, "results": [{
        "num_model_requests": 5, "input_tokens": 100, "output_tokens": 50}]}]})
    blank = " " * 1023 + "\n"
    fits = (JSON_CHARS_MAX - len(page) - 16) // len(blank)
    assert read_usage(packed(tmp_path, ["{\n", *[blank] * fits, page[1:]])).requests == [5]
    path = packed(tmp_path, ["{\n", *[blank] * (fits + 2), page[1:]])
    with pytest.raises(TraceError) as caught:
        read_usage(path)
    assert str(caught.value) == (f"{path}: more than 64 MiB of JSON, unpacked (export it as CSV, or a shorter time)")
    assert path.stat().st_size < 1 << 20


def test_what_a_bucket_says_is_kept_once_however_many_results_it_has(tmp_path):
    """Else a file of a megabyte would be a table of many gigabytes."""
    keys = {f"key {number}": number for number in range(2_000)}
    result = {"num_model_requests": 1, "input_tokens": 2, "output_tokens": 3}
    path = written(tmp_path, json.dumps({"data": [{"start_time": HOUR, **keys, "results": [result] * 2_000}]},
                                        separators=(",\n", ":")), "usage.json")
    tracemalloc.start()
    try:
        assert sum(read_usage(path).requests) == 2_000
        assert tracemalloc.get_traced_memory()[1] < 30 << 20
    finally:
        tracemalloc.stop()
