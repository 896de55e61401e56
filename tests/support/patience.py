"""How a test waits for what must happen: it looks again and again, for longer than any machine should need."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Awaitable, Callable
from typing import Any

PATIENCE_S = 60.0  # a deadline for what would hang, and no measure of speed
LOOK_S = 0.01


async def until(condition: Callable[[], Any | Awaitable[Any]]) -> Any:
    """What `condition` says, or what it comes to when it is awaited, as soon as that is true."""
    try:
        async with asyncio.timeout(PATIENCE_S) as limit:
            while True:
                found = condition()
                if inspect.isawaitable(found):
                    found = await found
                if found:
                    return found
                await asyncio.sleep(LOOK_S)
    except TimeoutError:
        if limit.expired():
            raise AssertionError(f"not within {PATIENCE_S:g} s: {inspect.getsource(condition).strip()}") from None
        raise
