"""A connection to an upstream without a socket, a clock or an event loop: what the other side does is a call.

`Wire` is the far end. Time stands still until `wait` moves it; coroutines are driven by hand with `step`.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Coroutine, Generator, Iterable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from proxy.upstream import connection as machine
from proxy.upstream.answer import HttpAnswer
from proxy.upstream.connection import Connection, State
from proxy.upstream.transport import Target

TARGET = Target("one", "http://10.0.0.1:8000", first_byte_s=60.0, idle_s=10.0)
LINE = b"HTTP/1.1 200 OK\r\n"
OK = LINE + b"content-type: application/json\r\ncontent-length: 2\r\n\r\n{}"
HOWS = ("chunk", "pipe", "read")
ENDINGS = ("", "close", "reset", "silence")
REQUEST = (b"POST /v1/chat/completions HTTP/1.1\r\n\r\n", b"{}")


def table() -> dict[State, set[State]]:
    """The table at the head of the connection's module: what may follow on a state."""
    told: dict[State, set[State]] = {}
    for line in (machine.__doc__ or "").splitlines():
        name, _, rest = line.strip().partition(" ")
        if name in State.__members__:
            following = {State[word.strip()] for word in rest.rpartition("  ")[2].split(",") if word.strip() != "-"}
            told[State[name]] = following
    anywhere = {State.CLOSED}
    return {state: following | (anywhere if state is not State.CLOSED else set()) for state, following in told.items()}


TABLE = table()
taken: set[tuple[State, State]] = set()  # steps that were seen, of the whole run


class Watched(Connection):
    """A connection whose every step must be in the table."""

    __slots__ = ("_watched",)

    @property
    def state(self) -> State:
        return self._watched

    @state.setter
    def state(self, new: State) -> None:
        old = getattr(self, "_watched", None)
        if old is not None and old is not new:
            assert new in TABLE[old], f"{old.name} -> {new.name} is not in the table"
            taken.add((old, new))
        self._watched = new


class Future:
    """What a coroutine of ours waits for."""

    def __init__(self) -> None:
        self._done = False

    def done(self) -> bool:
        return self._done

    def set_result(self, _result: None) -> None:
        assert not self._done
        self._done = True

    def cancel(self) -> bool:
        self._done = True
        return True

    def __iter__(self) -> Generator[Future, None, None]:
        while not self._done:
            yield self

    __await__ = __iter__


@dataclass(eq=False)
class Timer:
    when: float
    callback: Callable[[], object]
    cancelled: bool = False

    def cancel(self) -> None:
        self.cancelled = True

    def leave(self, _who: Connection) -> None:
        self.cancelled = True


class Loop:
    def __init__(self) -> None:
        self.now = 1000.0

    def time(self) -> float:
        return self.now

    def create_future(self) -> Future:
        return Future()


@dataclass(eq=False)
class Wire:
    """The far end of one connection, its transport, and the pool that owns it."""

    connection: Connection | None = None
    loop: Loop = field(default_factory=Loop)
    sent: list[bytes] = field(default_factory=list)
    unsent: int = 0  # bytes of the request that wait in the transport
    reading: bool = True
    open: bool = True
    kept: int = 0  # times that it was given back to the pool
    asked_again: list[HttpAnswer] = field(default_factory=list)
    timers: list[Timer] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.connection = Watched(self)
        self.connection.connection_made(self)

    def ask(self, target: Target = TARGET) -> HttpAnswer:
        answer = HttpAnswer(target, self.loop, REQUEST, self.loop.now + target.first_byte_s)
        self.connection.ask(answer, self.loop.now)
        return answer

    def say(self, *reads: bytes) -> None:
        """So many reads of the socket; one that was closed here gets nothing."""
        for data in reads:
            if self.open and data:
                assert self.reading, "read while paused"
                self.connection.data_received(data)

    def finish(self) -> None:
        if self.open:
            self.connection.eof_received()
            self.lose(None)

    def reset(self) -> None:
        self.lose(ConnectionResetError(104, "Connection reset by peer at 10.0.0.1:8000"))

    def lose(self, exc: Exception | None) -> None:
        if self.connection._transport is not None:
            self.open = False
            self.connection.connection_lost(exc)

    def wait(self, seconds: float) -> None:
        """Time passes, and every timer that is due fires."""
        end = self.loop.now + seconds
        while due := sorted((t for t in self.timers if not t.cancelled and t.when <= end), key=lambda t: t.when):
            self.loop.now = max(self.loop.now, due[0].when)
            self.timers.remove(due[0])
            due[0].callback()
        self.loop.now = end

    # ---- the pool's side

    def opened(self, _connection: Connection) -> None: ...
    def closed(self, _connection: Connection) -> None: ...

    def keep(self, _connection: Connection) -> None:
        self.kept += 1

    def again(self, answer: HttpAnswer) -> None:
        self.asked_again.append(answer)

    def due_at(self, when: float, who: Connection) -> Timer:
        self.timers.append(timer := Timer(when, who.due))
        return timer

    # ---- the transport's side

    def write(self, data: bytes) -> None:
        self.sent.append(data)

    def writelines(self, parts: tuple[bytes, ...]) -> None:
        self.sent.extend(parts)

    def get_write_buffer_size(self) -> int:
        return self.unsent

    def pause_reading(self) -> None:
        assert self.reading
        self.reading = False

    def resume_reading(self) -> None:
        assert not self.reading
        self.reading = True

    def abort(self) -> None:
        self.open = False

    close = abort


class Waiting(Exception):
    """The coroutine would have to wait."""


def step(work: Coroutine[Any, Any, Any]) -> Any:
    """What `work` returns or raises; Waiting when it would not end now. Call it again later."""
    try:
        work.send(None)
    except StopIteration as done:
        return done.value
    raise Waiting


@dataclass
class Outcome:
    """What a reader learned of an answer."""

    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""
    end: str = "waiting"  # "clean", the error's class, or "waiting"
    error: str = ""
    kept: bool = False  # the connection may serve another request


def outcome(wire: Wire, answer: HttpAnswer, events: Iterable[Callable[[], object]], how: str, eager: bool) -> Outcome:
    """What a reader learns who reads by `how`: `chunk`, `pipe` or `read`. An eager one runs after every event, else
    only when all is over."""
    told = Outcome()
    pieces: list[bytes] = []

    async def read() -> None:
        opened = await answer
        told.status, told.headers = opened.status, dict(opened.headers)
        if how == "read":
            pieces.append(await opened.read(1 << 30))
        elif how == "pipe":
            await opened.pipe(pieces.append)
        else:
            while piece := await opened.chunk():
                pieces.append(piece)

    def run() -> bool:
        try:
            step(reader)
            told.end = "clean"
        except Waiting:
            return True
        except Exception as error:
            told.end, told.error = type(error).__name__, str(error)
        return False

    reader = read()
    waiting = run()
    for event in events:
        event()
        if eager and waiting:
            waiting = run()
    if waiting and run():
        reader.close()
    told.body, told.kept = b"".join(pieces), wire.connection.state is State.IDLE
    return told


def heard(data: bytes, how: str = "chunk", cuts: Iterable[int] = (), ending: str = "", reused: bool = False,
          eager: bool = True) -> Outcome:
    """What comes of an answer in such pieces, after which the other side closes, resets or says nothing."""
    wire = Wire()
    if reused:
        served(wire)
    answer = wire.ask()
    endings = {"": [], "close": [wire.finish], "reset": [wire.reset], "silence": [partial(wire.wait, 1000.0)]}
    events = [partial(wire.say, part) for part in parts(data, cuts)]
    return outcome(wire, answer, [*events, *endings[ending]], how, eager)


def served(wire: Wire) -> None:
    """One request and its answer."""
    answer = wire.ask()
    wire.say(OK)
    assert step(answer.read(2)) == b"{}"
    answer.release()


def parts(data: bytes, cuts: Iterable[int]) -> list[bytes]:
    places = [0, *sorted(cut % (len(data) + 1) for cut in cuts), len(data)]
    return [data[at:to] for at, to in itertools.pairwise(places)]
