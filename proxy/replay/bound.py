"""The clairvoyant bound: what a router that knows the future could keep off the API bill, as a linear program.

Source: the "Bound" paragraph of the replay set-up (economics of the cost-routing proxy, sections 4 to 6). Time is cut
into windows. The requests that arrive in one window and are about equally valuable per GPU-second form a group, of
which any fraction x may be served by the fleet. What is served must fit:

    maximise    sum over groups of   value * x
    subject to  prefill: all of its work in the window of arrival or the ceil(ttft / window) windows after it
                decode:  the work that may not fall later, in the window of arrival or the keep / window after it
                each window: prefill and decode together take at most replicas * window GPU-seconds

The paragraph can be read in several ways; this one reproduces its 20 check values to 0.04 %, on average to 0.01 %:

- The density classes are quantiles of value / work over the *whole trace*, not inside each window.
- The last token of a request is due ttft + tpot * output seconds after it came. Its decode work is spread evenly over
  that time, so a share max(0, 1 - keep / (ttft + tpot * output)) may fall later than `keep`, and that share is free.
- Work may run on after the last arrival: there are windows for it.

Decoding is otherwise not held to its own pace and costs no batch overhead, and packing is perfect. So the bound is
loose: the best oracle of section 4 reaches 93.5 % of it. On the other hand a group cannot give up its own worst request
first; telling requests apart better, with 512 classes, raises the bound by 0.2 to 0.4 % in the cells tried.

All windows share the same deadlines, so one variable says how much prefill (or decode) of window i runs in window j,
whichever group it belongs to. This keeps an hour of 56,000 requests to 74,000 variables, solved in a second or two.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import linprog
from scipy.sparse import csr_array

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Groups:
    """Requests of one window and one density class, summed; one entry per group that is not empty."""

    window: Ints  # of arrival, counted from the window of the first request
    value: Floats  # USD
    prefill: Floats  # GPU-seconds
    decode: Floats  # GPU-seconds that may not fall after `keep_decode_s`


@dataclass(frozen=True, slots=True)
class Work:
    """Work of some kind that arrives in a window and may run in it or in one of the next `after` windows."""

    seconds: Floats  # GPU-seconds, one per group
    after: int


def clairvoyant_usd(
    at_s: ArrayLike,
    prompt: ArrayLike,
    output: ArrayLike,
    value_usd: ArrayLike,
    work_prefill_s: ArrayLike,
    work_decode_s: ArrayLike,
    replicas: float,
    *,
    ttft_s: float = 2.0,
    tpot_s: float = 0.2,
    window_s: float = 2.0,
    groups: int = 8,
    keep_decode_s: float = 60.0,
) -> float:
    """The most API spend, in USD, that `replicas` could have avoided; between 0 and the sum of `value_usd`.

    One entry per request: arrival in seconds (any origin, any order), tokens in and out, what the API would have
    charged, GPU-seconds of prefill and of decode. `ttft_s` and `tpot_s` are the promise: seconds to the first token,
    and per further token. `prompt` is only checked: what a long prompt costs is in the work.

    Refuses, with ValueError, columns of different lengths, tokens below 1, and a request without work.
    """
    if replicas < 0 or min(ttft_s, tpot_s, keep_decode_s) < 0 or window_s <= 0 or groups < 1:
        raise ValueError("a negative number of replicas or seconds, an empty window or no density class")
    at, _, tokens, value, prefill, decode = _checked(at_s, prompt, output, value_usd, work_prefill_s, work_decode_s)
    if not at.size:
        return 0.0
    last_token_s = ttft_s + tpot_s * tokens
    kept = np.divide(keep_decode_s, last_token_s, out=np.ones_like(at), where=last_token_s > keep_decode_s)
    window = np.floor(at / window_s).astype(np.int64)
    grouped = _grouped(window - window.min(), value, prefill, decode, kept, groups)
    prompts = Work(grouped.prefill, math.ceil(ttft_s / window_s))
    answers = Work(grouped.decode, math.ceil(keep_decode_s / window_s))
    return _most_usd(grouped.window, grouped.value, (prompts, answers), replicas * window_s)


def _checked(*columns: ArrayLike) -> tuple[Floats, ...]:
    at, tokens_in, tokens_out, value, prefill, decode = checked = tuple(np.asarray(c, np.float64) for c in columns)
    if any(column.shape != (at.size,) or not np.isfinite(column).all() for column in checked):
        raise ValueError("the columns must be flat, finite and of one length")
    if (np.minimum(tokens_in, tokens_out) < 1).any():
        raise ValueError("a request has at least one token in and one out")
    if (np.minimum(np.minimum(value, prefill), decode) < 0).any() or (prefill + decode <= 0).any():
        raise ValueError("values and work may not be negative, and every request is some work")
    return checked


def _grouped(window: Ints, value: Floats, prefill: Floats, decode: Floats, kept: Floats, classes: int) -> Groups:
    density = value / (prefill + decode)
    edges = np.quantile(density, np.arange(1, classes) / classes)
    key, member = np.unique(window * classes + np.searchsorted(edges, density, side="right"), return_inverse=True)
    value, prefill, decode = (np.bincount(member, column) for column in (value, prefill, decode * kept))
    return Groups(key // classes, value, prefill, decode)


def _most_usd(window: Ints, value: Floats, works: tuple[Work, ...], capacity_s: float) -> float:
    """Solve the program: a variable x per group, then per kind of work one for each window i and place j of i's work.

    An equality per kind and window says that all work of the accepted fractions is placed; an inequality per place
    that no more than `capacity_s` GPU-seconds are used there. Money is scaled to the dearest group and work to the
    longest, because the solver's tolerances are absolute.
    """
    arrivals, row_of = np.unique(window, return_inverse=True)
    scale_usd, scale_s = float(value.max()) or 1.0, max(float(work.seconds.max()) for work in works)
    groups = np.arange(window.size)
    rows, columns, entries, places = [], [], [], []
    variables = window.size
    for kind, work in enumerate(works):
        place = arrivals[:, None] + np.arange(work.after + 1)
        source = np.repeat(np.arange(arrivals.size), work.after + 1)
        rows += [kind * arrivals.size + row_of, kind * arrivals.size + source]
        columns += [groups, variables + np.arange(place.size)]
        entries += [work.seconds / scale_s, -np.ones(place.size)]
        places.append(place.ravel())
        variables += place.size
    joined = np.concatenate(entries), (np.concatenate(rows), np.concatenate(columns))
    placed = csr_array(joined, shape=(len(works) * arrivals.size, variables))
    used, place_of = np.unique(np.concatenate(places), return_inverse=True)
    moved = np.arange(window.size, variables)
    filled = csr_array((np.ones(moved.size), (place_of, moved)), shape=(used.size, variables))
    upper = np.concatenate([np.ones(window.size), np.full(moved.size, np.inf)])
    solved = linprog(
        np.concatenate([-value / scale_usd, np.zeros(moved.size)]),
        A_ub=filled,
        b_ub=np.full(used.size, capacity_s / scale_s),
        A_eq=placed,
        b_eq=np.zeros(placed.shape[0]),
        bounds=np.column_stack([np.zeros(variables), upper]),
        method="highs-ipm",
    )
    if solved.status != 0:  # feasible (x = 0) and bounded (x <= 1) by construction: only the solver can have failed
        raise ArithmeticError(f"no bound: {solved.message}")
    return float(min(max(-solved.fun * scale_usd, 0.0), value.sum()))
