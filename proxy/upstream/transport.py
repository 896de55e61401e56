"""The one interface between the gateway and whatever answers: `open(request) → answer`.

What every upstream promises:

- `open` returns once the response head is there, whatever its status below 300 or from 400 on. It
  raises `UpstreamFailed` (reset, a redirect, not HTTP; its kind `UpstreamUnreachable`: refused, TLS,
  DNS) or `UpstreamTimeout` (no connection, or no head, in time). An upstream that must translate
  raises `UpstreamOverloaded` and `UpstreamFailed` for 429 and 5xx itself; one that relays returns them as answers.
- An answer is ended exactly once: read to its clean end and `release()`d, or `abort()`ed. Both are
  synchronous, idempotent and never raise, so they fit in any `finally`.
- An answer that ends before its declared end raises `UpstreamCut`, after every byte that did arrive
  has been handed over: those bytes may hold the count that settles the bill. If no byte of the body
  came at all it raises `UpstreamFailed` (an upstream that translates: also `UpstreamOverloaded`),
  because then another backend may still be asked.
- Errors name the backend; never its address, its key, or anything of a prompt.
- Cancelling a task inside `open`, `read` or `chunk` is allowed; `open` then leaves nothing behind,
  and the answer of the other two still wants its `abort()`. `pipe` is like `chunk` in all of this.
- One task at a time waits for an answer: by `read`, `chunk` or `pipe`.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol


class Revealing(Protocol):
    """Anything that holds a secret and shows it only when asked."""

    def reveal(self) -> str: ...


@dataclass(frozen=True, slots=True)
class Target:
    """Where an upstream is, and how long we wait for it.

    `url` has no path beyond a fixed prefix. `first_byte_s` bounds the time from `open` to the head,
    connecting included, and from `open` to the first byte of the body; `idle_s` every later silence.
    An answer that is not streamed comes when it is whole: `answer_s` bounds it instead.
    """

    name: str
    url: str
    api_key: Revealing | None = None
    tls_verify: bool = True
    connect_s: float = 5.0
    first_byte_s: float = 600.0
    idle_s: float = 60.0
    answer_s: float = 600.0

    def __post_init__(self) -> None:
        if min(self.connect_s, self.first_byte_s, self.idle_s, self.answer_s) <= 0:
            raise ValueError(f"{self.name}: timeouts must be above zero")

    def head_s(self, stream: bool) -> float:
        """How long the head of an answer may take."""
        return self.first_byte_s if stream else max(self.first_byte_s, self.answer_s)


@dataclass(frozen=True, slots=True)
class Outgoing:
    """One request, ready to send: the body is the JSON text as the upstream shall see it."""

    path: str
    body: bytes
    headers: tuple[tuple[str, str], ...]
    request_id: str
    stream: bool


class Answer(Protocol):
    """A response whose head has come."""

    @property
    def status(self) -> int: ...

    @property
    def headers(self) -> Mapping[str, str]:
        """Lower-case names; of a repeated header the last."""
        ...

    def forget_head(self) -> None:
        """It was passed on: nobody asks for `headers` any more."""
        ...

    @property
    def ended(self) -> bool:
        """It was read to its end, and can be released at once."""
        ...

    async def read(self, bytes_max: int) -> bytes:
        """The whole body. Longer than `bytes_max`: `UpstreamFailed`, and the connection is closed."""
        ...

    async def chunk(self) -> bytes:
        """The next piece as it came off the wire, b"" at the clean end (and ever after). Raises
        `UpstreamTimeout` on silence and `UpstreamCut` when the answer ends short; both close."""
        ...

    async def pipe(self, sink: Callable[[bytes], object]) -> None:
        """Hands every further piece to `sink`, from inside the event that brought it: no task wakes for it. Returns
        at the clean end, or once the sink called `stop`; raises what `chunk` would, and what the sink raises, which
        closes. The sink may call any method of the answer that is not awaited."""
        ...

    def stop(self) -> None:
        """For a sink: ends its `pipe` after this piece. What comes later can be had by `chunk`."""
        ...

    def pause(self) -> None:
        """Nothing more is read, which in the end slows the upstream; waiting is not timed. Idempotent."""
        ...

    def resume(self) -> None:
        """Undoes `pause`. Idempotent."""
        ...

    def abort(self) -> None:
        """Closes the connection at once; an engine then stops generating. Wakes a waiting `chunk`
        with `UpstreamCut`."""
        ...

    def release(self) -> None:
        """The connection may serve another request, if the answer was read to its end."""
        ...


class Opening(Protocol):
    """A request under way; awaited (once) it is its answer."""

    def __await__(self) -> Generator[Any, None, Answer]: ...

    def cancel(self) -> object:
        """Gives it up, and leaves nothing behind: whoever awaits it gets CancelledError. Does nothing once the head
        has come."""
        ...


class Upstream(Protocol):
    """A backend's replica, or a commercial API."""

    def begin(self, outgoing: Outgoing) -> Opening:
        """Sends the request, and returns at once. Raises ValueError for one that cannot be sent, UpstreamFailed once
        the upstream is closed; what fails later is raised where the opening is awaited."""
        ...

    async def open(self, outgoing: Outgoing) -> Answer:
        """`begin`, awaited."""
        ...

    async def get(self, path: str, timeout_s: float, bytes_max: int) -> tuple[int, bytes]:
        """Status and body of a GET: an engine's metrics, its models, its health."""
        ...

    async def close(self) -> None:
        """Closes every connection, those in use as well. Idempotent."""
        ...
