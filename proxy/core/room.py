"""What one replica offers at one moment, boiled down to what the inner loop of a decision reads.

A `Room` is made from a replica's state and kept by its owner while nothing changes; whoever gives a
request a place subtracts it from the room in the same breath (`take`), so that no two requests take one
slot. Everything is a plain number here; why a replica offers nothing is told in `routing.py`.
"""

from __future__ import annotations

from proxy.core.capacity import Capacity

NEVER = float("inf")


class Room:
    """One replica's offer. Seconds, tokens, GPU-seconds; predictions carry their margin already."""

    __slots__ = ("backlog", "budget", "decode_s", "free_share", "full_s", "kappa_s", "key", "kin", "kv_left", "kv_tokens", "lag_s",
                 "occupancy", "open", "prefill_s", "slots_left", "speed", "tpot_s", "usd_per_s")

    def __init__(self, key: str) -> None:
        self.key = key
        self.open = True  # healthy, and no threshold keeps it closed
        self.full_s = 0.0  # an iteration filled with prefill: whoever comes next may fill it
        self.lag_s = 0.0  # until an iteration can begin
        self.budget = 1.0  # prefill tokens of one iteration beside the sequences that decode
        self.free_share = 1.0  # of an iteration's tokens, the budget
        self.backlog = 0.0  # prompt tokens sent whose first token has not come
        self.kv_tokens = 1.0
        self.kv_left = 0.0  # cache tokens not promised
        self.slots_left = 0.0
        self.occupancy = 0.0  # 0..1: how full, for the bid price
        self.tpot_s = 0.0  # a decode step with one sequence more
        self.usd_per_s = 0.0  # what a GPU-second of work really costs: energy, elastic charge, risk
        self.speed = 1.0  # work per second against the pool's reference
        self.kin = True  # of the reference's speed and cost: a job's own density holds here
        self.prefill_s = self.decode_s = self.kappa_s = 0.0  # work per token, see `work_s`

    def suits(self, capacity: Capacity, batch: float) -> None:
        """Take the work model of an engine that reaches `batch` at its latency target."""
        self.prefill_s = 1 / capacity.prefill_tokens_per_s
        self.decode_s = capacity.alpha_s / batch + capacity.beta_s
        self.kappa_s = capacity.kappa_s
        self.kv_tokens = float(capacity.kv_tokens)

    def work_s(self, prompt: float, output: float) -> float:
        """GPU-seconds of a request with `prompt` uncached and `output` tokens (capacity.py)."""
        return (prompt * self.prefill_s + output * self.decode_s
                + self.kappa_s * (prompt + output * 0.5) * output)

    def first_token_s(self, prompt: float) -> float:
        """Seconds until the first token of a prompt that is sent now, behind the backlog."""
        return self.lag_s - (-(self.backlog + prompt) // self.budget) * self.full_s

    def take(self, prompt: float, need: float, sequences: float) -> None:
        """Somebody got a place: `prompt` uncached tokens, `need` tokens of cache in the end."""
        self.backlog += prompt
        self.kv_left -= need
        self.slots_left -= sequences
        self.occupancy = min(1.0, self.occupancy + need / self.kv_tokens)
