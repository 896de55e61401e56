"""An input taken apart: the body stands first, readable; how it is handed over stands in the bytes at its end.

From the end: how many cuts there are, two bytes for each; whether a stretch of the body is repeated, and if so where it
starts (two bytes) and how long it is; two bytes of options. libFuzzer likes to grow inputs at their end, people like to
read them at their start.
"""

from __future__ import annotations

from collections.abc import Iterator

CUTS_MAX = 8
REPEATED = 250  # below, that is mostly, nothing is repeated: long bodies are slow to run
LONG_BYTES = 1 << 16  # how long a repetition gets: enough to tell quadratic from linear


class Draw:
    """`options` are 16 bits for the target to use; `pieces` the body cut where the input says; `long` that a stretch of
    it is repeated."""

    def __init__(self, data: bytes) -> None:
        left = bytearray(data)
        count = left.pop() % (CUTS_MAX + 1) if left else 0
        cuts = [_pop16(left) for _ in range(count)]
        self.long = bool(left) and left.pop() >= REPEATED
        stretch = (_pop16(left), left.pop() if left else 0) if self.long else (0, 0)
        self.options = _pop16(left)
        self.body = _repeated(bytes(left), *stretch) if self.long else bytes(left)
        self.cuts = sorted(cut % (len(self.body) + 1) for cut in cuts)

    def option(self, choices: int) -> int:
        """A number below `choices`, from the lowest bits that are left."""
        self.options, taken = divmod(self.options, choices)
        return taken

    def pieces(self) -> Iterator[bytes]:
        at = 0
        for cut in [*self.cuts, len(self.body)]:
            yield self.body[at:cut]
            at = cut


def written(body: bytes, *, options: int = 0, repeat: bytes = b"", cuts: tuple[int, ...] = ()) -> bytes:
    """The input that `Draw` takes apart into these; `repeat` is the stretch of the body that is repeated."""
    long = b"\0"
    if repeat:
        long = bytes([len(repeat) - 1]) + body.index(repeat).to_bytes(2, "little") + bytes([REPEATED])
    tail = b"".join(cut.to_bytes(2, "little") for cut in reversed(cuts))
    return body + options.to_bytes(2, "little") + long + tail + bytes([len(cuts)])


def _pop16(left: bytearray) -> int:
    taken = int.from_bytes(left[-2:], "little")
    del left[-2:]
    return taken


def _repeated(body: bytes, start: int, length: int) -> bytes:
    start %= len(body) + 1
    stretch = body[start:start + length + 1]
    return body[:start] + stretch * (LONG_BYTES // max(1, len(stretch))) + body[start + len(stretch):]
