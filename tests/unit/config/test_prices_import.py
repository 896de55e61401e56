"""`breakeven prices import`: what is added, what is refused, and that nothing which stood there is touched."""

from __future__ import annotations

import json
from decimal import Decimal
from pathlib import Path

import pytest
import typer
import yaml
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from proxy.cli.check import prices_app
from proxy.config import ConfigError
from proxy.config.operator_prices import read_operator_prices
from proxy.config.price_lines import with_lines
from proxy.config.problem import Source

app = typer.Typer()
app.add_typer(prices_app, name="prices")

LISTED = """\
{"sample_spec": {"litellm_provider": "one of ...", "input_cost_per_token": 0.0},
 "gpt-x": {"litellm_provider": "openai", "input_cost_per_token": 2.5e-06, "output_cost_per_token": 1e-05,
   "cache_read_input_token_cost": 0.00000125, "input_cost_per_token_above_200k_tokens": 5e-6,
   "output_cost_per_token_flex": 5.0e-06, "search_context_cost_per_query": {"low": 0.03}},
 "azure/gpt-x": {"litellm_provider": "azure", "input_cost_per_token": 2.75e-06, "output_cost_per_token": 1.1e-05},
 "anthropic.claude-z": {"litellm_provider": "bedrock_converse", "input_cost_per_token": 3e-06,
   "output_cost_per_token": 0.000015000000000000000001},
 "painter": {"litellm_provider": "openai", "mode": "image_generation", "output_cost_per_image": 0.04},
 "absurd": {"litellm_provider": "openai", "input_cost_per_token": 3, "output_cost_per_token": 1}}
"""
CONFIG = """\
prices: {0}/p.yaml
backends:
  llama:
    kind: vllm
    url: http://10.0.0.5:8000
    model: llama-8b
    gpu: {{type: L4, usd_per_hour: {{card: {0}/gpus.csv, provider: here, kind: spot}}, from: 2026-03-01}}
  x: {{kind: openai, model: gpt-x, provider: openai}}
  z: {{kind: litellm, model: bedrock/anthropic.claude-z}}
routes:
  chat: {{backends: [llama, x, z], baseline: x}}
"""
OWN = """\
# Ours, by hand.
prices:
  openai:
    # The old one.
    gpt-x:
    - {from: 2026-01-01, kind: list, input: 2, output: 8, source: page}   # as of New Year
  other: {m: [{from: 2026-01-01, input: 1, output: 1, source: x}]}
discounts: []  # none yet
"""
CARD = """\
# ours
gpu,provider,usd_per_hour,kind,from,source
L4,here,0.70,spot,2026-01-01,bill
"""


@pytest.fixture
def place(tmp_path):
    for name, text in (("c.yaml", CONFIG.format(tmp_path)), ("p.yaml", OWN), ("gpus.csv", CARD), ("l.json", LISTED)):
        (tmp_path / name).write_text(text)
    return tmp_path


def run(place: Path, file: str, *arguments: str, config: bool = True):
    given = ["--config", str(place / "c.yaml")] if config else []
    return CliRunner().invoke(app, ["prices", "import", str(place / file), *given, *arguments])


def test_a_price_list_becomes_dated_lines_under_their_models_and_nothing_else_changes(place):
    done = run(place, "l.json", "--from", "2026-03-01", "--source", "page {key}")
    assert done.exit_code == 0, done.output
    assert "3 new, 0 as before, 0 refused" in done.stdout
    assert (place / "p.yaml").read_text() == OWN.replace("# as of New Year\n", """# as of New Year
    - {from: 2026-03-01, kind: list, input: 2.5, output: 10, cached_input: 1.25, tiers: [{above_input_tokens: 200000, \
input: 5}], source: "page gpt-x"}
    - {from: 2026-03-01, kind: list, service_tier: flex, input: 2.5, output: 5, cached_input: 1.25, \
source: "page gpt-x"}
""").replace("discounts", """\
  aws:
    "bedrock/anthropic.claude-z":
      - {from: 2026-03-01, kind: list, input: 3, output: 15.000000000000000001, source: "page anthropic.claude-z"}
discounts""")
    [price] = read_operator_prices(place / "p.yaml").listed.find("aws", "bedrock/anthropic.claude-z")
    assert price.tiers[0].usd_per_mtok["output_text"] == Decimal("15.000000000000000001"), "as it is written"


def test_files_keep_the_ends_of_their_lines(place):
    for name, text in (("p.yaml", OWN), ("gpus.csv", CARD)):
        (place / name).write_bytes(text.replace("\n", "\r\n").encode())
    (place / "new.csv").write_text("gpu,provider,usd_per_hour,kind,from,source\nL4,here,0.9,spot,2026-05-01,feed\n")
    for file, into, arguments in (("l.json", "p.yaml", ["--from", "2026-03-01"]), ("new.csv", "gpus.csv", [])):
        assert run(place, file, *arguments).exit_code == 0
        raw = (place / into).read_bytes()
        assert raw.count(b"\n") == raw.count(b"\r\n") > len((OWN if into == "p.yaml" else CARD).splitlines())


def test_the_same_list_again_adds_nothing_and_a_dry_run_writes_nothing(place):
    done = run(place, "l.json", "--from", "2026-03-01", "--dry-run")
    assert "3 new" in done.stdout and "nothing was written" in done.stdout and (place / "p.yaml").read_text() == OWN
    assert "+25.0 %" in done.stdout and "new" in done.stdout
    assert run(place, "l.json", "--from", "2026-03-01").exit_code == 0
    after = (place / "p.yaml").read_text()
    again = run(place, "l.json", "--from", "2026-09-01")
    assert "0 new, 3 as before, 0 refused" in again.stdout and (place / "p.yaml").read_text() == after


def test_nothing_is_put_before_the_last_line_or_under_a_pattern(place):
    late = run(place, "l.json", "--from", "2025-12-01", "--model", "gpt-x")
    assert late.exit_code == 1 and "refused: its last line begins on 2026-01-01" in late.stdout
    (place / "p.yaml").write_text(
        "prices:\n  openai:\n    'gpt*': [{from: 2026-01-01, kind: list, input: 1, source: x}]\n")
    under = run(place, "l.json", "--model", "gpt-x")
    assert under.exit_code == 1 and "a pattern in the file covers it" in under.stdout
    absurd = run(place, "l.json", "--model", "absurd")
    assert absurd.exit_code == 1 and "refused: input: is over 10,000 USD" in absurd.stdout


def test_contracted_prices_stand_beside_list_prices(place):
    assert run(place, "l.json", "--from", "2025-06-01", "--contracted", "--model", "gpt-x").exit_code == 0
    own = read_operator_prices(place / "p.yaml")
    assert [price.service_tier for price in own.contracted.find("openai", "gpt-x")] == ["default", "flex"]
    assert [price.tiers[0].usd_per_mtok["input_text"] for price in own.listed.find("openai", "gpt-x")] == [2]


@pytest.mark.parametrize(("file", "arguments", "said"), [
    ("none.json", [], "cannot be read"),
    ("c.yaml", [], "is not JSON"),
    ("l.json", ["--from", "soon"], "must be a date such as"),
    ("l.json", ["--model", "painter"], "prices no model called painter by the token"),
    ("p.json", [], "is no price list in litellm's form"),
    ("head.csv", [], "unknown column 'price'"),
    ("head.csv", ["--from", "2026-03-01"], "are of API prices"),
])
def test_what_cannot_be_read_is_said_in_a_line_and_nothing_is_written(place, file, arguments, said):
    (place / "p.json").write_text('{"gpt-x": {"input": 1}}')
    (place / "head.csv").write_text("gpu,price\n")
    done = run(place, file, *arguments)
    assert done.exit_code == 2 and said in done.stderr and len(done.stderr.splitlines()) == 1
    assert (place / "p.yaml").read_text() == OWN and (place / "gpus.csv").read_text() == CARD


def test_a_file_in_braces_is_left_to_its_owner(place):
    text = "prices: {openai: {gpt-x: [{from: 2026-01-01, kind: list, input: 1, source: x}]}}\n"
    (place / "p.yaml").write_text(text)
    done = run(place, "l.json", "--from", "2026-03-01")
    assert done.exit_code == 2 and "not written as indented lines" in done.stderr
    assert (place / "p.yaml").read_text() == text


def test_spot_prices_by_the_hour_are_added_to_the_card_after_all_that_is_there(place):
    (place / "new.csv").write_text("""\
kind,gpu,provider,usd_per_hour,from,source,region
spot,L4,here,0.70,2026-02-01,feed,
spot,L4,here,0.55,2026-03-01T01:00Z,feed,
spot,L4,here,0.55,2026-03-01T02:00Z,feed,
spot,L4,here,0.81,2026-03-01T03:00:00+01:00,feed,
reserved,L4,here,0.40,2025-01-01,"contract 9, annex",
spot,L4,here,0.30,2025-12-01,feed,
spot,L4,here,0.90,2026-01-01,feed,
""")
    done = run(place, "new.csv")
    # At 03:00+01:00 it is 02:00 in UTC: that moment is there already in this file, with 0.55.
    assert done.exit_code == 2 and "line 5: from: begins at the same time" in done.stderr.replace("new.csv:5", "line 5")
    text = (place / "new.csv").read_text().replace("03:00:00+01:00", "04:00:00+01:00")
    (place / "new.csv").write_text(text)
    done = run(place, "new.csv")
    assert done.exit_code == 1 and "3 new, 2 as before, 2 refused" in done.stdout
    assert "line 3 says otherwise, and stays" in done.stdout and "the past stays as it was" in done.stdout
    assert (place / "gpus.csv").read_text() == CARD + """\
L4,here,0.55,spot,2026-03-01T01:00:00Z,feed
L4,here,0.81,spot,2026-03-01T03:00:00Z,feed
L4,here,0.4,reserved,2025-01-01,"contract 9, annex"
"""


def test_a_card_of_ones_own_begins_with_the_sample(tmp_path):
    sample = Path(__file__).resolve().parents[3] / "config/gpus.sample.csv"
    done = CliRunner().invoke(app, ["prices", "import", str(sample), "--into", str(tmp_path / "gpus.csv")])
    assert done.exit_code == 0 and "11 new" in done.stdout
    assert all("sample" in line for line in (tmp_path / "gpus.csv").read_text().splitlines()[1:])
    assert CliRunner().invoke(app, ["prices", "import", str(sample)]).exit_code == 2


names = st.text("abc-:# '\"{[*&", min_size=1, max_size=6)
files = st.dictionaries(names, st.dictionaries(names, st.integers(1, 3), max_size=3), max_size=3)


@given(files, st.lists(st.tuples(names, names), min_size=1, max_size=4), st.booleans(), st.booleans())
def test_lines_are_added_to_any_file_of_indented_lines_and_the_old_ones_stay(before, added, tight, comments):
    """Whatever the names: what was there reads as before, and what is new stands where it belongs."""
    data = {"version": 1, "prices": {provider: {model: [{"n": index} for index in range(count)]
                                                for model, count in models.items()}
                                     for provider, models in before.items() if models}, "discounts": []}
    text = yaml.safe_dump(data, default_flow_style=False, indent=2 if tight else 4, sort_keys=False)
    if comments:
        text = "".join(line + "  # said\n" if line.endswith("}") else f"{line}\n# so\n" for line in text.splitlines())
    new = [(provider, model, f"{{n: new{number}}}") for number, (provider, model) in enumerate(added)]
    after = with_lines(text, new, Source("p.yaml"))
    expected = json.loads(json.dumps(data))
    for number, (provider, model) in enumerate(added):
        expected["prices"].setdefault(provider, {}).setdefault(model, []).append({"n": f"new{number}"})
    assert yaml.safe_load(after) == expected


def test_text_that_is_not_a_price_file_is_refused():
    with pytest.raises(ConfigError):
        with_lines("- a\n- b\n", [("o", "m", "{n: 1}")], Source("p.yaml"))
