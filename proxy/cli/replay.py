"""`breakeven replay`: recorded traffic against the configured fleet, simulated, under one policy or all."""

from __future__ import annotations

import io
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

from proxy.cli.progress import progress_bar

if TYPE_CHECKING:
    from rich.progress import Progress

    from proxy.cli.replay_case import Setup, Traffic
    from proxy.config import Settings
    from proxy.replay.outcome import Outcome, Replay
    from proxy.replay.policies import Make

POLICIES = ("marginal-cost", "threshold", "average-cost", "average-cost-warm", "self-hosted-only", "api-only", "random")
SWEPT = (0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 1.0)  # utilisation
FORMATS = ("table", "json", "html")
LEDGER = "ledger"
RANDOM_SHARE = 0.85  # of the work that the fleet could do at most


def replay(
    trace: Annotated[str, typer.Argument(help=(
        "CSV or JSON Lines of requests (time, input and output tokens; also client, model, prefix blocks), plain, .zst "
        "or .gz; or `ledger`: your own."), show_default=False)],
    config: Annotated[Path, typer.Option("--config", "-c", metavar="FILE", help="The fleet, the routes, the prices.")],
    route: Annotated[str | None, typer.Option(help=(
        "All requests come for this route. Default: the trace's models say."))] = None,
    policy: Annotated[list[str] | None, typer.Option(metavar="P", help=(
        f"{', '.join(POLICIES)}, or all; several times for several. Default: all."))] = None,
    scale: Annotated[float | None, typer.Option(help="So many times the traffic: time is compressed.")] = None,
    coverage: Annotated[float | None, typer.Option(metavar="PCT", help=(
        "Scale so that the GPUs could do this percentage of all work."))] = None,
    sweep: Annotated[str | None, typer.Option(help=(
        "`threshold`: the utilisation threshold from 0.5 to 1, beside marginal-cost."))] = None,
    bound: Annotated[bool, typer.Option(help="Also the most that any policy could have avoided.")] = True,
    seed: Annotated[int, typer.Option(help="Of `random`.")] = 1,
    decisions: Annotated[Path | None, typer.Option(metavar="OUT.csv", help=(
        "What the first policy did with each request."))] = None,
    format_: Annotated[str, typer.Option("--format", help="table, json, or html with plots.")] = "table",
    output: Annotated[Path | None, typer.Option(metavar="FILE", help="Write it there, whole or not at all.")] = None,
    from_: Annotated[str | None, typer.Option("--from", metavar="DATE", help=(
        "Of the ledger: first moment, in the report's time zone. Default: the start of this month."))] = None,
    to: Annotated[str | None, typer.Option("--to", metavar="DATE", help=(
        "Of the ledger: first moment that is left out. Default: now."))] = None,
) -> None:
    """What a policy would have saved on recorded traffic: requests are played against the configured fleet, simulated.

    `marginal-cost` is decided by the gateway's own code. Nothing is sent, billed or measured: docs/replay.md says what
    is simulated and what is not. Answers outside the latency target count as late and avoid nothing.

    What would threshold 0.8 instead of 0.9 have saved last week? Compare two lines of

      breakeven replay ledger --config c.yaml --from 2026-11-16 --to 2026-11-23 --sweep threshold

    Would half the GPUs do? breakeven replay trace.csv.zst --config c.yaml --coverage 50
    """
    from proxy.cli.replay_case import ReplayRefused
    from proxy.config import ConfigError
    from proxy.ledger.errors import LedgerUnavailable
    from proxy.replay.trace import TraceError

    _check(format_, sweep, policy, scale, coverage)
    asked = Asked(trace, route, _names(policy, sweep), scale, coverage, sweep is not None, bound, seed,
                  decisions is not None, from_, to)
    _check_files([one for one in (decisions, output) if one is not None], Path(trace), config)
    try:
        with progress_bar() as bar:
            done = _replay(_settings(config), asked, bar)
        text = _shown(done, format_, plain=output is not None)
    except ConfigError as error:
        for problem in error.problems:
            typer.echo(str(problem), err=True)
        raise typer.Exit(2) from None
    except (TraceError, ReplayRefused) as error:
        _refuse(str(error))
    except LedgerUnavailable as error:
        _refuse(error.message)
    _write(done, text, decisions, output)


@dataclass(frozen=True, slots=True)
class Asked:
    """What the command line asks for. `coverage` in percent."""

    trace: str
    route: str | None
    names: list[str]
    scale: float | None
    coverage: float | None
    sweep: bool
    bound: bool
    seed: int
    rows: bool
    begin: str | None
    end: str | None

    def __post_init__(self) -> None:
        if self.trace != LEDGER and (self.begin is not None or self.end is not None):
            _refuse("--from and --to belong to `breakeven replay ledger`; cut the trace itself")


def _names(policies: list[str] | None, sweep: str | None) -> list[str]:
    if policies is None or "all" in policies:
        return ["marginal-cost"] if sweep else list(POLICIES)
    return list(dict.fromkeys(policies))


def _check(format_: str, sweep: str | None, policies: list[str] | None, scale: float | None,
           coverage: float | None) -> None:
    known = [("--format", format_, FORMATS), *(("--policy", name, (*POLICIES, "all")) for name in policies or ())]
    if sweep is not None:
        known.append(("--sweep", sweep, ("threshold",)))
    for option, given, choices in known:
        if given not in choices:
            _refuse(f"{option} {given} is not known; use {', '.join(choices)}")
    if scale is not None and coverage is not None:
        _refuse("--scale and --coverage set the same thing; give one of them")
    for option, number in (("--scale", scale), ("--coverage", coverage)):
        if number is not None and not 0 < number < float("inf"):
            _refuse(f"{option} is a number above 0, not {number}")


def _settings(config: Path) -> Settings:
    """Without secrets: nobody is called. A DNS name with several addresses is several replicas, as in the gateway."""
    from proxy.config import load
    from proxy.config.replicas import with_replicas

    return with_replicas(load(config, secrets=False))


# ---------------------------------------------------------------- play


def _traffic(settings: Settings, asked: Asked, bar: Progress) -> Traffic:
    from proxy.cli.replay_case import ReplayRefused, Traffic

    task = bar.add_task(f"reading {Path(asked.trace).name}", total=None)

    def told(done: int, total: int) -> None:
        bar.update(task, completed=done, total=total)

    if asked.trace != LEDGER:
        from proxy.replay.trace import read_trace

        found = Traffic(Path(asked.trace).name, read_trace(asked.trace, told), time.time_ns())
    else:
        from proxy.cli.replay_ledger import ledger_traffic
        from proxy.reports.period import resolve
        from proxy.reports.statement import zone_of

        try:
            period = resolve(asked.begin, asked.end, zone_of(settings.report.time_zone), time.time_ns())
        except ValueError as error:
            raise ReplayRefused(str(error)) from None
        found = ledger_traffic(settings.ledger, *period, asked.route, told)
    bar.remove_task(task)
    return found


def _replay(settings: Settings, asked: Asked, bar: Progress) -> Replay:
    from proxy.cli.replay_case import set_up
    from proxy.replay import forecast
    from proxy.replay.outcome import Replay

    traffic = _traffic(settings, asked, bar)
    setup = set_up(settings, traffic, asked.route, asked.scale, asked.coverage and asked.coverage / 100)
    best = None
    if asked.bound:
        task = bar.add_task("the most that is possible", total=None)
        best = forecast.bound(setup.case)
        bar.remove_task(task)
    outcomes: list[Outcome] = []
    for name, make in _makers(setup, asked.names, asked.seed) + (_swept(setup) if asked.sweep else []):
        task = bar.add_task(name, total=len(setup.case.work))
        outcomes.append(forecast.run(name, make, setup.case, rows=asked.rows and not outcomes, bound_usd=best,
                                     progress=lambda done, task=task: bar.update(task, completed=done)))
        bar.remove_task(task)
    warnings = (*traffic.trace.warnings, *setup.warnings)
    return Replay(traffic.name, tuple(outcomes), setup.assumptions, warnings, traffic.trace.began)


def _makers(setup: Setup, names: list[str], seed: int) -> list[tuple[str, Make]]:
    from proxy.replay import policies
    from proxy.replay.marginal import MarginalCost

    warm = sum(told.prefill_tokens_per_s for told in setup.case.fleet.told)
    share = min(1.0, RANDOM_SHARE * setup.coverage)
    makers: dict[str, Make] = {
        "marginal-cost": MarginalCost,
        "threshold": lambda sim: policies.Threshold(sim, setup.limits),
        "average-cost": policies.AverageCost,
        "average-cost-warm": lambda sim: policies.AverageCost(sim, warm),
        "self-hosted-only": policies.SelfHostedOnly,
        "api-only": policies.ApiOnly,
        "random": lambda sim: policies.ByChance(sim, share, seed),
    }
    return [(name, makers[name]) for name in names]


def _swept(setup: Setup) -> list[tuple[str, Make]]:
    from dataclasses import replace

    from proxy.replay.policies import Limits, Threshold

    def maker(limits: Limits) -> Make:
        return lambda sim: Threshold(sim, limits)

    return [(f"threshold {most:g}", maker(replace(setup.limits, utilization_max=most, utilization_resume=None)))
            for most in SWEPT]


# ---------------------------------------------------------------- tell


def _shown(done: Replay, format_: str, *, plain: bool) -> str:
    from rich.console import Console

    from proxy.replay import page, render

    if format_ == "json":
        return render.to_json(done)
    if format_ == "html":
        return page.to_html(done)
    terminal, out = Console(), io.StringIO()
    colour = terminal.is_terminal and not plain
    render.print_table(done, out, width=terminal.width if colour else 132, colour=colour)
    return out.getvalue()


def _write(done: Replay, text: str, decisions: Path | None, output: Path | None) -> None:
    from proxy.replay.files import replacing
    from proxy.replay.render import write_decisions

    try:
        if decisions is not None:
            write_decisions(done.outcomes[0].rows, decisions)
        if output is not None:
            with replacing(output) as out:
                out.write(text)
    except OSError as error:
        _refuse(f"{error.filename or output or decisions}: {error.strerror or error}")
    if output is None:
        typer.echo(text, nl=False)


def _check_files(written: list[Path], trace: Path, config: Path) -> None:
    """Refuse before any work what could not be written, or would overwrite what is read."""
    for path in written:
        if not path.resolve().parent.is_dir():
            _refuse(f"{path}: no such folder to write to")
        if path.resolve() in (trace.resolve(), config.resolve()):
            _refuse(f"{path}: is read for this replay; write to another file")
    if len({path.resolve() for path in written}) < len(written):
        _refuse(f"{written[0]}: --decisions and --output are the same file")


def _refuse(message: str) -> NoReturn:
    typer.echo(f"breakeven replay: {message}", err=True)
    raise typer.Exit(2)
