"""Virtual keys: who may call, and how much.

A secret is shown once, when it is made, and kept as its SHA-256 alone. Keys are appended; revoking one, or giving it
other limits, appends an event. `KeyRing` is the gateway's copy in memory: it looks at the newest event at most every
half second, so a revocation holds within one.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass

from sqlalchemy import Connection, func, select

from proxy.core.budgets import Budget, parse_budget, window_start_ns
from proxy.ledger import store
from proxy.ledger.errors import LedgerUnavailable
from proxy.ledger.schema import key_events, key_limits, keys
from proxy.ledger.treasury import used

ROLES = ("application", "reader", "admin")
REFRESH_S = 0.5
TAGS_MAX = 16
LIMIT_MAX = 1_000_000_000
_ROUTE = re.compile(r"[!-+\--~]{1,128}")  # as in the configuration, but without a comma
_TAG = re.compile(r"[A-Za-z0-9_.-]{1,64}=[A-Za-z0-9_.:/@ -]{1,128}")


@dataclass(frozen=True, slots=True)
class KeyLimits:
    """What a key may do. None: no limit. `budget` as "50/month"; requests and tokens per minute; `routes` are names of
    routes; `expires_ns` UTC epoch, from when on it is as good as revoked."""

    budget: str | None = None
    rpm: int | None = None
    tpm: int | None = None
    routes: tuple[str, ...] | None = None
    expires_ns: int | None = None

    def checked(self) -> KeyLimits:
        """The same, or ValueError: what is wrong with it."""
        if self.budget is not None:
            parse_budget(self.budget)
        for name, value in (("rpm", self.rpm), ("tpm", self.tpm)):
            if value is not None and not 1 <= value <= LIMIT_MAX:
                raise ValueError(f"{name} must be from 1 to {LIMIT_MAX:,}")
        if self.routes is not None and (not self.routes or any(not _ROUTE.fullmatch(name) for name in self.routes)):
            raise ValueError("routes are names of routes, separated by commas")
        return self


NO_LIMITS = KeyLimits()


@dataclass(frozen=True, slots=True)
class Principal:
    """Who a secret belongs to. `tags` are canonical: "app=chat,team=search"."""

    id: str
    name: str
    role: str
    tags: str
    limits: KeyLimits = NO_LIMITS
    budget: Budget | None = None

    def may_use(self, route: str) -> bool:
        return self.limits.routes is None or route in self.limits.routes


@dataclass(frozen=True, slots=True)
class KeyRecord:
    """A key as it is listed: never its secret."""

    id: str
    name: str
    role: str
    tags: str
    created_ns: int
    revoked_ns: int | None
    limits: KeyLimits = NO_LIMITS

    def ended_ns(self) -> int | None:
        """From when on it opens nothing, revoked or expired; None where it does not end."""
        ends = [end for end in (self.revoked_ns, self.limits.expires_ns) if end is not None]
        return min(ends, default=None)


def canonical_tags(text: str) -> str:
    """'team=search, app=chat' as 'app=chat,team=search'. ValueError says what is wrong."""
    pairs: dict[str, str] = {}
    for part in filter(None, (piece.strip() for piece in text.split(","))):
        if not _TAG.fullmatch(part):
            raise ValueError(f"tag {part!r} is not name=value (letters, digits, . _ - and in values also : / @ space)")
        name, _, value = part.partition("=")
        if name in pairs:
            raise ValueError(f"tag {name!r} is given twice")
        pairs[name] = value.strip()
    if len(pairs) > TAGS_MAX:
        raise ValueError(f"{len(pairs)} tags; at most {TAGS_MAX} are kept")
    return ",".join(f"{name}={pairs[name]}" for name in sorted(pairs))


def digest(secret: str) -> str:
    return hashlib.sha256(secret.encode("utf-8", "surrogateescape")).hexdigest()


class KeyStore:
    """The keys in the ledger: create, list, revoke. For the command line and the admin pages."""

    def __init__(self, url: str) -> None:
        self.url = url
        store.prepare(url)

    def create(self, name: str, tags: str = "", role: str = "application",
               limits: KeyLimits = NO_LIMITS) -> tuple[str, str]:
        """Append a key. Returns its id and its secret, which is shown this once."""
        if role not in ROLES:
            raise ValueError(f"role {role!r} is none of {', '.join(ROLES)}")
        if not name.strip() or len(name) > 200 or not name.isprintable():
            raise ValueError("a key needs a name of at most 200 characters, none of them a control character")
        if limits.checked().expires_ns is not None and limits.expires_ns <= time.time_ns():
            raise ValueError("the key would have expired already")
        key_id, secret = "key_" + secrets.token_hex(8), "bk-" + secrets.token_urlsafe(32)
        row = {"id": key_id, "sha256": digest(secret), "name": name.strip(), "role": role,
               "tags": canonical_tags(tags), "created_ns": time.time_ns()}
        with _Write(self.url) as connection:
            connection.execute(keys.insert().values(row))
            if limits != NO_LIMITS:
                _limit(connection, key_id, limits, row["created_ns"])
            _event(connection, key_id, "created", row["created_ns"])
        return key_id, secret

    def limit(self, key_id: str, limits: KeyLimits) -> None:
        """Append other limits for a key, in place of all it had. KeyError when there is no such key."""
        limits.checked()
        now_ns = time.time_ns()
        with _Write(self.url) as connection:
            if connection.execute(select(keys.c.id).where(keys.c.id == key_id)).scalar() is None:
                raise KeyError(key_id)
            _limit(connection, key_id, limits, now_ns)
            _event(connection, key_id, "limited", now_ns)

    def revoke(self, key_id: str) -> bool:
        """Append a revocation. False when it was revoked before; KeyError when there is no such key."""
        with _Write(self.url) as connection:
            if connection.execute(select(keys.c.id).where(keys.c.id == key_id)).scalar() is None:
                raise KeyError(key_id)
            gone = select(key_events.c.id).where(key_events.c.key_id == key_id, key_events.c.event == "revoked")
            if connection.execute(gone).first() is not None:
                return False
            _event(connection, key_id, "revoked", time.time_ns())
        return True

    def spent(self, now_ns: int) -> dict[str, int]:
        """What each key with a budget has taken in the window of `now_ns`, in nano-USD, held or settled."""
        with store.reading(self.url) as connection:
            windows: dict[tuple[str, str, int], str] = {}
            for one in _records(connection)[0]:
                if (budget := _principal(one).budget) is not None:
                    windows[budget.scope, budget.per, window_start_ns(budget.per, now_ns)] = one.id
            found = used(connection, windows)
            return {key_id: found[window].total if window in found else 0 for window, key_id in windows.items()}

    def list(self) -> list[KeyRecord]:
        """Every key ever made, oldest first."""
        with store.reading(self.url) as connection:
            return _records(connection)[0]


class KeyRing:
    """The gateway's keys in memory. Needs a ledger that exists (`Journal.open` sees to it)."""

    def __init__(self, url: str, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._reader = store.Reader(store.path_of(url))
        self._clock = clock
        self._seen_by: Connection | None = None
        self._principals: dict[str, tuple[str, Principal]] = {}  # by digest
        self._digests: dict[str, str] = {}  # by id
        self._seen = -1
        self._looked_at = 0.0
        self.healthy = True
        self.refresh()

    def __len__(self) -> int:
        return len(self._principals)

    def authenticate(self, secret: str) -> Principal | None:
        """Whose secret it is; None for one that is unknown, revoked, expired or malformed, in the same time."""
        self._look()
        given = digest(secret)
        kept, principal = self._principals.get(given, (_NOBODY, None))
        if not hmac.compare_digest(kept, given) or principal is None:
            return None
        return _unexpired(principal)

    def signer(self, key_id: str) -> tuple[bytes, Principal] | None:
        """What sessions of a key are signed with, and whose they are; None once it is unknown, revoked or expired.

        Derived from the key's digest: every gateway on this ledger knows it, and it ends with the key."""
        self._look()
        kept = self._digests.get(key_id)
        if kept is None or (principal := _unexpired(self._principals[kept][1])) is None:
            return None
        return hmac.digest(kept.encode(), b"breakeven session", "sha256"), principal

    def _look(self) -> None:
        """Note, at most every REFRESH_S, which keys were made or revoked."""
        if self._clock() - self._looked_at >= REFRESH_S:
            try:
                self.refresh()
            except LedgerUnavailable:  # the keys we know still hold; `healthy` tells
                pass

    def refresh(self) -> bool:
        """Load the keys again if a key was made or revoked since. Returns whether one was."""
        self._looked_at = self._clock()
        try:
            with self._reader.reading() as connection:
                if connection is not self._seen_by:  # another ledger may stand there
                    self._seen, self._seen_by = -1, connection
                newest = connection.execute(_NEWEST).scalar() or 0
                if newest == self._seen:
                    self.healthy = True
                    return False
                records, seen, digests = _records(connection)
        except LedgerUnavailable:
            self.healthy = False
            raise
        self._principals = {digests[one.id]: (digests[one.id], _principal(one))
                            for one in records if one.revoked_ns is None}
        self._digests = {principal.id: kept for kept, principal in self._principals.values()}
        self._seen, self.healthy = seen, True
        return True

    def close(self) -> None:
        self._reader.close()


_NOBODY = "0" * 64
_NEWEST = select(func.max(key_events.c.id))


class _Write:
    """One short write transaction on a connection of its own."""

    def __init__(self, url: str) -> None:
        self._path = store.path_of(url)
        self._connection = store.writing(url)
        self._transaction = store.transaction(self._connection)

    def __enter__(self) -> Connection:
        try:
            self._transaction.__enter__()
        except store.ERRORS as error:
            self._connection.close()
            raise LedgerUnavailable(store.explain(self._path, error)) from error
        return self._connection

    def __exit__(self, *exc: object) -> None:
        try:
            self._transaction.__exit__(*exc)  # type: ignore[arg-type]
        except store.ERRORS as error:
            raise LedgerUnavailable(store.explain(self._path, error)) from error
        finally:
            self._connection.close()


def _event(connection: Connection, key_id: str, event: str, at_ns: int) -> None:
    connection.execute(key_events.insert().values(key_id=key_id, event=event, at_ns=at_ns))


def _limit(connection: Connection, key_id: str, limits: KeyLimits, at_ns: int) -> None:
    connection.execute(key_limits.insert().values(
        key_id=key_id, budget=limits.budget, rpm=limits.rpm, tpm=limits.tpm, expires_ns=limits.expires_ns, at_ns=at_ns,
        routes=None if limits.routes is None else ",".join(limits.routes)))


def _unexpired(principal: Principal) -> Principal | None:
    expires_ns = principal.limits.expires_ns
    return None if expires_ns is not None and expires_ns <= time.time_ns() else principal


def _principal(record: KeyRecord) -> Principal:
    budget = record.limits.budget
    return Principal(record.id, record.name, record.role, record.tags, record.limits,
                     None if budget is None else parse_budget(budget, f"key:{record.id}"))


def budgets(connection: Connection) -> list[tuple[str, Budget]]:
    """Names and budgets of the keys that have one and are not revoked."""
    records, _, _ = _records(connection)
    return [(record.name or record.id, parse_budget(record.limits.budget, f"key:{record.id}")) for record in records
            if record.revoked_ns is None and record.limits.budget is not None]


def _records(connection: Connection) -> tuple[list[KeyRecord], int, dict[str, str]]:
    """Every key, the newest event, and the digests by id. Events first: a key made in between is seen next time."""
    events = connection.execute(select(key_events)).all()
    revoked = {event.key_id: event.at_ns for event in events if event.event == "revoked"}
    rows = connection.execute(select(keys).order_by(keys.c.created_ns, keys.c.id)).all()
    limits = {row.key_id: KeyLimits(row.budget, row.rpm, row.tpm, row.routes and tuple(row.routes.split(",")),
                                    row.expires_ns)
              for row in connection.execute(select(key_limits).order_by(key_limits.c.id))}
    records = [KeyRecord(row.id, row.name, row.role, row.tags, row.created_ns, revoked.get(row.id),
                         limits.get(row.id, NO_LIMITS)) for row in rows]
    return records, max((event.id for event in events), default=0), {row.id: row.sha256 for row in rows}
