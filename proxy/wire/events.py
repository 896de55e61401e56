"""What a streamed answer of the Responses API used: its events have names, and the last of them says it all.

`response.completed` or `response.incomplete` ends the answer and holds its usage; there is no `[DONE]`, and one that
comes all the same is dropped, because clients take it for the end. `response.failed` and `error` are errors. Nothing is
asked of the upstream that the client did not ask, so nothing is taken out: bytes pass as they came. The caller's part
is that of `StreamMeter`: the last event is never in `feed`.

Of running text nothing is parsed: an event whose name ends in `.delta`, on the two lines that every server writes, with
that name in its data, is counted by the bytes of its `delta`. Every other event is parsed whole. The first and the last
events repeat what was asked and answered, so they are longer than any chunk of a chat.
"""

from __future__ import annotations

from typing import Any

import orjson

from proxy.wire.chunks import error_text
from proxy.wire.endpoints import Endpoint
from proxy.wire.metering import STRING, StreamMeter, Strip
from proxy.wire.responses import ID_CHARS_MAX, called, reasoning_of
from proxy.wire.sse import data_frame, frame_data
from proxy.wire.usage import tier_of, usage_from_dict

EVENT_BYTES_MAX = 1 << 23  # of one event: the last one has the whole answer in it
ENDS = frozenset({"response.completed", "response.incomplete"})


class EventMeter(StreamMeter):
    """Meters one stream; see the module. Between two calls at most twice EVENT_BYTES_MAX is kept: an event that has not
    ended, and the last one. `events` counts those before the last: the next one's `sequence_number`."""

    __slots__ = ("called", "events", "reasoning", "response_id")

    def __init__(self, *, event_bytes_max: int = EVENT_BYTES_MAX) -> None:
        super().__init__(Endpoint.RESPONSES, strip=Strip.NOTHING, frame_bytes_max=event_bytes_max)
        self.events = 0
        self.response_id: str | None = None  # once it is over
        self.reasoning: tuple[str, ...] = ()  # and ids of it that the answer did not say
        self.called = True  # tools that the provider runs, as far as is known

    def _frame(self, frame: bytes) -> bytes:
        """The hot path: a delta, compact, on a line of its own behind its name."""
        line = frame.find(b"\n")
        if not self._plain or frame[line - 6:line] != b".delta" or frame[:16] != b"event: response." or (
                frame[line + 1:line + 8] != b"data: {" or frame.find(b"\n", line + 8) != len(frame) - 2):
            return self._closely(frame)
        find = frame.find
        start = find(b'"delta":"', line) + 9
        if start == 8 or find(b'"type":"' + frame[7:line] + b'"', line) < 0 or find(b'"error":', line) > 0:
            return self._closely(frame)
        end = find(b'"', start)
        if end > start and frame[end - 1] == 0x5C:
            text = STRING.match(frame, start)
            end = text.end() if text else start
        if end == start:
            return self._closely(frame)
        self.content_frames += 1
        self.content_bytes += end - start
        self.events += 1
        return frame

    def _closely(self, frame: bytes) -> bytes:
        """Any event, parsed."""
        payload = frame_data(frame)
        if payload is None or not payload.strip():
            return self._comment(frame)
        if self.done or payload.lstrip()[:6] == b"[DONE]":
            return b""
        try:
            event = orjson.loads(payload)
        except orjson.JSONDecodeError as problem:
            return self._stop(malformed=f"an event is not JSON: {problem.msg} at {problem.pos}")
        if not isinstance(event, dict):
            return self._stop(malformed="an event is not a JSON object")
        kind, answer = event.get("type"), event.get("response")
        if isinstance(answer, dict):
            self._learn(answer, kind)
            if kind == "response.failed" or answer.get("status") == "failed":
                return self._stop(error=error_text(answer.get("error") or "the response failed"))
        if kind == "error" or event.get("error"):
            return self._stop(error=error_text(event.get("error") or event))
        self._plain = not self._stopped
        if self._stopped:
            return b""
        if kind in ENDS:
            whole = frame.endswith((b"\n\n", b"\r\r", b"\n\r\n"))
            self.done, self._plain, self._end = True, False, frame if whole else frame + b"\n\n"
            return b""
        self.events += 1
        if isinstance(kind, str) and kind.endswith(".delta"):
            self._count(event.get("delta"))
        return frame

    def _learn(self, answer: dict[str, Any], kind: Any) -> None:
        """Of a `response`: its model, and, once it is over, what it used."""
        model = answer.get("model")
        if isinstance(model, str) and self.served_model is None:
            self.served_model = model[:256]
        if kind in ENDS or kind == "response.failed":  # before, the tier is only what was asked for
            self.response_id, self.reasoning = id_of(answer), reasoning_of(answer)
            self.called = kind not in ENDS or called(answer)
            self.service_tier = tier_of(answer) or self.service_tier
            self._final = usage_from_dict(answer.get("usage"), Endpoint.RESPONSES) or self._final

    def _count(self, delta: Any) -> None:
        if delta:
            self.content_frames += 1
            self.content_bytes += len(delta.encode("utf-8", "replace")) if isinstance(delta, str) else 1


def id_of(answer: Any) -> str | None:
    """A response's own id."""
    given = answer.get("id") if isinstance(answer, dict) else None
    return given if isinstance(given, str) and 0 < len(given) <= ID_CHARS_MAX else None


def error_frame(error: dict[str, Any], sequence_number: int) -> bytes:
    """The event that ends an answer which was cut. OpenAI's own has the message beside its type; their clients raise
    what stands under `error`."""
    told = {name: error[name] for name in ("code", "message", "param")}
    return b"event: error\n" + data_frame(orjson.dumps(
        {"type": "error", **told, "sequence_number": sequence_number, "error": error}))
