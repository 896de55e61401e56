"""What `breakeven plan fleet` is asked, and what of that is refused before any work."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from proxy.cli.plan_print import refuse

if TYPE_CHECKING:
    from proxy.planner.sizing_answer import Overheads

PRICES_UNUSED = "has the prices of what --api names; the configuration's baselines have theirs"


@dataclass(frozen=True, slots=True)
class Asked:
    """The command line. Percent, minutes and hours as there."""

    trace: Path | None
    usage: Path | None
    ledger: bool
    config: Path | None
    begin: str | None
    end: str | None
    route: str | None
    apis: list[str]
    gpus: list[str]
    serve: str | None
    speed: str | None
    prices: Path | None
    scale: float
    usable: float
    batch: float | None
    tpot_ms: float | None
    startup_minutes: float
    preemptions: float
    spot_available: float
    setup_hours: float
    monthly_hours: float
    hourly_rate: float
    months: float
    step: str

    def check(self, output: Path | None, given: set[str]) -> None:
        """What is wrong with it, before any work. `given`: the options that were typed."""
        if sum((self.trace is not None, self.usage is not None, self.ledger)) != 1:
            refuse("give one of a TRACE, --usage EXPORT and --ledger")
        if self.ledger and self.config is None:
            refuse("--ledger needs --config: the ledger is the configuration's")
        if not self.ledger and (self.begin or self.end or self.route):
            refuse("--from, --to and --route belong to --ledger; cut the file itself")
        self._refuse_unused(given)
        if self.step not in ("1h", "15m"):
            refuse(f"--step {self.step} is not known; use 1h or 15m")
        for name, number, low, high in (
                ("--scale", self.scale, 0, 1e6), ("--usable", self.usable, 0, 100), ("--months", self.months, 0, 1e3),
                ("--batch", 1.0 if self.batch is None else self.batch, 0, 1e6),
                ("--tpot-ms", 1.0 if self.tpot_ms is None else self.tpot_ms, 0, 6e5)):
            if not low < number <= high:
                refuse(f"{name} {number:g}: it is above {low:g} and at most {high:,g}")
        for name, number, high in (
                ("--startup-minutes", self.startup_minutes, 60), ("--preemptions-per-hour", self.preemptions, 60),
                ("--spot-available", self.spot_available, 100), ("--setup-hours", self.setup_hours, 1e6),
                ("--monthly-hours", self.monthly_hours, 1e6), ("--hourly-rate", self.hourly_rate, 1e5)):
            if not 0 <= number <= high:
                refuse(f"{name} {number:g}: it is from 0 to {high:,g}")
        if output is not None and not output.resolve().parent.is_dir():
            refuse(f"{output}: no such folder to write to")
        if output is not None and output.resolve() in [
                one.resolve() for one in (self.trace, self.usage, self.config, self.prices) if one is not None]:
            refuse(f"{output}: is read for this plan; write to another file")

    def _refuse_unused(self, given: set[str]) -> None:
        """An option that would change nothing."""
        configured = self.config is not None
        for unused, names, why in (
                (configured and not self.gpus, ("--serve", "--speed"), "is of what --gpu names; the configuration's "
                                                                       "GPUs have their own"),
                (self.speed is not None, ("--serve",), "is what a speed is guessed from, and --speed gives it"),
                (self.batch is not None, ("--tpot-ms",), "is what a batch is found by, and --batch gives it"),
                (not self.has_spot, ("--preemptions-per-hour", "--spot-available"), "is of spot prices, which "
                                                                                    "--gpu COUNTxTYPE@USD/SPOT gives"),
                (bool(self.gpus and self.apis) and not self.ledger, ("--config",), "has GPUs and baselines, which "
                                                                                   "--gpu and --api name"),
                (self.only_of_costs and self.usage is None, ("--prices",), PRICES_UNUSED)):
            for name in names:
                if unused and name in given:
                    refuse(f"{name} would change nothing: it {why}; leave it out")

    @property
    def has_spot(self) -> bool:
        return any("/" in text.partition("@")[2] for text in self.gpus)

    @property
    def only_of_costs(self) -> bool:
        """What --prices says is looked at for the tokens of a costs export alone."""
        return self.prices is not None and self.config is not None and not self.apis

    @property
    def step_s(self) -> float:
        return 3600.0 if self.step == "1h" else 900.0

    @property
    def overheads(self) -> Overheads:
        from proxy.planner.sizing_answer import Overheads

        rate = self.hourly_rate
        return Overheads(self.setup_hours * rate, self.monthly_hours * rate, self.months)
