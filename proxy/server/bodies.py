"""Small questions about an upstream's bytes, and the one change made to them."""

from __future__ import annotations

import contextlib
from typing import Any

import orjson

from proxy.config.backend import Backend
from proxy.core.errors import PreviousNotFound
from proxy.core.usage import Usage
from proxy.server.exchange import Exchange
from proxy.upstream.transport import Answer
from proxy.wire.endpoints import Endpoint
from proxy.wire.events import id_of
from proxy.wire.responses import called, reasoning_of
from proxy.wire.usage import read_usage, tier_of, usage_from_dict

OWN_TO_FREE_MAX = 4
ANSWERS = frozenset({"choices", "data", "output"})  # an answer has one of these


class Bodies:
    """How many bytes of bodies the requests in flight have, or said they would send: in all, and of each key.

    A key that has some may have OWN_TO_FREE_MAX times what is free beside them (a dynamic threshold, Choudhury and
    Hahne 1998): alone four fifths of all, so that one that announces bodies and does not send them keeps nobody out.
    """

    def __init__(self) -> None:
        self.total = 0
        self._of: dict[str, int] = {}  # of each key that has any

    def more_than(self, most: int, exchange: Exchange, longest: int, key_id: str) -> bool:
        """Whether this one would be more than `most` with those there are, or more than its key may have of them; if
        not, it counts. One that does not say how long it is counts as the longest that is taken."""
        declared = exchange.headers.get(b"content-length")
        size = min(longest, int(declared)) if declared is not None else longest
        free, own = most - self.total - size, self._of.get(key_id, 0)
        if self.total and (free < 0 or (own and own + size > OWN_TO_FREE_MAX * free)):
            return True
        self._count(exchange, size, key_id)
        return False

    def read(self, exchange: Exchange, size: int, key_id: str) -> None:
        """How long it was."""
        self._count(exchange, size, key_id)

    def over(self, exchange: Exchange, key_id: str) -> None:
        self._count(exchange, 0, key_id)

    def _count(self, exchange: Exchange, size: int, key_id: str) -> None:
        more = size - exchange.body_bytes
        self.total += more
        exchange.body_bytes = size
        if own := self._of.pop(key_id, 0) + more:
            self._of[key_id] = own


class Whole:
    """An answer in one piece. It may have 64 MiB, so it is parsed once at most; one of the Responses API always, whose
    usage need not be near its end, and which has an `error` that is null."""

    __slots__ = ("_body", "_document", "_endpoint", "_parsed")

    def __init__(self, endpoint: Endpoint, body: bytes) -> None:
        self._endpoint, self._body, self._parsed = endpoint, body, False
        self._document: Any = None

    @property
    def document(self) -> Any:
        """None where it is not JSON."""
        if not self._parsed:
            self._parsed = True
            with contextlib.suppress(orjson.JSONDecodeError):
                self._document = orjson.loads(self._body)
        return self._document

    @property
    def _members(self) -> dict[str, Any]:
        return self.document if isinstance(self.document, dict) else {}

    def usage(self) -> Usage | None:
        if self._endpoint is Endpoint.RESPONSES:
            return usage_from_dict(self._members.get("usage"), self._endpoint)
        return read_usage(self._endpoint, self._body)

    def wrong(self, usage: Usage | None) -> str | None:
        """Why it is no answer at all, though its status is 200; None when it may be one."""
        if usage is not None and b'"error"' not in self._body:
            return None
        if self.document is None:
            return "sent something that is not JSON"
        if not isinstance(self.document, dict):
            return "sent something that is not an answer"
        if self.document.get("error") or self.document.get("object") == "error":
            return "reported an error in its answer"
        return None if not ANSWERS.isdisjoint(self.document) else "sent something that is not an answer"

    def tier(self) -> str | None:
        """Of service, that it says it was served with: the one that is billed."""
        return tier_of(self._members)

    def response_id(self) -> str | None:
        return id_of(self._members)

    def reasoning(self) -> tuple[str, ...]:
        return reasoning_of(self._members)

    def called(self) -> bool:
        """Whether tools that the provider runs may have been called."""
        return self._endpoint is not Endpoint.RESPONSES or called(self._members)

    def written_bytes(self) -> int:
        """Of text, for one that does not say what it used; 0 where there is none."""
        answer = self._members
        try:
            if "output" in answer:
                parts = [part for item in answer["output"] for part in (item, *(item.get("content") or ()))]
                texts = [part.get("text") or part.get("arguments") or part.get("input") or "" for part in parts]
            else:
                texts = [(choice.get("message") or {}).get("content") or choice.get("text") or ""
                         for choice in answer["choices"]]
            return sum(len(text.encode()) for text in texts if isinstance(text, str))
        except (KeyError, TypeError, AttributeError):
            return 0


def is_forgotten(status: int, body: bytes) -> bool:
    """Whether an upstream says that it does not have (any more) the response that was to be gone on from: OpenAI by its
    code, vLLM by the field."""
    try:
        error = orjson.loads(body)["error"]
        return (status == 400 and error.get("code") == PreviousNotFound.code) or (
            status == 404 and error.get("param") in ("response_id", "previous_response_id"))
    except (orjson.JSONDecodeError, KeyError, TypeError, AttributeError):
        return False


def limit_field(backend: Backend, endpoint: Endpoint) -> str:
    """What an upstream calls the limit of an answer. OpenAI's reasoning models refuse the old name, which all others
    know."""
    if endpoint is Endpoint.RESPONSES:
        return "max_output_tokens"
    newer = endpoint is Endpoint.CHAT and backend.provider in ("openai", "azure")
    return "max_completion_tokens" if newer else "max_tokens"


def renamed(out: bytes, served: str, name: str) -> bytes:
    """Every `"model"` member with the served name, under the name the client asked for.

    In JSON text a quote is escaped, so the member's bytes cannot occur inside a string.
    """
    for separator in (b":", b": "):
        out = out.replace(b'"model"' + separator + _quoted(served), b'"model"' + separator + _quoted(name))
    return out


def _quoted(text: str) -> bytes:
    return orjson.dumps(text)


def is_stream(answer: Answer) -> bool:
    return answer.headers.get("content-type", "").startswith("text/event-stream")
