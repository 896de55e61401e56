"""One chunk of a stream: what it carries, how it is cut, what running counts add up to."""

from __future__ import annotations

from typing import Any

import orjson

from proxy.core.usage import Usage
from proxy.wire.endpoints import Endpoint
from proxy.wire.scrub import scrub, text_of
from proxy.wire.usage import usage_from_dict

ERROR_CHARS_MAX = 500
CHOICES_MAX = 256  # of one stream, remembered one by one: twice what OpenAI's `n` allows
FINGERPRINT_CHARS_MAX = 256

_COUNTS = {"prompt_tokens", "completion_tokens", "total_tokens", "prompt_tokens_details", "completion_tokens_details"}
_NONE: dict[int, Usage | dict[str, Any]] = {}  # never changed
_NUMBERS = {int, type(None)}


class RunningUsage:
    """Running counts (`continuous_usage_stats`), which each speak of one choice and its prompt.

    vLLM's chunk of choice `i` carries the tokens of that choice only. So a cut stream of several
    choices used the sum of the last count of each, and each prompt once; choices are numbered
    prompt by prompt. Of more choices than CHOICES_MAX no sum is known."""

    __slots__ = ("_endpoint", "_last", "_lone", "_per_prompt", "_seen", "_too_many", "simple")

    def __init__(self, endpoint: Endpoint, choices: int, prompts: int) -> None:
        self._endpoint = endpoint
        self._per_prompt = max(1, choices // max(1, prompts))
        self._lone: Usage | dict[str, Any] | None = None  # of a stream of one choice; a dict: short, and not read yet
        self._seen = self._too_many = False
        self.simple = choices == 1  # whatever its index, the last count is the count
        self._last: dict[int, Usage | dict[str, Any]] = _NONE if self.simple else {}  # of others

    def __bool__(self) -> bool:
        return self._seen

    def note_short(self, usage: dict[str, Any]) -> None:
        """A short count of a stream of one choice: kept as it is, and read when somebody asks."""
        self._lone, self._seen = usage, True

    def note(self, index: int, usage: dict[str, Any]) -> None:
        """Any count. Of what is not short only the numbers are kept: an upstream may add to it without end."""
        self._seen = True
        short = _COUNTS.issuperset(usage) and _NUMBERS.issuperset(map(type, usage.values()))
        read = usage if short else usage_from_dict(usage, self._endpoint)
        if self.simple:
            self._lone = read
        elif read is None:
            self._last.pop(index, None)
        elif index in self._last or len(self._last) < CHOICES_MAX:
            self._last[index] = read
        else:
            self._too_many = True

    def usage(self) -> Usage | None:
        """None when no usable count came."""
        if self._too_many:
            return None
        if self.simple:
            return self._read(self._lone)
        read = {index: self._read(usage) for index, usage in self._last.items()}
        counts = {index: usage for index, usage in read.items() if usage is not None}
        if len(counts) <= 1:
            return next(iter(counts.values()), None)
        prompts: dict[int, Usage] = {}
        for index, usage in sorted(counts.items()):
            prompts.setdefault(index // self._per_prompt, usage)
        ins, outs = prompts.values(), counts.values()
        return Usage(
            input_text=sum(u.input_text for u in ins), cache_read=sum(u.cache_read for u in ins),
            cache_write_5m=sum(u.cache_write_5m for u in ins),
            cache_write_1h=sum(u.cache_write_1h for u in ins),
            input_audio=sum(u.input_audio for u in ins), input_image=sum(u.input_image for u in ins),
            output_text=sum(u.output_text for u in outs), reasoning=sum(u.reasoning for u in outs),
            output_audio=sum(u.output_audio for u in outs),
            consistent=all(u.consistent for u in outs))

    def _read(self, usage: Usage | dict[str, Any] | None) -> Usage | None:
        return usage_from_dict(usage, self._endpoint) if isinstance(usage, dict) else usage


def text_bytes(choices: list[dict[str, Any]]) -> int:
    """Bytes of what the choices carry: content, reasoning, refusal, tool calls; anything else
    that is not empty, such as audio or calls nested beyond writing, counts as one."""
    size = 0
    for choice in choices:
        delta = choice.get("delta")
        size += _size("text", choice.get("text"))
        if isinstance(delta, dict):
            size += sum(_size(name, value) for name, value in delta.items())
    return size


def _size(name: str, value: Any) -> int:
    if not value or name == "role":
        return 0
    if isinstance(value, str):
        return len(value) if value.isascii() else len(value.encode("utf-8", "replace"))
    if name not in ("tool_calls", "function_call"):
        return 1
    try:
        return len(orjson.dumps(value))
    except orjson.JSONEncodeError:  # parsing goes deeper than writing
        return 1


def with_payload(frame: bytes, old: bytes, new: bytes) -> bytes:
    """The frame with other data; data on several lines stays on several lines."""
    for field in (b"data: ", b"data:") if b"\n" not in old else ():
        at = frame.find(field + old)
        if at == 0 or (at > 0 and frame[at - 1] in b"\r\n"):  # not the same words in a comment
            at += len(field)
            return frame[:at] + new + frame[at + len(old):]
    return b"".join(b"data: " + line + b"\n" for line in new.split(b"\n")) + b"\n"


def stamped(frame: bytes, fingerprint: str) -> bytes:
    """The frame with the fingerprint as its last member, where vLLM writes it; unchanged when it
    has one."""
    end = frame.rfind(b"}")
    if end < 0 or b'"system_fingerprint"' in frame:
        return frame
    return frame[:end] + b',"system_fingerprint":' + orjson.dumps(fingerprint) + frame[end:]


def error_text(problem: Any) -> str:
    """What an upstream says went wrong, bounded and scrubbed."""
    if isinstance(problem, dict):
        problem = problem.get("message") or problem.get("type")
    text = text_of(problem) or "the upstream reported an error"
    return scrub(text[:4 * ERROR_CHARS_MAX])[:ERROR_CHARS_MAX]


def is_object(payload: bytes) -> bool:
    """Whole JSON, and an object."""
    try:
        return isinstance(orjson.loads(payload), dict)
    except orjson.JSONDecodeError:
        return False
