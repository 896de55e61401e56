"""One suite for every upstream: the interface promises the same whoever answers."""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
from collections.abc import Callable
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any

import orjson
import pytest

from proxy.core.errors import UpstreamCut, UpstreamError, UpstreamFailed, UpstreamTimeout
from proxy.demo.anthropic import AnthropicModel, AnthropicProfile, SimulatedAnthropic
from proxy.demo.api import ApiModel, ApiProfile, SimulatedApi
from proxy.demo.engine import Behaviour, EngineProfile, SimulatedEngine
from proxy.demo.serving import serve
from proxy.upstream.factory import build
from proxy.upstream.transport import Outgoing
from tests.support.patience import PATIENCE_S, until

KEY = "sk-contract-secret"
WAITS = {"connect_s": PATIENCE_S, "first_byte_s": PATIENCE_S, "idle_s": PATIENCE_S, "answer_s": PATIENCE_S}


@dataclass
class Case:
    """An upstream, the server behind it, and how to ask that server for a fault."""

    kind: str
    app: Any
    url: str
    upstream: Any
    faulty: Callable[[Outgoing, str], Outgoing]

    def rows(self) -> list[dict[str, Any]]:
        return self.app.log.since(0)


def engine() -> tuple[str, Any]:
    return "vllm", SimulatedEngine(EngineProfile(model="sim", alpha_ms=1.0, beta_ms=0.01))


def api() -> tuple[str, Any]:
    models = {"sim": ApiModel(input="1", cached_input="0.5", output="4")}
    return "openai", SimulatedApi(ApiProfile(models=models, ttft_ms=3.0, tpot_ms=2.0, api_key=KEY))


def claude() -> tuple[str, Any]:
    models = {"sim": AnthropicModel(input="3", cache_read="0.3", cache_write="3.75", output="15")}
    return "anthropic", SimulatedAnthropic(AnthropicProfile(models=models, ttft_ms=3.0, tpot_ms=2.0, api_key=KEY))


no_litellm = pytest.mark.skipif(importlib.util.find_spec("litellm") is None, reason="no litellm")


def upstream_to(kind: str, url: str, **waits: float) -> Any:
    backend = SimpleNamespace(name="one", kind=kind, model="sim", api_key=SimpleNamespace(reveal=lambda: KEY),
                              tls_verify=True, connect_s=None, first_byte_s=None, idle_s=None)
    return build(backend, url, SimpleNamespace(**{**WAITS, **waits}))


@pytest.fixture(params=[engine, api, pytest.param(claude, marks=no_litellm)], ids=lambda make: make.__name__)
async def case(request):
    kind, app = request.param()

    def by_header(outgoing, fault):
        return replace(outgoing, headers=(("x-sim-fault", fault),))

    def by_behaviour(outgoing, fault):
        name, _, count = fault.partition(":")
        app.live.behaviour = {"reset": Behaviour(reset_before_first_byte=True), "timeout": Behaviour(wedge=True),
                              "cut": Behaviour(cut_midstream_after_tokens=int(count or 0))}[name]
        return outgoing

    async with serve(app) as url:
        upstream = upstream_to(kind, url)
        yield Case(kind, app, url, upstream, by_behaviour if kind == "vllm" else by_header)
        await upstream.close()


def asked(stream: bool, tokens: int = 8, text: str = "the secret prompt") -> Outgoing:
    body = {"model": "sim", "messages": [{"role": "user", "content": text}], "max_tokens": tokens, "stream": stream}
    if stream:
        body["stream_options"] = {"include_usage": True}
    return Outgoing("/v1/chat/completions", orjson.dumps(body), (), "req-1", stream)


async def document(upstream, text="the secret prompt"):
    answer = await upstream.open(asked(False, text=text))
    assert (answer.status, answer.headers["content-type"].partition(";")[0]) == (200, "application/json")
    body = await answer.read(1 << 20)
    answer.release()
    return orjson.loads(body)


async def frames(upstream, text="the secret prompt"):
    answer = await upstream.open(asked(True, text=text))
    assert answer.headers["content-type"].partition(";")[0] == "text/event-stream"
    raw = b""
    while piece := await answer.chunk():
        raw += piece
    assert await answer.chunk() == b""
    answer.release()
    parts = raw.split(b"\n\n")
    assert parts[-2:] == [b"data: [DONE]", b""]
    return [orjson.loads(part.removeprefix(b"data: ")) for part in parts[:-2]]


async def test_whole_and_streamed_answers_tell_the_same_text_and_usage(case):
    whole, told = await document(case.upstream), await frames(case.upstream)
    text = "".join(c["delta"].get("content") or "" for f in told for c in f["choices"])
    assert text == whole["choices"][0]["message"]["content"]
    assert told[-1]["choices"] == []
    for name in ("prompt_tokens", "completion_tokens", "total_tokens"):
        assert told[-1]["usage"][name] == whole["usage"][name] > 0
    assert [row["completion_tokens"] for row in case.rows()] == [8, 8]


async def test_a_sink_gets_what_a_reader_gets_and_may_stop_and_pause(case):
    answer, seen = await case.upstream.begin(asked(True)), []

    def sink(piece):
        seen.append(piece)
        if len(seen) == 1:
            answer.stop()
        else:
            answer.pause()
            asyncio.get_running_loop().call_later(0.01, answer.resume)

    await answer.pipe(sink)
    assert len(seen) == 1
    await answer.pipe(sink)
    assert await answer.chunk() == b"" and b"".join(seen).endswith(b"data: [DONE]\n\n")
    answer.release()
    whole = await case.upstream.begin(asked(False))
    await whole.pipe(seen.append)
    assert orjson.loads(seen[-1])["usage"]["completion_tokens"] == 8
    whole.release()
    assert [row["completion_tokens"] for row in case.rows()] == [8, 8]


async def test_a_sink_of_a_stream_that_is_cut_hears_of_it_at_the_end(case):
    answer, seen = await case.upstream.begin(case.faulty(asked(True), "cut:2")), []
    with pytest.raises(UpstreamCut) as caught:
        await answer.pipe(seen.append)
    assert b"data: " in b"".join(seen) and b"[DONE]" not in b"".join(seen)
    assert_tells_nothing(caught.value, case)


async def test_what_a_sink_raises_comes_out_and_gives_the_answer_up(case):
    answer = await case.upstream.begin(asked(True, tokens=5000))
    with pytest.raises(ZeroDivisionError):
        await answer.pipe(lambda piece: 1 / 0)
    await until(case.rows)
    assert [row["end"] for row in case.rows()] == ["abort"]


async def test_an_opening_that_is_cancelled_raises_where_it_is_awaited_and_leaves_nothing(case):
    opening = case.upstream.begin(case.faulty(asked(False), "timeout"))
    asyncio.get_running_loop().call_later(0.2, opening.cancel)
    with pytest.raises(asyncio.CancelledError):
        await opening
    await asyncio.sleep(0.1)
    assert all(row["end"] == "abort" for row in case.rows())


async def test_a_body_beyond_the_bound_is_refused(case):
    for stream in (False, True):
        answer = await case.upstream.open(asked(stream))
        with pytest.raises((UpstreamFailed, ValueError), match="over 50 bytes"):
            await answer.read(50)


async def test_a_reset_before_the_first_byte_is_a_failure(case):
    for stream in (False, True):
        with pytest.raises(UpstreamFailed) as caught:
            await case.upstream.open(case.faulty(asked(stream), "reset"))
        assert_tells_nothing(caught.value, case)
        assert caught.value.retryable


async def test_a_stream_cut_in_the_middle_is_cut_and_not_retryable(case):
    answer = await case.upstream.open(case.faulty(asked(True), "cut:2"))
    told = b""
    with pytest.raises(UpstreamCut) as caught:
        while piece := await answer.chunk():
            told += piece
    assert b"data: " in told and b"[DONE]" not in told and not caught.value.retryable
    assert_tells_nothing(caught.value, case)


async def test_a_silent_upstream_times_out(case):
    upstream = upstream_to(case.kind, case.url, first_byte_s=0.2, answer_s=0.2)
    for stream in (False, True):
        with pytest.raises(UpstreamTimeout) as caught:
            answer = await upstream.open(case.faulty(asked(stream), "timeout"))
            await answer.chunk()
        assert_tells_nothing(caught.value, case)
    await upstream.close()


async def test_abort_is_noticed_and_may_be_repeated(case):
    answer = await case.upstream.open(asked(True, tokens=5000))
    await answer.chunk()
    answer.abort()
    answer.abort()
    answer.release()
    await until(case.rows)
    assert [row["end"] for row in case.rows()] == ["abort"]
    with pytest.raises(UpstreamCut):
        await answer.chunk()


async def test_an_upstream_that_is_not_there_is_a_failure_and_so_is_a_closed_one(case):
    async with contextlib.AsyncExitStack() as gone:
        url = await gone.enter_async_context(serve(SimulatedEngine(EngineProfile(model="sim"))))
    upstream = upstream_to(case.kind, url)
    for _ in range(2):
        with pytest.raises(UpstreamFailed) as caught:
            await upstream.open(asked(True))
        assert_tells_nothing(caught.value, case)
        await upstream.close()


async def test_two_hundred_streams_at_once_keep_their_own_answers(case):
    texts = [f"{i} " * (i % 7 + 1) for i in range(200)]
    streams = await asyncio.gather(*[frames(case.upstream, text) for text in texts])
    for text, told in zip(texts, streams, strict=True):
        assert len({f["id"] for f in told}) == 1, text
    counted = [(row["prompt_tokens"], row["completion_tokens"]) for row in case.rows()]
    assert sorted((told[-1]["usage"]["prompt_tokens"], told[-1]["usage"]["completion_tokens"])
                  for told in streams) == sorted(counted)


async def test_get_asks_with_the_key(case):
    status, body = await case.upstream.get("/v1/models", 1.0, 100_000)
    assert status == 200 and b"sim" in body
    with pytest.raises(UpstreamError):
        await case.upstream.get("/v1/models", 1.0, 3)
    with pytest.raises(ValueError, match="path"):
        await case.upstream.get("@evil.example/", 1.0, 3)


def assert_tells_nothing(error: BaseException, case: Case) -> None:
    told = f"{error} {error!r}"
    for secret in (KEY, case.url.rpartition(":")[2], "127.0.0.1", "http", "secret prompt"):
        assert secret not in told
    assert "one: " in told


def test_no_upstream_shows_its_key_or_address():
    for kind in ("vllm", "anthropic"):
        upstream = upstream_to(kind, "http://10.9.8.7:8000")
        assert "one" in repr(upstream) and KEY not in repr(upstream) and "10.9.8.7" not in repr(upstream)
