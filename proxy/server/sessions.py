"""A reader in a browser: who has shown a key once carries a signed cookie for half a day.

The cookie is `key id . end . signature`. It holds no secret, and the server keeps nothing: the signature is made with
what is derived from the key's digest in the ledger, so that every worker and every gateway on it can judge the cookie,
and it is worth nothing once its key is revoked or expired. It opens the dashboard and nothing else.
"""

from __future__ import annotations

import hmac
from collections import OrderedDict
from collections.abc import Mapping

from proxy.core.ratelimit import Bucket
from proxy.ledger.keys import Principal
from proxy.server.auth import KeyRing

COOKIE = "breakeven_session"
SESSION_S = 12 * 3600
COOKIE_CHARS_MAX = 256
WRONG_PER_MINUTE = 10  # wrong keys from one address; behind a proxy, from all who come through it
WRONG_PER_MINUTE_ALL = 120  # of one worker
ADDRESSES_MAX = 1024


def issue(keys: KeyRing, caller: Principal, now_s: float) -> str | None:
    """The value of a cookie for a caller who has just shown his key; None if the key ended meanwhile."""
    found = keys.signer(caller.id)
    if found is None:
        return None
    said = f"{caller.id}.{int(now_s) + SESSION_S}"
    return f"{said}.{_signature(found[0], said)}"


def opened(keys: KeyRing, value: str, now_s: float) -> Principal | None:
    """Whose session it is; None for one that is forged, over, or of a key that has ended."""
    said, _, given = value.rpartition(".")
    key_id, _, end = said.rpartition(".")
    found = keys.signer(key_id) if len(value) <= COOKIE_CHARS_MAX and value.isascii() else None
    if found is None or not hmac.compare_digest(_signature(found[0], said), given):
        return None
    return found[1] if int(end) > now_s else None  # signed, so it is a number


def _signature(signing: bytes, said: str) -> str:
    return hmac.new(signing, said.encode(), "sha256").hexdigest()


def set_cookie(value: str, secure: bool) -> str:
    """The `set-cookie` that gives it; an empty value takes it away."""
    parts = [f"{COOKIE}={value}", "Path=/dashboard", f"Max-Age={SESSION_S if value else 0}", "HttpOnly",
             "SameSite=Strict", *(["Secure"] if secure else [])]
    return "; ".join(parts)


def is_secure(scheme: str, headers: Mapping[str, str]) -> bool:
    """Whether the browser speaks TLS, to us or to a proxy before us. Who lies here harms himself alone."""
    return ("https" in (scheme, headers.get("x-forwarded-proto", "").split(",")[0].strip())
            or headers.get("origin", "").startswith("https://"))


def from_our_page(headers: Mapping[str, str]) -> bool:
    """Whether a form was sent by a page of ours: a page of another site must not sign anybody in or out. Browsers say
    so themselves; those that do not yet, by the Origin; and what says neither is no browser."""
    site, origin = headers.get("sec-fetch-site"), headers.get("origin")
    if site is not None:
        return site == "same-origin"
    return origin is None or origin.partition("://")[2] == headers.get("host")


class Attempts:
    """How many wrong keys are taken: a bucket for each address, and one for all. A right one is never asked to wait, or
    whoever sends wrong ones would keep it out; what no number of guesses finds is a key's 256 random bits."""

    def __init__(self) -> None:
        self._all: Bucket | None = None
        self._of: OrderedDict[str, Bucket] = OrderedDict()

    def wrong(self, address: str, now: float) -> float:
        """One came from there. Returns 0, or for one too many the seconds until the next is taken."""
        buckets = self._buckets(address, now)
        wait_s = max(bucket.wait_s(1, now) for bucket in buckets)
        if not wait_s:
            for bucket in buckets:
                bucket.take(1, now)
        return wait_s

    def _buckets(self, address: str, now: float) -> tuple[Bucket, Bucket]:
        if self._all is None:
            self._all = Bucket.full(WRONG_PER_MINUTE_ALL, now)
        bucket = self._of.pop(address, None) or Bucket.full(WRONG_PER_MINUTE, now)
        self._of[address] = bucket
        if len(self._of) > ADDRESSES_MAX:
            self._of.popitem(last=False)
        return bucket, self._all
