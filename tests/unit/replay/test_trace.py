"""A trace is read whole or not at all, whatever its spelling; what is wrong is said with its line and its column."""

import gzip
import json
from datetime import UTC, datetime

import pytest
import zstandard
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from proxy.replay import trace_file, trace_rows
from proxy.replay.trace import Trace, TraceError, read_trace
from tests.support.traces import write_trace_csv

HEAD = "timestamp_s,input_tokens,output_tokens\n"
AZURE = ("TIMESTAMP,ContextTokens,GeneratedTokens\n"
         "2023-11-16 18:15:46.6805900,374,44\n2023-11-16 18:15:50.9951690,396,109\n")
MOONCAKE = ('{"timestamp": 500, "input_length": 1030, "output_length": 6, "hash_ids": [0, 1, 2]}\n'
            '{"timestamp": 2500, "input_length": 600, "output_length": 4, "hash_ids": [0, 3]}\n')


@pytest.fixture
def read(tmp_path):
    """Reads a trace of this content."""
    def reading(content, name="t.csv"):
        path = tmp_path / name
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return read_trace(path)
    return reading


@pytest.fixture
def refused(read):
    """The error that a content is refused with; its text is one line and holds the place."""
    def refusing(content, name="t.csv"):
        with pytest.raises(TraceError) as caught:
            read(content, name)
        error, text = caught.value, str(caught.value)
        assert "\n" not in text and text.startswith(error.path + (f":{error.line}: " if error.line else ": "))
        assert error.field in text and error.message in text and (error.hint or "") in text
        return error
    return refusing


# ---------------------------------------------------------------- what is read

def test_azure_dates_without_a_zone_are_utc_and_said_so(read):
    trace = read(AZURE)
    assert trace.at_s == pytest.approx([0, 4.314579], abs=1e-6)
    assert (trace.prompt, trace.output) == ([374, 396], [44, 109])
    assert trace.began == datetime(2023, 11, 16, 18, 15, 46, 680590, UTC)
    assert trace.warnings == ["the times have no zone: taken as UTC"]
    assert trace.client == trace.model == ["", ""] and trace.prefix is None and len(trace) == 2


def test_dates_with_zones_become_utc(read):
    trace = read("time,prompt_tokens,completion_tokens\n2026-11-01T12:00:00+02:00,1,2\n2026-11-01T10:00:30Z,3,4\n")
    assert trace.at_s == [0, 30] and trace.began == datetime(2026, 11, 1, 10, tzinfo=UTC) and not trace.warnings


def test_mooncake_is_milliseconds_with_prefix_blocks(read):
    trace = read(MOONCAKE, "t.jsonl")
    assert trace.at_s == [0, 2] and trace.prefix == [(0, 1, 2), (0, 3)] and trace.prefix_block_tokens == 512
    assert ["milliseconds" in warning for warning in trace.warnings] == [True]


@pytest.mark.parametrize(("name", "wanted"), [("timestamp", 1.5), ("timestamp_s", 1.5), ("Timestamp_MS", 0.0015),
                                              ("arrived_at", 1.5), ("time_us", 1.5e-6), ("at", 1.5)])
def test_the_unit_of_numbers_is_in_the_name(read, name, wanted):
    assert read(f"{name},input_tokens,output_tokens\n0,1,1\n1.5,1,1\n").at_s == [0, wanted]


def test_times_start_at_zero_and_seconds_since_1970_are_a_date(read):
    assert read(HEAD + "7.5,1,1\n8,1,1\n").began is None
    trace = read(HEAD + "1700000000,1,1\n1700000002,1,1\n")
    assert trace.at_s == [0, 2] and trace.began == datetime(2023, 11, 14, 22, 13, 20, tzinfo=UTC)


@pytest.mark.parametrize("head", [
    "TIMESTAMP,ContextTokens,GeneratedTokens", "Arrived At,num_prefill_tokens,num_decode_tokens",
    "at,Input Length,OUTPUT-LENGTH", "timestamp_s,request_tokens,response_tokens"])
def test_columns_are_known_by_many_names(read, head):
    assert read(head + "\n1,2,3\n").prompt == [2]


@pytest.mark.parametrize("name", ["client", "client_id", "key", "user"])
def test_clients_and_models_come_along(read, name):
    trace = read(f"model,{name},{HEAD}gpt-5,'a b',0,1,2\n,61,1,1,2\n")
    assert (trace.client, trace.model) == (["'a b'", "61"], ["gpt-5", ""])


def test_of_two_columns_for_one_thing_the_choice_is_told(read):
    trace = read("timestamp_s,prompt_tokens,input_tokens,output_tokens\n0,1,2,3\n")
    assert trace.prompt == [2] and "'prompt_tokens'" in trace.warnings[0]


@pytest.mark.parametrize("delimiter", [";", "\t", ","])
def test_semicolons_tabs_marks_blank_lines_and_windows_line_breaks_are_fine(read, delimiter):
    text = "\ufeff\n" + HEAD + '"0",1,2\n\n1,12.0,3\n'
    trace = read(text.replace(",", delimiter).replace("\n", "\r\n"))
    assert (trace.at_s, trace.prompt, trace.warnings) == ([0, 1], [1, 12], [])


def test_json_lines_may_bring_or_lack_what_is_optional(read):
    lines = [{"at": 0, "input_tokens": "5", "output_tokens": 2},
             {"at": 1, "input_tokens": 6, "output_tokens": 2, "model": "m"},
             {"output_tokens": 2, "at": "2", "input_tokens": 7.0, "client": 9, "hash_ids": [2**63, 2**64 - 1]}]
    trace = read("\n".join(map(json.dumps, lines)))
    assert trace.prompt == [5, 6, 7] and trace.model == ["", "m", ""] and trace.client == ["", "", "9"]
    assert trace.prefix == [(), (), (2**63, 2**64 - 1)] and not trace.warnings


def test_zeros_become_one_and_are_counted(read):
    trace = read(HEAD + "0,0,5\n1,0,0\n2,3,4\n")
    assert (trace.prompt, trace.output) == ([1, 1, 3], [5, 1, 4])
    assert trace.warnings == ["requests with 0 input tokens, counted as having 1: 2",
                              "requests with 0 output tokens, counted as having 1: 1"]


def test_what_stands_late_is_sorted_and_counted(read):
    trace = read("client," + HEAD + "a,3,1,1\nb,1,2,2\nc,2,3,3\nd,3,4,4\n")
    assert trace.at_s == [0, 1, 2, 2] and trace.client == ["b", "c", "a", "d"] and trace.prompt == [2, 3, 1, 4]
    assert trace.warnings == ["sorted by time; requests that stood after a later one: 2 of 4"]


def test_batches_do_not_show(read, monkeypatch):
    monkeypatch.setattr(trace_rows, "BATCH_ROWS", 2)
    assert read(HEAD + "".join(f"{at},1,{at + 1}\n" for at in range(5))).output == [1, 2, 3, 4, 5]
    lines = "".join(f'{{"at": {at}, "input_tokens": 1, "output_tokens": {at + 1}}}\n' for at in range(5))
    assert read(lines).output == [1, 2, 3, 4, 5]


@pytest.mark.parametrize("chunk", [1, 7, 4096])
@pytest.mark.parametrize("name", ["t.csv", "t.csv.zst", "t.csv.gz", "packed"])
def test_packed_files_and_several_frames_are_read(tmp_path, monkeypatch, chunk, name):
    monkeypatch.setattr(trace_file, "PACKED_BYTES", chunk)
    monkeypatch.setattr(trace_file, "PLAIN_BYTES", chunk)
    pack = {"csv": bytes, "gz": gzip.compress}.get(name.rpartition(".")[2], zstandard.compress)
    told = []
    (tmp_path / name).write_bytes(pack(HEAD.encode()) + pack(b"0,1,2\n1,3,4\n"))
    assert read_trace(tmp_path / name, lambda done, total: told.append((done, total))).output == [2, 4]
    assert told[-1] == ((tmp_path / name).stat().st_size,) * 2


# ---------------------------------------------------------------- what is refused

@pytest.mark.parametrize(("row", "line", "field", "words"), [
    ("0.5,x,1", 3, "input_tokens", "'x' is not a whole number"),
    ("0.5,1.5,1", 3, "input_tokens", "'1.5' is not a whole number"),
    ("0.5,,1", 3, "input_tokens", "'' is not a whole number"),
    ("0.5,nan,1", 3, "input_tokens", "'nan' is not a whole number"),
    ("0.5,1,-7", 3, "output_tokens", "'-7' is negative"),
    ("0.5,10000001,1", 3, "input_tokens", "'10000001' is more than 10,000,000 tokens"),
    ("0.5,1," + "9" * 5000, 3, "output_tokens", "is not a whole number"),
    ("nan,1,1", 3, "timestamp_s", "'nan' is not a time"),
    ("-inf,1,1", 3, "timestamp_s", "'-inf' is not a time"),
    ("soon,1,1", 3, "timestamp_s", "'soon' is not a time"),
    ("2026-11-01 10:00,1,1", 3, "timestamp_s", "is not a time"),
    ("1700000000000,1,1", 3, "timestamp_s", "no time of a request"),
    ("0.5,1", 3, "output_tokens", "2 columns where the header has 3"),
    ("0.5,1,1,1", 3, "", "4 columns where the header has 3"),
    ('0.5,"1,1', 3, "", "not CSV"),
])  # fmt: skip
def test_a_bad_row_of_a_csv_is_named(refused, row, line, field, words):
    error = refused(HEAD + f"0,1,1\n{row}\n")
    assert (error.line, error.field) == (line, field) and words in error.message


@pytest.mark.parametrize(("row", "field", "words"), [
    ('{"at": 1, "input_tokens": true, "output_tokens": 1}', "input_tokens", "'True' is not a whole number"),
    ('{"at": 1, "input_tokens": null, "output_tokens": 1}', "input_tokens", "'None' is not a whole number"),
    ('{"at": 1, "input_tokens": 1, "output_tokens": 1.5}', "output_tokens", "'1.5' is not a whole number"),
    ('{"at": 1, "input_tokens": 1, "output_tokens": Infinity}', "output_tokens", "'inf' is not a whole number"),
    ('{"at": NaN, "input_tokens": 1, "output_tokens": 1}', "at", "'nan' is not a time"),
    ('{"at": null, "input_tokens": 1, "output_tokens": 1}', "at", "'None' is not a time"),
    ('{"at": 1, "input_tokens": 1}', "output_tokens", "no column holds the output tokens"),
    ('{"at": 1, "prompt_tokens": 1, "output_tokens": 1}', "prompt_tokens", "lines before call it 'input_tokens'"),
    ('{"at": 1, "input_tokens": 1, "output_tokens": 1, "hash_ids": [1.5]}', "hash_ids", "not a list of whole"),
    ('{"at": 1, "input_tokens": 1, "output_tokens": 1, "model": ["m"]}', "model", "neither a name nor a number"),
    ('{"at": 1, "input_tokens": 1, "output', "", "not JSON"),
    ("[" * 100_000, "", "not JSON"),
    ("17", "", "not a JSON object"),
])  # fmt: skip
def test_a_bad_line_of_json_is_named(refused, row, field, words):
    error = refused('\n{"at": 0, "input_tokens": 1, "output_tokens": 1}\n' + row + "\n", "t.jsonl")
    assert (error.line, error.field) == (3, field) and words in error.message


@pytest.mark.parametrize(("first", "second", "words"), [
    ("2026-11-01T10:00:00Z", "2026-11-01T10:00:01", "has no zone"),
    ("2026-11-01T10:00:00", "2026-11-01T10:00:01+01:00", "has a zone"),
    ("2026-11-01T10:00:00", "2026-13-01T10:00:01", "is not a date"),
    ("2026-11-01T10:00:00", "17.5", "is not a date"),
    ("2026-11-01T10:00:00", "1026-11-01T10:00:01", "no time of a request"),
])
def test_dates_are_all_of_one_kind(refused, first, second, words):
    error = refused(f"time,input_tokens,output_tokens\n{first},1,1\n{second},1,1\n")
    assert (error.line, error.field) == (3, "time") and words in error.message


def test_missing_columns_are_named_with_those_found_and_the_nearest_spelling(refused):
    error = refused("timestamp,input_tokns,output_tokens\n0,1,1\n")
    assert (error.line, error.field) == (1, "input_tokens") and "'input_tokns'" in error.message
    assert error.hint == "rename 'input_tokns' to input_tokens"
    error = refused("num_prefill_tokens,num_decode_tokens,pd_ratio\n1,1,1\n")
    assert error.field == "timestamp" and "arrival times" in error.message and "'pd_ratio'" in error.message


@pytest.mark.parametrize(("content", "words"), [
    ("", "empty"), ("\n \n", "no line"), (HEAD, "no request"), (b"PAR1\x00\x01", "Parquet"), (b"PK\x03\x04\x00", "zip"),
    ("version https://git-lfs.github.com/spec/v1\noid sha256:00\n", "Git LFS"), (HEAD.encode("utf-16"), "UTF-16"),
    ("just some words\nand more\n", "no column"), ('{"a": 1}\n', "no column"), ("[1, 2]\n", "not a JSON object"),
    (b"\x89PNG\r\n\x1a\n", "not UTF-8"),
])
def test_what_is_no_trace_is_called_what_it_is(refused, content, words):
    assert words in refused(content).message


def test_a_byte_that_is_not_utf8_has_its_line(refused):
    assert refused(b"client," + HEAD.encode() + b"a,0,1,1\n\xe9,1,1,1\n").line == 3


@pytest.mark.parametrize(("pack", "name"), [(gzip.compress, "t.csv.gz"), (zstandard.compress, "t.csv.zst")])
def test_a_packed_file_that_was_cut_names_its_last_whole_line(refused, monkeypatch, pack, name):
    monkeypatch.setattr(trace_file, "PACKED_BYTES", 16)
    rows = "".join(f"{at},{at % 977},{at % 101}\n" for at in range(20_000))
    whole = pack((HEAD + rows).encode())
    for kept in (3, len(whole) // 2, len(whole) - 1):
        error = refused(whole[:kept], name)
        last = f"line {error.line} is the last whole one" if error.line else "not one whole line came"
        assert "cut in the middle" in error.message and last in error.message
    assert error.line > 1


@pytest.mark.parametrize("magic", [b"\x1f\x8b", b"\x28\xb5\x2f\xfd"])
def test_packed_data_that_is_damaged_is_called_so(refused, magic):
    assert "damaged" in refused(magic + b"\xff" * 50).message


@pytest.mark.parametrize("name", ["t.csv.gz", "t.csv.zst"])
def test_a_name_that_promises_packing_is_held_to_it(refused, name):
    assert "this is no " in refused(HEAD + "0,1,1\n", name).message


@pytest.mark.parametrize("rest", ["1,2", "1,", "1", '1,"2', "1,2,"])
def test_a_csv_cut_in_its_last_line_is_told_as_a_cut(refused, rest):
    error = refused(HEAD + "0,1,1\n" + rest)
    assert error.line == 3 and "line 2 is the last whole one" in error.message


def test_a_whole_last_line_without_a_line_break_is_taken_with_a_warning(read):
    trace = read(HEAD + "0,1,1\n1,2,3")
    assert trace.output == [1, 3] and "no line break" in trace.warnings[0]
    assert read(MOONCAKE.rstrip()).output == [6, 4] and len(read(MOONCAKE.rstrip()).warnings) == 1


def test_json_cut_in_its_last_line_is_told_as_a_cut(refused):
    error = refused(MOONCAKE[:-20], "t.jsonl")
    assert error.line == 2 and "line 1 is the last whole one" in error.message


def test_a_file_that_is_not_there_and_a_line_without_end_are_errors(tmp_path, monkeypatch, refused):
    with pytest.raises(TraceError, match="No such file"):
        read_trace(tmp_path / "none.csv")
    with pytest.raises(TraceError, match="directory"):
        read_trace(tmp_path)
    monkeypatch.setattr(trace_file, "LINE_BYTES_MAX", 100)
    monkeypatch.setattr(trace_file, "PLAIN_BYTES", 64)
    assert refused(HEAD + "1" * 300).line == 2


def test_no_message_carries_control_characters_or_a_whole_cell(refused):
    text = str(refused(HEAD + "0,\x1b[31m" + "x" * 500 + ",1\n"))
    assert "\x1b" not in text and len(text) < 300


# ---------------------------------------------------------------- any trace

TIMES = st.lists(st.integers(0, 10**9), min_size=1, max_size=30, unique=True)
COUNTS = st.integers(1, 10**7)


@st.composite
def traces(draw):
    """Traces of distinct moments that begin at 0, with prefixes or without."""
    at = sorted(draw(TIMES))
    lists = {name: draw(st.lists(values, min_size=len(at), max_size=len(at))) for name, values in {
        "prompt": COUNTS, "output": COUNTS, "client": st.sampled_from(["a", "61", ""]),
        "model": st.sampled_from(["m", ""]),
        "prefix": st.lists(st.integers(0, 2**64), max_size=3).map(tuple)}.items()}
    if draw(st.booleans()):
        lists["prefix"] = None
    return Trace(at_s=[(moment - at[0]) / 1024 for moment in at], **lists)


RELAXED = settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])


@RELAXED
@given(trace=traces())
def test_a_trace_that_was_written_is_read_back(tmp_path, trace):
    write_trace_csv(trace, tmp_path / "t.csv")
    assert read_trace(tmp_path / "t.csv") == trace


@RELAXED
@given(trace=traces(), data=st.data())
def test_any_order_of_the_rows_gives_the_same_trace(tmp_path, trace, data):
    path = tmp_path / "t.csv"
    write_trace_csv(trace, path)
    head, *rows = path.read_text().splitlines()
    path.write_text("\n".join([head, *data.draw(st.permutations(rows))]) + "\n")
    again = read_trace(path)
    assert [getattr(again, name) for name in ("at_s", "prompt", "output", "client", "model", "prefix")] == [
        trace.at_s, trace.prompt, trace.output, trace.client, trace.model, trace.prefix]


def test_scaling_presses_the_times_together(read):
    trace = read(HEAD + "0,1,2\n10,3,4\n")
    assert trace.scaled(4).at_s == [0, 2.5] and trace.scaled(4).prompt == [1, 3] and trace.at_s == [0, 10]
    for factor in (0, -1, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="above 0"):
            trace.scaled(factor)
