"""The Responses API of a simulated commercial API: what it accepts, keeps, streams and bills.

Ends as chats do: booked once, before the client can see the end. `failed:N` fails after N tokens with an event of its
own; `error:N` with an `error` event. Tools that a provider runs are accepted and never called.
"""

from __future__ import annotations

import time
from typing import Any

import orjson

from proxy.demo import api_requests as requests
from proxy.demo import responses_wire as wire
from proxy.demo.answers import Malformed
from proxy.demo.api_bill import ApiProfile
from proxy.demo.api_exchange import Book, Exchange
from proxy.demo.api_requests import SERVER_ERROR, ApiError, Wanted
from proxy.demo.asgi import Request
from proxy.demo.faults import Faults
from proxy.demo.responses import Kept, Messages, as_chat

HIDDEN_TOKENS = 4  # reasoning, of an answer that was asked to reason and is longer
LEAST_TOKENS = 1  # OpenAI's own is 16; tests like shorter ones
FAILED = {"code": "server_error", "message": "The server had an error while processing your request."}
_UNKNOWN = ("messages", "max_tokens", "max_completion_tokens", "n", "stop", "response_format", "seed")


def wanted(profile: ApiProfile, body: dict[str, Any], kept: Kept) -> tuple[Wanted, Messages]:
    """The generation that a request asks for, and the conversation that it ends. Raises ApiError."""
    for name in _UNKNOWN:
        if name in body:
            raise ApiError(400, f"Unsupported parameter: '{name}'.", code="unsupported_parameter", param=name)
    options = body.get("stream_options")
    if isinstance(options, dict) and (unknown := set(options) - {"include_obfuscation"}):
        raise ApiError(400, f"Unknown parameter: 'stream_options.{min(unknown)}'.", code="unknown_parameter",
                       param=f"stream_options.{min(unknown)}")
    if body.get("input") is None:
        raise ApiError(400, "Missing required parameter: 'input'.", code="missing_required_parameter", param="input")
    before = kept.before(body)
    if before is None:
        raise ApiError(400, f"Previous response with id '{body.get('previous_response_id')}' not found.",
                       code="previous_response_not_found", param="previous_response_id")
    try:
        chat = as_chat(body, before)
    except Malformed as problem:
        raise requests.malformed(problem) from None
    limit = requests.count(body, ["max_output_tokens"], LEAST_TOKENS)
    if limit is not None:
        chat["max_completion_tokens"] = limit
    messages = [message for message in chat["messages"] if message.get("role") != "system"]
    return requests.chat(profile, chat), messages


class Responding(Exchange):
    """One response on its way."""

    def __init__(self, request: Request, body: dict[str, Any], wanted: Wanted, cached: int, faults: Faults,
                 profile: ApiProfile) -> None:
        super().__init__(request, wanted, cached, faults, profile)
        self._body = body
        answer, reasoning, text = wanted.answers[0], body.get("reasoning"), body.get("text")
        plain = answer.tool is None and not (isinstance(text, dict) and text.get("format"))
        thinks = isinstance(reasoning, dict) and plain and answer.tokens > HIDDEN_TOKENS
        self._hidden = HIDDEN_TOKENS if thinks else 0
        self._summary = isinstance(reasoning, dict) and thinks and reasoning.get("summary") is not None

    def _response(self, ident: str) -> wire.Response:
        return wire.Response(ident, int(time.time()), self.wanted.model_name, self._body, self.wanted.answers[0],
                             vllm=False, hidden=self._hidden, summary=self._summary)

    def _usage(self) -> dict[str, Any]:
        return wire.usage(self.wanted.prompt_tokens, self.cached, self.pace.completion_tokens, self._hidden)

    def _told_usage(self) -> dict[str, Any] | None:
        return None if "no-usage" in self.faults else self._usage()

    def _whole(self, ident: str) -> bytes:
        response, count = self._response(ident), self.pace.completion_tokens
        if self.faults.after("failed") is not None:
            return orjson.dumps(response.document("failed", self._told_usage(), count, FAILED))
        status = "incomplete" if self._natural_end == "length" else "completed"
        return orjson.dumps(response.document(status, self._told_usage(), count))

    async def _stream(self, ident: str, book: Book) -> None:
        """The first two events come at once, the others token by token."""
        events = wire.Events(self._response(ident), vllm=False)
        strikes = {name: self.faults.after(name) for name in ("cut", "error", "malformed", "failed")}
        await self.request.stream([self._spent()])
        await self._write(events.opening())
        for step in range(1, self.pace.longest + 1):
            if not await self.pace.reach(step):
                book(self, "abort")
                return
            if await self._broken(events, strikes, step - 1, book, undo=1):
                return
            await self._write(events.token(step - 1))
        if await self._broken(events, strikes, self.pace.longest, book, undo=0):
            return
        await self._write(events.done(self.pace.longest))
        book(self, self._natural_end)
        if "no-done" not in self.faults:
            await self._write(events.end(self._told_usage(), self.pace.longest))
        await self.request.end()

    async def _broken(self, events: wire.Events, strikes: dict[str, int | None], sent: int, book: Book,
                      undo: int) -> bool:
        """Breaks the stream where a fault says so. True: it is over."""
        due = [name for name, after in strikes.items() if after is not None and sent >= after]
        if "malformed" in due:
            strikes["malformed"] = None
            due.remove("malformed")
            await self._write(b'event: response.output_text.delta\ndata: {"type": "garb\xff\xfeage, [[[\n\n')
        if not due:
            return False
        self.pace.step -= undo
        book(self, "died")
        if due[0] == "cut":
            await self.request.reset()
            return True
        if due[0] == "error":
            await self._write(events.error(str(SERVER_ERROR), "server_error"))
        else:
            await self._write(events.failed(self._told_usage(), self.pace.step, FAILED))
        await self.request.end()
        return True
