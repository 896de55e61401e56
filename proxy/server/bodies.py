"""Small questions about an upstream's bytes, and the one change made to them."""

from __future__ import annotations

import orjson

from proxy.config.backend import Backend
from proxy.core.errors import PreviousNotFound
from proxy.server.exchange import Exchange
from proxy.upstream.transport import Answer
from proxy.wire.endpoints import Endpoint
from proxy.wire.events import id_of

ANSWERS = frozenset({"choices", "data", "output"})  # an answer has one of these


class Bodies:
    """How many bytes of bodies the requests in flight have, or said they would send."""

    def __init__(self) -> None:
        self.total = 0

    def more_than(self, most: int, exchange: Exchange, longest: int) -> bool:
        """Whether this one would be more than `most` with those there are; if not, it counts. One that does not say how
        long it is counts as the longest that is taken."""
        declared = exchange.headers.get(b"content-length")
        size = min(longest, int(declared)) if declared is not None else longest
        if self.total and self.total + size > most:
            return True
        self._count(exchange, size)
        return False

    def read(self, exchange: Exchange, size: int) -> None:
        """How long it was."""
        self._count(exchange, size)

    def over(self, exchange: Exchange) -> None:
        self._count(exchange, 0)

    def _count(self, exchange: Exchange, size: int) -> None:
        self.total += size - exchange.body_bytes
        exchange.body_bytes = size


def no_answer(body: bytes) -> str | None:
    """Why a 200 holds no answer at all; None when it may be one."""
    try:
        answer = orjson.loads(body)
    except orjson.JSONDecodeError:
        return "sent something that is not JSON"
    if not isinstance(answer, dict):
        return "sent something that is not an answer"
    if answer.get("error") or answer.get("object") == "error":
        return "reported an error in its answer"
    return None if not ANSWERS.isdisjoint(answer) else "sent something that is not an answer"


def response_id(body: bytes) -> str | None:
    """A response's own id."""
    try:
        return id_of(orjson.loads(body))
    except orjson.JSONDecodeError:
        return None


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


def written_bytes(body: bytes) -> int:
    """Bytes of text in a whole answer, for one that does not say what it used; 0 where there is none."""
    try:
        answer = orjson.loads(body)
        if "output" in answer:
            parts = [part for item in answer["output"] for part in (item, *(item.get("content") or ()))]
            texts = [part.get("text") or part.get("arguments") or part.get("input") or "" for part in parts]
        else:
            texts = [(choice.get("message") or {}).get("content") or choice.get("text") or ""
                     for choice in answer["choices"]]
        return sum(len(text.encode()) for text in texts if isinstance(text, str))
    except (orjson.JSONDecodeError, KeyError, TypeError, AttributeError):
        return 0
