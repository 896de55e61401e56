"""An upstream that breaks at every phase of an answer, byte by byte where it matters.

Before the first token has gone out another upstream answers; after it the stream ends with an error event and never
with [DONE]. Every attempt is settled, with what it ended by and where its usage came from.
"""

import asyncio
import json

import pytest

from proxy.core.retry import RetryBudget
from proxy.ledger.verify import verify
from tests.integration.test_disconnects import at_rest
from tests.integration.test_faults import CHAT, STREAM, attempts, texts
from tests.support.world import world

HEAD = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1, "model": "llama"}
WORDS = ["Gr", "üß", "e", " 世界", "!"]
USAGE = {"prompt_tokens": 9, "completion_tokens": len(WORDS), "total_tokens": 9 + len(WORDS)}


def frame(**more):
    return b"data: " + json.dumps({**HEAD, **more}, ensure_ascii=False).encode() + b"\n\n"


def choice(delta, finish=None):
    return frame(choices=[{"index": 0, "delta": delta, "finish_reason": finish}])


ROLE = choice({"role": "assistant", "content": ""})
TOKENS = [choice({"content": word}) for word in WORDS]
STOP = choice({}, "stop")
FINAL = frame(choices=[], usage=USAGE)
DONE = b"data: [DONE]\n\n"
WHOLE = ROLE + b"".join(TOKENS) + STOP + FINAL + DONE
SECOND = len(ROLE + TOKENS[0])  # where the second token's event begins
UTF8 = SECOND + TOKENS[1].index("ü".encode()) + 1  # between the two bytes of a character
FIRST_UTF8 = len(ROLE) + TOKENS[0].index(b"Gr") + 1

# Bytes that come before the reset, whether the client has seen a token, usage source, tokens that are booked.
PHASES = {
    "byte 0": (0, False, "none", 0), "byte 1": (1, False, "none", 0),
    "half the role": (len(ROLE) // 2, False, "none", 0),
    "after the role": (len(ROLE), False, "none", 0), "half the first token": (FIRST_UTF8, False, "none", 0),
    "after a token": (SECOND, True, "estimated", 1), "half a character": (UTF8, True, "estimated", 1),
    "half an event": (SECOND + 12, True, "estimated", 1),
    "between its two line ends": (SECOND - 1, False, "estimated", 1),
    "before the stop": (len(WHOLE) - len(STOP + FINAL + DONE), True, "estimated", 5),
    "before usage": (len(WHOLE) - len(FINAL + DONE), True, "estimated", 5),
    "half the usage": (len(WHOLE) - len(FINAL + DONE) + len(FINAL) // 2, True, "estimated", 5),
    "after usage": (len(WHOLE) - len(DONE), True, "upstream_final", 5),
    "half of done": (len(WHOLE) - len(DONE) + 9, True, "upstream_final", 5),
}
GARBAGE = {
    "garbage at once": (b"data: {garbage\n\n", False, "none", 0),
    "an error at once": (b'data: {"error": {"message": "dead at 10.0.0.7", "code": 500}}\n\n', False, "none", 0),
    "garbage after a token": (ROLE + TOKENS[0] + b"data: {garbage\n\n" + DONE, True, "estimated", 1),
    "an error after a token": (ROLE + TOKENS[0] + b'data: {"error": {"message": "dead at 10.0.0.7"}}\n\n' + DONE, True,
                               "estimated", 1),
    "not UTF-8 after a token": (ROLE + TOKENS[0] + b'data: {"choices": [{"delta": {"content": "\xff"}}]}\n\n' + DONE,
                                True, "estimated", 1),
}
ALL = {**{name: (WHOLE[:cut], *rest) for name, (cut, *rest) in PHASES.items()}, **GARBAGE}


def breaking(data, pieces):
    """A handler that sends the first token, then the rest in so many pieces, and resets the connection; a stream with
    garbage ends in order."""
    async def handle(request):
        await request.body()
        await request.stream()
        size = max(1, -(-len(data[SECOND:]) // pieces))
        for piece in (data[:SECOND], *(data[at:at + size] for at in range(SECOND, len(data), size))):
            if piece:
                await request.write(piece)
                await asyncio.sleep(0.02)
        if data.endswith(DONE):
            await request.end()
        else:
            await request.reset()

    return handle


def fresh(there):
    """What the last phase taught must not decide the next."""
    board = there.gateway.board
    board.retries = RetryBudget()
    for one in (*board.apis.values(), *board.every_replica()):
        one.breaker.ejected_until = 0.0
        one.breaker.success(now=0.0)


@pytest.mark.parametrize("pieces", [1, 3])
async def test_at_every_phase_another_answers_or_the_stream_says_that_it_broke(tmp_path, monkeypatch, pieces):
    async with world(tmp_path, monkeypatch) as there:
        engine = there.engines[0]
        expected = []
        for name, (data, seen, source, tokens) in ALL.items():
            fresh(there)
            engine.routes = {**engine.routes, "/v1/chat/completions": {"POST": breaking(data, pieces)}}
            status, headers, body = await there.post(STREAM)
            said, errors, done = texts(body)
            assert status == 200 and b"10.0.0.7" not in body, name
            if seen:
                assert headers["x-breakeven-backend"] == "llama" and not done, name
                assert [(error["code"], error["type"], error["param"]) for error in errors] == [
                    ("upstream_cut", "api_error", None)], name
                assert said == "".join(WORDS[:tokens]), name
                expected.append((1, "llama", True, "upstream_error", source, tokens))
            else:
                assert headers["x-breakeven-backend"] == "api" and headers["x-breakeven-reason"] == "failover", name
                assert done and not errors and said, name
                expected.append((1, "llama", False, "upstream_error", source, tokens))
                expected.append((2, "api", True, "complete", "upstream_final", None))
        rows = await there.settled(len(expected))
        found = [(*attempt, row["usage_source"], row["output_text"] if row["backend"] == "llama" else None)
                 for attempt, row in zip(attempts(rows), rows, strict=True)]
        assert found == expected
        assert all((row["baseline_nano"] is not None) == (row["backend"] == "api") for row in rows)
        await at_rest(there)
        assert verify(there.ledger) == []


async def test_with_nobody_else_the_client_hears_of_it_in_the_same_words(tmp_path, monkeypatch):
    async with world(tmp_path, monkeypatch, engines=0) as there:
        for name, (data, seen, source, tokens) in ALL.items():
            fresh(there)
            there.api.routes = {**there.api.routes, "/v1/chat/completions": {"POST": breaking(data, 1)}}
            status, _, body = await there.post(STREAM)
            if seen:
                assert status == 200 and texts(body)[1][0]["code"] == "upstream_cut" and b"[DONE]" not in body, name
            else:
                assert status == 502 and json.loads(body)["error"]["code"] == "upstream_error", name
            row = there.rows()[-1]
            how = row["end_reason"], row["usage_source"], row["output_text"]
            assert how == ("upstream_error", source, tokens), name
        assert len(there.rows()) == len(ALL)
        await at_rest(there)


ANSWER = json.dumps({"id": "chatcmpl-1", "object": "chat.completion", "model": "llama", "usage": USAGE, "choices": [
    {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": "".join(WORDS)}}]},
    ensure_ascii=False).encode()


@pytest.mark.parametrize("short", [1, 20, len(ANSWER)])
async def test_a_whole_answer_shorter_than_it_said_is_asked_elsewhere(tmp_path, monkeypatch, short):
    async def handle(request):
        await request.body()
        await request._start(200, [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(ANSWER))])
        await request.write(ANSWER[:len(ANSWER) - short])
        await request.reset()

    async with world(tmp_path, monkeypatch) as there:
        engine = there.engines[0]
        engine.routes = {**engine.routes, "/v1/chat/completions": {"POST": handle}}
        status, headers, body = await there.post(CHAT)
        assert status == 200 and headers["x-breakeven-backend"] == "api" and json.loads(body)["choices"]
        assert attempts(await there.settled(2)) == [(1, "llama", False, "upstream_error"), (2, "api", True, "complete")]
        await at_rest(there)


async def test_an_answer_that_ends_after_done_is_whole_whatever_becomes_of_the_connection(tmp_path, monkeypatch):
    async with world(tmp_path, monkeypatch) as there:
        async def handle(request):
            await request.body()
            await request.stream()
            await request.write(WHOLE)
            await asyncio.sleep(0.02)
            await request.reset()

        engine = there.engines[0]
        engine.routes = {**engine.routes, "/v1/chat/completions": {"POST": handle}}
        _, _, body = await there.post(STREAM)
        assert texts(body) == ("".join(WORDS), [], True)
        (row,) = await there.settled(1)
        assert (row["end_reason"], row["usage_source"], row["output_text"]) == ("complete", "upstream_final", 5)
        await at_rest(there)
