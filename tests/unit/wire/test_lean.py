"""Bodies whose base64 is left out while they are read: the same facts and bytes, or no shortcut."""

import base64
import json
from dataclasses import fields
from unittest import mock

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.core.errors import InvalidRequest
from proxy.wire import openai
from proxy.wire.endpoints import Endpoint
from proxy.wire.lean import DATA_URLS_MAX, RUN_BYTES_MIN, lean
from proxy.wire.openai import UsageInjection, parse_request, upstream_body
from proxy.wire.splice import spliced

RUN = base64.b64encode(bytes(range(256)) * 80).decode()
URL = "data:image/png;base64," + RUN
assert len(RUN) > RUN_BYTES_MIN


def body_of(*parts, **more):
    return json.dumps({"model": "m", "messages": [{"role": "user", "content": list(parts)}], **more}).encode()


def image(url=URL):
    return {"type": "image_url", "image_url": {"url": url}}


def plainly(body, endpoint=Endpoint.CHAT):
    with mock.patch.object(openai, "lean", lambda body: None):
        return parse_request(endpoint, body)


def facts(request):
    return {field.name: getattr(request, field.name) for field in fields(request)
            if field.name not in ("document", "lean")}


def test_a_picture_is_not_parsed_and_counts_as_it_came():
    body = body_of({"type": "text", "text": "What is this?"}, image(), image(URL.replace("png", "jpeg")))
    read = parse_request(Endpoint.CHAT, body)
    assert read.lean is not None and RUN not in json.dumps(read.document)
    assert facts(read) == facts(plainly(body))
    assert (read.media_count, read.media_bytes) == (2, 2 * len(URL) + 1)
    assert read.facts().lean is None


@pytest.mark.parametrize("changes", [{"model": "other"}, {"max_tokens": 7}, {"model": "other", "max_tokens": 7}])
@pytest.mark.parametrize("sure", [True, False], ids=["spliced", "written anew"])
def test_the_upstream_gets_every_byte_of_it(changes, sure):
    body = body_of(image(), {"type": "text", "text": "and \\ \u00e9"}, image(URL + "AAAA"), image())
    asked = {"model": changes.get("model"), "max_tokens": changes.get("max_tokens"), "usage": UsageInjection.NONE}
    with mock.patch.object(openai, "spliced", spliced if sure else lambda *_: None):
        sent = upstream_body(parse_request(Endpoint.CHAT, body), **asked)
    assert orjson.loads(sent) == {**orjson.loads(body), **changes}
    if sure:
        assert sent == upstream_body(plainly(body), **asked)


def test_different_pictures_do_not_look_alike_and_the_same_one_does():
    other = URL[:-200] + ("B" if URL[-200] != "B" else "C") + URL[-199:]
    one, same, else_ = (parse_request(Endpoint.CHAT, body_of(image(url))).document for url in (URL, URL, other))
    assert one == same != else_


@pytest.mark.parametrize("body", [
    body_of({"type": "text", "text": URL}),
    body_of({"type": "text", "text": f'see "{URL}"'}),
    body_of(image(URL + "\\")),
    body_of(image(URL[:-100] + " " + URL[-100:])),
    body_of(image(), metadata={"picture": URL}),
    body_of({"type": "text", "text": "x"}, prediction={"type": "content", "content": URL}),
    body_of(image()).replace(b'"url":', b'"url": "%s", "url":' % URL.encode()),
    body_of(image()).replace(b'"url"', b'"%s": 1, "url"' % URL.encode()),
    json.dumps({"model": "m", "messages": [{"role": "user", "content": URL}]}).encode(),
    json.dumps({"model": "m", "messages": [{"role": "user", "content": "hi", "tool_calls": [{"a": URL}]}]}).encode(),
], ids=["text", "in a text", "escape", "no base64", "elsewhere", "prediction", "twice", "key", "content", "tool call"])
def test_where_no_medium_is_the_body_is_read_as_it_came(body):
    read = parse_request(Endpoint.CHAT, body)
    assert read.lean is None and read.document == orjson.loads(body)
    assert facts(read) == facts(plainly(body))


@pytest.mark.parametrize("body", [
    body_of(image())[:-1], body_of(image(), stream="yes"), body_of(image()).replace(b'"m"', b'"%s"' % URL.encode())])
def test_what_is_wrong_is_said_of_the_body_as_it_came(body):
    with pytest.raises(InvalidRequest) as wrong:
        parse_request(Endpoint.CHAT, body)
    with pytest.raises(InvalidRequest) as plain:
        plainly(body)
    assert (wrong.value.message, wrong.value.param) == (plain.value.message, plain.value.param)


def test_short_runs_and_bodies_without_any_are_left_alone():
    assert lean(body_of(image(URL[:RUN_BYTES_MIN]))) is None
    assert lean(body_of({"type": "text", "text": "word " * RUN_BYTES_MIN})) is None


def test_a_body_of_nothing_but_beginnings_of_data_urls_is_looked_at_so_often_only():
    short, texts = {"type": "text", "text": "x"}, [{"type": "text", "text": "data:"}] * DATA_URLS_MAX
    before, behind = body_of(image(), *texts[1:], short), body_of(*texts, image(), short)
    assert lean(before).urls and lean(behind) is None
    for body in (before, behind):
        assert facts(parse_request(Endpoint.CHAT, body)) == facts(plainly(body))


PARTS = st.lists(st.one_of(
    st.builds(image, st.sampled_from([URL, URL + "=", URL[:60], "https://example.com/a.png", "DATA:x;base64," + RUN])),
    st.builds(lambda text: {"type": "text", "text": text}, st.one_of(st.text(max_size=20), st.sampled_from([
        URL, '"data:', f'\\"data:;base64,{RUN}', f"data:,;base64,{RUN}", f'"{URL}"']))),
    st.builds(lambda data: {"type": "input_audio", "input_audio": {"data": data, "format": "wav"}},
              st.sampled_from([URL, RUN])),
    st.just({"type": "image_url", "image_url": URL}),
), min_size=1, max_size=5)


@given(PARTS, st.booleans(), st.booleans())
def test_no_body_is_read_otherwise(parts, ascii_only, compact):
    body = json.dumps({"model": "m", "messages": [{"role": "user", "content": parts}]}, ensure_ascii=ascii_only,
                      separators=(",", ":") if compact else None).encode("utf-8", "surrogatepass")
    try:
        plain = plainly(body)
    except InvalidRequest as error:
        with pytest.raises(InvalidRequest):
            parse_request(Endpoint.CHAT, body)
        assert error.message
        return
    read = parse_request(Endpoint.CHAT, body)
    assert facts(read) == facts(plain)
    sent = upstream_body(read, model="other", usage=UsageInjection.NONE)
    assert sent == upstream_body(plain, model="other", usage=UsageInjection.NONE)


def test_responses_have_pictures_too():
    body = json.dumps({"model": "m", "input": [{"role": "user", "content": [
        {"type": "input_text", "text": "What is this?"}, {"type": "input_image", "image_url": URL}]}]}).encode()
    read = parse_request(Endpoint.RESPONSES, body)
    assert read.lean is not None and facts(read) == facts(plainly(body, Endpoint.RESPONSES))


def test_a_body_that_holds_the_marks_itself_is_read_as_it_came():
    body = body_of(image(), {"type": "text", "text": "~left out here~0-1"}, image())
    read = parse_request(Endpoint.CHAT, body)
    assert read.lean is None
    assert upstream_body(read, model="other", usage=UsageInjection.NONE) == body.replace(b'"m"', b'"other"', 1)


@pytest.mark.parametrize("answer", ["It is about 5 km.", "It is ~5 km.", '"data:', "~cut~"])
def test_what_follows_changes_nothing_of_how_a_prompt_begins(answer):
    """Or the provider's cache would be assumed to know nothing of a conversation that goes on."""
    first = {"role": "user", "content": [image(), {"type": "text", "text": "word " * 2500}]}
    more = [first, {"role": "assistant", "content": answer}, {"role": "user", "content": "And back?"}]
    one, two = (parse_request(Endpoint.CHAT, json.dumps({"model": "m", "messages": messages}).encode())
                for messages in ([first], more))
    assert one.lean is not None and two.document["messages"][:1] == one.document["messages"]
