"""What leaves the gateway is one event, one line, one cell, one header, whatever stands in it."""

import csv
import io
import json
import logging
import time

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from proxy.cli import app
from proxy.ledger.keys import KeyStore
from proxy.main import JsonLines
from proxy.reports import render
from proxy.reports.statement import build
from proxy.wire.openai import error_body, error_event
from proxy.wire.sse import FrameSplitter, data_frame, frame_data
from tests.support.raw import spoken, statuses
from tests.support.world import world

NASTY = ("a\nb", "a\r\nb", "a\rb", "\x1b[31mred\x1b[0m", "a\u2028b\u2029c", "a\x85b", "a\x00b", "a\x0b\x0cb", "\x7f",
         "\x9b31m", "data: x\n\nevent: y", '"}\n{"level": "critical"', "\ud800", "\u202etxt.exe", "﻿bom", "a" * 10_000)
ANY = st.text(st.characters(), max_size=200)


@settings(max_examples=300, deadline=None)
@given(ANY)
@example("a\ndata: [DONE]\n\n")
@example("a\r\nevent: error")
@example("\ud800")
def test_what_is_written_as_an_event_is_read_as_one(text):
    """CVE-2026-33128, CVE-2026-44217, GHSA-p6xx-57qc-3wxr, and fastapi.sse to this day: decode(encode(x)) = x."""
    payload = json.dumps({"x": text}).encode()
    frames = FrameSplitter().feed(data_frame(payload) + b": still here\n\n" + error_event(text, "t"))
    assert len(frames) == 3
    assert json.loads(frame_data(frames[0])) == {"x": text} and frame_data(frames[1]) is None
    error = json.loads(frame_data(frames[2]))["error"]
    assert error["message"] == text.encode("utf-8", "replace").decode()
    assert error == json.loads(error_body(text, "t"))["error"]


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=60))
def test_bytes_that_would_be_an_event_of_their_own_are_refused(raw):
    if set(raw) & set(b"\r\n\0"):
        with pytest.raises(ValueError, match="may not contain"):
            data_frame(raw)
    else:
        assert len(FrameSplitter().feed(data_frame(raw))) == 1


@pytest.mark.parametrize("text", NASTY, ids=range(len(NASTY)))
def test_one_record_is_one_line(text):
    """CVE-2020-7695's kin: in the message, its arguments, the logger's name, an exception; lines in are lines out."""
    out = io.StringIO()
    handler = logging.StreamHandler(out)
    handler.setFormatter(JsonLines())
    for logger, message, arguments in (("x", text, ()), ("x", "%s", (text,)), (text, "m", ()),
                                       ("x", "%r %s", (text, text))):
        handler.handle(logging.LogRecord(logger, logging.WARNING, text, 1, message, arguments, None))
    try:
        raise type("Odd", (ValueError,), {})(text)
    except ValueError as error:
        told = (type(error), error, error.__traceback__)
        handler.handle(logging.LogRecord("x", logging.ERROR, "f", 1, "m", (), told))
    lines = out.getvalue().splitlines()
    assert len(lines) == 5 and out.getvalue().count("\n") == 5
    for line in lines:
        assert line.isascii() and line.isprintable() and len(line) < 11_000 and isinstance(json.loads(line), dict)


async def test_no_caller_writes_a_header(tmp_path, monkeypatch):
    """CVE-2020-7695: what was asked for may come back in a body, never in a head."""
    async with world(tmp_path, monkeypatch, engines=0) as there:
        for path in ("/v1/models/a%0d%0aX-Injected:%20yes", "/v1/models/a%0aX-Injected:yes%0a%0a<script>",
                     "/v1/models/%1b%5b31m", "/v1/models/%e2%80%a8", "/admin/explain?model=a%0d%0aX-Injected:y",
                     "/admin/decisions?limit=%0d%0aX-Injected:y", "/x?%0d%0aX-Injected:y"):
            said, _ = await spoken(there.url, f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode(), 1)
            head, _, body = said.partition(b"\r\n\r\n")
            assert statuses(said)[0] in (400, 404) and b"njected" not in head, said
            assert len(body.splitlines()) == 1 and json.loads(body)["error"]
        for text in NASTY:
            for asked in ({"model": text, "messages": [{"role": "user", "content": "x"}]},
                          {"model": "gpt-4o", "messages": [{"role": "user", "content": "x"}], text: 1, "n": text},
                          {"model": "gpt-4o", "messages": [{"role": "user", "content": text}], "max_tokens": 1}):
                body = json.dumps(asked).encode()
                said, _ = await spoken(there.url, b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Type: "
                                       b"application/json\r\nContent-Length: %d\r\n\r\n" % len(body) + body, 1)
                head, _, answer = said.partition(b"\r\n\r\n")
                assert head.isascii() and all(b": " in line or line[:9] == b"HTTP/1.1 " for line in head.split(b"\r\n"))
                assert statuses(head)[0] in (200, 400, 404), said
                assert isinstance(json.loads(answer), dict)


FORMULAS = ("=HYPERLINK(\"http://127.0.0.1\",\"x\")", "+1+1", "-2+3+cmd|' /C calc'!A0", "@SUM(1)", "=1+1", "＝1+1",
            "＠x")
HTML = ("<script>alert(1)</script>", "\"><img src=x onerror=alert(1)>", "[link=http://x]y[/link]", "[red]z")


async def test_a_report_is_text_whatever_a_key_or_team_is_called(tmp_path, monkeypatch):
    async with world(tmp_path, monkeypatch, engines=0, keys={"required": True}) as there:
        store = KeyStore(there.ledger)
        for number, name in enumerate((*FORMULAS, *HTML)):
            tag = ("@x", "-1", "a b", "http://x")[number % 4]
            _, secret = store.create(name, tags=f"team={tag}")
            there.gateway.keys.refresh()
            status, _, _ = await there.post({"model": "gpt-4o", "messages": [{"role": "user", "content": "x"}],
                                             "max_tokens": 1}, authorization=f"Bearer {secret}")
            assert status == 200
        rows = await there.settled(len(FORMULAS) + len(HTML))
        assert len({row["key_id"] for row in rows}) == len(rows)
    hour = 3600 * 10**9
    for by in ("key", "tag", "tag:team", "route", "backend", "model"):
        statement = build(there.ledger, time.time_ns() - hour, time.time_ns() + hour, by=by)
        cells = [cell for row in csv.reader(io.StringIO(render.to_csv(statement))) for cell in row]
        texts = [cell for cell in cells if not cell.lstrip("-").replace(".", "").isdigit()]
        assert not [text for text in texts if text.startswith(render.FORMULA)]
        json.loads(render.to_json(statement))
        page = io.StringIO()
        render.print_table(statement, page, width=400)
        assert all(line.isprintable() for line in page.getvalue().splitlines())
        if by == "key":
            assert all(name in page.getvalue() for name in HTML), "shown as they are, never as markup"
    listed = CliRunner().invoke(app, ["keys", "list", "--ledger", there.ledger])
    assert listed.exit_code == 0 and "[red]z" in listed.output and "\x1b" not in listed.output


@pytest.mark.parametrize("text", FORMULAS)
def test_no_group_is_a_formula(text):
    assert render.safe_cell(text).startswith("'") and render.safe_cell("plain") == "plain"


@pytest.mark.parametrize("name", [text for text in NASTY if len(text) < 200], ids=range(len(NASTY) - 1))
def test_a_name_that_moves_the_cursor_is_refused(tmp_path, name):
    with pytest.raises(ValueError, match="control character"):
        KeyStore(f"sqlite:///{tmp_path}/ledger.db").create(name)
