"""OpenAI's usage object -> disjoint buckets.

On the wire `prompt_tokens` includes cached, cache-written, audio and image tokens, and
`completion_tokens` includes reasoning, audio and rejected predictions. Here they are taken
apart, so that nothing is billed twice. What does not add up is repaired in favour of the totals
and marked `consistent=False`; what is not a usage at all is None, which is not the same as zero.
The Responses API has the same under other names (`input_tokens`, `output_tokens`).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import orjson

from proxy.core.usage import Usage
from proxy.wire.endpoints import Endpoint

TOKENS_MAX = 1 << 31  # above any batch an endpoint takes; more is a broken upstream, not a bill
TAIL_BYTES_MAX = 4096  # what may follow the usage for the quick look to be quick
USAGE_BYTES_MAX = 4096  # and how long the usage itself may be

_RESPONSES = {"prompt_tokens": "input_tokens", "completion_tokens": "output_tokens", "total_tokens": "total_tokens",
              "prompt_tokens_details": "input_tokens_details", "completion_tokens_details": "output_tokens_details"}

_TOKEN = re.compile(rb'"(?:[^"\\]++|\\.)*+"|[{}\[\]]', re.DOTALL)
_COLON = re.compile(rb"\s*:\s*")
_COMMA = re.compile(rb"\s*,\s*")
_SCALAR = re.compile(rb"[^\s,}\]]+")


def usage_from_dict(usage: Any, endpoint: Endpoint | None = None) -> Usage | None:
    """Buckets of one usage object.

    None: absent, null, or without a usable prompt and completion count (the caller estimates).
    Explicit zeros are kept. `consistent=False`: details above their total, negative, fractional
    or absurd details, or a `total_tokens` that is another sum; prompt and completion then win.
    """
    if not isinstance(usage, dict):
        return None
    if endpoint is Endpoint.RESPONSES:
        usage = {name: usage.get(theirs) for name, theirs in _RESPONSES.items()}
    return _plain(usage) or _taken_apart(usage, endpoint)


def _plain(usage: dict[str, Any]) -> Usage | None:
    """What engines of ours report, quickly: counts that add up, and of the prompt at most what was cached."""
    prompt, completion, total = usage.get("prompt_tokens"), usage.get("completion_tokens"), usage.get("total_tokens")
    if not (type(prompt) is type(completion) is type(total) is int and total == prompt + completion
            and 0 <= prompt <= TOKENS_MAX and 0 <= completion <= TOKENS_MAX and total <= TOKENS_MAX
            and usage.get("completion_tokens_details") is None and "prompt_cache_hit_tokens" not in usage):
        return None
    details = usage.get("prompt_tokens_details")
    if details is None:
        return Usage(prompt, 0, 0, 0, 0, 0, completion)
    cached = details.get("cached_tokens") if type(details) is dict and len(details) == 1 else None
    if type(cached) is not int or not 0 <= cached <= prompt:
        return None
    return Usage(prompt - cached, cached, 0, 0, 0, 0, completion)


def _taken_apart(usage: dict[str, Any], endpoint: Endpoint | None) -> Usage | None:
    prompt, completion = _count(usage.get("prompt_tokens")), _count(usage.get("completion_tokens"))
    total = _count(usage.get("total_tokens"))
    consistent = usage.get("total_tokens") is None or total is not None
    if completion is None and endpoint is Endpoint.EMBEDDINGS:
        completion = 0
    if prompt is None and completion is None:
        return None
    if prompt is None or completion is None:  # one side missing: the total gives it, or nothing does
        known = prompt if prompt is not None else completion
        assert known is not None
        consistent = total is not None and total >= known
        rest = total - known if total is not None and total >= known else None
        if rest is None and prompt is None:
            return None
        prompt = prompt if prompt is not None else rest
        completion = completion if completion is not None else rest or 0
    assert prompt is not None

    details = _Details(usage.get("prompt_tokens_details"))
    cached = details.take(prompt, "cached_tokens") or _count(usage.get("prompt_cache_hit_tokens")) or 0
    write_1h, write_5m = _writes(details, prompt)
    audio = details.take(prompt, "audio_tokens")
    image = details.take(prompt, "image_tokens")
    (cached, write_5m, write_1h, audio, image), text, fits_in = _apportion(
        prompt, (cached, write_5m, write_1h, audio, image))

    out = _Details(usage.get("completion_tokens_details"))
    reasoning = out.take(TOKENS_MAX, "reasoning_tokens")
    if reasoning and total == prompt + completion + reasoning:
        completion += reasoning  # xAI and Gemini leave it out of completion_tokens, and bill it
    (reasoning, out_audio), out_text, fits_out = _apportion(
        completion, (reasoning, out.take(completion, "audio_tokens")))
    consistent = (consistent and fits_in and fits_out and details.sound and out.sound
                  and (total is None or total == prompt + completion))
    return Usage(text, cached, write_5m, write_1h, audio, image, out_text, reasoning, out_audio,
                 consistent)


def read_usage(endpoint: Endpoint, body: bytes) -> Usage | None:
    """The usage of an answer that was not streamed; None when it has none or is not JSON.

    Usage stands near the end of every known layout, so that megabytes of embeddings are not
    parsed for three numbers; anything unusual is parsed whole."""
    span = tail_member(body, body.rfind(b'"usage":'))
    if span is not None:
        return usage_from_dict(span[2], endpoint)
    document = _object(body)
    return usage_from_dict(document.get("usage"), endpoint) if document else None


def tier_of(document: dict[str, Any]) -> str | None:
    """The service tier an answer says it was served with: the one that is billed."""
    tier = document.get("service_tier")
    return tier[:32] if isinstance(tier, str) and tier else None


def tail_member(text: bytes, at: int) -> tuple[int, int, Any] | None:
    """`(start, end, value)` of the `"usage":` member at `at`, its comma included, when it is
    certainly a member of the outermost object; None when that takes a closer look.

    In valid JSON a quote that no backslash precedes is a delimiter, so `,"usage":` is a key. It
    is the outermost object's when its value is followed by a single `}`, at the very end: any
    object around it would need another."""
    if at < 1 or text[at - 1] != 0x2C or text[at:at + 8] != b'"usage":':
        return None
    value_at = at + 8
    if text[value_at:value_at + 4] == b"null":
        end, value = value_at + 4, None
    else:
        most = value_at + USAGE_BYTES_MAX
        end = text.find(b"}", value_at, most) + 1
        while end and text.count(b"{", value_at, end) > text.count(b"}", value_at, end):
            end = text.find(b"}", end, most) + 1
        try:
            value = orjson.loads(text[value_at:end])
        except orjson.JSONDecodeError:
            return None
    if len(text) != end + 1 or text[end] != 0x7D:
        rest = text[end:].rstrip() if len(text) - end <= TAIL_BYTES_MAX else b""
        if rest[-1:] != b"}" or rest.count(b"}") != 1 or b'"usage"' in rest:
            return None
    return at - 1, end, value


def without_member(text: bytes, name: bytes) -> bytes:
    """`text` without the outermost object's members `name`, each cut with one of its commas: the one
    before it if a member that stays comes before. Exact for any valid JSON and linear, but slow: for
    what `tail_member` gave up."""
    depth, key, tokens = 0, b'"' + name + b'"', _TOKEN.finditer(text)
    kept, pieces, stays = 0, [], False
    for token in tokens:
        first = text[token.start()]
        if first in b"{[":
            depth += 1
        elif first in b"}]":
            depth -= 1
        elif depth == 1 and token[0] == key and (colon := _COLON.match(text, token.end())):
            start, end = token.start(), _value_end(text, colon.end(), tokens)
            if stays:
                while text[start - 1] in b" \t\r\n":
                    start -= 1
                start -= 1
            elif comma := _COMMA.match(text, end):
                end = comma.end()
            pieces.append(text[kept:start])
            kept = end
        elif depth == 1:
            stays = True
    return b"".join([*pieces, text[kept:]])


def _value_end(text: bytes, at: int, tokens: Iterator[re.Match[bytes]]) -> int:
    if text[at] not in b'{["':
        scalar = _SCALAR.match(text, at)
        return scalar.end() if scalar else at
    depth = 0
    for token in tokens:
        first = text[token.start()]
        depth += (first in b"{[") - (first in b"}]")
        if depth == 0:
            return token.end()
    return len(text)


class _Details:
    """The counts of a `*_tokens_details` object; `sound` turns False on one that is no count."""

    __slots__ = ("_members", "sound")

    def __init__(self, members: Any) -> None:
        self._members = members if isinstance(members, dict) else {}
        self.sound = members is None or isinstance(members, dict)

    def take(self, total: int, name: str) -> int:
        raw = self._members.get(name)
        count = _count(raw)
        if raw is not None and (count is None or count > total):
            self.sound = False
        return min(count, total) if count is not None else 0

    def members(self, name: str) -> _Details:
        return _Details(self._members.get(name))


def _writes(details: _Details, prompt: int) -> tuple[int, int]:
    """(1 hour, 5 minutes) cache writes. OpenAI says `cache_write_tokens`; litellm says
    `cache_creation_tokens` for Anthropic, with the split by lifetime beside it. vLLM's
    `created_cache_tokens` is no write anyone bills and stays uncached text."""
    written = details.take(prompt, "cache_write_tokens") or details.take(prompt, "cache_creation_tokens")
    split = details.members("cache_creation_token_details")
    hour = min(split.take(prompt, "ephemeral_1h_input_tokens"), written)
    return hour, written - hour


def _apportion(total: int, parts: tuple[int, ...]) -> tuple[tuple[int, ...], int, bool]:
    """The parts, cut where they exceed the total; what is left of it; whether nothing was cut."""
    left, cut = total, []
    for part in parts:
        cut.append(min(part, left))
        left -= cut[-1]
    return tuple(cut), left, sum(parts) <= total


def _count(value: Any) -> int | None:
    """A token count: a whole number from 0 to TOKENS_MAX; else None."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return value if type(value) is int and 0 <= value <= TOKENS_MAX else None


def _object(body: bytes) -> dict[str, Any] | None:
    try:
        document = orjson.loads(body)
    except orjson.JSONDecodeError:
        return None
    return document if isinstance(document, dict) else None

