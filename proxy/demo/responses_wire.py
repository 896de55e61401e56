"""The events and bodies of the Responses API, as OpenAI and as vLLM 0.32 write them. Pure.

The order of events is OpenAI's: created, in progress; of each item of the output: added, its parts, deltas, done; and
the end, which holds the whole response. Both number them from 0.
"""

from __future__ import annotations

from typing import Any

import orjson

from proxy.demo.answers import Answer

_VLLM_ORDER = (
    "id", "created_at", "incomplete_details", "instructions", "metadata", "model", "object", "output",
    "parallel_tool_calls", "temperature", "tool_choice", "tools", "top_p", "background", "max_output_tokens",
    "max_tool_calls", "previous_response_id", "prompt", "reasoning", "service_tier", "status", "text", "top_logprobs",
    "truncation", "usage", "user", "presence_penalty", "frequency_penalty", "kv_transfer_params", "ec_transfer_params",
    "input_messages", "output_messages")


def openai_event(kind: str, members: dict[str, Any], number: int) -> bytes:
    return b"event: %b\ndata: %b\n\n" % (kind.encode(), orjson.dumps(
        {"type": kind, "sequence_number": number, **members}))


def vllm_event(kind: str, members: dict[str, Any], number: int) -> bytes:
    """Members in the order of the alphabet, but for a call's name, which is newer."""
    last = {"name": members.pop("name")} if "name" in members else {}
    return b"event: %b\ndata: %b\n\n" % (kind.encode(), orjson.dumps(
        {**dict(sorted({**members, "sequence_number": number, "type": kind}.items())), **last}))


class Response:
    """One response: what it echoes of its request, and its output so far. `hidden` tokens of it are reasoning, which
    comes first; `summary`: a summary of it is shown."""

    def __init__(self, ident: str, created: int, model: str, body: dict[str, Any], answer: Answer, *, vllm: bool,
                 hidden: int = 0, summary: bool = False) -> None:
        self.ident, self._created, self._model, self._body = ident, created, model, body
        self.answer, self._vllm, self.hidden, self.summary = answer, vllm, hidden, summary
        self.item_id = f"{'fc' if answer.tool else 'msg'}_{ident[5:]}"
        self.thought_id = f"rs_{ident[5:]}"

    def text(self, count: int | None = None) -> str:
        """What is said aloud in the first `count` tokens."""
        said = self.answer.text(count)
        return said[len(self.answer.text(self.hidden)):] if self.hidden else said

    def item(self, status: str, count: int | None = None) -> dict[str, Any]:
        """The message, or the call; begun when `count` is 0."""
        answer, text = self.answer, "" if count == 0 else self.text(count)
        if answer.tool is not None:
            call = {"arguments": text, "call_id": f"call_{self.ident[-16:]}", "name": answer.tool,
                    "type": "function_call", "id": self.item_id}
            return {**call, "async": None, "caller": None, "namespace": None, "status": status} if self._vllm else {
                "id": self.item_id, "type": "function_call", "status": status, **call}
        content = [] if count == 0 else [self.part(text)]
        if self._vllm:
            return {"id": self.item_id, "content": content, "role": "assistant", "status": status, "type": "message",
                    "phase": None}
        return {"id": self.item_id, "type": "message", "status": status, "content": content, "role": "assistant"}

    def part(self, text: str) -> dict[str, Any]:
        if self._vllm:
            return {"annotations": [], "text": text, "type": "output_text", "logprobs": None}
        return {"type": "output_text", "annotations": [], "logprobs": [], "text": text}

    def thought(self, done: bool) -> dict[str, Any]:
        told = [{"type": "summary_text", "text": self.answer.text(self.hidden)}] if self.summary and done else []
        thought = {"id": self.thought_id, "type": "reasoning", "summary": told}
        if "reasoning.encrypted_content" in (self._body.get("include") or ()):
            thought["encrypted_content"] = f"gAAAA{self.ident[-16:]}"
        return thought

    def document(self, status: str, usage: dict[str, Any] | None, count: int | None = None,
                 error: dict[str, Any] | None = None) -> dict[str, Any]:
        """The response itself. `count` tokens are in it, 0: none yet."""
        output = [] if count == 0 else [self.item("incomplete" if status == "incomplete" and not self._vllm
                                                  else "completed", count)]
        if self.hidden and output:
            output.insert(0, self.thought(done=True))
        given = self._body.get
        short = {"reason": "max_output_tokens"} if status == "incomplete" else None
        shared = {
            "id": self.ident, "object": "response", "created_at": self._created, "status": status,
            "background": False, "incomplete_details": short, "instructions": given("instructions"),
            "max_output_tokens": given("max_output_tokens"), "max_tool_calls": None, "model": self._model,
            "output": output, "parallel_tool_calls": True, "previous_response_id": given("previous_response_id"),
            "prompt": None, "reasoning": given("reasoning"), "temperature": given("temperature") or 1.0,
            "text": given("text"), "tool_choice": given("tool_choice") or "auto", "tools": given("tools") or [],
            "top_p": 1.0, "truncation": "disabled", "usage": usage, "user": given("user"),
            "metadata": given("metadata"), "top_logprobs": None}
        if self._vllm:
            full = {**shared, "service_tier": given("service_tier") or "auto", "presence_penalty": 0.0,
                    "frequency_penalty": 0.0, "kv_transfer_params": None, "ec_transfer_params": None,
                    "input_messages": None, "output_messages": None}
            return {name: full[name] for name in _VLLM_ORDER}
        over = status not in ("in_progress", "queued")
        return {**shared, "error": error, "service_tier": "default" if over else given("service_tier") or "auto",
                "store": given("store") is not False, "reasoning": given("reasoning") or {
                    "effort": None, "summary": None}, "text": given("text") or {"format": {"type": "text"}},
                "top_logprobs": 0, "metadata": given("metadata") or {}}


class Events:
    """The frames of one streamed response. Tokens come one by one; `end` is the only one that ends it."""

    def __init__(self, response: Response, *, vllm: bool) -> None:
        self._of, self._write = response, vllm_event if vllm else openai_event
        self._vllm, self._number = vllm, 0
        self._at = 1 if response.hidden else 0  # the item's index in the output

    def _event(self, kind: str, **members: Any) -> bytes:
        frame = self._write(kind, members, self._number)
        self._number += 1
        return frame

    def opening(self) -> bytes:
        """Before any token: nothing that anybody waits for."""
        begun = self._of.document("in_progress", None, 0)
        return self._event("response.created", response=begun) + self._event("response.in_progress", response=begun)

    def token(self, index: int) -> bytes:
        """Token `index`, from 0, with what is to be said before it. The first of a call is its name."""
        of, frames = self._of, b""
        if index < of.hidden:
            return self._thought(index)
        if index == of.hidden:
            frames = self._thought_over() if of.hidden else b""
            frames += self._event("response.output_item.added", output_index=self._at, item=of.item("in_progress", 0))
            if of.answer.tool is None:
                frames += self._event("response.content_part.added", **self._place(), part=of.part(""))
        piece = of.answer.piece(index)
        if of.answer.tool is not None:
            return frames + (self._event("response.function_call_arguments.delta", item_id=of.item_id,
                                         output_index=self._at, delta=piece) if piece else b"")
        more = {} if self._vllm else {"obfuscation": "x" * (index % 16)}
        return frames + self._event("response.output_text.delta", **self._place(), delta=piece, logprobs=[], **more)

    def done(self, count: int) -> bytes:
        """The item is whole, or as long as it may be."""
        of, status = self._of, "completed"
        text = of.text(count)
        if of.answer.tool is not None:
            frames = self._event("response.function_call_arguments.done", item_id=of.item_id, output_index=self._at,
                                 arguments=text, name=of.answer.tool)
        else:
            frames = self._event("response.output_text.done", **self._place(), text=text, logprobs=[])
            frames += self._event("response.content_part.done", **self._place(), part=of.part(text))
            status = "completed" if self._vllm or of.answer.finish_reason != "length" else "incomplete"
        return frames + self._event("response.output_item.done", output_index=self._at, item=of.item(status, count))

    def end(self, usage: dict[str, Any] | None, count: int) -> bytes:
        """What ends it. vLLM says `completed` of an incomplete response, too."""
        status = "incomplete" if self._of.answer.finish_reason == "length" else "completed"
        kind = "completed" if self._vllm else status
        return self._event(f"response.{kind}", response=self._of.document(status, usage, count))

    def failed(self, usage: dict[str, Any] | None, count: int, error: dict[str, Any]) -> bytes:
        return self._event("response.failed", response=self._of.document("failed", usage, count, error))

    def error(self, message: str, code: str | None) -> bytes:
        return self._event("error", code=code, message=message, param=None)

    def _place(self) -> dict[str, Any]:
        return {"item_id": self._of.item_id, "output_index": self._at, "content_index": 0}

    def _thought(self, index: int) -> bytes:
        of, frames = self._of, b""
        where = {"item_id": of.thought_id, "output_index": 0, "summary_index": 0}
        if index == 0:
            frames = self._event("response.output_item.added", output_index=0, item=of.thought(done=False))
            if of.summary:
                frames += self._event("response.reasoning_summary_part.added", **where,
                                      part={"type": "summary_text", "text": ""})
        return frames + (self._event("response.reasoning_summary_text.delta", **where, delta=of.answer.piece(index))
                         if of.summary else b"")

    def _thought_over(self) -> bytes:
        of, frames = self._of, b""
        if of.summary:
            where = {"item_id": of.thought_id, "output_index": 0, "summary_index": 0}
            told = of.answer.text(of.hidden)
            frames = self._event("response.reasoning_summary_text.done", **where, text=told)
            frames += self._event("response.reasoning_summary_part.done", **where,
                                  part={"type": "summary_text", "text": told})
        return frames + self._event("response.output_item.done", output_index=0, item=of.thought(done=True))


def usage(prompt: int, cached: int, completion: int, hidden: int = 0, *, written: int = 0,
          vllm: bool = False) -> dict[str, Any]:
    """The usage object. `hidden` tokens of the completion are reasoning, `written` of the prompt are in the cache
    now."""
    turns: dict[str, Any] = {"input_tokens_per_turn": [], "cached_tokens_per_turn": []} if vllm else {}
    spoken: dict[str, Any] = {"tool_output_tokens": 0, "output_tokens_per_turn": [],
                              "tool_output_tokens_per_turn": []} if vllm else {}
    read = {"cached_tokens": cached, "cache_write_tokens": written, **turns}
    return {"input_tokens": prompt, "input_tokens_details": read,
            "output_tokens": completion,
            "output_tokens_details": {"reasoning_tokens": min(hidden, completion), **spoken},
            "total_tokens": prompt + completion}
