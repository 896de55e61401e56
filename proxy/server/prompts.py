"""How a prompt begins, for those who ask what of it came before: hashed, never kept."""

from __future__ import annotations

import orjson

from proxy.core.money import NS_PER_S
from proxy.core.prefix import BLOCK_BYTES, KEPT_S, UNSEEN, Seen
from proxy.server.keeper import Held
from proxy.wire.endpoints import Endpoint
from proxy.wire.openai import WireRequest


def prompt_bytes(wire: WireRequest) -> bytes:
    """The prompt in the order in which providers cache it: tools, then messages. Hashed, never kept."""
    document = wire.document
    if wire.endpoint is Endpoint.EMBEDDINGS or wire.prompt_chars < BLOCK_BYTES:
        return b""
    if wire.endpoint is Endpoint.RESPONSES:
        return orjson.dumps([document.get("tools"), document.get("instructions"), document.get("input")])
    return orjson.dumps([document.get("tools"), document.get("messages", document.get("prompt"))])


def seen_of(held: Held, prompt: float, arrived_ns: int) -> Seen:
    """What came before it was computed where it lies, and is cached there for a while, as by a provider."""
    if arrived_ns - held.at_ns > KEPT_S * NS_PER_S:
        return UNSEEN
    share = held.tokens / prompt
    return Seen([], share, {} if held.replica is None else {held.room: share})
