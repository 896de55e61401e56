"""`breakeven plan fleet`: should we self-host, on which GPU, how many, hour by hour; and what that hangs on."""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from proxy.cli.plan_fleet_asked import PRICES_UNUSED, Asked
from proxy.cli.plan_print import checked, refuse, typed
from proxy.cli.progress import progress_bar

if TYPE_CHECKING:
    from rich.progress import Progress

    from proxy.cli.plan_fleet_case import Source
    from proxy.cli.plan_fleet_prices import Prices
    from proxy.config import Settings
    from proxy.planner.sizing_demand import Demand
    from proxy.planner.sizing_plan import Assumption, FleetPlan, Option, Replica

FORMATS = ("table", "json", "html")
TPOT_MS = 200.0  # of the gateway's routes, unless they say otherwise
REDONE_S = 30.0
USABLE, STARTUP_MINUTES = 90.0, 5.0  # percent, minutes
PEOPLE = (60.0, 7.5, 100.0, 12.0)  # hours once, hours a month, USD per hour, months over which the first is spread
SPOT = (0.05, 90.0)  # pre-emptions an hour, percent of the time


TraceFile = Annotated[Path | None, typer.Argument(show_default=False, help=(
    "CSV or JSON Lines of requests (time, input and output tokens; also model), plain, .zst or .gz."))]
UsageFile = Annotated[Path | None, typer.Option(metavar="EXPORT", help=(
    "Instead: usage by the hour, as OpenAI exports it (CSV or JSON), or a CSV of your own."))]
Ledger = Annotated[bool, typer.Option("--ledger", help="Instead: the ledger of --config.")]
ConfigFile = Annotated[Path | None, typer.Option("--config", "-c", metavar="FILE", help=(
    "Its GPUs, and the baselines of its routes, where --gpu and --api name none."))]
From = Annotated[str | None, typer.Option("--from", metavar="DATE", help="Of the ledger.")]
To = Annotated[str | None, typer.Option("--to", metavar="DATE", help="Of the ledger.")]
RouteName = Annotated[str | None, typer.Option(help="Of the ledger: this route alone.")]
Apis = Annotated[list[str] | None, typer.Option(metavar="MODEL", help=(
    "What is paid now: MODEL, PROVIDER/MODEL, or NAME=IN/OUT in USD per million tokens. Several to compare; the "
    "first is the headline. Default: the traffic's own models."))]
Gpus = Annotated[list[str] | None, typer.Option(metavar="REPLICA", help=(
    "COUNTxTYPE@USD or COUNTxTYPE@USD/SPOT: the cards of one replica and what it costs per hour. Several to "
    "compare."))]
Served = Annotated[str | None, typer.Option(metavar="MODEL", help="What the GPUs would run.")]
SpeedText = Annotated[str | None, typer.Option(metavar="P,A,B,K", help=(
    "A replica's own speed instead of a guess: prompt tokens/s, then ms of a step, per sequence, per 1,000 cached "
    "tokens."))]
PriceFile = Annotated[Path | None, typer.Option(metavar="FILE", help="Your own API prices.")]
Scale = Annotated[float, typer.Option(help="So many times the traffic.")]
Usable = Annotated[float, typer.Option(metavar="PCT", help="Of a replica's time; the rest is reserve.")]
Batch = Annotated[float | None, typer.Option(help="Sequences at a time. Default: by --tpot-ms and memory.")]
TpotMs = Annotated[float | None, typer.Option(help="Target per output token. Default: 200.")]
StartupMinutes = Annotated[float, typer.Option(help="Until a replica that is started serves.")]
Preemptions = Annotated[float, typer.Option("--preemptions-per-hour", help="Of a spot replica.")]
SpotAvailable = Annotated[float, typer.Option(metavar="PCT", help="Of the time that spot is to be had.")]
SetupHours = Annotated[float, typer.Option(help="Of work, once.")]
MonthlyHours = Annotated[float, typer.Option(help="Of work, each month.")]
HourlyRate = Annotated[float, typer.Option(help="USD per hour of that work.")]
Months = Annotated[float, typer.Option(help="Over which the set-up is spread.")]
Step = Annotated[str, typer.Option(help="Replicas are decided anew every 1h or 15m.")]
Explain = Annotated[bool, typer.Option("--explain", help="How each figure comes about.")]
Format = Annotated[str, typer.Option("--format", help="table, json, or html with plots.")]
Output = Annotated[Path | None, typer.Option(metavar="FILE", help="Write it there, whole or not at all.")]


def fleet(
    ctx: typer.Context, trace: TraceFile = None, usage: UsageFile = None, ledger: Ledger = False,
    config: ConfigFile = None, from_: From = None, to: To = None, route: RouteName = None, api: Apis = None,
    gpu: Gpus = None, serve: Served = None, speed: SpeedText = None, prices: PriceFile = None, scale: Scale = 1.0,
    usable: Usable = USABLE, batch: Batch = None, tpot_ms: TpotMs = None,
    startup_minutes: StartupMinutes = STARTUP_MINUTES, preemptions: Preemptions = SPOT[0],
    spot_available: SpotAvailable = SPOT[1], setup_hours: SetupHours = PEOPLE[0],
    monthly_hours: MonthlyHours = PEOPLE[1], hourly_rate: HourlyRate = PEOPLE[2], months: Months = PEOPLE[3],
    step: Step = "1h",
    explain: Explain = False, format_: Format = "table", output: Output = None,
) -> None:
    """Should we self-host? On which GPU, how many of them, hour by hour? A forecast; exit code 1 when the answer is no.

    Your traffic is held against API prices and GPU prices, hour by hour: one number of replicas for ever, a number for
    each hour of the day, last hour's best, a forecast, none when idle, spot with a fallback; and the best that was
    possible. docs/planning.md says what is in it and what is not.

      breakeven plan fleet trace.csv --api gpt-4o --gpu 2xH100@5.80/2.40 --serve llama-3.3-70b-fp8

      breakeven plan fleet --usage completions_usage.csv --gpu L40S@0.90 --gpu H100@2.90 --serve llama-3.1-8b

    Exit codes: 0 yes; 1 no, or unclear; 2 wrong use.
    """
    checked(format_, FORMATS)
    asked = Asked(trace, usage, ledger, config, from_, to, route, api or [], gpu or [], serve, speed, prices, scale,
                  usable, batch, tpot_ms, startup_minutes, preemptions, spot_available, setup_hours, monthly_hours,
                  hourly_rate, months, step)
    asked.check(output, typed(ctx))
    found = _planned(asked)
    _tell(found, format_, output, explain)
    raise typer.Exit(0 if found.head.answer.month.answer == "yes" else 1)


# ---------------------------------------------------------------- plan


def _planned(asked: Asked) -> FleetPlan:
    from proxy.cli.replay_case import ReplayRefused
    from proxy.config import ConfigError
    from proxy.ledger.errors import LedgerUnavailable
    from proxy.planner.names import PlanRefused
    from proxy.replay.trace import TraceError
    from proxy.reports.reconcile.bill import BadBill

    try:
        with progress_bar() as bar:
            return _plan(asked, bar)
    except ConfigError as error:
        for problem in error.problems:
            typer.echo(str(problem), err=True)
        raise typer.Exit(2) from None
    except (TraceError, ReplayRefused, PlanRefused, BadBill) as error:
        refuse(str(error))
    except LedgerUnavailable as error:
        refuse(error.message)


def _plan(asked: Asked, bar: Progress) -> FleetPlan:
    from proxy.cli.plan_fleet_case import Cards, context_of, replicas
    from proxy.cli.plan_fleet_prices import api_prices, edges_of, of_prices
    from proxy.planner.sizing_plan import FleetPlan, ranked

    settings = _settings(asked.config)
    source = _read(asked, settings, bar)
    apis = api_prices(asked.apis, source.models, settings, asked.prices, source.at_ns)
    task = bar.add_task("gathering it by the quarter of an hour", total=None)
    demand = source.demand(edges_of(apis)).scaled(asked.scale)
    bar.remove_task(task)
    tpot_s = (asked.tpot_ms or TPOT_MS) / 1e3
    cards = Cards(asked.gpus, asked.serve, asked.speed, asked.batch, tpot_s)
    kinds, of_cards = replicas(cards, settings, context_of(demand), source.at_ns)
    options = _options(asked, demand, apis, kinds, bar)
    assumed = [*of_cards, *of_prices(apis, source.at_ns), *_assumed(asked, demand)]
    warnings = list(source.warnings)
    if demand.slot_s > asked.step_s:
        warnings.append(f"the usage comes by {demand.slot_s / 3600:g} hours, spread evenly here: the rules look better "
                        "than they are; export it in finer steps")
    if demand.span_s < 3 * 86_400:
        warnings.append(f"{demand.span_s / 86_400:.1f} days are too few for an interval, and may not be like others")
    return FleetPlan(source.name, float(demand.requests.sum()) / asked.scale, demand.span_s / 3600, asked.scale,
                     demand.began_s, ranked(options), tuple(assumed), tuple(warnings))


def _settings(config: Path | None) -> Settings | None:
    """Without secrets: nobody is called."""
    from proxy.config import load
    from proxy.config.replicas import with_replicas

    return None if config is None else with_replicas(load(config, secrets=False))


def _read(asked: Asked, settings: Settings | None, bar: Progress) -> Source:
    from proxy.cli import plan_fleet_case as case

    path = asked.trace or asked.usage
    task = bar.add_task(f"reading {path.name if path else 'the ledger'}", total=None)

    def told(done: int, total: int) -> None:
        bar.update(task, completed=done, total=total)

    if asked.trace is not None:
        found = case.from_trace(asked.trace, told)
    elif asked.usage is not None:
        found = case.from_usage(asked.usage, told, asked.prices)
        if asked.only_of_costs and not found.of_costs:
            refuse(f"--prices would change nothing: it {PRICES_UNUSED}; leave it out")
    else:
        assert settings is not None
        found = case.from_ledger(settings, asked.begin, asked.end, asked.route, told)
    bar.remove_task(task)
    return found


def _options(asked: Asked, demand: Demand, apis: list[tuple[str, Prices]], kinds: list[Replica],
             bar: Progress) -> list[Option]:
    """What would change the answer is worked out for the headline alone."""
    from dataclasses import replace

    from proxy.planner.sizing import Terms
    from proxy.planner.sizing_answer import Case, Spot, answer
    from proxy.planner.sizing_curves import Load
    from proxy.planner.sizing_demand import charged_usd, work_s
    from proxy.planner.sizing_plan import Option, ranked

    task, found = bar.add_task("sizing", total=len(apis) * len(kinds) + 1), []
    for name, prices in apis:
        usd = charged_usd(demand, prices)
        for kind in kinds:
            load = Load(demand.slot, usd, work_s(demand, kind.engine, kind.batch), demand.slots, demand.slot_s,
                        asked.usable / 100)
            spot = None if kind.spot_usd_per_hour is None else Spot(
                kind.spot_usd_per_hour, asked.preemptions, asked.spot_available / 100, REDONE_S)
            case = Case(load, Terms(kind.usd_per_hour, 60 * asked.startup_minutes), asked.overheads, spot, asked.step_s)
            found.append(Option(name, kind, case, answer(case, explain=False)))
            bar.advance(task)
    head = ranked(found)[0]
    whole = replace(head, answer=answer(head.case))
    bar.remove_task(task)
    return [whole if one is head else one for one in found]


def _assumed(asked: Asked, demand: Demand) -> list[Assumption]:
    from proxy.planner.sizing_plan import Assumption

    cached = float(demand.cached.sum() / max(1.0, demand.prompt.sum()))
    people = asked.setup_hours, asked.monthly_hours, asked.hourly_rate, asked.months
    batch = (f"{asked.batch:g} sequences" if asked.batch else
             f"the largest with a step within {asked.tpot_ms or TPOT_MS:g} ms per token")
    had = f"{asked.preemptions:g} pre-emptions an hour, to be had {asked.spot_available:g} % of the time"
    found = [
        Assumption("traffic", f"{asked.scale:g} times what was read, at its times",
                   _origin(asked.scale == 1, "as it was", "--scale")),
        Assumption("usable", f"{asked.usable:g} % of a replica's time",
                   _origin(asked.usable == USABLE, "a reserve, as in published sizings", "--usable")),
        Assumption("batch", batch, _origin(not (asked.batch or asked.tpot_ms), "a route's usual latency target",
                                           "--batch, --tpot-ms")),
        Assumption("start-up", f"{asked.startup_minutes:g} minutes, paid",
                   _origin(asked.startup_minutes == STARTUP_MINUTES, "a cold start with a large model",
                           "--startup-minutes")),
        Assumption("people", f"{asked.setup_hours:g} h once over {asked.months:g} months, {asked.monthly_hours:g} h a "
                   f"month, at {asked.hourly_rate:g} USD/h: {asked.overheads.a_month_usd:,.0f} USD a month",
                   _origin(people == PEOPLE, "the middle of a well-known article's estimate",
                           "--setup-hours, --monthly-hours, --hourly-rate, --months")),
        Assumption("answers", "as long and as good as the API's", "not examined"),
        Assumption("cached input", f"{100 * cached:.0f} % of input at the API; the own engines compute it anew",
                   "the traffic"),
        Assumption("month", "730 hours like those seen", "a constant")]
    if asked.has_spot:
        found.append(Assumption(
            "spot", f"{had}, else at the full price; {REDONE_S:g} s of work done again",
            _origin((asked.preemptions, asked.spot_available) == SPOT, "once in twenty hours; the rest is an example",
                    "--preemptions-per-hour, --spot-available")))
    return found


def _origin(default: bool, why: str, options: str) -> str:
    return f"default: {why} ({options})" if default else options


# ---------------------------------------------------------------- tell


def _tell(plan: FleetPlan, format_: str, output: Path | None, explain: bool) -> None:
    from rich.console import Console

    from proxy.planner import sizing_render
    from proxy.replay.files import replacing

    if format_ == "json":
        text = sizing_render.to_json(plan)
    elif format_ == "html":
        from proxy.planner import sizing_page

        text = sizing_page.to_html(plan)
    else:
        terminal, out = Console(), io.StringIO()
        colour = terminal.is_terminal and output is None
        sizing_render.print_table(plan, out, width=terminal.width if colour else 132, colour=colour, explain=explain)
        text = out.getvalue()
    if output is None:
        typer.echo(text, nl=False)
        return
    try:
        with replacing(output) as file:
            file.write(text)
    except OSError as error:
        refuse(f"{error.filename or output}: {error.strerror or error}")
