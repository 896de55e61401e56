"""What the decisions saved, beside what the business saved. Two figures, never mixed, joined by one identity.

The **marginal saving** asks what routing changed, the GPUs being paid for anyway: the API bill that own GPUs displaced,
less what really varied with serving (metered energy above idling, an elastic charge), failed work included, less what
attempts at an API cost that answered nobody. The **fully loaded saving** is the statement's. To the nano-dollar:

    marginal     = displaced - varying - retries
    fully_loaded = marginal + api_difference - paid_anyway + corrections

`api_difference` is the baseline of what APIs answered less what they charged for it: positive where a cheaper API than
the baseline's answered. `paid_anyway` is all of gpu + energy + overhead that did not vary, and what contracts owe
beside requests less what they would owe in pure-API billing.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from proxy.core.savings import IdentityBroken, Statement


@dataclass(frozen=True, slots=True)
class BackendSums:
    """What a period's rows of one backend add up to. `baseline` holds, where a price is unknown, the API's real cost
    instead; `varying` is `marginal_nano` of every attempt. Amounts nano-USD."""

    backend: str  # empty for requests that no backend was asked for
    on_gpu: bool
    requests: int = 0
    input_tokens: int = 0  # cached ones too
    cached_tokens: int = 0
    output_tokens: int = 0
    baseline: int = 0
    api: int = 0
    retries: int = 0  # of `api`: attempts that did not answer their client
    varying: int = 0
    estimated_swing: int = 0  # by how much estimated counts may be wrong, each cell at its worst
    estimated_api: int = 0  # of `api`, by estimated token counts
    estimated_baseline: int = 0
    input_worth: int = 0  # what the answered requests' input and output come to at the rates of their baseline's price
    output_worth: int = 0

    @property
    def tokens(self) -> int:
        return self.input_tokens + self.output_tokens


@dataclass(frozen=True, slots=True)
class Marginal:
    """The marginal saving and the way from it to the fully loaded one; nano-USD."""

    displaced: int
    varying: int
    retries: int
    api_difference: int
    paid_anyway: int
    corrections: int

    @property
    def saving(self) -> int:
        return self.displaced - self.varying - self.retries

    @property
    def fully_loaded(self) -> int:
        return self.saving + self.api_difference - self.paid_anyway + self.corrections


def marginal(statement: Statement, backends: Iterable[BackendSums]) -> Marginal:
    """Of a statement and the same period's sums. IdentityBroken unless both figures come to the statement's saving."""
    rows, total = list(backends), statement.total
    displaced, varying = sum(row.baseline for row in rows if row.on_gpu), sum(row.varying for row in rows)
    at_api, smallest = [row for row in rows if not row.on_gpu], statement.currency.smallest
    retries = sum(row.retries for row in rows)
    made = Marginal(displaced, varying, retries,
                    sum(row.baseline - row.api + row.retries for row in at_api),
                    total.gpu + total.energy + total.overhead - varying + total.contracts - total.baseline_contracts,
                    total.corrections)
    if retries != statement.api_retries:
        raise IdentityBroken(f"retries: the backends add up to {retries}, the period to {statement.api_retries} "
                             f"{smallest}")
    if made.saving != total.marginal_saving:
        raise IdentityBroken(f"marginal saving: the backends add up to {made.saving}, the period to "
                             f"{total.marginal_saving} {smallest}")
    if made.fully_loaded != total.savings:
        raise IdentityBroken(f"savings: {made.fully_loaded} by way of the marginal saving, {total.savings} {smallest} "
                             "by the statement")
    return made
