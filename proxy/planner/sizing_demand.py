"""Traffic as sizing sees it: requests gathered into classes of like ones, a quarter of an hour at a time.

A class keeps sums (requests, tokens, token-steps), so what it costs at an API and how much work it is on a GPU are
exact for any linear price and any engine; only the order of requests within a class is lost. What orders requests is
mostly how much output they have per input, so classes are half octaves of that and powers of four of their sum, cut
also where a price has a threshold, so that a long-context tier is exact too.

`token_steps` is the sum of `input x output + output^2 / 2`: how many cached tokens all steps of the answers read. Time
is in seconds, money in USD: a forecast, so floats.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import ArrayLike, NDArray

from proxy.core.capacity import Capacity
from proxy.core.pricing import Price
from proxy.planner.names import PlanRefused

SLOT_S = 900.0
RATIOS = 200  # of half octaves: a request has 10 million tokens at most
SLOTS_MAX = 4 * 24 * 400  # of a quarter of an hour: over a year

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Demand:
    """One entry of each column per class and slot, slots ascending. `began_s` is slot 0 in UTC since 1970, if known."""

    slot: Ints
    model: Ints  # place in `models`
    requests: Floats
    prompt: Floats  # input tokens, cached ones among them
    cached: Floats  # of those, what the API bills as cached
    output: Floats
    token_steps: Floats
    models: tuple[str, ...]
    slots: int
    slot_s: float = SLOT_S
    began_s: float | None = None

    def scaled(self, factor: float) -> Demand:
        """So many times the traffic, of the same kind and at the same times."""
        columns = ("requests", "prompt", "cached", "output", "token_steps")
        return replace(self, **{name: getattr(self, name) * factor for name in columns})

    @property
    def span_s(self) -> float:
        return self.slots * self.slot_s


def gathered(at_s: ArrayLike, prompt: ArrayLike, output: ArrayLike, *, cached: ArrayLike | None = None,
             model: Sequence[str] | None = None, span_s: float = 0.0, began_s: float | None = None,
             edges: Sequence[int] = ()) -> Demand:
    """Requests, one entry of each column per request. Slots begin on the quarter of the clock where `began_s` says
    which; `edges` are inputs above which some price is another one. PlanRefused for more than `SLOTS_MAX` slots."""
    at, tokens_in, tokens_out = (np.asarray(column, np.float64) for column in (at_s, prompt, output))
    hits = np.zeros_like(at) if cached is None else np.asarray(cached, np.float64)
    into_s = 0.0 if began_s is None else began_s % SLOT_S
    slot = np.floor((at + into_s) / SLOT_S).astype(np.int64)
    slots = max(int(slot.max(initial=0)) + 1, int(np.ceil((span_s + into_s) / SLOT_S)))
    if slots > SLOTS_MAX:
        raise PlanRefused(f"the traffic spans {slots * SLOT_S / 86400:,.0f} days; {SLOTS_MAX * SLOT_S / 86400:.0f} "
                          "can be sized at once")
    names, of = np.unique(np.asarray(model if model is not None else [""] * at.size, dtype=object).astype(str),
                          return_inverse=True)
    above = np.searchsorted(np.asarray(sorted(edges), np.float64), tokens_in, side="left")
    long, short = np.maximum(tokens_in, 1.0), np.maximum(tokens_out, 1.0)
    ratio = np.floor(2 * np.log2(short / long)).astype(np.int64) + RATIOS // 2
    size = np.floor(np.log2(long + short) / 2).astype(np.int64)
    key = slot
    for digit, base in ((of, len(names)), (above, len(edges) + 1), (ratio, RATIOS), (size, 32)):
        key = key * base + digit
    _, first, member = np.unique(key, return_index=True, return_inverse=True)
    sums = [np.bincount(member, column, first.size) for column in (
        np.ones_like(at), tokens_in, hits, tokens_out, tokens_in * tokens_out + tokens_out**2 / 2)]
    return Demand(slot[first], of[first].astype(np.int64), *sums, models=tuple(map(str, names)), slots=slots,
                  began_s=None if began_s is None else began_s - into_s)


def from_buckets(start_s: ArrayLike, model: Sequence[str], requests: ArrayLike, prompt: ArrayLike, cached: ArrayLike,
                 output: ArrayLike, steps: ArrayLike | None, width_s: float, *, dated: bool = True) -> Demand:
    """Sums per bucket of time, as providers export them: one class per entry. `steps` is their `token_steps`, if
    known. Buckets shorter than a slot are put together; `dated` says that the starts count from 1970."""
    start = np.asarray(start_s, np.float64)
    slot_s = max(width_s, SLOT_S)
    begin = float(np.floor(start.min() / slot_s) * slot_s) if dated and slot_s <= 3600 else float(start.min())
    slot = np.floor((start - begin) / slot_s + 1e-9).astype(np.int64)
    slots = int(slot.max()) + 1
    if slots > SLOTS_MAX:
        raise PlanRefused(f"the usage spans {slots * slot_s / 86400:,.0f} days; {SLOTS_MAX * SLOT_S / 86400:.0f} can "
                          "be sized at once")
    names, of = np.unique(np.asarray(model, dtype=object).astype(str), return_inverse=True)
    order = np.argsort(slot, kind="stable")
    columns = [np.asarray(column, np.float64)[order] for column in (requests, prompt, cached, output)]
    read = token_steps(columns[0], columns[1], columns[3]) if steps is None else np.asarray(steps, np.float64)[order]
    return Demand(slot[order], of[order].astype(np.int64), *columns, read, models=tuple(map(str, names)), slots=slots,
                  slot_s=slot_s, began_s=begin if dated else None)


def token_steps(requests: ArrayLike, prompt: ArrayLike, output: ArrayLike) -> Floats:
    """What it is about, where only sums are known: answers as if exponentially long, so that their square is twice that
    of the mean, and as long after long prompts as after short ones."""
    count, tokens_in, tokens_out = (np.asarray(column, np.float64) for column in (requests, prompt, output))
    per = np.divide(tokens_out, count, out=np.zeros_like(count), where=count > 0)
    return tokens_in * per + tokens_out * per


def charged_usd(demand: Demand, prices: Mapping[str, Price]) -> Floats:
    """What the API charges for each class. `prices` has every model; PlanRefused if one says nothing of some token."""
    rates = np.zeros((4, demand.slot.size))
    each = np.divide(demand.prompt, demand.requests, out=np.zeros_like(demand.prompt), where=demand.requests > 0)
    for place, name in enumerate(demand.models):
        price = prices[name]
        for tier in price.tiers:
            chosen = (demand.model == place) & (each > tier.above_input_tokens)
            if not tier.above_input_tokens:
                chosen = demand.model == place
            for row, bucket in enumerate(("input_text", "cache_read", "output_text")):
                usd_per_mtok = tier.of(bucket)
                if usd_per_mtok is None:
                    raise PlanRefused(f"the price of {price.model} at {price.provider} says nothing of {bucket} "
                                      f"({price.source}): name another one with --api, or NAME=IN/OUT, or give it in a "
                                      "--prices file")
                rates[row, chosen] = float(usd_per_mtok) / 1e6
        rates[3, demand.model == place] = float(price.usd_per_request)
    uncached = demand.prompt - demand.cached
    return (rates[0] * uncached + rates[1] * demand.cached + rates[2] * demand.output + rates[3] * demand.requests)


def work_s(demand: Demand, engine: Capacity, batch: float, *, reused: float = 0.0) -> Floats:
    """GPU-seconds of one replica that each class takes, decoded `batch` sequences at a time (`Capacity.work_s`).

    `reused`: of the tokens that the API bills as cached, the share that the replica's own prefix cache has as well.
    """
    computed = demand.prompt - reused * demand.cached
    return (computed / engine.prefill_tokens_per_s + demand.output * (engine.alpha_s / batch + engine.beta_s)
            + engine.kappa_s * demand.token_steps)
