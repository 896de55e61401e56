"""The faults that a test can ask a simulated commercial API for, one request at a time."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from dataclasses import dataclass
from typing import Any
from zlib import crc32

from proxy.demo.asgi import Request

PLAIN = ("429", "429-once", "500", "503", "timeout", "reset", "no-usage", "no-done", "slow", "usage-in-last",
         "bad-stream-options")
COUNTED = ("cut", "error", "malformed", "failed", "bytes")
HEADER = "x-sim-fault"
_ONCE_MAX = 10_000


@dataclass(frozen=True, slots=True)
class Faults:
    """What was asked for: names, some with a count (`cut:3`), separated by commas."""

    names: frozenset[str] = frozenset()
    counts: tuple[tuple[str, int], ...] = ()

    @classmethod
    def parse(cls, text: str) -> Faults:
        """ValueError names a fault that does not exist, and those that do."""
        names, counts = set(), []
        for part in filter(None, (p.strip() for p in text.split(","))):
            name, colon, count = part.partition(":")
            if name in COUNTED and count.isdigit():
                counts.append((name, int(count)))
            elif name in PLAIN and not colon:
                names.add(name)
            else:
                known = ", ".join((*PLAIN, *(f"{f}:N" for f in COUNTED)))
                raise ValueError(f"{HEADER}: no such fault {part!r}; known: {known}")
        return cls(frozenset(names), tuple(counts))

    @classmethod
    def of(cls, request: Request, body: dict[str, Any], default: str) -> Faults:
        """The header's; else those of the body's metadata; else the default."""
        metadata = body.get("metadata")
        inner = metadata.get(HEADER) if isinstance(metadata, dict) else None
        return cls.parse(str(request.headers.get(HEADER) or inner or default))

    def __contains__(self, name: str) -> bool:
        return name in self.names

    def after(self, name: str) -> int | None:
        """After how many tokens (or by how many bytes) this fault strikes; None: never."""
        return next((n for known, n in self.counts if known == name), None)


class Attempts:
    """Which requests have been seen, for `429-once`: by x-request-id, else by the body."""

    def __init__(self) -> None:
        self._seen: OrderedDict[str, None] = OrderedDict()

    def is_first(self, request: Request, raw: bytes) -> bool:
        key = request.headers.get("x-request-id") or f"{crc32(raw):x}"
        known = key in self._seen
        self._seen[key] = None
        if len(self._seen) > _ONCE_MAX:
            self._seen.popitem(last=False)
        return not known


async def silent(request: Request, faults: Faults) -> bool:
    """The faults that answer nothing at all: a hang, a reset. True: the exchange is over."""
    if "timeout" in faults:
        gone = asyncio.Event()
        async with request.watch(gone.set):
            await gone.wait()
        return True
    if "reset" in faults:
        await request.reset()
        return True
    return False


async def write(request: Request, faults: Faults, data: bytes) -> None:
    """Writes stream bytes; under `bytes:N` in pieces of N, each a TCP segment of its own."""
    size = faults.after("bytes")
    if not size:
        if data:
            await request.write(data)
        return
    for start in range(0, len(data), size):
        await request.write(data[start:start + size])
        await asyncio.sleep(0)
