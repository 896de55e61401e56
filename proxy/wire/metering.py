"""What a streamed answer used, and the client's bytes with the gateway's own question taken out.

To be billed exactly, streams are asked for usage whether or not the client asked. `StreamMeter`
reads it and gives the client what it would have seen otherwise, byte for byte: the usage-only
chunk is dropped, `"usage"` members are cut out with their comma. vLLM stamps
`system_fingerprint` on the usage-only chunk when there is one, else on every chunk with a
finish_reason; so such a chunk is held until the next frame, then gets the fingerprint back. With
several choices the early ones finish before the fingerprint is known: pass the one learned from
the same upstream's last stream (`fingerprint`), or they go without.

Frames of running text are not parsed: a few searches decide that nothing else is in them (in
valid JSON a quote that no backslash precedes is a delimiter, so `"content":"` is a key). Every
other frame is parsed whole.

The caller's part:
- write what `feed` returns; when `done`, settle, then write what `flush` returns: the end of the
  answer, `[DONE]`, is never in `feed`, so that no client sees it before it is booked;
- at the end of the upstream call `flush` likewise, then look at `clean`;
- once `error` or `malformed` is set nothing more is returned (that frame is not relayed: an
  upstream's text may hold what the client must not see), but usage is still read. Write an error
  event of your own, and never a `[DONE]`.
"""

from __future__ import annotations

import re
from typing import Any

import orjson

from proxy.core.usage import Usage
from proxy.wire.chunks import (
    CHOICES_MAX,
    FINGERPRINT_CHARS_MAX,
    RunningUsage,
    error_text,
    is_object,
    stamped,
    text_bytes,
    with_payload,
)
from proxy.wire.endpoints import Endpoint
from proxy.wire.openai import Strip
from proxy.wire.sse import DONE_FRAME, FRAME_BYTES_MAX, FrameSplitter, FrameTooLong, frame_data
from proxy.wire.usage import tail_member, tier_of, usage_from_dict, without_member

COMMENT_BYTES_MAX = 16_384  # heartbeats that may pile up behind a held chunk
HELD_BYTES_MAX = 32_768  # a longer chunk is not held: it goes without its fingerprint

_TEXT_KEYS = {
    Endpoint.CHAT: (b'"content":"', b'"reasoning_content":"', b'"reasoning":"', b'"arguments":"'),
    Endpoint.COMPLETIONS: (b'"text":"',),
    Endpoint.EMBEDDINGS: (),
    Endpoint.RESPONSES: (),  # see events.py
}
__all__ = ["StreamMeter", "Strip"]

STRING = re.compile(rb'[^"\\]*(?:\\.[^"\\]*)*(?=")')


class StreamMeter:
    """Meters one stream; see the module. `choices` is how many the answer will have (n times the
    prompts), `prompts` how many prompts it answers.

    Between two calls at most 1 MiB is kept, whatever the upstream sends: a frame that has not ended
    (with what a growing buffer takes besides), a held chunk, the end, and a few facts of each choice."""

    __slots__ = ("_choices", "_comments", "_end", "_endpoint", "_final", "_finished", "_held", "_keys", "_plain",
                 "_running", "_splitter", "_strip", "content_bytes", "content_frames", "done", "error", "fingerprint",
                 "malformed", "served_model", "service_tier")

    def __init__(self, endpoint: Endpoint, *, strip: Strip, choices: int = 1, prompts: int = 1,
                 fingerprint: str | None = None, frame_bytes_max: int = FRAME_BYTES_MAX) -> None:
        self._splitter = FrameSplitter(frame_bytes_max)
        self._endpoint = endpoint
        self._strip = strip
        self._choices = choices
        self._keys = _TEXT_KEYS[endpoint]
        self._running = RunningUsage(endpoint, choices, prompts)
        self._finished: set[int] = set()  # choices
        self._final: Usage | None = None
        self._held: tuple[bytes, bytes] | None = None  # as it came; as the client would see it
        self._comments = b""  # that came behind the held chunk
        self._end = b""  # [DONE], for flush
        self._plain = False  # frames may take the quick way: the first is read, none is held
        self.fingerprint = fingerprint
        self.done = False
        self.error: str | None = None
        self.malformed: str | None = None
        self.content_frames = 0
        self.content_bytes = 0
        self.served_model: str | None = None
        self.service_tier: str | None = None

    @property
    def usage(self) -> Usage | None:
        """The final usage, else the sum of what each choice last reported; None if none was."""
        return self._final if self._final is not None else self._running.usage()

    @property
    def usage_source(self) -> str | None:
        if self._final is not None:
            return "upstream_final"
        return "upstream_running" if self._running.usage() is not None else None

    @property
    def finished(self) -> bool:
        """Every choice has a finish_reason: the client has the whole text."""
        return len(self._finished) >= self._choices

    @property
    def clean(self) -> bool:
        """The answer ended as answers should."""
        return (self.done or self.finished) and not self._stopped

    def feed(self, data: bytes) -> bytes:
        """What the client gets for these bytes of the upstream."""
        try:
            frames = self._splitter.feed(data)
        except FrameTooLong as problem:
            out = [self._frame(frame) for frame in problem.frames]
            return b"".join(out) + self._stop(malformed=str(problem))
        if len(frames) == 1:
            return self._frame(frames[0])
        return b"".join([self._frame(frame) for frame in frames])

    def flush(self) -> bytes:
        """The end of the answer, once: at `done`, or at the end of the upstream. A last event
        without its blank line is taken if it is whole; half an event is not relayed."""
        rest = self._splitter.remainder()
        self._splitter = FrameSplitter()
        out = self._remainder(rest) if rest.strip() else b""
        out += self._release() + self._end
        self._end = b""
        return out

    @property
    def _stopped(self) -> bool:
        return self.error is not None or self.malformed is not None

    def _frame(self, frame: bytes) -> bytes:
        """The hot path: running text, on one line, compact, and nothing else in it."""
        if not self._plain or frame[:7] != b"data: {" or frame.find(b"\n", 7) != len(frame) - 2:
            return self._closely(frame)
        find = frame.find
        for key in self._keys:
            start = find(key, 7)
            if start > 0:
                break
        else:
            return self._closely(frame)
        start += len(key)
        end = find(b'"', start)
        if end > start and frame[end - 1] == 0x5C:  # an escaped quote, or an escaped backslash
            text = STRING.match(frame, start)
            end = text.end() if text else start
        if end == start:
            return self._closely(frame)
        finish = find(b'"finish_reason":', end) + 16
        if finish == 15 or frame[finish:finish + 4] != b"null" or find(b'"finish_reason"', finish) > 0:
            return self._closely(frame)
        usage_at = find(b'"usage"', 7)
        if usage_at > 0:
            member = tail_member(frame[6:-2], usage_at - 6)
            if member is None or not self._running.simple:
                return self._closely(frame)
            if member[2] is not None:
                if type(member[2]) is not dict:
                    return self._closely(frame)
                self._running.note_short(member[2])
            if self._strip is Strip.ALL or (self._strip is Strip.RUNNING and member[2] is not None):
                frame = frame[:member[0] + 6] + frame[member[1] + 6:]
        self.content_frames += 1
        self.content_bytes += end - start
        return frame

    def _closely(self, frame: bytes) -> bytes:
        """Any frame, parsed."""
        payload = frame_data(frame)
        if payload is None or not payload.strip():
            return self._comment(frame)
        if payload.lstrip()[:6] == b"[DONE]":
            return self._ended(frame)
        try:
            chunk = orjson.loads(payload)
        except orjson.JSONDecodeError as problem:
            return self._stop(malformed=f"an event is not JSON: {problem.msg} at {problem.pos}")
        if not isinstance(chunk, dict):
            return self._stop(malformed="an event is not a JSON object")
        if chunk.get("error") or chunk.get("object") == "error":
            return self._stop(error=error_text(chunk.get("error") or chunk))
        out = self._chunk(frame, payload, chunk)
        self._plain = self._held is None and not self.done and not self._stopped
        return out

    def _chunk(self, frame: bytes, payload: bytes, chunk: dict[str, Any]) -> bytes:
        model, choices, usage = chunk.get("model"), chunk.get("choices"), chunk.get("usage")
        if isinstance(model, str) and self.served_model is None:
            self.served_model = model[:256]
        self.service_tier = tier_of(chunk) or self.service_tier
        choices = [c for c in choices if isinstance(c, dict)] if isinstance(choices, list) else []
        ending = self._read(choices)
        if isinstance(usage, dict):
            self._note(usage, choices)
        only_usage = not choices and isinstance(usage, dict)
        before = self._release(only_usage, chunk.get("system_fingerprint"))
        if self._stopped or self.done or (only_usage and self._strip is Strip.ALL):
            return before
        seen = self._seen(frame, payload, chunk, bool(choices))
        # Usage on the last chunk, and none before: the only one the client will get, unless a
        # usage-only chunk follows.
        lone = self._strip is Strip.RUNNING and self._final is not None and seen is not frame
        if ending and (self._strip is Strip.ALL or lone):
            if len(frame) <= HELD_BYTES_MAX:
                self._held = (frame, seen)
                return before
            return before + (frame if lone else seen)
        return before + seen

    def _read(self, choices: list[dict[str, Any]]) -> bool:
        """Counts what the choices carry; True when one of them finishes here."""
        ending = False
        for choice in choices:
            reason, index = choice.get("finish_reason"), choice.get("index")
            if isinstance(reason, str) and reason:
                if len(self._finished) < CHOICES_MAX:
                    self._finished.add(index if isinstance(index, int) else 0)
                ending = True
        if size := text_bytes(choices):
            self.content_frames += 1
            self.content_bytes += size
        return ending

    def _note(self, usage: dict[str, Any], choices: list[dict[str, Any]]) -> None:
        """Final: on the usage-only chunk, or, from upstreams that report once, on the last one."""
        if not choices or (self.finished and not self._running):
            self._final = usage_from_dict(usage, self._endpoint) or self._final
        else:
            index = choices[0].get("index")
            self._running.note(index if isinstance(index, int) else 0, usage)

    def _seen(self, frame: bytes, payload: bytes, chunk: dict[str, Any], has_choices: bool) -> bytes:
        """The frame as the client would have seen it."""
        if self._strip is Strip.NOTHING or "usage" not in chunk:
            return frame
        if self._strip is Strip.RUNNING and not (has_choices and isinstance(chunk["usage"], dict)):
            return frame
        quick = tail_member(payload, payload.find(b'"usage"'))
        if quick is not None:
            return with_payload(frame, payload, payload[:quick[0]] + payload[quick[1]:])
        return with_payload(frame, payload, without_member(payload, b"usage"))

    def _release(self, usage_follows: bool = False, fingerprint: Any = None) -> bytes:
        """The held chunk, now that what follows shows how the client would have seen it."""
        if self._held is None:
            return b""
        (raw, seen), comments = self._held, self._comments
        self._held, self._comments = None, b""
        if self._strip is Strip.RUNNING:
            return (seen if usage_follows else raw) + comments
        if (usage_follows and isinstance(fingerprint, str) and len(fingerprint) <= FINGERPRINT_CHARS_MAX
                and stamped(seen, fingerprint) is not seen):
            self.fingerprint = fingerprint
        return (stamped(seen, self.fingerprint) if self.fingerprint else seen) + comments

    def _comment(self, frame: bytes) -> bytes:
        if self._stopped or self.done:
            return b""
        if self._held is None or len(self._comments) + len(frame) > COMMENT_BYTES_MAX:
            return self._release() + frame
        self._comments += frame
        return b""

    def _ended(self, frame: bytes) -> bytes:
        before = self._release()
        if not self._stopped and not self.done:
            self.done, self._plain = True, False
            self._end = frame if len(frame) <= COMMENT_BYTES_MAX else DONE_FRAME
        return before

    def _stop(self, *, error: str | None = None, malformed: str | None = None) -> bytes:
        """What came before the bad frame. The first cause is kept; after [DONE] nothing counts."""
        before = self._release()
        if not self._stopped and not self.done:
            self.error, self.malformed, self._plain = error, malformed, False
        return before

    def _remainder(self, rest: bytes) -> bytes:
        payload = frame_data(rest)
        if payload is None or payload.strip()[:6] == b"[DONE]" or is_object(payload):
            return self._closely(rest)
        if self.finished:
            return b""  # cut inside the usage or [DONE]: the client has the whole text
        return self._stop(malformed="the stream was cut inside an event")
