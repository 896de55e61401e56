"""What people were told, so that a restart tells nobody twice.

An alert's rows are events: `fired` and `recovered` when it begins and is over, then for each webhook `delivered`, or
`given_up`, with the number of the event in `detail`.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from sqlalchemy import Connection, func, select

from proxy.ledger.schema import alert_events

Change = Literal["fired", "recovered"]
CHANGES, ENDS = ("fired", "recovered"), ("delivered", "given_up")


@dataclass(frozen=True, slots=True)
class Event:
    """An alert began, or is over. `detail`: its text and figures."""

    id: int
    at_ns: int
    alert: str
    event: Change
    detail: Mapping[str, Any]


def firing(connection: Connection) -> dict[str, Event]:
    """The alerts that have begun and are not over."""
    newest = (select(func.max(alert_events.c.id)).where(alert_events.c.event.in_(CHANGES))
              .group_by(alert_events.c.alert))
    rows = connection.execute(select(alert_events).where(
        alert_events.c.id.in_(newest), alert_events.c.event == "fired")).mappings()
    return {row["alert"]: _event(row) for row in rows}


def waiting(connection: Connection, webhooks: Collection[str], since_ns: int) -> list[tuple[Event, str]]:
    """Events that a webhook was not told of and was not given up on, oldest first. Before `since_ns`, only those that
    came after one it was told of: a webhook that is new has not missed what was before it."""
    rows = connection.execute(select(alert_events).order_by(alert_events.c.id)).mappings().all()
    ended = {(int(json.loads(row["detail"])["of"]), row["webhook"]) for row in rows if row["event"] in ENDS}
    first: dict[str, int] = {}
    for number, name in ended:
        first[name] = min(number, first.get(name, number))
    return [(_event(row), name) for row in rows if row["event"] in CHANGES for name in webhooks
            if (row["id"], name) not in ended
            and (row["at_ns"] >= since_ns or row["id"] > first.get(name, row["id"]))]


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
