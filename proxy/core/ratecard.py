"""The rate card of a configuration against the lines that were recorded: what must be added, and where two differ.

Invariant, of each name: after `new_lines` have been appended, what is in force from now on, or from the card's first
`from` where that is to come, is what the card says. For the time before now, a line that the card did not have yet
holds from its `from`, and nothing is paid after its `until`, whatever was recorded for then. All else that was
recorded is left alone, between now and a first `from` to come too: of a backend with 2 USD on record since the 12th,
and a card of the 15th that says 0 USD from the 21st and no more, 2 USD are paid until the 21st. What runs is paid
until somebody says that it ended, and such a card does not. What the card no longer names at all ends now.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from decimal import Decimal
from itertools import pairwise

from proxy.core.gpucost import RateLine, in_force, timeline

EVER_NS = 2**63 - 1
Name = tuple[str, str]  # kind and name
Both = tuple[RateLine | None, RateLine | None]  # what two cards say
Speaks = Callable[[int, RateLine | None], bool]  # whether what a card says of a moment counts


def by_name(lines: Iterable[RateLine]) -> dict[Name, list[RateLine]]:
    """Each name's lines, in their order."""
    found: dict[Name, list[RateLine]] = {}
    for line in lines:
        found.setdefault((line.kind, line.name), []).append(line)
    return found


def new_lines(have: Sequence[RateLine], card: Sequence[RateLine], now_ns: int, *, complete: bool) -> list[RateLine]:
    """What must be appended to `have` (in the order recorded) so that `card` holds. An undated line starts now. With
    `complete`, what the card no longer names ends now: its rate becomes zero."""
    known, wanted = by_name(have), by_name(card)
    if complete:
        wanted = {name: [] for name in known} | wanted
    return [line for name in sorted(wanted) for line in _news(known.get(name, []), wanted[name], now_ns)]


def _news(known: Sequence[RateLine], wanted: Sequence[RateLine], now_ns: int) -> list[RateLine]:
    there = {line.from_ns: line for line in known}
    news = {line for line in wanted if not line.from_ns or there.get(line.from_ns) != line}
    first_end_ns = min((line.until_ns for line in news if line.until_ns), default=EVER_NS)

    def speaks(at_ns: int, line: RateLine | None) -> bool:
        """Of the past, what is new in it; of what follows, always."""
        return at_ns >= now_ns or (first_end_ns <= at_ns if line is None else bool(line.from_ns) and line in news)

    first_ns = min((line.from_ns or min(now_ns, line.until_ns or now_ns) for line in wanted), default=now_ns)
    return _held(known, wanted, first_ns, now_ns, speaks)


def heard(have: Sequence[RateLine], card: Sequence[RateLine], closed_ns: int) -> list[RateLine]:
    """Dated lines of the card that began in closed time and hold from its end on already, so that they are no news; and
    the lines by which they do."""
    known, found = by_name(have), []
    for name, wanted in by_name(line for line in card if line.from_ns).items():
        line, held = in_force(wanted, closed_ns), in_force(known.get(name, []), closed_ns)
        if line is not None and held is not None and _alike(line, held):
            found += [line, held]
    return found


def since(have: Sequence[RateLine], wanted: Sequence[RateLine], at_ns: int) -> list[RateLine]:
    """What must be appended to `have` so that from a moment on it says what `wanted` does. Before, nothing changes."""
    known, names = by_name(have), by_name(wanted)
    return [line for name in sorted({*known, *names}) for line in _held(
        known.get(name, []), names.get(name, []), at_ns, at_ns, lambda *_: True)]


def _held(known: Sequence[RateLine], wanted: Sequence[RateLine], from_ns: int, cut_ns: int,
          speaks: Speaks) -> list[RateLine]:
    """The lines of `wanted` that are not known; and wherever it `speaks` and another would be in force, that which it
    says begins once more, or that nothing is paid."""
    there = {line.from_ns: line for line in known}
    new = [line for line in {line.from_ns: line for line in wanted}.values()
           if line.from_ns and line.from_ns >= from_ns and there.get(line.from_ns) != line]
    while again := list(_again([*known, *new], wanted, from_ns, cut_ns, speaks)):
        new += again  # once, or twice where one of them begins with a line that held beyond it
    return new


def _again(lines: Sequence[RateLine], wanted: Sequence[RateLine], from_ns: int, cut_ns: int,
           speaks: Speaks) -> Iterator[RateLine]:
    standing: list[RateLine] = []  # of those that begin again, what has not ended: the last one is in force
    for at_ns, _, (should, does) in differing(wanted, lines, from_ns, EVER_NS, cut_ns):
        while standing and (standing[-1].until_ns or EVER_NS) <= at_ns:
            standing.pop()
        if standing and (does is None or (does.from_ns or 0) <= (standing[-1].from_ns or 0)):
            does = standing[-1]
        if speaks(at_ns, should) and not _alike(should, does):
            line = should or (does and RateLine(does.kind, does.name, Decimal(0)))
            assert line is not None, "neither would be alike"
            standing.append(replace(line, from_ns=at_ns))
            yield standing[-1]


def _alike(should: RateLine | None, does: RateLine | None) -> bool:
    """Whether what is in force is what should be, whenever it began; what costs nothing is as good as nothing."""
    if should is None or does is None:
        return should is None and (does is None or (not does.usd and does.energy == "included"))
    return replace(should, from_ns=0, until_ns=None) == replace(does, from_ns=0, until_ns=None)


def differing(one: Sequence[RateLine], other: Sequence[RateLine], from_ns: int, to_ns: int,
              cut_ns: int = 0) -> Iterator[tuple[int, int, Both]]:
    """The stretches of a period in which two cards of one name have another line in force, by what it says or by when
    it began, from which amounts are rounded; and both lines. One at `cut_ns` is cut there."""
    cards = timeline(one, from_ns, to_ns), timeline(other, from_ns, to_ns)
    starts = [[start for start, _, _ in card] for card in cards]

    def line(card: int, at_ns: int) -> RateLine | None:
        index = bisect_right(starts[card], at_ns) - 1
        return cards[card][index][2] if index >= 0 and at_ns < cards[card][index][1] else None

    edges = {from_ns, to_ns, *(edge for card in cards for start, end, _ in card for edge in (start, end))}
    edges |= {cut_ns} if from_ns < cut_ns < to_ns else set()
    for start, end in pairwise(sorted(edges)):
        said = line(0, start), line(1, start)
        ends = [one and replace(one, until_ns=None) for one in said]  # where they end is an edge of its own
        if ends[0] != ends[1]:
            yield start, end, said
