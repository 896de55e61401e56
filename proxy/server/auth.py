"""Who is asking, and in whose name: keys and tags.

A key comes as `Authorization: Bearer` (OpenAI's clients) or `x-api-key` (Anthropic's habit). Unknown and
wrong keys take the same path and get the same words. Tags come from the header and the key; the key's
win, because finance must be able to rely on them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from proxy.core.errors import InvalidRequest, PermissionDenied, Unauthorized
from proxy.ledger.keys import TAGS_MAX, Principal, canonical_tags

SECRET_CHARS_MAX = 256
ANONYMOUS = Principal(id="anonymous", name="anonymous", role="admin", tags="")


class KeyRing(Protocol):
    def authenticate(self, secret: str) -> Principal | None: ...
    def signer(self, key_id: str) -> tuple[bytes, Principal] | None: ...


def secret_of(headers: Mapping[bytes, bytes]) -> str | None:
    """The key as sent, or None; never logged, never put into a message."""
    given = headers.get(b"authorization", b"")
    if given[:7].lower() == b"bearer ":
        return given[7:].strip().decode("latin-1") or None
    given = headers.get(b"x-api-key", headers.get(b"api-key", b""))
    return given.strip().decode("latin-1") or None


def authenticate(headers: Mapping[bytes, bytes], keys: KeyRing | None, roles: tuple[str, ...]) -> Principal:
    """The caller. `keys` is None where none are required (loopback only). Raises Unauthorized, PermissionDenied."""
    if keys is None:
        return ANONYMOUS
    secret = secret_of(headers)
    if secret is None:
        raise Unauthorized("No API key was given. Send it as 'Authorization: Bearer <key>'.")
    principal = keys.authenticate(secret) if len(secret) <= SECRET_CHARS_MAX else None
    if principal is None:
        raise Unauthorized("The API key is not valid.")
    return permitted(principal, roles)


def permitted(principal: Principal, roles: tuple[str, ...]) -> Principal:
    """The same, if its role is one of those. Raises PermissionDenied."""
    if principal.role not in roles:
        raise PermissionDenied(f"A key of role '{principal.role}' may not do this.")
    return principal


def tags_of(headers: Mapping[bytes, bytes], principal: Principal, budgeted: frozenset[str] = frozenset()) -> str:
    """Canonical tags, 'app=chat,team=search', of the request and its key. One of the `budgeted` ones only from its key,
    or anybody could spend another team's money. Raises InvalidRequest, PermissionDenied."""
    given = headers.get(b"x-breakeven-tags")
    if given is None:
        return principal.tags
    try:
        tags = _pairs(canonical_tags(given.decode("latin-1")))
    except ValueError:
        raise InvalidRequest("x-breakeven-tags must read name=value,name=value, each name once, in plain letters, "
                             "digits and . _ -", param="x-breakeven-tags") from None
    own = _pairs(principal.tags)
    if principal is not ANONYMOUS:
        for name, value in tags.items():
            if f"{name}={value}" in budgeted and own.get(name) is None:
                raise PermissionDenied("A tag that has a budget comes with the key that may spend it, not in a header.",
                                       param="x-breakeven-tags")
    tags |= own
    if len(tags) > TAGS_MAX:
        raise InvalidRequest(f"At most {TAGS_MAX} tags are accepted.", param="x-breakeven-tags")
    return ",".join(f"{name}={tags[name]}" for name in sorted(tags))


def _pairs(tags: str) -> dict[str, str]:
    return dict(pair.split("=", 1) for pair in tags.split(",") if pair)
