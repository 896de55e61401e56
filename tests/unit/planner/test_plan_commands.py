"""`breakeven plan`: what its commands print, and how they refuse."""

from __future__ import annotations

import json

import pytest
from typer.testing import CliRunner, Result

from proxy.cli.plan import plan_app


def run(*arguments: str) -> Result:
    return CliRunner().invoke(plan_app, list(arguments))


def told(*arguments: str) -> dict:
    result = run(*arguments, "--format", "json")
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def test_known_names_are_listed_with_their_figures():
    assert "A100-80GB" in run("known").stdout and "llama-3.3-70b" in run("known").stdout
    assert {"name": "H200", "memory_gib": 141, "bandwidth_gb_s": 4800, "fp16_tflops": 989, "watts": 700,
            "fp8": True} in told("known")["gpus"]


def test_throughput_names_its_worst_point():
    found = told("throughput")
    assert len(found["points"]) == 67 and found["mean_error_percent"] <= 15
    worst = max(found["points"], key=lambda point: abs(point["error_percent"]))
    assert found["worst"] == f"{worst['configuration']} {worst['prompt']}/{worst['output']}"
    assert found["worst"] in run("throughput").stdout and "20000" in run("throughput", "--points").stdout


@pytest.mark.parametrize("arguments", [("known", "--format", "xml"), ("throughput", "--format", "csv")])
def test_a_format_that_is_not_known_is_refused_in_one_line(arguments):
    result = run(*arguments)
    assert result.exit_code == 2 and len(result.stderr.strip().splitlines()) == 1 and "table or json" in result.stderr
