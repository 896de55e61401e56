"""What the ledger is told: immutable entries, appended and never edited.

One `RequestEntry` per client request and attempt. Only the attempt that answered the client
(`final`) carries a baseline, so a request that was tried twice counts once against the API bill
while the costs of both attempts count.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import field
from fractions import Fraction
from typing import Literal

from proxy.core.money import NS_PER_MINUTE, round_nano
from proxy.core.records import record
from proxy.core.usage import Usage

EndReason = Literal["complete", "client_abort", "upstream_error", "upstream_refused", "timeout", "limit",
                    "interrupted", "unavailable"]
UsageSource = Literal["upstream_final", "upstream_running", "estimated", "none"]

CONTROL, COMPARED = 1, 2


@record
class Intent:
    """A request that is about to be sent: what recovery settles if the process dies."""

    request_id: str
    attempt: int
    started_ns: int  # UTC epoch
    route: str
    key_id: str
    tags: str
    backend: str
    backend_kind: Literal["gpu", "api"]
    model: str
    endpoint: str
    prompt_tokens_estimate: int
    output_tokens_max: int
    price_version: str
    hold_nano: int | None = None  # the most it may cost, where a budget holds that


@record
class Kept:
    """That the upstream keeps the answer, so that its key may go on from it until then: what it is found by, and which
    of the backend's replicas has it ("": the backend is an API). `items`: by what its reasoning is found that the
    answer did not say, but gave an id for."""

    digest: str
    replica: str
    expires_ns: int
    items: tuple[str, ...] = ()


@record
class RequestEntry:
    """One attempt, settled. Times are UTC nanoseconds; amounts nano-USD; `None` is unknown, never zero.

    `api_nano`: what the API bills (0 on a GPU; None when no price is known). `marginal_nano`: what serving it
    on a GPU varied (energy, elastic charge). `baseline_nano`: what pure-API billing would have charged; None
    when unknown or when the request has none (failed, or not final). `work_ns`: GPU-nanoseconds of the whole
    backend. `slo_met`: None where the route has no target or no token came. `hold_nano`: the most that the attempt
    could cost, where a budget held it. `internal_nano`: the operator's internal rate. `posted_nano`: what its budgets
    are charged: `charge_nano`, or nothing for the repetition of an answer that was charged already.
    `baseline_list_nano`, `baseline_contracted_nano`: at the public price and at the operator's own; `baseline_nano` is
    the lower. `prompt_bytes`: of the prompt's text. `trial`: of the control group of its route CONTROL was sent to the
    baseline's API, COMPARED was drawn too and served as usual.
    `recounted_tokens`: of the prompt, by the tokenizer of the baseline's model; None where it was not counted again.
    """

    request_id: str
    attempt: int
    final: bool
    started_ns: int
    sent_ns: int
    first_token_ns: int | None
    ended_ns: int
    endpoint: str
    stream: bool
    route: str
    key_id: str
    tags: str  # canonical "app=chat,team=search"
    client_model: str
    backend: str
    backend_kind: Literal["gpu", "api", "none"]
    model: str
    status: int
    end_reason: EndReason
    usage: Usage
    usage_source: UsageSource
    output_tokens_delivered: int
    api_nano: int | None
    price_version: str
    marginal_nano: int
    work_ns: int
    baseline_nano: int | None
    baseline_model: str
    baseline_price_version: str
    baseline_cached_tokens: int
    slo_met: bool | None
    reason: str
    # JSON, or what writes it: candidates, refusals, readings and their age, lambda
    decision: str | Callable[[], str] = field(repr=False, default="{}")
    hold_nano: int | None = None
    internal_nano: int = 0
    posted_nano: int = 0
    baseline_list_nano: int | None = None
    baseline_contracted_nano: int | None = None
    prompt_bytes: int = 0
    trial: int = 0
    recounted_tokens: int | None = None
    kept: Kept | None = None

    @property
    def decision_json(self) -> str:
        """Safe to ask for in another thread."""
        return self.decision if isinstance(self.decision, str) else self.decision()

    @property
    def succeeded(self) -> bool:
        """The client got an answer it can use: billed in the baseline."""
        return self.end_reason in ("complete", "client_abort", "limit") and self.status < 400

    @property
    def api_most_nano(self) -> int:
        """What the API bills; the most it may bill where that is unknown."""
        return at_most(self.api_nano, self.hold_nano)

    @property
    def charge_nano(self) -> int:
        """What the attempt costs its budgets: the API, what serving it varied, the internal rate."""
        return self.api_most_nano + self.marginal_nano + self.internal_nano

    @property
    def failed_work(self) -> bool:
        """GPU work that produced no answer."""
        return self.backend_kind == "gpu" and not self.succeeded


def at_most(api_nano: int | None, hold_nano: int | None) -> int:
    """What an API bills; where that is unknown, all that was held for it."""
    return api_nano if api_nano is not None else hold_nano or 0


def work_by_minute(sent_ns: int, ended_ns: int, work_ns: int) -> Iterator[tuple[int, int]]:
    """`work_ns` spread evenly over the time it was in flight, as (minute, GPU-ns); parts add up exactly.

    A minute is the number of whole minutes since the epoch. Pure, so the split in the rollups can be
    recomputed from the row.
    """
    if ended_ns <= sent_ns:
        yield ended_ns // NS_PER_MINUTE, work_ns
        return
    before, at = 0, sent_ns
    while at < ended_ns:
        end = min(ended_ns, (at // NS_PER_MINUTE + 1) * NS_PER_MINUTE)
        after = round_nano(Fraction(work_ns * (end - sent_ns), ended_ns - sent_ns))
        if after > before:
            yield at // NS_PER_MINUTE, after - before
        before, at = after, end
