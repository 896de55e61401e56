"""What a simulated model answers, decided from the request alone. Pure.

An `Answer` is settled before its first token: the seed and the request's content give its
length and words; tools and JSON schemas give it a document that satisfies them. The servers
only pace it and wrap it in their wire format.
"""

from __future__ import annotations

import json
import math
import random
from dataclasses import dataclass
from typing import Any
from zlib import crc32

from proxy.demo import tokens
from proxy.demo.tokens import BYTES_PER_TOKEN

TOOL_PHRASE = "use the tool"
_DEPTH_MAX = 12


class Malformed(ValueError):
    """A request field that has the wrong shape; `field` names it."""

    def __init__(self, field: str):
        super().__init__(f"{field}: malformed")
        self.field = field


def check_shapes(body: dict[str, Any]) -> None:
    """Raises Malformed unless the fields that `plan` reads look as they should."""
    def texts(value: Any) -> bool:
        return isinstance(value, str) or (isinstance(value, list) and all(isinstance(v, str) for v in value))

    def function(tool: Any) -> bool:
        inner = tool.get("function") if isinstance(tool, dict) else None
        return isinstance(inner, dict) and isinstance(inner.get("name"), str) and isinstance(
            inner.get("parameters") or {}, dict)

    def choice(value: Any) -> bool:
        return isinstance(value, str) or (isinstance(value, dict) and isinstance(value.get("function") or {}, dict))

    checks = {
        "messages": lambda v: isinstance(v, list) and all(
            isinstance(m, dict) and isinstance(m.get("role"), str) for m in v),
        "stop": texts, "tool_choice": choice,
        "tools": lambda v: isinstance(v, list) and all(function(t) for t in v),
        "response_format": lambda v: isinstance(v, dict) and isinstance(v.get("json_schema") or {}, dict),
        "stream_options": lambda v: isinstance(v, dict),
    }
    for field, good in checks.items():
        if body.get(field) is not None and not good(body[field]):
            raise Malformed(field)


@dataclass(frozen=True, slots=True)
class Answer:
    """One choice: `tokens` tokens whose texts are `piece(0..tokens-1)`.

    With a tool, token 0 is the call's opening (its name) and the others are its arguments.
    """

    raw: bytes
    tokens: int
    finish_reason: str  # stop | length
    stop_reason: str | None = None
    tool: str | None = None

    def piece(self, index: int) -> str:
        """The text of one token; empty where a stop string swallowed it."""
        return self.raw_piece(index).decode("utf-8", "replace")

    def raw_piece(self, index: int) -> bytes:
        start = (index - (self.tool is not None)) * BYTES_PER_TOKEN
        return self.raw[start:start + BYTES_PER_TOKEN] if start >= 0 else b""

    def text(self, count: int | None = None) -> str:
        """The text of the first `count` tokens, of all without it."""
        if count is None:
            return self.raw.decode("utf-8", "replace")
        count -= self.tool is not None
        return self.raw[:max(0, count) * BYTES_PER_TOKEN].decode("utf-8", "replace")

    def kv_bytes(self) -> bytes:
        """The answer as token bytes, for prefix caching."""
        size = self.tokens * BYTES_PER_TOKEN
        return self.raw[:size].ljust(size, b"\0")


@dataclass(frozen=True, slots=True)
class Limits:
    """How long an answer may and must be. `mean` is the model's average answer."""

    mean: int
    max_tokens: int
    exact: bool = False  # ignore_eos: as long as it may be
    min_tokens: int = 0  # the model stops as soon as it may: exactly this long


def plan(body: dict[str, Any], prompt: bytes, choice: int, seed: int, limits: Limits) -> Answer:
    """The answer of one choice to an OpenAI-shaped request body."""
    content = crc32(prompt, crc32(str((seed, body.get("seed"), choice)).encode()))
    tool = tool_to_call(body)
    if tool is not None:
        document = _document(tool.get("parameters") or {}, content, "tools")
        return _cut(document, limits, tool=str(tool.get("name", "tool")))
    schema = _response_schema(body)
    if schema is not None:
        return _cut(_document(schema, content, "response_format"), limits)
    length, finish = _length(content, limits)
    return _stopped(tokens.words(seed, content, length), length, finish, body.get("stop"))


def tool_to_call(body: dict[str, Any]) -> dict[str, Any] | None:
    """The function the model calls: the named one, the first if required, and under `auto` the
    first if the last user message says "use the tool"."""
    functions = [t["function"] for t in body.get("tools") or [] if isinstance(t, dict) and "function" in t]
    choice = body.get("tool_choice", "auto")
    if not functions or choice == "none":
        return None
    if isinstance(choice, dict):
        name = (choice.get("function") or {}).get("name")
        return next((f for f in functions if f.get("name") == name), functions[0])
    if choice == "required" or TOOL_PHRASE in _last_user_text(body.get("messages") or []):
        return functions[0]
    return None


def _last_user_text(messages: list[Any]) -> str:
    for message in reversed(messages):
        if isinstance(message, dict) and message.get("role") == "user":
            return tokens.content_text(message.get("content")).decode("utf-8", "replace").lower()
        if isinstance(message, dict) and message.get("role") == "tool":
            return ""  # the tool has answered: the model speaks now
    return ""


def _response_schema(body: dict[str, Any]) -> dict[str, Any] | None:
    wanted = body.get("response_format")
    if not isinstance(wanted, dict):
        return None
    if wanted.get("type") == "json_schema":
        return (wanted.get("json_schema") or {}).get("schema") or {}
    if wanted.get("type") == "json_object":
        return {"type": "object", "properties": {"answer": {"type": "string"}, "sure": {"type": "boolean"}}}
    return None


def _length(content: int, limits: Limits) -> tuple[int, str]:
    """A geometric length of the given mean, within the limits, and why it ends there."""
    if limits.exact:
        return limits.max_tokens, "length"
    if limits.min_tokens:
        natural = limits.min_tokens + (limits.min_tokens == limits.max_tokens)
    else:
        chance = random.Random(content).random()  # noqa: S311 - reproducible, not secret
        natural = 1 if limits.mean <= 1 else 1 + int(math.log1p(-chance) / math.log1p(-1 / limits.mean))
    return (natural, "stop") if natural <= limits.max_tokens else (limits.max_tokens, "length")


def _stopped(raw: bytes, length: int, finish: str, stops: Any) -> Answer:
    """Ends the answer at the first stop string. The tokens that held it were generated, and count."""
    text = raw.decode()
    found = [(text.find(s), s) for s in ([stops] if isinstance(stops, str) else stops or []) if s]
    at, stop = min(((i, s) for i, s in found if i >= 0), default=(-1, ""))
    if at < 0:
        return Answer(raw, length, finish)
    spent = len(text[:at + len(stop)].encode())
    return Answer(text[:at].encode(), -(-spent // BYTES_PER_TOKEN), "stop", stop)


def _cut(document: str, limits: Limits, tool: str | None = None) -> Answer:
    raw = document.encode()
    opening = tool is not None
    need = -(-len(raw) // BYTES_PER_TOKEN) + opening
    if need <= limits.max_tokens:
        return Answer(raw, need, "stop", None, tool)
    return Answer(raw[:(limits.max_tokens - opening) * BYTES_PER_TOKEN], limits.max_tokens, "length", None, tool)


def _document(schema: Any, content: int, field: str) -> str:
    rng = random.Random(content)  # noqa: S311 - reproducible, not secret
    try:
        value = instance(schema, rng, schema.get("$defs") or schema.get("definitions") or {})
    except (AttributeError, IndexError, KeyError, TypeError, ValueError, OverflowError):
        raise Malformed(field) from None  # not a schema, or one that contradicts itself
    return json.dumps(value, separators=(",", ":"))  # ASCII, so that four bytes are four characters


def instance(schema: Any, rng: random.Random, defs: dict[str, Any], depth: int = 0) -> Any:
    """A value that satisfies a simple JSON schema: types, enum, const, bounds, nesting, $ref, anyOf."""
    if not isinstance(schema, dict) or depth > _DEPTH_MAX:
        return None
    if "$ref" in schema:
        return instance(defs.get(str(schema["$ref"]).rsplit("/", 1)[-1], {}), rng, defs, depth + 1)
    if "const" in schema:
        return schema["const"]
    if schema.get("enum"):
        return rng.choice(schema["enum"])
    for union in ("anyOf", "oneOf", "allOf"):
        if schema.get(union):
            return instance(schema[union][0], rng, defs, depth + 1)
    kind = schema.get("type") or ("object" if "properties" in schema else "string")
    if isinstance(kind, list):
        kind = next((k for k in kind if k != "null"), "null")
    return _of_type(kind, schema, rng, defs, depth)


def _of_type(kind: str, schema: dict[str, Any], rng: random.Random, defs: dict[str, Any], depth: int) -> Any:
    if kind == "object":
        fields = schema.get("properties") or {}
        return {name: instance(sub, rng, defs, depth + 1) for name, sub in fields.items()}
    if kind == "array":
        count = max(schema.get("minItems", 0), min(2, schema.get("maxItems", 2)))
        return [instance(schema.get("items") or {}, rng, defs, depth + 1) for _ in range(count)]
    if kind == "string":
        text = tokens.words(0, rng.randrange(8192), 1 + schema.get("minLength", 8) // BYTES_PER_TOKEN)
        plain = text.decode().strip().ljust(schema.get("minLength", 0), "x")
        return plain[:max(schema.get("maxLength", len(plain)), 0)]
    if kind == "boolean":
        return rng.random() < 0.5
    if kind in ("integer", "number"):
        return _number(kind, schema, rng)
    return None


def _number(kind: str, schema: dict[str, Any], rng: random.Random) -> int | float:
    low, high = schema.get("minimum"), schema.get("maximum")
    if schema.get("exclusiveMinimum") is not None:
        low = schema["exclusiveMinimum"] + (1 if kind == "integer" else 1e-3)
    if schema.get("exclusiveMaximum") is not None:
        high = schema["exclusiveMaximum"] - (1 if kind == "integer" else 1e-3)
    low = low if low is not None else (0 if high is None else high - 100)
    high = high if high is not None else low + 100
    if kind == "integer":
        step = schema.get("multipleOf") or 1
        first, last = math.ceil(low / step), math.floor(high / step)
        return int(rng.randint(first, max(first, last)) * step)
    return round(rng.uniform(low, high), 3) if high - low > 0.01 else low
