"""vLLM 0.32's response bytes: the layout and key order of bodies and of stream chunks. Pure.

Streams are the hot path: whatever is constant is formatted once per response, and the JSON of a
token's text once per word.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import orjson

from proxy.demo.answers import Answer
from proxy.demo.engine_requests import DIED, Generation
from proxy.demo.logprobs import chat_logprobs, completion_logprobs

DONE = b"data: [DONE]\n\n"
DIED_EVENT = (b'data: {"error": {"message": "' + DIED.encode()
              + b'", "type": "InternalServerError", "param": null, "code": 500}}\n\n')
_NO_TAIL = {"prompt_logprobs": None, "prompt_token_ids": None, "prompt_text": None}
_TRANSFER = {"kv_transfer_params": None, "ec_transfer_params": None, "metrics": None}


@lru_cache(maxsize=65_536)
def _json_text(raw: bytes) -> bytes:
    return orjson.dumps(raw.decode("utf-8", "replace"))


class Meta:
    """What all chunks of a response share."""

    __slots__ = ("created", "fingerprint", "ident", "model", "prompt_tokens")

    def __init__(self, ident: str, created: int, model: str, fingerprint: str, prompt_tokens: int):
        self.ident, self.created, self.model = ident, created, model
        self.fingerprint, self.prompt_tokens = fingerprint, prompt_tokens


class Stream:
    """The frames of one streamed response."""

    def __init__(self, meta: Meta, wanted: Generation):
        self._meta, self._wanted = meta, wanted
        kind = "chat.completion.chunk" if wanted.chat else "text_completion"
        self._start = b'data: {"id":%b,"object":"%b","created":%d,"model":%b,"choices":[' % (
            orjson.dumps(meta.ident), kind.encode(), meta.created, orjson.dumps(meta.model))
        field = b'{"index":%d,"delta":{"content":' if wanted.chat else b'{"index":%d,"text":'
        self._heads = [self._start + field % i for i in range(len(wanted.answers))]
        self._tail = (b'},"logprobs":null,"finish_reason":null,"token_ids":null}]' if wanted.chat else
                      b',"logprobs":null,"finish_reason":null,"stop_reason":null,"prompt_token_ids":null,'
                      b'"token_ids":null}]')
        self._plain = wanted.logprobs is None
        self._tool_ids = [f"chatcmpl-tool-{meta.ident[-12:]}{i:04x}" for i in range(len(wanted.answers))]

    def opening(self, choice: int) -> bytes:
        """Chat's first chunk of a choice, which carries the role; completions have none."""
        if not self._wanted.chat:
            return b""
        return (self._start + b'{"index":%d,"delta":{"role":"assistant","content":""},"logprobs":null,'
                b'"finish_reason":null}]' % choice + self._usage(0)
                + b',"prompt_token_ids":null,"prompt_text":null}\n\n')

    def token(self, choice: int, index: int) -> bytes:
        """The frame or frames of token `index` (from 0) of a choice."""
        answer = self._wanted.answers[choice]
        last = index + 1 == answer.tokens
        if self._plain and answer.tool is None and not last:
            text = _json_text(answer.raw_piece(index))
            return b"%b%b%b%b}\n\n" % (self._heads[choice], text, self._tail, self._usage(index + 1))
        if answer.tool is not None:
            frame = self._frame(choice, self._tool_delta(choice, index), index + 1, None, None)
            if last:
                frame += self.final(choice, index + 1, self._wanted.finish_reason(choice), None)
            return frame
        finish = answer.finish_reason if last else None
        return self._frame(choice, answer.piece(index), index + 1, finish, answer.stop_reason,
                           self._logprobs(answer, index))

    def final(self, choice: int, count: int, finish: str, stop: str | None) -> bytes:
        """A last chunk without text: after a tool call, or of an aborted choice."""
        delta: Any = "" if not self._wanted.chat or finish == "abort" else {}
        return self._frame(choice, delta, count, finish, stop)

    def usage(self, completion_tokens: int, cached: int, created_cache: int) -> bytes:
        """The chunk of `include_usage`; nothing if it was not asked for."""
        if not self._wanted.include_usage:
            return b""
        prompt = self._meta.prompt_tokens
        details = b',"created_cache_tokens":%d' % created_cache if self._wanted.chat else b""
        return self._start + (
            b'],"usage":{"prompt_tokens":%d,"total_tokens":%d,"completion_tokens":%d,"prompt_tokens_details":'
            b'{"cached_tokens":%d%b}},"system_fingerprint":%b}\n\n' % (
                prompt, prompt + completion_tokens, completion_tokens, cached, details,
                orjson.dumps(self._meta.fingerprint)))

    def _usage(self, count: int) -> bytes:
        """`continuous_usage_stats`: the counts of this choice so far."""
        if not self._wanted.continuous_usage:
            return b""
        prompt = self._meta.prompt_tokens
        return (b',"usage":{"prompt_tokens":%d,"total_tokens":%d,"completion_tokens":%d,'
                b'"completion_tokens_details":null}' % (prompt, prompt + count, count))

    def _logprobs(self, answer: Answer, index: int) -> Any:
        if self._wanted.logprobs is None:
            return None
        make = chat_logprobs if self._wanted.chat else completion_logprobs
        return make(answer, index, index + 1, self._wanted.logprobs)

    def _tool_delta(self, choice: int, index: int) -> dict[str, Any]:
        answer = self._wanted.answers[choice]
        if index == 0:
            call: dict[str, Any] = {"id": self._tool_ids[choice], "type": "function", "index": 0,
                                    "function": {"name": answer.tool}}
        else:
            call = {"index": 0, "function": {"arguments": answer.piece(index)}}
        return {"content": None, "tool_calls": [call]}

    def _frame(self, choice: int, delta: Any, count: int, finish: str | None, stop: str | None,
               logprobs: Any = None) -> bytes:
        body: dict[str, Any] = {"index": choice}
        if self._wanted.chat:
            body |= {"delta": {"content": delta} if isinstance(delta, str) else delta,
                     "logprobs": logprobs, "finish_reason": finish}
            if finish is not None:
                body["stop_reason"] = stop
            body["token_ids"] = None
        else:
            body |= {"text": delta, "logprobs": logprobs, "finish_reason": finish, "stop_reason": stop,
                     "prompt_token_ids": None, "token_ids": None}
        end = b""
        if finish is not None and not self._wanted.include_usage:
            end = b',"system_fingerprint":' + orjson.dumps(self._meta.fingerprint)
        return b"%b%b]%b%b}\n\n" % (self._start, orjson.dumps(body), self._usage(count), end)


def whole(meta: Meta, wanted: Generation, counts: list[int], aborted: bool, cached: int,
          created_cache: int) -> bytes:
    """The body of a response that is not streamed; `counts` are the tokens of each choice."""
    make = _chat_choice if wanted.chat else _completion_choice
    choices = [make(wanted, i, n, "abort" if aborted else wanted.finish_reason(i), meta)
               for i, n in enumerate(counts)]
    completion, prompt = sum(counts), meta.prompt_tokens
    usage = {"prompt_tokens": prompt, "total_tokens": prompt + completion, "completion_tokens": completion,
             "prompt_tokens_details": {"cached_tokens": cached,
                                       "created_cache_tokens": created_cache if wanted.chat else None,
                                       "multimodal_tokens": None},
             "completion_tokens_details": None}
    return orjson.dumps({
        "id": meta.ident, "object": "chat.completion" if wanted.chat else "text_completion",
        "created": meta.created, "model": meta.model, "choices": choices, "service_tier": None,
        "system_fingerprint": meta.fingerprint, "usage": usage, **(_NO_TAIL if wanted.chat else {}), **_TRANSFER})


def _chat_choice(wanted: Generation, index: int, count: int, finish: str, meta: Meta) -> dict[str, Any]:
    answer = wanted.answers[index]
    message: dict[str, Any] = {"role": "assistant", "content": answer.text(count), "refusal": None,
                               "annotations": None, "audio": None, "function_call": None}
    if answer.tool is not None:
        message["content"] = ""
        message["tool_calls"] = [{"id": f"chatcmpl-tool-{meta.ident[-12:]}{index:04x}", "type": "function",
                                  "function": {"name": answer.tool, "arguments": answer.text(count)}}]
    message["reasoning"] = None
    logprobs = None if wanted.logprobs is None else chat_logprobs(answer, 0, count, wanted.logprobs)
    return {"index": index, "message": message, "logprobs": logprobs, "finish_reason": finish,
            "stop_reason": answer.stop_reason, "token_ids": None, "routed_experts": None}


def _completion_choice(wanted: Generation, index: int, count: int, finish: str, meta: Meta) -> dict[str, Any]:
    answer = wanted.answers[index]
    logprobs = None if wanted.logprobs is None else completion_logprobs(answer, 0, count, wanted.logprobs)
    return {"index": index, "text": answer.text(count), "logprobs": logprobs, "finish_reason": finish,
            "stop_reason": answer.stop_reason, "token_ids": None, "prompt_logprobs": None,
            "prompt_token_ids": None, "routed_experts": None}
