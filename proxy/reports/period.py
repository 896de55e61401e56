"""The period a report is asked for: dates and times in the report's time zone, in whole minutes."""

from __future__ import annotations

import datetime as dt
from zoneinfo import ZoneInfo

from proxy.core.money import NS_PER_MINUTE
from proxy.reports.statement import epoch_ns


def parse(text: str, zone: ZoneInfo) -> int:
    """'2026-11-01', '2026-11-01T12:30', '2026-11-01T12:30:00+01:00' in UTC nanoseconds. ValueError says what is
    wrong. Without an offset it is the zone's clock; where the clock repeats, the first time."""
    try:
        moment = dt.datetime.fromisoformat(text.strip())
    except ValueError:
        raise ValueError(f"{text!r} is not a date; write 2026-11-01 or 2026-11-01T12:30") from None
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=zone)
    try:
        return epoch_ns(moment.astimezone(dt.UTC))
    except OverflowError:
        raise ValueError(f"{text!r} is beyond every calendar; write 2026-11-01 or 2026-11-01T12:30") from None


def resolve(from_text: str | None, to_text: str | None, zone: ZoneInfo, now_ns: int) -> tuple[int, int]:
    """[from, to) in nanoseconds. From: the start of this month; to: now. It begins with a whole minute, because a
    minute's requests belong to its start; and never ends beyond now, because GPUs are paid by the time that has passed.
    """
    if from_text is None:
        today = dt.datetime.fromtimestamp(now_ns // 1_000_000_000, zone)
        from_ns = epoch_ns(today.replace(day=1, hour=0, minute=0, second=0, microsecond=0, fold=0).astimezone(dt.UTC))
    else:
        from_ns = parse(from_text, zone) // NS_PER_MINUTE * NS_PER_MINUTE
    to_ns = now_ns if to_text is None else parse(to_text, zone)
    if from_ns < 0:
        raise ValueError("the period begins before 1970")
    if from_ns >= now_ns:
        raise ValueError("the period has not begun yet")
    if to_ns <= from_ns:
        raise ValueError("the period ends before it begins; --to is the first moment that is left out, so one day is "
                         "--from 2026-11-01 --to 2026-11-02")
    return from_ns, min(to_ns, now_ns)


def show(moment_ns: int, zone: ZoneInfo) -> str:
    """ISO 8601 with the zone's offset, to the second."""
    return dt.datetime.fromtimestamp(moment_ns // 1_000_000_000, zone).isoformat()
