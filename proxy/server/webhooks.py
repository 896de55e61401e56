"""One message to one webhook: its form, its signature, and what counts as delivered.

Slack's incoming webhooks take `{"text": ...}`, in which &, < and > are written as entities and nothing else
(docs.slack.dev, Sending messages using incoming webhooks; Formatting message text). Generic JSON is documented in
docs/operating.md. Redirects are not followed: an address is the operator's, not an answer's.
"""

from __future__ import annotations

import datetime as dt
import hashlib
import hmac
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import aiohttp
import orjson

from proxy.config.alerts import Webhook
from proxy.core.money import NS_PER_S

TIMEOUT_S = 10.0
TEXT_CHARS_MAX = 2000
SIGNATURE = "x-breakeven-signature"
MARKS: Mapping[str, str] = {"firing": ":rotating_light:", "recovered": ":white_check_mark:", "test": ":wave:"}


@dataclass(frozen=True, slots=True)
class Message:
    """What is told. `id` is the same however often it is sent."""

    id: int
    at_ns: int
    state: Literal["firing", "recovered", "test"]
    alert: str
    kind: str
    text: str
    figures: Mapping[str, Any]

    @property
    def said(self) -> str:
        """One line without control characters."""
        return "".join(char if char.isprintable() else " " for char in self.text)[:TEXT_CHARS_MAX]


def body_of(webhook: Webhook, message: Message) -> bytes:
    if webhook.format == "slack":
        over = "Over: " if message.state == "recovered" else ""
        text = f"{over}{message.said}".replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
        return orjson.dumps({"text": f"{MARKS[message.state]} *Breakeven* {text}"})
    at = dt.datetime.fromtimestamp(message.at_ns // NS_PER_S, dt.UTC).isoformat()
    return orjson.dumps({"id": message.id, "at": at, "state": message.state, "alert": message.alert,
                         "kind": message.kind, "text": message.said, "figures": dict(message.figures)})


def headers_of(webhook: Webhook, body: bytes) -> dict[str, str]:
    """`x-breakeven-signature: sha256=` and the HMAC of the body, where there is a key to sign with."""
    headers = {"content-type": "application/json", "user-agent": "breakeven"}
    if webhook.secret is not None:
        digest = hmac.new(webhook.secret.reveal().encode(), body, hashlib.sha256).hexdigest()
        headers[SIGNATURE] = f"sha256={digest}"
    return headers


async def post(session: aiohttp.ClientSession, webhook: Webhook, message: Message,
               timeout_s: float = TIMEOUT_S) -> str | None:
    """None where it was taken; else why not, without the address."""
    body = body_of(webhook, message)
    try:
        async with session.post(webhook.url.reveal(), data=body, headers=headers_of(webhook, body),
                                allow_redirects=False, timeout=aiohttp.ClientTimeout(total=timeout_s)) as answer:
            if 200 <= answer.status < 300:
                return None
            return f"answered {answer.status}" + (", a redirect, which is not followed" if 300 <= answer.status < 400
                                                  else "")
    except TimeoutError:
        return f"did not answer within {timeout_s:.0f} s"
    except aiohttp.ClientConnectorError as error:
        return f"cannot be reached: {type(error.os_error).__name__}"  # its text has the address
    except (aiohttp.ClientError, OSError, ValueError) as error:  # likewise
        return f"could not be told: {type(error).__name__}"
