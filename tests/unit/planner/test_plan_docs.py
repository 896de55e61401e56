"""docs/what-a-token-costs.md quotes what the planner computes, and its plots are drawn from the same figures."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from proxy.planner import article, published
from tests.bench.plan_plots import APIS, BASE, BREAKEVEN, DOCS, INPUTS, drawn, inputs

PAGE = (DOCS / "what-a-token-costs.md").read_text()
WORDS = " ".join(PAGE.split())
HOUR = "price of a card's hour"
NAMES = {"claude-sonnet-4-5": "Claude Sonnet 4.5", "gpt-4o": "GPT-4o", "gpt-5": "GPT-5", "gpt-4o-mini": "GPT-4o mini"}


@pytest.mark.parametrize("name", APIS)
def test_the_crossings_are_those_computed(name):
    at = BASE.against(name).utilization
    assert at is not None
    assert re.search(rf"\| {re.escape(NAMES[name])} \| {float(100 * at):.1f} %", WORDS)


def test_the_example_is_as_computed():
    assert f"it makes {BASE.speed.output_per_s:,.0f} output tokens a second" in WORDS
    assert f"cost {BASE.usd_per_mtok:.2f} USD, a quarter" in WORDS and 0.24 < BASE.ours < 0.26


def test_inputs_dominate_in_the_order_and_by_the_factors_that_are_told():
    factors = {row.name: row.high / row.low for row in inputs()}
    assert list(factors)[:2] == sorted(factors, key=lambda name: -factors[name])[:2]
    assert f"a factor of {factors['which API it replaces']:.0f} between" in WORDS
    assert round(factors["utilisation"]) == 12 and "is a factor of twelve" in WORDS
    assert f"from spot to on demand a factor of {factors[HOUR]:.1f}" in WORDS
    assert all(1.9 < factors[name] < 2.5 for name in ("people", "precision", "target per token"))
    assert min(factors, key=lambda name: factors[name]) == "our estimate of the speed"


def test_the_errors_are_those_found():
    checks = published.left_out()
    each = published.by_configuration(checks)
    mean, worst = 100 * published.mean_error(checks), published.worst(checks)
    most = 100 * max(published.mean_error(mine) for mine in each.values())
    assert f"{len(checks)} points of {len(each)} configurations" in WORDS
    assert f"{mean:.1f} % off on average, at most {most:.1f} % for a configuration" in WORDS
    assert f"at worst {100 * abs(worst.error):.1f} %" in WORDS and worst.error > 0 and "too fast" in WORDS
    steps = published.step_errors()
    off = [abs(error) for errors in steps.values() for error in errors]
    assert f"{100 * sum(off) / len(off):.0f} % off per token on average" in WORDS
    assert f"up to {100 * max(steps['llama-3.3-70b', 'fp16', 'A100-80GB', 4]):.0f} % too slow" in WORDS
    assert max(off) == steps["llama-3.3-70b", "fp16", "A100-80GB", 4][-1]


def test_the_article_s_claims_are_counted_right():
    found = [claim.verdict for claim in article.claims()]
    conditions = {5: "five"}[found.count("right, but")]
    assert f"{len(found)} claims we find {len(found) - found.count('wrong')} right, {conditions} of them" in WORDS
    assert found.count("wrong") == 12 and "and 12 wrong" in WORDS


def test_the_plots_show_today_s_figures():
    """Not compared byte by byte: another version of the library draws otherwise. The figures are text in the file."""
    for name, image in drawn().items():
        figures = set(re.findall(r"[\d.]+(?: %|x)", re.sub(r"<!--.*?-->", "", image.decode(), flags=re.DOTALL)))
        kept = Path(DOCS / name).read_text()
        assert figures and all(figure in kept for figure in figures), name
        assert f"({name})" in PAGE and name in (BREAKEVEN, INPUTS)
