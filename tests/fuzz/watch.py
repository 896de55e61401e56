"""How long one call of a parser takes: processor time of this thread, so that a busy machine does not count."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

HANG_S = 0.05
# Above HANG_S an input is only suspected: the time is taken again, and the least counts. Under atheris the code that is
# watched carries counters, so `make fuzz` allows for them here.
allowed_s = float("inf")  # no limit in `make test`: a shared machine's timing is no test


class Hang(AssertionError):
    """A parser took longer than HANG_S over one input."""


def timed(parse: Callable[..., Any], *args: Any, **options: Any) -> Any:
    """What `parse` returns or raises. Call it with what may be called again."""
    began = time.thread_time()
    try:
        return parse(*args, **options)
    finally:
        if time.thread_time() - began > allowed_s and (took := _least(parse, args, options)) > allowed_s:
            raise Hang(f"{took * 1000:.0f} ms of processor time")


def _least(parse: Callable[..., Any], args: tuple[Any, ...], options: dict[str, Any]) -> float:
    best = float("inf")
    for _ in range(4):
        began = time.thread_time()
        try:
            parse(*args, **options)
        except Exception:  # it is timed, and has been judged or will be
            pass
        best = min(best, time.thread_time() - began)
    return best
