"""What an address of the dashboard asks for: a period, a grouping, and where to go on from there.

`range=7d` is a period that moves with the clock; `from=` and `before=` are dates or times in the report's time zone,
the second being the first moment that is left out. Addresses can be kept, sent and opened again.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping
from dataclasses import dataclass, replace
from urllib.parse import urlencode
from zoneinfo import ZoneInfo

from proxy.core.money import NS_PER_HOUR, NS_PER_MINUTE
from proxy.reports.period import parse
from proxy.reports.statement import GROUPS, PERIOD_DAYS_MAX, epoch_ns

DAY_NS = 24 * NS_PER_HOUR
RANGES = {"1h": "Last hour", "24h": "24 hours", "7d": "7 days", "30d": "30 days", "month": "This month",
          "last-month": "Last month"}
ROLLING_NS = {"1h": NS_PER_HOUR, "24h": DAY_NS, "7d": 7 * DAY_NS, "30d": 30 * DAY_NS}
USUAL = "month"
CALLS_NS_MAX = NS_PER_HOUR  # a period no longer than this is shown request by request
TEXT_MAX = 80  # characters of a parameter


@dataclass(frozen=True, slots=True)
class Question:
    """`begin` and `end` are as given, in nanoseconds; an `end` of None is now. `older` pages back in a list of
    requests: the row to go on before."""

    zone: ZoneInfo
    range: str | None = USUAL
    begin: int = 0
    end: int | None = None
    group: str = "route"
    older: int | None = None

    @property
    def key(self) -> str:
        return self.query()

    def period(self, now_ns: int) -> tuple[int, int]:
        """[from, to) in nanoseconds, whole minutes at its beginning, never beyond now."""
        if self.range in ROLLING_NS:
            begin = (now_ns - ROLLING_NS[self.range]) // NS_PER_MINUTE * NS_PER_MINUTE
            return begin, now_ns
        if self.range is None:
            return self.begin, min(self.end or now_ns, now_ns)
        this = _month_of(now_ns, self.zone)
        if self.range == "month":
            return _ns(this), now_ns
        return _ns((this - dt.timedelta(days=1)).replace(day=1, hour=0, fold=0)), _ns(this)

    def query(self, **changes: object) -> str:
        """As it stands in an address, with what is to be different there."""
        one = replace(self, **changes) if changes else self  # type: ignore[arg-type]
        if one.range is not None:
            parts = {"range": one.range}
        else:
            parts = {"from": clock(one.begin, one.zone), **({} if one.end is None else {
                "before": clock(one.end, one.zone)})}
        parts["group"] = one.group
        if one.older is not None:
            parts["older"] = str(one.older)
        return urlencode(parts)

    def within(self, begin: int, end: int) -> str:
        """The address of a part of the period."""
        return self.query(range=None, begin=begin, end=end, older=None)


def ask(query: Mapping[str, str], zone: ZoneInfo, now_ns: int) -> Question:
    """ValueError says what is wrong, in words for whoever typed it."""
    if any(len(value) > TEXT_MAX or not value.isprintable() for value in query.values()):
        raise ValueError("The address holds more than a period and a grouping.")
    group = query.get("group") or "route"
    column = group.partition(":")[0]
    if column not in GROUPS or (group not in GROUPS and column != "tag"):
        raise ValueError("There is no such grouping. Choose one from the list.")
    older = query.get("older")
    if older is not None and not (older.isascii() and older.isdigit() and len(older) <= 18):
        raise ValueError("There is no such page of requests.")
    shared = {"group": group, "older": None if older is None else int(older)}
    begin, end = query.get("from"), query.get("before")
    if not begin and not end:
        named = query.get("range") or USUAL
        if named not in RANGES:
            raise ValueError("There is no such period. Choose one from the list, or give two dates.")
        return Question(zone, named, **shared)
    return _between(Question(zone, None, **shared), begin, end, now_ns)


def _between(question: Question, begin: str | None, end: str | None, now_ns: int) -> Question:
    if not begin:
        raise ValueError("The period has an end and no beginning.")
    from_ns = parse(begin, question.zone) // NS_PER_MINUTE * NS_PER_MINUTE
    to_ns = None if not end else -(-parse(end, question.zone) // NS_PER_MINUTE) * NS_PER_MINUTE
    if from_ns < 0:
        raise ValueError("The period begins before 1970.")
    if from_ns >= now_ns:
        raise ValueError("The period has not begun yet.")
    if to_ns is not None and to_ns <= from_ns:
        raise ValueError("The period ends before it begins. The second date is the first one that is left out.")
    if (to_ns or now_ns) - from_ns > PERIOD_DAYS_MAX * DAY_NS:
        raise ValueError(f"The period is longer than {PERIOD_DAYS_MAX:,} days. Choose a shorter one.")
    return replace(question, begin=from_ns, end=to_ns)


def clock(moment_ns: int, zone: ZoneInfo) -> str:
    """A date where it is midnight, else date and minute, as the parameters are written. Of an hour that the clock shows
    twice, with its offset."""
    moment = dt.datetime.fromtimestamp(moment_ns // 1_000_000_000, zone)
    local = moment.replace(tzinfo=None)
    if moment.fold or moment.utcoffset() != local.replace(tzinfo=zone).utcoffset():
        return moment.isoformat(timespec="minutes")
    return local.date().isoformat() if not (local.hour or local.minute) else local.isoformat(timespec="minutes")


def _month_of(now_ns: int, zone: ZoneInfo) -> dt.datetime:
    today = dt.datetime.fromtimestamp(now_ns // 1_000_000_000, zone)
    return today.replace(day=1, hour=0, minute=0, second=0, microsecond=0, fold=0)


def _ns(moment: dt.datetime) -> int:
    return epoch_ns(moment.astimezone(dt.UTC))
