"""A body without its base64: what a parser would only copy.

A picture of five megabytes takes a JSON parser ten milliseconds and a search through its body one each, in which no
stream of anybody's moves. So long runs of base64 behind `"data:...;base64,` are taken out first, each leaving a mark
that stands nowhere else, and are put back where it stands once the rest has been changed.

Nothing is decided here: a run is taken out only if it is base64 to the end of its string, which any parser would read
as these very characters. Whoever finds a mark where he did not expect a medium parses the body as it came.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

RUN_BYTES_MIN = 16 * 1024  # a shorter run is parsed as fast as it is looked for
HEAD_BYTES_MAX = 128  # of a data URL, up to its data
DATA_URLS_MAX = 4096  # at what begins like a data URL; what stands behind them is parsed as it came
SAMPLE_BYTES = 4096
PIECE_BYTES = 64 * 1024
_OPENS, _DATA, _CLOSES = b'"data:', b";base64,", b'"'
_ALPHABET = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/-_="
_SIGN = b"~left out here~"  # of every mark: what began like an earlier prompt is to look like it, whatever follows


@dataclass(frozen=True, slots=True)
class Lean:
    """`body` with a mark in the place of each run. `runs`: what stood where the mark stands. `urls`: the whole data URL
    with the mark in it, as the parser will give it, and the length in bytes of the one that came."""

    body: bytes
    runs: Mapping[bytes, memoryview]
    urls: Mapping[str, int]

    def whole(self, body: bytes) -> bytes:
        """`body`, which was made of ours, with the runs in it."""
        pieces: list[bytes | memoryview] = []
        for mark, run in self.runs.items():
            before, found, body = body.partition(mark)
            if not found:
                raise ValueError("a mark is gone, or they are in another order")
            pieces += (before, run)
        return b"".join((*pieces, body))


def lean(body: bytes) -> Lean | None:
    """None where there is nothing to gain."""
    if len(body) < RUN_BYTES_MIN:
        return None
    found = _runs(body)
    if not found:
        return None
    edges = [0, *(edge for _, start, end in found for edge in (start, end)), len(body)]
    kept = [body[start:end] for start, end in zip(edges[::2], edges[1::2], strict=True)]
    if any(_SIGN in piece for piece in kept):
        return None
    view, pieces = memoryview(body), kept[:1]
    runs: dict[bytes, memoryview] = {}
    urls: dict[str, int] = {}
    for (opens, start, end), after in zip(found, kept[1:], strict=True):
        mark = b"%s%d-%x" % (_SIGN, len(runs), _sample(body, start, end))
        pieces += (mark, after)
        runs[mark] = view[start:end]
        urls[(body[opens:start] + mark).decode()] = end - opens
    return Lean(b"".join(pieces), runs, urls)


def _runs(body: bytes) -> Sequence[tuple[int, int, int]]:
    """Where a data URL begins, its data, and both end."""
    found: list[tuple[int, int, int]] = []
    at = looks = 0
    while (opens := body.find(_OPENS, at)) >= 0 and (looks := looks + 1) <= DATA_URLS_MAX:
        at = opens + len(_OPENS)
        data = body.find(_DATA, at, at + HEAD_BYTES_MAX)
        if data < 0:
            continue
        start = data + len(_DATA)
        end = body.find(_CLOSES, start)
        if end - start >= RUN_BYTES_MIN and _plain(body[opens + 1:start]) and _is_base64(body, start, end):
            found.append((opens + 1, start, end))
            at = end
    return found


def _plain(head: bytes) -> bool:
    """Whether it is one string so far, without escapes."""
    return head.isascii() and b'"' not in head and b"\\" not in head and head.decode().isprintable()


def _is_base64(body: bytes, start: int, end: int) -> bool:
    """A piece at a time, which stays in the processor's cache: half the time of all at once."""
    return not any(body[at:min(at + PIECE_BYTES, end)].translate(None, _ALPHABET)
                   for at in range(start, end, PIECE_BYTES))


def _sample(body: bytes, start: int, end: int) -> int:
    """Tells one picture from another wherever the document stands for the body, as where prompts that begin alike are
    looked for. All of it would take as long as to parse it."""
    middle = (start + end) // 2
    return hash((end - start, body[start:start + SAMPLE_BYTES], body[middle:middle + SAMPLE_BYTES],
                 body[end - SAMPLE_BYTES:end])) & (2**64 - 1)
