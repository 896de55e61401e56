"""OpenAI's response layouts, as a simulated commercial API writes them. Pure."""

from __future__ import annotations

from typing import Any

import orjson

from proxy.demo.api_requests import Wanted
from proxy.demo.logprobs import chat_logprobs, completion_logprobs

DONE = b"data: [DONE]\n\n"
FINGERPRINT = "fp_sim_breakeven"
TIER = "default"


def event(value: dict[str, Any]) -> bytes:
    return b"data: " + orjson.dumps(value) + b"\n\n"


def usage(prompt: int, cached: int, completion: int) -> dict[str, Any]:
    """OpenAI's usage object, complete."""
    return {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion,
            "prompt_tokens_details": {"cached_tokens": cached, "audio_tokens": 0},
            "completion_tokens_details": {"reasoning_tokens": 0, "audio_tokens": 0,
                                          "accepted_prediction_tokens": 0, "rejected_prediction_tokens": 0}}


class Stream:
    """The frames of one streamed response. With `include_usage` every chunk has a `usage` field."""

    def __init__(self, ident: str, created: int, wanted: Wanted):
        self._wanted = wanted
        kind = "chat.completion.chunk" if wanted.chat else "text_completion"
        head = {"id": ident, "object": kind, "created": created, "model": wanted.model_name,
                "service_tier": TIER, "system_fingerprint": FINGERPRINT}
        self._head = b"data: " + orjson.dumps(head)[:-1] + b',"choices":['
        self._tail = b'],"usage":null}\n\n' if wanted.include_usage else b"]}\n\n"
        self._calls = [f"call_{ident[-16:]}{i:04d}" for i in range(len(wanted.answers))]

    def opening(self, choice: int) -> bytes:
        """Chat's first chunk of a choice; the call's id and name come with token 0."""
        answer = self._wanted.answers[choice]
        if not self._wanted.chat or answer.tool is not None:
            return b""
        return self._frame(choice, {"role": "assistant", "content": "", "refusal": None}, None)

    def token(self, choice: int, index: int) -> bytes:
        answer = self._wanted.answers[choice]
        if answer.tool is None:
            return self._frame(choice, {"content": answer.piece(index)}, None, self._logprobs(choice, index))
        call: dict[str, Any] = {"index": 0, "function": {"arguments": answer.piece(index)}}
        if index:
            return self._frame(choice, {"tool_calls": [call]}, None)
        call = {"index": 0, "id": self._calls[choice], "type": "function",
                "function": {"name": answer.tool, "arguments": ""}}
        return self._frame(choice, {"role": "assistant", "content": None, "tool_calls": [call], "refusal": None},
                           None)

    def last(self, choice: int, with_usage: dict[str, Any] | None = None) -> bytes:
        """The chunk that says why a choice ended; `with_usage` is the fault usage-in-last."""
        frame = self._frame(choice, {}, self._wanted.finish_reason(choice))
        if with_usage is None:
            return frame
        return frame[:-len(self._tail)] + b'],"usage":' + orjson.dumps(with_usage) + b"}\n\n"

    def usage(self, counted: dict[str, Any]) -> bytes:
        return self._head + b'],"usage":' + orjson.dumps(counted) + b"}\n\n"

    def _logprobs(self, choice: int, index: int) -> Any:
        if self._wanted.logprobs is None:
            return None
        make = chat_logprobs if self._wanted.chat else completion_logprobs
        logprobs = make(self._wanted.answers[choice], index, index + 1, self._wanted.logprobs)
        return {**logprobs, "refusal": None} if self._wanted.chat else logprobs

    def _frame(self, choice: int, delta: dict[str, Any], finish: str | None, logprobs: Any = None) -> bytes:
        if self._wanted.chat:
            body = {"index": choice, "delta": delta, "logprobs": logprobs, "finish_reason": finish}
        else:
            body = {"text": delta.get("content", ""), "index": choice, "logprobs": logprobs,
                    "finish_reason": finish}
        return self._head + orjson.dumps(body) + self._tail


def whole(ident: str, created: int, wanted: Wanted, counted: dict[str, Any]) -> bytes:
    """The body of a response that is not streamed."""
    choices = [(_chat_choice if wanted.chat else _completion_choice)(wanted, i, ident)
               for i in range(len(wanted.answers))]
    body = {"id": ident, "object": "chat.completion" if wanted.chat else "text_completion", "created": created,
            "model": wanted.model_name, "choices": choices, "usage": counted}
    if wanted.chat:
        body |= {"service_tier": TIER, "system_fingerprint": FINGERPRINT}
    return orjson.dumps(body)


def _chat_choice(wanted: Wanted, index: int, ident: str) -> dict[str, Any]:
    answer = wanted.answers[index]
    message: dict[str, Any] = {"role": "assistant", "content": None if answer.tool else answer.text()}
    if answer.tool is not None:
        message["tool_calls"] = [{"id": f"call_{ident[-16:]}{index:04d}", "type": "function",
                                  "function": {"name": answer.tool, "arguments": answer.text()}}]
    message |= {"refusal": None, "annotations": []}
    logprobs = None
    if wanted.logprobs is not None:
        logprobs = {**chat_logprobs(answer, 0, answer.tokens, wanted.logprobs), "refusal": None}
    return {"index": index, "message": message, "logprobs": logprobs, "finish_reason": wanted.finish_reason(index)}


def _completion_choice(wanted: Wanted, index: int, ident: str) -> dict[str, Any]:
    answer = wanted.answers[index]
    logprobs = None
    if wanted.logprobs is not None:
        logprobs = completion_logprobs(answer, 0, answer.tokens, wanted.logprobs)
    return {"text": answer.text(), "index": index, "logprobs": logprobs,
            "finish_reason": wanted.finish_reason(index)}
