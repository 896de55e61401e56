"""Anthropic's Messages format, as a simulated API reads and writes it. Pure.

A request is read by translating it to the OpenAI shape that `answers.plan` knows; responses are
written in Anthropic's own layout.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import orjson

from proxy.demo import tokens
from proxy.demo.answers import Answer, Malformed, check_shapes

_CACHE_STEP_BYTES = 128 * tokens.BYTES_PER_TOKEN


@dataclass(frozen=True, slots=True)
class Prompt:
    """A request's prompt as token bytes, and how much of it the client asked to be cached."""

    rendered: bytes
    cacheable: bytes  # the prefix up to the last cache_control, in whole steps of 128 tokens
    body: dict[str, Any]  # the same request as `answers.plan` reads it


@dataclass(frozen=True, slots=True)
class Counts:
    """Anthropic's buckets: `input` excludes both cache buckets."""

    input: int
    cache_read: int
    cache_creation: int

    def usage(self, output: int) -> dict[str, Any]:
        return {"input_tokens": self.input, "cache_creation_input_tokens": self.cache_creation,
                "cache_read_input_tokens": self.cache_read, "output_tokens": output}

    def full_usage(self, output: int) -> dict[str, Any]:
        return {**self.usage(output), "service_tier": "standard",
                "cache_creation": {"ephemeral_5m_input_tokens": self.cache_creation,
                                   "ephemeral_1h_input_tokens": 0}}


def read(body: dict[str, Any]) -> Prompt:
    """Renders tools, system and messages in this order. A `cache_control` anywhere in a message (or in
    the system text, or in a tool) caches up to that message's end; one at the top caches everything."""
    if not isinstance(body.get("tools") or [], list) or not all(isinstance(t, dict) for t in body.get("tools") or []):
        raise Malformed("tools")
    tools = [{"type": "function", "function": {"name": t.get("name"), "description": t.get("description"),
                                               "parameters": t.get("input_schema") or {}}}
             for t in body.get("tools") or []]
    messages: list[dict[str, Any]] = []
    if body.get("system"):
        messages.append({"role": "system", "content": body["system"]})
    for message in body["messages"]:
        blocks = message.get("content")
        result = isinstance(blocks, list) and any(
            isinstance(b, dict) and b.get("type") == "tool_result" for b in blocks)
        messages.append({"role": "tool" if result else message.get("role", "user"), "content": blocks})
    shaped = {"messages": messages, "tools": tools, "tool_choice": _tool_choice(body.get("tool_choice")),
              "stop": body.get("stop_sequences")}
    check_shapes(shaped)
    marked = 0
    for end in range(len(messages), 0, -1):
        if _has_control(messages[end - 1]["content"]):
            marked = len(tokens.render_chat(messages[:end], tools)) - len(tokens.render_chat([]))
            break
    if not marked and _has_control(body.get("tools")):
        marked = len(tokens.render_chat([], tools)) - len(tokens.render_chat([]))
    rendered = tokens.render_chat(messages, tools)
    if "cache_control" in body:
        marked = len(rendered)
    return Prompt(rendered, rendered[:marked // _CACHE_STEP_BYTES * _CACHE_STEP_BYTES], shaped)


def _has_control(content: Any) -> bool:
    return isinstance(content, list) and any(isinstance(b, dict) and "cache_control" in b for b in content)


def _tool_choice(choice: Any) -> Any:
    kind = choice.get("type") if isinstance(choice, dict) else "auto"
    if kind == "tool":
        return {"type": "function", "function": {"name": choice.get("name")}}
    return {"any": "required", "none": "none"}.get(str(kind), "auto")


def stop_of(answer: Answer) -> tuple[str, str | None]:
    """stop_reason and stop_sequence."""
    if answer.finish_reason == "length":
        return "max_tokens", None
    if answer.tool is not None:
        return "tool_use", None
    return ("end_turn", None) if answer.stop_reason is None else ("stop_sequence", answer.stop_reason)


def event(value: dict[str, Any]) -> bytes:
    return b"event: " + value["type"].encode() + b"\ndata: " + orjson.dumps(value) + b"\n\n"


def message(ident: str, model: str, answer: Answer, counts: Counts) -> dict[str, Any]:
    """A whole response."""
    if answer.tool is None:
        content: dict[str, Any] = {"type": "text", "text": answer.text()}
    else:
        content = {"type": "tool_use", "id": tool_id(ident), "name": answer.tool, "input": _arguments(answer)}
    reason, sequence = stop_of(answer)
    return {"id": ident, "type": "message", "role": "assistant", "model": model, "content": [content],
            "stop_reason": reason, "stop_sequence": sequence, "usage": counts.full_usage(answer.tokens)}


def _arguments(answer: Answer) -> Any:
    try:
        return orjson.loads(answer.text())
    except orjson.JSONDecodeError:
        return {}  # cut short by max_tokens


def tool_id(ident: str) -> str:
    return "toolu_" + ident.removeprefix("msg_")


def opening(ident: str, model: str, answer: Answer, counts: Counts) -> bytes:
    """message_start, the only block's start, and the ping that follows in real streams."""
    start = {"id": ident, "type": "message", "role": "assistant", "model": model, "content": [],
             "stop_reason": None, "stop_sequence": None, "usage": counts.full_usage(1)}
    block: dict[str, Any] = {"type": "text", "text": ""}
    if answer.tool is not None:
        block = {"type": "tool_use", "id": tool_id(ident), "name": answer.tool, "input": {}}
    return (event({"type": "message_start", "message": start})
            + event({"type": "content_block_start", "index": 0, "content_block": block})
            + event({"type": "ping"}))


def delta(answer: Answer, index: int) -> bytes:
    """The event of one token."""
    piece = answer.piece(index)
    inner = ({"type": "text_delta", "text": piece} if answer.tool is None else
             {"type": "input_json_delta", "partial_json": piece})
    return event({"type": "content_block_delta", "index": 0, "delta": inner})


def ending(answer: Answer, counts: Counts) -> bytes:
    """The block's stop, the message_delta with the cumulative usage, and message_stop."""
    reason, sequence = stop_of(answer)
    return (event({"type": "content_block_stop", "index": 0})
            + event({"type": "message_delta", "delta": {"stop_reason": reason, "stop_sequence": sequence},
                     "usage": counts.usage(answer.tokens)})
            + event({"type": "message_stop"}))
