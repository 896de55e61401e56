"""SIGTERM under two hundred streams: readiness is false at once, what was accepted ends or is settled, exit 0."""

import asyncio
import contextlib
import signal
from dataclasses import replace

import aiohttp

from proxy.demo.engine import Behaviour
from proxy.ledger.verify import verify
from tests.integration.test_process import CALM, LONG, running

STREAMS = 200
WIDE = replace(CALM, max_num_seqs=256, kv_tokens=400_000, beta_ms=0.02, chunk_tokens=4096)
ENGINE = {"capacity": {"prefill_tokens_per_s": 50_000, "step_ms": [5, 0.02, 0.01], "kv_tokens": 400_000,
                       "max_running": 256, "chunk_tokens": 4096}}
SHORT = {**LONG, "max_tokens": 10, "min_tokens": 10}
ENDLESS = {**LONG, "max_tokens": 4000, "min_tokens": 4000}


@contextlib.asynccontextmanager
async def under_way(tmp_path, drain_s, short=0):
    """A gateway that is told to stop with so many streams open, some of them short; (world, {request id: body} once
    they have ended)."""
    async with running(tmp_path, profile=WIDE, engine=ENGINE, route={
            "policy": "self-hosted-only", "slo": {"ttft_ms": 600_000}}, server={"drain_s": drain_s}) as there:
        answers, opened = {}, asyncio.Event()

        async def client(number):
            body, name = b"", ""
            with contextlib.suppress(aiohttp.ClientError):
                async with there.session.post(there.url + "/v1/chat/completions",
                                              json=SHORT if number < short else ENDLESS) as answer:
                    name = answer.headers["x-request-id"]
                    answers[name] = b""
                    if len(answers) == STREAMS:
                        opened.set()
                    async for piece in answer.content.iter_any():
                        body += piece
            answers[name] = body

        clients = [asyncio.create_task(client(number)) for number in range(STREAMS)]
        await there.until(opened.is_set)
        there.engines[0].live.behave(Behaviour(paused=True))
        there.process.send_signal(signal.SIGTERM)
        await there.until(there.refuses)
        there.engines[0].live.behave(Behaviour())
        yield there, answers
        await asyncio.gather(*clients)


def sound(there, answers, drained):
    """Each accepted request is booked once; nothing is left open; who saw the end of an answer had a whole one."""
    rows = [row for row in there.rows() if row["final"]]
    assert {row["request_id"] for row in rows} == set(answers) and len(rows) == STREAMS
    ended = {row["request_id"]: row["end_reason"] for row in rows}
    whole = {name for name, body in answers.items() if b"[DONE]" in body}
    assert {name for name, how in ended.items() if how == "complete"} >= whole
    # Cut by a second signal, who still waited for a place was not served: that is booked too.
    assert set(ended.values()) <= {"complete", "interrupted"} | (set() if drained else {"unavailable"})
    assert all(row["usage_source"] == "upstream_running" and row["output_text"] > 0
               for row in rows if row["end_reason"] == "interrupted")
    assert not list(there.config.parent.glob("*.owner-*")), "no mark of anything in flight"
    assert verify(there.ledger) == []
    return whole


async def test_what_can_end_in_time_ends_and_the_rest_is_settled_at_the_deadline(tmp_path):
    async with under_way(tmp_path, drain_s=10, short=STREAMS // 2) as (there, answers):
        status, _ = await there.ended()
        assert status == 0
        whole = sound(there, answers, drained=True)
    assert len(whole) == STREAMS // 2


async def test_a_second_signal_cuts_what_runs_and_still_books_it(tmp_path):
    for second in (signal.SIGTERM, signal.SIGINT):
        (folder := tmp_path / second.name).mkdir()
        async with under_way(folder, drain_s=3600) as (there, answers):
            assert there.process.returncode is None
            there.process.send_signal(second)
            status, _ = await there.ended()  # not the hour
            assert status == 0
            assert sound(there, answers, drained=False) == set()
