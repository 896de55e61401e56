"""Corrections: a row that was booked wrong stays, and a new row says by how much, why, and who says so.

It counts in the minute in which it is made, so that a month that was reported stays as it was reported. What a request
comes to is its row and the sum of its corrections.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

from sqlalchemy import Connection, func, select

from proxy.core.entries import RequestEntry
from proxy.ledger import closing, hours, store
from proxy.ledger.errors import LedgerUnavailable
from proxy.ledger.rows import INT_MAX, corrected, entry_of
from proxy.ledger.schema import archive_files, archives, corrections, requests
from proxy.ledger.statements import UPSERT_ROLLUP

REASON_MAX, WHO_MAX = 500, 200


@dataclass(frozen=True, slots=True)
class Amounts:
    """What a request comes to, in nano-USD; None where the API's price, or what would have been paid, is unknown."""

    api_nano: int | None
    baseline_nano: int | None


@dataclass(frozen=True, slots=True)
class Corrected:
    """One correction: what was added, and what the attempt came to before and after."""

    request_id: str
    attempt: int
    at_ns: int
    api_nano: int
    baseline_nano: int
    before: Amounts
    after: Amounts

    @property
    def changed(self) -> bool:
        """Whether anything was booked: not where it comes to that already."""
        return bool(self.api_nano or self.baseline_nano)


def correct(url: str, request_id: str, attempt: int | None = None, *, reason: str, who: str,
            api_nano: int | None = None, baseline_nano: int | None = None, now_ns: int | None = None) -> Corrected:
    """Book what it takes for an attempt to come to these amounts (nano-USD); None leaves that one as it is. Without
    `attempt`: the one that answered.

    KeyError where there is no such attempt, ValueError for what makes no sense, LedgerUnavailable for the ledger."""
    _check(reason, who, api_nano, baseline_nano)
    path = store.path_of(url)
    with store.reading(url):  # says so if it is missing, older or newer
        pass
    connection = store.writing(url)
    try:
        with store.transaction(connection):
            entry = _entry(connection, request_id, attempt)
            _refuse_leaving(connection, entry)
            at_ns = max(now_ns or time.time_ns(), closing.horizon(connection))
            found = _difference(connection, entry, api_nano, baseline_nano, at_ns)
            if found.changed:
                _append(connection, entry, found, reason.strip(), who.strip())
    except store.ERRORS as error:
        raise LedgerUnavailable(store.explain(path, error)) from error
    finally:
        connection.close()
    return found


def _check(reason: str, who: str, *amounts: int | None) -> None:
    for name, text, most in (("a reason", reason, REASON_MAX), ("who corrects", who, WHO_MAX)):
        if not text.strip() or len(text) > most or not text.isprintable():
            raise ValueError(f"a correction needs {name}: one line of 1 to {most} characters")
    if all(amount is None for amount in amounts):
        raise ValueError("nothing to correct: give the right amount for the API, the baseline, or both")
    if any(amount is not None and not 0 <= amount <= INT_MAX for amount in amounts):
        raise ValueError("an amount is 0 or more")


def _entry(connection: Connection, request_id: str, attempt: int | None) -> RequestEntry:
    rows = connection.execute(select(requests).where(requests.c.request_id == request_id)).mappings()
    entries = [entry_of(row) for row in rows]
    for entry in entries:
        if (entry.final if attempt is None else entry.attempt == attempt):
            return entry
    raise KeyError(request_id)


def _refuse_leaving(connection: Connection, entry: RequestEntry) -> None:
    """A row that is in a file already, and is about to be deleted, cannot be corrected any more."""
    mine = (corrections.c.request_id == entry.request_id) & (corrections.c.attempt == entry.attempt)
    if connection.execute(select(corrections.c.id).where(mine)).first() is None:
        taken = select(func.coalesce(func.sum(archives.c.rows), 0)).where(archives.c.file_id == archive_files.c.id)
        unfinished = (archive_files.c.from_ns <= entry.ended_ns) & (archive_files.c.to_ns > entry.ended_ns) & (
            archive_files.c.rows > taken.scalar_subquery())
        if connection.execute(select(archive_files.c.id).where(unfinished)).first() is not None:
            raise ValueError("rows of that day are being archived; let `breakeven ledger archive` end first")


def _difference(connection: Connection, entry: RequestEntry, api: int | None, baseline: int | None,
                now_ns: int) -> Corrected:
    if baseline is not None and not (entry.final and entry.succeeded):
        raise ValueError("this attempt has no baseline to correct: it did not answer its client")
    mine = (corrections.c.request_id == entry.request_id) & (corrections.c.attempt == entry.attempt)
    count, more_api, more_baseline = connection.execute(select(
        func.count(), func.coalesce(func.sum(corrections.c.api_nano), 0),
        func.coalesce(func.sum(corrections.c.baseline_nano), 0)).where(mine)).one()
    unstated = entry.final and entry.succeeded and entry.baseline_nano is None
    unknown = unstated and more_baseline == more_api  # nobody has said since what it is
    known_baseline = (entry.api_nano if unstated else entry.baseline_nano) or 0
    api_now, baseline_now = (entry.api_nano or 0) + more_api, known_baseline + more_baseline
    api_delta = 0 if api is None else api - api_now
    # An unknown baseline stands at what the API cost, so that nothing is saved on it: that stays so.
    baseline_delta = baseline - baseline_now if baseline is not None else api_delta if unknown else 0
    before = Amounts(None if entry.api_nano is None and not count else api_now,
                     None if entry.baseline_nano is None and not count else baseline_now)
    after = Amounts(before.api_nano if api is None else api,
                    baseline_now + baseline_delta if baseline is not None else before.baseline_nano)
    return Corrected(entry.request_id, entry.attempt, now_ns, api_delta, baseline_delta, before, after)


def _append(connection: Connection, entry: RequestEntry, found: Corrected, reason: str, who: str) -> None:
    connection.execute(corrections.insert().values(
        at_ns=found.at_ns, request_id=found.request_id, attempt=found.attempt, api_nano=found.api_nano,
        baseline_nano=found.baseline_nano, reason=reason, who=who))
    key, sums = corrected(entry, found.at_ns, found.api_nano, found.baseline_nano)
    UPSERT_ROLLUP(store.raw(connection), [(*key, *sums)])
    hours.forget(store.raw(connection), [key[0]])
