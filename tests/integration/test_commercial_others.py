"""LiteLLMUpstream for providers other than Anthropic: OpenAI's SDK underneath, and embeddings."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import importlib.util
import re
import struct
from types import SimpleNamespace

import orjson
import pytest

if importlib.util.find_spec("litellm") is None:  # found, not imported: `commercial` must be the first to
    pytest.skip("the litellm extra is not installed", allow_module_level=True)

from proxy.core.errors import UpstreamCut, UpstreamFailed, UpstreamOverloaded, UpstreamTimeout
from proxy.demo.api import ApiModel, ApiProfile, SimulatedApi
from proxy.demo.serving import serve
from proxy.upstream.factory import build
from proxy.upstream.transport import Outgoing
from tests.support.patience import PATIENCE_S

KEY = SimpleNamespace(reveal=lambda: "sk-other")


def upstream_to(url, model, first_byte_s=PATIENCE_S):
    backend = SimpleNamespace(name="other", kind="litellm", model=model, api_key=KEY, tls_verify=True, connect_s=None,
                              first_byte_s=None, idle_s=None)
    return build(backend, url, SimpleNamespace(connect_s=PATIENCE_S, first_byte_s=first_byte_s, idle_s=PATIENCE_S,
                                                 answer_s=first_byte_s))


def asked(path="/v1/chat/completions", fault=None, **body):
    return Outgoing(path, orjson.dumps({"model": "x", **body}), (("x-sim-fault", fault),) if fault else (), "r",
                    body.get("stream") is True)


@contextlib.asynccontextmanager
async def answering(status: int, document):
    seen = []

    async def handle(reader, writer):
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            head = await reader.readuntil(b"\r\n\r\n")
            size = int(re.search(rb"content-length: (\d+)", head, re.IGNORECASE)[1])
            seen.append((head, orjson.loads(await reader.readexactly(size))))
            body = orjson.dumps(document)
            writer.write(b"HTTP/1.1 %d X\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%s" % (
                status, len(body), body))
        writer.close()

    server = await asyncio.start_server(handle, "127.0.0.1", 0)
    try:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", seen
    finally:
        server.close()


@contextlib.asynccontextmanager
async def openai_by_litellm(**options):
    profile = ApiProfile(models={"gpt-sim": ApiModel(input="1", cached_input="0.5", output="4")}, ttft_ms=2.0,
                         tpot_ms=1.0, api_key="sk-other")
    app = SimulatedApi(profile)
    async with serve(app) as url:
        upstream = upstream_to(url, "openai/gpt-sim", **options)
        try:
            yield upstream, app.log._rows
        finally:
            await upstream.close()


CHAT = {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 5}


async def test_openais_sdk_goes_over_our_connections_too():
    async with openai_by_litellm() as (upstream, rows):
        answer = await upstream.open(asked(**CHAT))
        document = orjson.loads(await answer.read(100_000))
        assert document["usage"]["completion_tokens"] == 5 == rows[-1]["completion_tokens"]
        stream = await upstream.open(asked(stream=True, stream_options={"include_usage": True}, **CHAT))
        told = [orjson.loads(f[6:]) for f in (await stream.read(100_000)).split(b"\n\n")[:-2]]
        assert "".join(f["choices"][0]["delta"].get("content", "") for f in told[:-1]) == \
            document["choices"][0]["message"]["content"]
        assert told[-1]["usage"]["total_tokens"] == document["usage"]["total_tokens"]
        assert told[-2]["choices"][0]["finish_reason"] == "length"


@pytest.mark.parametrize(("fault", "error"), [("429", UpstreamOverloaded), ("503", UpstreamOverloaded),
                                              ("500", UpstreamFailed), ("reset", UpstreamFailed),
                                              ("timeout", UpstreamTimeout)])
async def test_its_errors_are_ours_and_it_is_asked_once(fault, error):
    async with openai_by_litellm(first_byte_s=0.3 if fault == "timeout" else PATIENCE_S) as (upstream, _):
        with pytest.raises(error):
            await upstream.open(asked(fault=fault, **CHAT))


async def test_its_broken_stream_is_cut():
    async with openai_by_litellm() as (upstream, _):
        answer = await upstream.open(asked(fault="cut:2", stream=True, **CHAT))
        with pytest.raises(UpstreamCut):
            await answer.read(100_000)


@pytest.mark.parametrize("encoding", [None, "float", "base64"])
async def test_embeddings_come_as_openai_sends_them(encoding):
    document = {"object": "list", "model": "voyage-3", "usage": {"total_tokens": 7},
                "data": [{"object": "embedding", "index": 0, "embedding": [0.5, -0.25]}]}
    async with answering(200, document) as (url, seen):
        upstream = upstream_to(url + "/v1/embeddings", "voyage/voyage-3")
        body = {"input": ["hello"]} | ({"encoding_format": encoding} if encoding else {})
        answer = await upstream.open(asked("/v1/embeddings", **body))
        told = orjson.loads(await answer.read(10_000))
        await upstream.close()
    assert seen[0][1]["input"] == ["hello"] and b"Bearer sk-other" in seen[0][0]
    vector = told["data"][0]["embedding"]
    if encoding == "base64":
        vector = list(struct.unpack("<2f", base64.b64decode(vector)))
    assert vector == [0.5, -0.25]
    assert told["usage"] == {"prompt_tokens": 7, "total_tokens": 7}


async def test_an_unpaid_account_is_not_the_clients_fault():
    refusal = {"type": "error", "error": {"type": "invalid_request_error",
                                          "message": "Your credit balance is too low to access the Anthropic API."}}
    async with answering(400, refusal) as (url, _):
        upstream = upstream_to(url, "anthropic/claude-x")
        with pytest.raises(UpstreamFailed, match="no credit"):
            await upstream.open(asked(**CHAT))
        await upstream.close()


async def test_thinking_is_passed_on_and_counted_once():
    document = {"id": "m", "type": "message", "role": "assistant", "model": "claude-x", "stop_reason": "end_turn",
                "stop_sequence": None, "usage": {"input_tokens": 10, "output_tokens": 30},
                "content": [{"type": "thinking", "thinking": "let me see", "signature": "sig"},
                            {"type": "text", "text": "four"}]}
    async with answering(200, document) as (url, seen):
        upstream = upstream_to(url, "anthropic/claude-sonnet-4-5-20250929")
        answer = await upstream.open(asked(thinking={"type": "enabled", "budget_tokens": 1024}, top_k=5, **CHAT))
        told = orjson.loads(await answer.read(10_000))
        await upstream.close()
    assert seen[0][1]["thinking"]["budget_tokens"] == 1024 and seen[0][1]["top_k"] == 5
    message = told["choices"][0]["message"]
    assert (message["content"], message["reasoning_content"]) == ("four", "let me see")
    assert message["thinking_blocks"][0]["signature"] == "sig"
    assert told["usage"]["completion_tokens"] == 30 and told["usage"]["total_tokens"] == 40
    assert told["usage"]["completion_tokens_details"]["reasoning_tokens"] == 0  # none was reported, none is guessed
