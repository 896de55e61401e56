"""Is an engine alive? `/health` says 200 on a wedged engine, so progress is the only witness.

Witnesses: tokens of our own streams, and the engine's counters (iterations first, vLLM's
`iteration_tokens_total_count`). An engine that holds our requests and shows no progress for its stall
budget is *suspect*: it gets nothing new. If that lasts it is *wedged*: what waits there for its first
token is taken elsewhere. The budget covers one full iteration of prefill, so a batch of 32k-token
prompts, whose iterations keep counting, is never mistaken for a stall.
"""

from __future__ import annotations

from typing import Literal

from proxy.core.capacity import Capacity

STALL_S_MIN = 3.0
STALL_S_MAX = 30.0
ITERATION_TOKENS_MAX = 8192  # vLLM's largest default for max_num_batched_tokens
BACKLOG_TOKENS_MAX = 65_536
WEDGED_AFTER = 1.5  # stall budgets
FRESH_SCRAPES, FRESH_S_MIN = 3, 3.0
UNKNOWN_AFTER_S = 30.0


def stall_budget_s(capacity: Capacity, backlog_tokens: float, heartbeat: bool) -> float:
    """Silence that is still normal: one iteration where a trusted heartbeat is seen, the prefill where none is.

    A heartbeat is trusted while it moves with our own tokens; a frozen metrics page, or an engine run with
    `--disable-log-stats`, loses that trust and only our own streams count.
    """
    tokens = min(backlog_tokens, ITERATION_TOKENS_MAX if heartbeat else BACKLOG_TOKENS_MAX)
    expected = tokens / capacity.prefill_tokens_per_s + capacity.step_s(capacity.max_running, 0)
    return min(STALL_S_MAX, max(STALL_S_MIN, 2.0 * expected))


def freshness(age_s: float | None, scrape_s: float) -> Literal["fresh", "stale", "unknown"]:
    """fresh within three scrapes (at least 3 s), stale up to 30 s, then unknown."""
    if age_s is None or age_s > UNKNOWN_AFTER_S:
        return "unknown"
    return "fresh" if age_s <= FRESH_S_MIN or age_s <= FRESH_SCRAPES * scrape_s else "stale"
