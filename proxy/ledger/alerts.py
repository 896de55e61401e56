"""What people were told, so that a restart tells nobody twice.

An alert's rows are events: `fired` and `recovered` when it begins and is over, then for each webhook `delivered`, or
`given_up`, with the number of the event in `detail`. A webhook's events end in their order, so of what it was told the
newest says it all. However long the history is, a round reads what is new in it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from sqlalchemy import Connection, func, select

from proxy.ledger.schema import alert_events

Change = Literal["fired", "recovered"]
CHANGES, ENDS = ("fired", "recovered"), ("delivered", "given_up")
ROUND_MAX = 1000  # that a webhook is told of in one round


@dataclass(frozen=True, slots=True)
class Event:
    """An alert began, or is over. `detail`: its text and figures."""

    id: int
    at_ns: int
    alert: str
    event: Change
    detail: Mapping[str, Any]


class History:
    """What all rows come to: the alerts that have begun and are not over, and how far each webhook was told. Rows are
    only appended: a look reads those that came since the one before, and the first one counts in SQL."""

    def __init__(self) -> None:
        self.firing: dict[str, Event] = {}
        self._told: dict[str, int] = {}  # the last event that it was told of, or that it was given up on
        self._seen = 0

    def look(self, connection: Connection) -> None:
        """`connection` has one view of the ledger."""
        rows, later = alert_events.c, alert_events.alias()
        newest = connection.execute(select(func.max(rows.id))).scalar() or 0
        began = connection.execute(select(alert_events).where(
            rows.id > self._seen, rows.event == "fired",
            ~select(later.c.id).where(later.c.alert == rows.alert, later.c.id > rows.id,
                                      later.c.event.in_(CHANGES)).exists())).mappings()
        firing = {row["alert"]: _event(row) for row in began}
        if self.firing:
            over = set(connection.execute(select(rows.alert).where(
                rows.id > self._seen, rows.event == "recovered")).scalars())
            firing = {name: event for name, event in self.firing.items() if name not in over} | firing
        ends = connection.execute(select(rows.webhook, func.max(func.json_extract(rows.detail, "$.of"))).where(
            rows.id > self._seen, rows.event.in_(ENDS)).group_by(rows.webhook))
        told = {name: max(number, self._told.get(name, 0)) for name, number in ends}
        self.firing, self._told, self._seen = firing, self._told | told, newest

    def waiting(self, connection: Connection, webhook: str, since_ns: int) -> list[Event]:
        """The first ROUND_MAX that this webhook was not told of and was not given up on, oldest first, as of the last
        look. A webhook that is new has not missed what was before `since_ns`."""
        rows = alert_events.c
        after = self._told.get(webhook)
        if after is None:
            after = connection.execute(select(rows.id).where(rows.at_ns < since_ns).order_by(
                rows.id.desc()).limit(1)).scalar() or 0
        found = connection.execute(select(alert_events).where(
            rows.id > after, rows.id <= self._seen, rows.event.in_(CHANGES)).order_by(rows.id).limit(ROUND_MAX))
        return [_event(row) for row in found.mappings()]


def change(connection: Connection, at_ns: int, alert: str, event: Change, detail: Mapping[str, Any]) -> int:
    """Append that an alert began or is over; returns the event's number."""
    made = connection.execute(alert_events.insert().values(at_ns=at_ns, alert=alert, event=event, webhook="",
                                                           detail=_text(detail)))
    return int(made.inserted_primary_key[0])


def ended(connection: Connection, at_ns: int, event: Event, webhook: str, outcome: str) -> None:
    """Append that a webhook was told of an event, or that it was given up."""
    connection.execute(alert_events.insert().values(at_ns=at_ns, alert=event.alert, event=outcome, webhook=webhook,
                                                    detail=_text({"of": event.id})))


def _event(row: Mapping[str, Any]) -> Event:
    return Event(row["id"], row["at_ns"], row["alert"], row["event"], json.loads(row["detail"]))


def _text(value: Mapping[str, Any]) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
