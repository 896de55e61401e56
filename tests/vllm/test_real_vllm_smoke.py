"""What the gateway relies on in a real vLLM, asked directly: these facts are vLLM's, none of them ours.

No test asserts a time: how fast a CPU serves says nothing.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator

import aiohttp
import pytest
from prometheus_client.parser import text_string_to_metric_families

SEQUENCES_MAX = 4  # --max-num-seqs in start.py


@pytest.fixture
async def client():
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=120)) as session:
        yield session


def chat(model: str, tokens: int, **more) -> dict:
    """A request for exactly so many tokens."""
    messages = [{"role": "user", "content": "The with statement is used to wrap the execution of a block"}]
    return {"model": model, "messages": messages, "max_tokens": tokens, "ignore_eos": True, **more}


async def events(answer: aiohttp.ClientResponse) -> AsyncIterator[str]:
    async for line in answer.content:
        if line.startswith(b"data: "):
            yield line.removeprefix(b"data: ").decode().strip()


async def gauge(client: aiohttp.ClientSession, url: str, name: str) -> float:
    async with client.get(f"{url}/metrics") as answer:
        families = text_string_to_metric_families(await answer.text())
    return sum(sample.value for family in families for sample in family.samples if sample.name == name)


async def load(client: aiohttp.ClientSession, url: str) -> tuple[float, float]:
    names = ("vllm:num_requests_running", "vllm:num_requests_waiting")
    return await gauge(client, url, names[0]), await gauge(client, url, names[1])


async def test_health_is_an_empty_200(real_vllm, client):
    async with client.get(f"{real_vllm.url}/health") as answer:
        assert (answer.status, await answer.read()) == (200, b"")


async def test_a_chat_answer_reports_its_usage_and_echoes_the_request_id(real_vllm, client):
    request = client.post(
        f"{real_vllm.url}/v1/chat/completions", json=chat(real_vllm.model, 7), headers={"x-request-id": "abc"}
    )
    async with request as answer:
        assert answer.status == 200
        assert answer.headers["x-request-id"] == "abc"
        body = await answer.json()
    assert body["usage"]["completion_tokens"] == 7
    assert body["usage"]["total_tokens"] == body["usage"]["prompt_tokens"] + 7
    assert body["choices"][0]["finish_reason"] == "length"


async def test_every_chunk_of_a_stream_can_carry_the_usage_so_far(real_vllm, client):
    options = {"include_usage": True, "continuous_usage_stats": True}
    request = chat(real_vllm.model, 12, stream=True, stream_options=options)
    async with client.post(f"{real_vllm.url}/v1/chat/completions", json=request) as answer:
        *chunks, end = [event async for event in events(answer)]
    assert end == "[DONE]"
    counts = [json.loads(chunk)["usage"]["completion_tokens"] for chunk in chunks]
    assert counts == sorted(counts), "usage so far never falls"
    assert (counts[0], counts[-1]) == (0, 12)
    assert json.loads(chunks[-1])["choices"] == [], "the last chunk is the usage alone"


async def test_the_metrics_show_saturation_and_the_end_of_requests_given_up(real_vllm, client):
    async def ask() -> None:
        request = chat(real_vllm.model, 800, stream=True)
        async with client.post(f"{real_vllm.url}/v1/chat/completions", json=request) as answer:
            await answer.read()

    async with asyncio.timeout(100):
        asked = [asyncio.create_task(ask()) for _ in range(4 * SEQUENCES_MAX)]
        try:
            seen = (0.0, 0.0)
            while not (seen[0] == SEQUENCES_MAX and seen[1] > 0):
                assert not all(task.done() for task in asked), f"answered without queueing; last seen {seen}"
                seen = await load(client, real_vllm.url)
            assert await gauge(client, real_vllm.url, "vllm:kv_cache_usage_perc") > 0
        finally:
            for task in asked:
                task.cancel()
            await asyncio.gather(*asked, return_exceptions=True)
        while await load(client, real_vllm.url) != (0, 0):  # vLLM aborts what no client reads any more
            continue


async def test_a_second_server_refuses_with_503_what_exceeds_its_queue(real_vllm, client):
    small = real_vllm.another("--max-num-queued-reqs", "2", name="small")

    async def status() -> int:
        async with client.post(f"{small.url}/v1/chat/completions", json=chat("small", 400)) as answer:
            return answer.status

    try:
        statuses = await asyncio.gather(*(status() for _ in range(8)))
    finally:
        small.stop()
    assert set(statuses) == {200, 503}
