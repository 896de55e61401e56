"""A cell of a reconciliation: one UTC day and model, what is different, and why."""

from __future__ import annotations

from dataclasses import dataclass, field
from fractions import Fraction

from proxy.reports.reconcile.bill import ChargeLine, Tokens, UsageLine
from proxy.reports.reconcile.ours import Ours

ALL_MODELS = "(all models)"


@dataclass(slots=True)
class Cause:
    """One reason of a difference: `nano`, theirs less ours, and what it is known from."""

    name: str
    nano: int
    text: str
    tokens: Tokens | None = None
    lines: tuple[str, ...] = ()  # of the bill


@dataclass(slots=True)
class Cell:
    """One day and model (or GPU resource), and what is different. `nano_theirs` None: the bill gives no money for it,
    so that its tokens are compared at our prices."""

    day: str
    model: str
    ours: Ours = field(default_factory=Ours)
    usage: list[UsageLine] = field(default_factory=list)
    charges: list[ChargeLine] = field(default_factory=list)
    causes: list[Cause] = field(default_factory=list)
    nano_theirs: int | None = None
    counts: bool = True  # whether it is part of the totals: not where a cell for all models stands for it

    @property
    def tokens(self) -> Tokens | None:
        """By their count; None where the bill has none."""
        return sum((line.tokens for line in self.usage[1:]), self.usage[0].tokens) if self.usage else None

    @property
    def nano_ours(self) -> int:
        return self.ours.nano

    @property
    def difference(self) -> int:
        return sum(cause.nano for cause in self.causes)

    @property
    def theirs(self) -> int:
        """What they charge; where the bill does not say, their tokens at our prices."""
        return self.ours.nano + self.difference if self.nano_theirs is None else self.nano_theirs


def rate_text(nano_per_token: Fraction) -> str:
    """USD per million tokens: 1 nano-USD a token is 0.001 of it."""
    return f"{float(nano_per_token / 1000):.6g}"
