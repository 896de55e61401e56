"""`make plan-plots`: the two plots of docs/what-a-token-costs.md, and the figures that its text quotes.

    python -m tests.bench.plan_plots [FOLDER]      writes them there; docs/ unless told otherwise
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path

from proxy.cli.plan_apis import api
from proxy.core.gpus import GPUS
from proxy.core.models import MODELS
from proxy.core.roofline import PRECISIONS, engine
from proxy.planner import plot
from proxy.planner.breakeven import Breakeven, breakeven, breakevens
from proxy.planner.cost import Overheads, Rent, api_usd_per_mtok, token_price
from proxy.planner.plot import Range
from proxy.planner.published import ERROR_WORST
from proxy.planner.speed import Speed, Targets, Traffic, speed

DOCS = Path(__file__).resolve().parents[2] / "docs"
APIS = ("gpt-4o", "gpt-4o-mini", "gpt-5", "claude-sonnet-4-5")
BREAKEVEN, INPUTS = "what-a-token-costs-breakeven.svg", "what-a-token-costs-inputs.svg"


CHAT, TARGETS = Traffic(1024, 512), Targets(tpot_s=0.05)
RESERVED = Rent(Fraction("5.90"), overheads=Overheads(Fraction(60), Fraction(8)))


@dataclass(frozen=True)
class Case:
    """The page's example; `ours` is what its tokens cost over what the API takes for the same ones."""

    traffic: Traffic = CHAT
    targets: Targets = TARGETS
    rent: Rent = RESERVED
    utilization: Fraction = Fraction(1, 5)
    api: str = "gpt-4o"
    cards: int = 2
    precision: str = "fp8"
    faster: float = 1.0

    @property
    def speed(self) -> Speed:
        one = engine(MODELS["llama-3.3-70b"], PRECISIONS[self.precision], GPUS["H100"], self.cards)
        found = speed(one, self.traffic, self.targets)
        return replace(found, output_per_s=found.output_per_s * self.faster,
                       input_per_s=found.input_per_s * self.faster)

    @property
    def usd_per_mtok(self) -> float:
        return float(token_price(self.rent, self.speed, self.utilization).total)

    @property
    def ours(self) -> float:
        return self.usd_per_mtok / float(api_usd_per_mtok(api(self.api).price, self.traffic))

    def against(self, name: str) -> Breakeven:
        return breakeven(name, api(name).price, self.rent, self.speed, self.traffic)


BASE = Case()


def inputs() -> list[Range]:
    """Each input taken low and high, as real decisions differ; all others as in BASE."""
    def of(name: str, low: tuple[str, Case], high: tuple[str, Case]) -> Range:
        cheap, dear = low[1].ours, high[1].ours
        return Range(name, cheap, dear, f"{low[0]}: {cheap:.2f}x", f"{high[0]}: {dear:.2f}x")

    def rent(usd: str, people: Overheads = BASE.rent.overheads) -> Case:
        return replace(BASE, rent=Rent(Fraction(usd), overheads=people))

    return [
        of("which API it replaces", ("Claude Sonnet 4.5", replace(BASE, api="claude-sonnet-4-5")),
           ("GPT-4o mini", replace(BASE, api="gpt-4o-mini"))),
        of("utilisation", ("60 %", replace(BASE, utilization=Fraction(3, 5))),
           ("5 %", replace(BASE, utilization=Fraction(1, 20)))),
        of("price of a card's hour", ("spot, 1.25", rent("2.50")), ("on demand, 3.99", rent("7.98"))),
        of("people", ("nobody", rent("5.90", Overheads())),
           ("80 h, then 40 a month", rent("5.90", Overheads(Fraction(80), Fraction(40))))),
        of("shape of a request", ("128 in, 1,024 out", replace(BASE, traffic=Traffic(128, 1024))),
           ("8,000 in, 500 out", replace(BASE, traffic=Traffic(8000, 500)))),
        of("target per token", ("none", replace(BASE, targets=Targets())),
           ("25 ms", replace(BASE, targets=Targets(tpot_s=0.025)))),
        of("precision", ("8 bits, 2 cards", BASE),
           ("16 bits, 4 cards", replace(rent("11.80"), cards=4, precision="fp16"))),
        of("our estimate of the speed", ("19 % too low", replace(BASE, faster=1 / (1 - ERROR_WORST))),
           ("19 % too high", replace(BASE, faster=1 / (1 + ERROR_WORST)))),
    ]


def drawn() -> dict[str, bytes]:
    found = breakevens([replace(api(name), batch=None) for name in APIS], BASE.rent, BASE.speed, BASE.traffic)
    return {
        BREAKEVEN: plot.over_utilization(
            plot.own_curves(BASE.rent, BASE.speed), found,
            "Llama 70B, 8 bits, on two H100 at 5.90 USD an hour; 1,024 tokens in, 512 out"),
        INPUTS: plot.ranges(inputs(), BASE.ours, "What moves the answer: one input changed at a time",
                            "what our tokens cost over what the API takes for the same; left of 1 ours are cheaper")}


def main(arguments: Sequence[str] | None = None) -> int:
    folder = Path((arguments or sys.argv[1:] or [DOCS])[0])
    for name, image in drawn().items():
        (folder / name).write_bytes(image)
        print(folder / name)
    print(f"{BASE.speed.output_per_s:,.0f} output tok/s when full, batch {BASE.speed.batch:g}; at 20 %: "
          f"{BASE.usd_per_mtok:.2f} USD per 1M, {BASE.ours:.2f} of GPT-4o's")
    for name in APIS:
        print(name, f"{100 * float(BASE.against(name).utilization or 0):.1f} %")
    for row in inputs():
        print(f"{row.name}: {row.low_text} to {row.high_text}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
