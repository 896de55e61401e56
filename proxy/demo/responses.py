"""A Responses API request as the chat that a model sees of it, and what a server keeps of earlier ones. Pure."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

from proxy.demo.answers import Answer, Malformed

KEPT_MAX = 10_000
Messages = list[dict[str, Any]]
_SAME = ("model", "seed", "stop", "ignore_eos", "min_tokens", "temperature", "stream", "metadata", "stream_options")
_FORMATS = ("json_schema", "json_object")
_TEXTS = ("input_text", "output_text")


class Kept:
    """The conversations that stored responses end, by response id; the oldest are forgotten."""

    def __init__(self) -> None:
        self._of: OrderedDict[str, Messages] = OrderedDict()

    def __len__(self) -> int:
        return len(self._of)

    def __contains__(self, ident: object) -> bool:
        return ident in self._of

    def before(self, body: dict[str, Any]) -> Messages | None:
        """The conversation that a request goes on with; None where that is not kept."""
        ident = body.get("previous_response_id")
        return [] if ident is None else self._of.get(ident) if isinstance(ident, str) else None

    def add(self, ident: str, messages: Messages, answer: Answer) -> None:
        self._of[ident] = [*messages, _said(answer, ident)]
        while len(self._of) > KEPT_MAX:
            self._of.popitem(last=False)

    def forget(self) -> None:
        """As a server that keeps them in memory does when it starts anew."""
        self._of.clear()


def _said(answer: Answer, ident: str) -> dict[str, Any]:
    if answer.tool is None:
        return {"role": "assistant", "content": answer.text()}
    call = {"name": answer.tool, "arguments": answer.text()}
    return {"role": "assistant", "content": "", "tool_calls": [
        {"id": f"call_{ident[-16:]}", "type": "function", "function": call}]}


def messages_of(body: dict[str, Any]) -> Messages:
    """The input as messages. Raises Malformed."""
    given = body.get("input")
    if isinstance(given, str):
        return [{"role": "user", "content": given}]
    if not isinstance(given, list) or not given or not all(isinstance(item, dict) for item in given):
        raise Malformed("input")
    return [message for item in given if (message := _message(item)) is not None]


def _message(item: dict[str, Any]) -> dict[str, Any] | None:
    kind = item.get("type", "message")
    if kind == "message":
        content, role = item.get("content"), item.get("role")
        if not isinstance(role, str) or not isinstance(content, str | list):
            raise Malformed("input")
        if isinstance(content, list):
            content = [{"type": "text", "text": part.get("text")} if isinstance(part, dict)
                       and part.get("type") in _TEXTS else part for part in content]
        return {"role": role, "content": content}
    if kind in ("function_call", "custom_tool_call"):
        arguments = item.get("arguments" if kind == "function_call" else "input")
        if not isinstance(item.get("name"), str) or not isinstance(arguments, str):
            raise Malformed("input")
        return {"role": "assistant", "content": "", "tool_calls": [{
            "id": item.get("call_id"), "type": "function",
            "function": {"name": item["name"], "arguments": arguments}}]}
    if kind in ("function_call_output", "custom_tool_call_output"):
        output = item.get("output")
        if not isinstance(output, str | list):
            raise Malformed("input")
        return {"role": "tool", "tool_call_id": item.get("call_id"), "content": output}
    if kind == "reasoning":
        return None  # thought is not read twice
    raise Malformed("input")


def as_chat(body: dict[str, Any], before: Messages) -> dict[str, Any]:
    """The chat request whose answer is this one's, but for its limit. Raises Malformed."""
    chat = {name: body[name] for name in _SAME if body.get(name) is not None}
    instructions = body.get("instructions")
    if instructions is not None and not isinstance(instructions, str):
        raise Malformed("instructions")
    first: Messages = [] if instructions is None else [{"role": "system", "content": instructions}]
    chat["messages"] = [*first, *before, *messages_of(body)]
    tools = body.get("tools")
    if tools is not None:
        if not isinstance(tools, list) or not all(isinstance(tool, dict) for tool in tools):
            raise Malformed("tools")
        chat["tools"] = [{"type": "function", "function": {
            name: tool[name] for name in ("name", "description", "parameters") if tool.get(name) is not None}}
            for tool in tools if tool.get("type") == "function"]
    choice = body.get("tool_choice")
    if isinstance(choice, dict):
        chat["tool_choice"] = {"type": "function", "function": {"name": choice.get("name")}}
    elif choice is not None:
        chat["tool_choice"] = choice
    if (shape := _format(body)) is not None:
        chat["response_format"] = shape
    return chat


def _format(body: dict[str, Any]) -> dict[str, Any] | None:
    text = body.get("text")
    if text is not None and not isinstance(text, dict):
        raise Malformed("text")
    wanted = text.get("format") if text else None
    if not isinstance(wanted, dict) or wanted.get("type") not in _FORMATS:
        return None
    return {"type": wanted["type"], "json_schema": {"schema": wanted.get("schema")}}
