"""No option is accepted and then not looked at: where it would change nothing, one line says so, and exit 2.

`REFUSED` has each of them with what it stands beside; every other option of these commands is in `ALWAYS`, where
somebody looked, or the test of that fails.
"""

from __future__ import annotations

from decimal import Decimal
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from proxy.cli import app
from proxy.cli.check import prices_app
from proxy.cli.ledger import ledger_app
from proxy.cli.plan import plan_app
from proxy.cli.reconcile import reconcile
from proxy.cli.report import report
from proxy.core.gpucost import RateLine
from tests.support.ledgers import booked

API = ("reconcile", "api.csv", "--ledger", "sqlite:///ledger.db")
GPU = ("reconcile", "gpu.csv", "--ledger", "sqlite:///ledger.db")
EXPLAIN = (*API, "--explain", "2026-11-01", "gpt-4o")
COST = ("plan", "token-cost", "--usd-per-hour", "1")
MEASURED = (*COST, "--throughput", "150")
MODEL = (*COST, "--model", "llama-3.1-8b", "--gpu", "H100")
FLEET = ("plan", "fleet", "trace.csv")
SPEED = ("--speed", "6469,15,0.14,0.049")
IMPORT = ("prices", "import", "card.csv", "--into", "gpus.csv")
REFUSED = [
    (API, "--resource", "pod=llama"), (GPU, "--backend", "a"), (GPU, "--project", "p"), (GPU, "--model", "x=y"),
    (GPU, "--explain", "2026-11-01", "gpt-4o"),
    *((EXPLAIN, option, value) for option, value in (
        ("--tolerance", "1"), ("--backend", "a"), ("--project", "p"), ("--model", "x=y"), ("--resource", "x=y"),
        ("--who", "me"))),
    ((*API[:2],), "--config", "c.yaml", "--ledger", "sqlite:///ledger.db"),
    *((("ledger", *command), "--config", "c.yaml", "--ledger", "sqlite:///ledger.db") for command in (
        ("backup", "b.db"), ("verify",), ("correct", "r1", "--reason", "x", "--api", "1"),
        ("archive", "--before", "2026-01-01", "--to", "to"))),
    (("report", "--format", "focus"), "--by", "day"), (("report", "--format", "html"), "--by", "day"),
    (("report",), "--focus-version", "1.3"), (("report", "--format", "csv"), "--focus-version", "1.3"),
    *((IMPORT, *given) for given in (("--model", "x"), ("--contracted",), ("--from", ""), ("--source", ""),
                                     ("--config", "c.yaml"))),
    *((MEASURED, f"--{name}", value) for name, value in (
        ("model", "llama-3.1-8b"), ("parameters", "8B"), ("active", "8B"), ("layers", "3"), ("kv-heads", "3"),
        ("head-dim", "3"), ("precision", "fp16"), ("kv-bits", "8"), ("memory-gib", "3"), ("bandwidth-gb-s", "3"),
        ("tflops", "3"), ("ttft-ms", "100"), ("tpot-ms", "100"), ("batch-max", "3"), ("gpu", "H100"), ("gpus", "2"))),
    *((MODEL, f"--{name}", value) for name, value in (
        ("provider", "lambda"), ("restart-minutes", "5"), ("hourly-rate", "100"), ("months", "12"), ("watts", "700"),
        ("usd-per-kwh", "0.12"), ("pue", "1.3"), ("idle-share", "0.15"))),
    ((*MODEL, "--ratio", "3:1"), "--input-tokens", "1024"), ((*MODEL, "--monthly-hours", "3"), "--months", "12"),
    *((FLEET, option, "2026-11-01") for option in ("--from", "--to", "--route")),
    ((*FLEET, "--config", "c.yaml"), "--serve", "llama-3.1-8b"), ((*FLEET, "--config", "c.yaml"), *SPEED),
    ((*FLEET, "--gpu", "H100@2", *SPEED), "--serve", "llama-3.1-8b"),
    ((*FLEET, "--gpu", "H100@2", *SPEED, "--batch", "8"), "--tpot-ms", "50"),
    ((*FLEET, "--gpu", "H100@2", *SPEED), "--preemptions-per-hour", "0.05"),
    ((*FLEET, "--gpu", "H100@2", *SPEED), "--spot-available", "90"),
    ((*FLEET, "--gpu", "H100@2", *SPEED, "--api", "gpt-4o"), "--config", "c.yaml"),
    ((*FLEET, "--gpu", "H100@2", *SPEED, "--config", "c.yaml"), "--prices", "p.yaml"),
    (("plan", "fleet", "--usage", "usage.csv", "--gpu", "H100@2", *SPEED, "--config", "c.yaml"), "--prices", "p.yaml"),
]
ALWAYS = {  # --who beside --dry-run is the command that would keep it, tried first; JSON has all that --points shows
    "reconcile": {"--dry-run", "--format", "--ledger"},
    "report": {"--from", "--to", "--format", "--ledger", "--config", "--time-zone", "--currency", "--output",
               "--from-rows"},
    "ledger backup": {"--replace", "--ledger", "--json"}, "ledger verify": {"--ledger", "--json"},
    "ledger correct": {"--reason", "--api", "--baseline", "--attempt", "--who", "--ledger", "--json"},
    "ledger close": {"--to", "--from", "--without-bill", "--who", "--time-zone", "--currency", "--ledger", "--config",
                     "--json"},
    "ledger archive": {"--before", "--to", "--who", "--ledger", "--json"},
    "prices show": {"--config", "--model", "--at", "--json"}, "prices diff": {"--config", "--json"},
    "prices import": {"--into", "--dry-run"},
    "plan known": {"--format"}, "plan article": {"--format"}, "plan throughput": {"--points", "--format"},
    "plan token-cost": {"--usd-per-hour", "--card", "--throughput", "--total-throughput", "--kind",
                        "--preemptions-per-hour", "--api", "--output-tokens", "--ratio", "--cached", "--utilization",
                        "--setup-hours", "--monthly-hours", "--energy", "--explain", "--format"},
    "plan fleet": {"--usage", "--ledger", "--api", "--gpu", "--scale", "--usable", "--batch", "--startup-minutes",
                   "--setup-hours", "--monthly-hours", "--hourly-rate", "--months", "--step", "--explain", "--format",
                   "--output"},
}
ALWAYS["plan breakeven"] = ALWAYS["plan token-cost"] | {"--plot"}


@pytest.fixture
def place(tmp_path, monkeypatch):
    """Files of each kind, and a ledger that has a GPU and nothing else."""
    monkeypatch.chdir(tmp_path)
    for name, text in (
            ("api.csv", "day,model,requests,input_tokens,output_tokens,cost\n2026-11-01,gpt-4o,1,1,1,0.1\n"),
            ("gpu.csv", "day,resource,hours,rate,cost\n2026-11-01,llama,24,1.39,33.36\n"),
            ("card.csv", "gpu,provider,usd_per_hour,kind,from,source\nL4,here,0.7,spot,2026-01-01,bill\n"),
            ("trace.csv", "timestamp_s,input_tokens,output_tokens,model\n0,1000,500,gpt-4o\n"),
            ("usage.csv", "start_time,end_time,num_model_requests,model,input_tokens,output_tokens\n"
                          "1761523200,1761526800,18,gpt-4o,18000,9000\n"),
            ("p.yaml", "version: 1\n"), ("c.yaml", (Path(__file__).parents[2] / "config/minimal.yaml").read_text())):
        Path(name).write_text(text)

    booked(f"sqlite:///{tmp_path}/ledger.db", card=[RateLine("gpu", "llama", Decimal("1.39"), 0)])
    return tmp_path


@pytest.mark.parametrize("asked", REFUSED, ids=lambda asked: " ".join([*asked[0], *asked[1:]]))
def test_an_option_that_would_change_nothing_is_refused_in_one_line(place, asked):
    beside, option, *value = asked
    done = CliRunner().invoke(app, [one.replace("sqlite:///", f"sqlite:///{place}/") for one in (
        *beside, option, *value)])
    (line,) = done.output.strip().splitlines()
    assert done.exit_code == 2 and option in line, line
    assert any(word in line for word in ("leave", "belong to", "is for", "are of", "says")), f"{line}: and what to do?"
    assert not (place / "gpus.csv").exists() and not (place / "b.db").exists()


def commands():
    for name, function in (("reconcile", reconcile), ("report", report)):
        single = typer.Typer(add_completion=False)
        single.command()(function)
        yield name, typer.main.get_command(single)
    for name, group in (("ledger", ledger_app), ("prices", prices_app), ("plan", plan_app)):
        for one, command in typer.main.get_command(group).commands.items():
            yield f"{name} {one}", command


def test_every_option_of_these_commands_was_looked_at():
    known = {name: set(options) for name, options in ALWAYS.items()}
    for beside, option, *_ in REFUSED:
        known[beside[0] if beside[0] in known else " ".join(beside[:2])].add(option)
    known["plan breakeven"] |= known["plan token-cost"]  # made of the same options, by the same function
    has = {name: {one.opts[0] for one in command.params if one.param_type_name == "option"} - {"--help"}
           for name, command in commands()}
    assert has == known


def test_a_measured_speed_may_stand_beside_a_card_of_known_price_or_power():
    told = [CliRunner().invoke(app, ["plan", "token-cost", "--throughput", "150", "--gpu", "H100", *more]).stdout
            for more in (("--gpus", "2", "--card", "config/gpus.sample.csv", "--kind", "spot"),
                         ("--usd-per-hour", "1", "--energy", "metered"))]
    assert "2.5 USD/h" in told[0] and "electricity metered" in told[1]
