"""Tokens of the simulated engines, counted by whoever talks to them."""

from __future__ import annotations

from typing import Any

from proxy.demo.tokens import BYTES_PER_TOKEN, render_chat


def count_tokens(value: str | list[dict[str, Any]]) -> int:
    """Of a text, or of a list of chat messages."""
    if isinstance(value, str):
        return -(-len(value.encode("utf-8", "surrogatepass")) // BYTES_PER_TOKEN)
    return len(render_chat(value)) // BYTES_PER_TOKEN
