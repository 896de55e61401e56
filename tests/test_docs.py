"""The documentation is true: what can be run is run, what can be counted is counted against the code.

Every block of README.md and docs/ is executed against a small world (simulators, and `breakeven serve` with the
README's own configuration), or stands in SHOWN_ONLY with the reason. Every table of codes, metrics, states, limits,
endpoints and columns is compared with the code, both ways; each collector is shown that it can see what is missing.
"""

from __future__ import annotations

import ast
import json
import os
import re
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, get_args

import pytest
import typer
import yaml

from proxy.config import load
from proxy.config.model import Server
from proxy.core import health, liveness, prefix, room, routing
from proxy.core.errors import GatewayError
from proxy.core.fleet import Freshness, Health
from proxy.core.money import NS_PER_MINUTE
from proxy.demo.config import API_PROFILE, ENGINE_PROFILE
from proxy.ledger import journal
from proxy.ledger.keys import TAGS_MAX
from proxy.ledger.schema import metadata
from proxy.main import DECISIONS_KEPT
from proxy.reports.statement import build
from proxy.server import judge, relay
from proxy.server.guard import CODES
from proxy.signals import replica
from proxy.wire import events, openai, sse
from proxy.wire.endpoints import ENDPOINTS
from tests.support.patience import PATIENCE_S

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
SHOWN_ONLY = {"Savings 2026-": "output of one real run; its words are compared with those of a report made here"}
CODE = re.compile(r"`([^`\n]+)`")


# ---------------------------------------------------------------- reading the pages
@dataclass(frozen=True)
class Block:
    """A fenced block. `line` is its first."""

    page: str
    line: int
    language: str
    text: str


def blocks_of(page: str, text: str) -> list[Block]:
    found = re.finditer(r"^```(\w*)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    return [Block(page, text[:one.start()].count("\n") + 2, one[1], one[2]) for one in found]


@cache
def blocks(language: str = "") -> list[Block]:
    return [block for page in PAGES for block in blocks_of(page.relative_to(ROOT).as_posix(), page.read_text())
            if block.language == language or not language]


def section(text: str, heading: str) -> str:
    """What stands under a heading, down to the next of its rank."""
    rank = heading.split(" ")[0]
    _, _, rest = text.partition(f"\n{heading}\n")
    assert rest, f"there is no heading {heading!r}"
    return re.split(rf"^#{{1,{len(rank)}}} ", rest, maxsplit=1, flags=re.MULTILINE)[0]


def table(text: str) -> list[list[str]]:
    """The cells of every row of every table in a text, heads left out."""
    rows = [line for line in text.splitlines() if line.startswith("|")]
    cells = [[cell.strip() for cell in row.strip("|").split("|")] for row in rows]
    rules = {number for number, row in enumerate(rows) if row.startswith("|---")}
    return [row for number, row in enumerate(cells) if number not in rules and number + 1 not in rules]


def first_codes(text: str) -> set[str]:
    """What is named as code in the first column."""
    return {code for row in table(text) for code in CODE.findall(row[0])}


def page(name: str) -> str:
    return (ROOT / name).read_text()


# ---------------------------------------------------------------- reading the code
def sources() -> Iterator[tuple[str, ast.Module]]:
    for path in sorted((ROOT / "proxy").rglob("*.py")):
        name = path.relative_to(ROOT).as_posix()
        yield name, tree(name)


def tree(name: str) -> ast.Module:
    return ast.parse(page(name))


def words(node: ast.AST | None) -> set[str]:
    """The codes written out in an expression; texts put together are none."""
    if node is None or isinstance(node, ast.JoinedStr):
        return set()
    return {one.value for one in ast.walk(node) if isinstance(one, ast.Constant) and isinstance(one.value, str)
            and re.fullmatch(r"[a-z][a-z_]+", one.value)}


def argument(call: ast.Call, name: str | int) -> ast.AST | None:
    given: dict[str | int | None, ast.AST] = {keyword.arg: keyword.value for keyword in call.keywords}
    return (given | dict(enumerate(call.args))).get(name)


REASON_AT = {"Refusal": 2, "_above": 1, "refuse": 0, "Attempt": 3, "Plan": 1, "_at_api": 1, "unsent": 1,
             "RequestEntry": "reason"}
REASON_OF = {"obstacle", "overflow", "_why"}  # functions that return a code


def reason_codes(tree: ast.Module) -> set[str]:
    """Codes that a decision, a refusal of a candidate or a booked row without a decision can give."""
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            name = getattr(node.func, "attr", getattr(node.func, "id", ""))
            found |= words(argument(node, REASON_AT.get(name, "")))
        elif isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "reason":
            found |= words(getattr(node.value, "body", None)) | words(getattr(node.value, "orelse", None))
        elif isinstance(node, ast.FunctionDef) and (node.name.endswith("_reason") or node.name in REASON_OF):
            returned = [one.value for one in ast.walk(node) if isinstance(one, ast.Return)]
            found |= {word for one in returned if isinstance(one, ast.Constant | ast.IfExp) for word in words(one)}
        elif isinstance(node, ast.For) and isinstance(node.iter, ast.Tuple):
            found |= {word for row in node.iter.elts if isinstance(row, ast.Tuple) for word in words(row.elts[0])}
        elif isinstance(node, ast.Return) and isinstance(node.value, ast.Tuple):
            found |= words(node.value.elts[0])
    return found


REASONS_IN = ("proxy/core/routing.py", "proxy/core/reasons.py", "proxy/server/handler.py", "proxy/server/dispatch.py",
              "proxy/server/planning.py", "proxy/server/control.py", "proxy/ledger/booking.py")


def error_codes(tree: ast.Module) -> set[str]:
    """Codes given to an error where it is raised or changed, and those of classes."""
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            found |= words(argument(node, "code"))
        elif isinstance(node, ast.Assign) and isinstance(node.value, ast.Tuple):
            pairs = zip(getattr(node.targets[0], "elts", ()), node.value.elts, strict=False)
            found |= {word for target, value in pairs if getattr(target, "attr", "") == "code" for word in words(value)}
        elif isinstance(node, ast.ClassDef):
            found |= {word for one in node.body if isinstance(one, ast.Assign)
                      and getattr(one.targets[0], "id", "") == "code" for word in words(one.value)}
    return found


def routes(tree: ast.Module) -> set[tuple[str, str]]:
    """(path, method) of every decorator such as `@app.get("/healthz")`."""
    found = set()
    for node in ast.walk(tree):
        for one in getattr(node, "decorator_list", ()):
            if isinstance(one, ast.Call) and getattr(one.func, "attr", "") in ("get", "post", "put", "delete"):
                found.add((one.args[0].value.replace(":path", ""), one.func.attr.upper()))  # type: ignore[attr-defined]
    return found


# ---------------------------------------------------------------- the world in which the README is run
STATUS = ".venv/bin/breakeven status --url http://127.0.0.1:8000 --json"


class Place:
    """A folder with the README's configuration, simulators behind it, and the gateway that the README starts."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.processes = folder, []
        self.secrets: dict[str, str] = {}
        home = folder / ".venv/bin"
        home.mkdir(parents=True)
        for name, what in (("breakeven", "-m proxy.cli"), ("python", "")):
            (home / name).write_text(f'#!/bin/sh\nexec "{sys.executable}" {what} "$@"\n')
            (home / name).chmod(0o755)
        self.env = {"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT), "OPENAI_API_KEY": "sk-sim",
                    "HOME": str(folder), "NO_PROXY": "127.0.0.1"}

    def start(self, command: list[str]) -> str:
        """The address a process says that it listens on."""
        process = subprocess.Popen(command, cwd=self.folder, env=self.env, stdout=subprocess.PIPE,
                                   stderr=subprocess.DEVNULL, text=True)
        self.processes.append(process)
        for line in process.stdout:
            if found := re.search(r"listening on (http://\S+)", line):
                return found[1]
        raise AssertionError(f"{command} ended without listening")

    def configure(self, text: str) -> None:
        """The README's configuration, with the simulators' addresses in it."""
        tree = yaml.safe_load(text)
        engine, api = tree["backends"]["llama-8b"], tree["backends"]["gpt-4o"]
        engine["url"] = self.start([sys.executable, "-m", "proxy.demo.engine", "--profile", json.dumps(
            {**ENGINE_PROFILE, "model": engine["model"], "tokens_per_answer_mean": 8})])
        api["url"] = self.start([sys.executable, "-m", "proxy.demo.api", "--profile", json.dumps(
            {**API_PROFILE, "tokens_per_answer_mean": 8})])
        api["provider"] = "openai"
        self.env |= {"API_URL": api["url"], "OPENAI_ADMIN_KEY": "sk-admin"}
        (self.folder / "config").mkdir()
        (self.folder / "tests").symlink_to(ROOT / "tests")
        (self.folder / "config/minimal.yaml").write_text(yaml.safe_dump(tree))

    def run(self, block: str, language: str = "sh") -> subprocess.CompletedProcess[str]:
        text = block.replace("http://127.0.0.1:8000", self.env.get("GATEWAY_URL", "http://127.0.0.1:8000"))
        text = text.replace("https://api.openai.com", self.env.get("API_URL", "http://127.0.0.1:9"))
        for placeholder, secret in self.secrets.items():
            text = text.replace(placeholder, secret)
        command = [sys.executable, "-c", text] if language == "python" else ["bash", "-euo", "pipefail", "-c", text]
        return subprocess.run(command, cwd=self.folder, env=self.env, capture_output=True, text=True,
                              timeout=PATIENCE_S)

    def begin(self, block: Block) -> None:
        """The block that ends with `serve`: everything before it is run, then the gateway stays."""
        *before, serve = block.text.strip().splitlines()
        done = self.run("\n".join(before))
        assert done.returncode == 0, done.stderr
        application, admin = re.findall(r"^    (bk-\S+)$", done.stdout, re.MULTILINE)
        self.secrets = {"your-key": application, "admin-key": admin}
        url = self.start([*serve.split(), "--port", "0"])
        self.env |= {"GATEWAY_URL": url, "GATEWAY_PID": str(self.processes[-1].pid), "BREAKEVEN_ADMIN_KEY": admin,
                     "OPENAI_BASE_URL": url + "/v1", "OPENAI_API_KEY": application}
        for _ in range(40):
            if '"readings": "fresh"' in self.run(STATUS).stdout:
                return
        raise AssertionError("the gateway never read its engine")

    def end(self) -> None:
        for process in reversed(self.processes):  # the gateway first
            process.terminate()
            process.communicate(timeout=PATIENCE_S)


SERVE = " serve --config "


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    one = Place(tmp_path_factory.mktemp("readme"))
    try:
        one.configure(blocks("yaml")[0].text)
        one.begin(next(block for block in blocks("sh") if SERVE in block.text))
        yield one
    finally:
        one.end()


# What a block must have said, by a word in it.
SAYS = {
    "curl -i": r"x-breakeven-backend: llama-8b\r?\n(.*\n)*.*\"content\"",
    "from openai": r"llama-8b cheaper_at_the_margin",
    "status --url": r"llama-8b(.*\n)*.*cheaper_at_the_margin",
    "admin/switch": r'"switch":"all-api"', "/drain": r'"draining":true', "ledger backup": r"attempts(.*\n)*.*sound",
    "ledger archive": r"0 rows moved, 0 before 2026-09-01 stay",
    "breakeven replay": r"marginal-cost(.*\n)*.*threshold 0\.8",
    "plan token-cost": r"cheaper from(.*\n)*.*gpt-4o",
    "organization/": r"Within 0\.5 %",
    "plan fleet": r"Yes: (.*\n)*.*forecast, spot(.*\n)*.*Where the answer turns",
    "report --config": r"\(unallocated\)(.*\n)*.*\"savings_percent\"",
}
RUN = [block for block in blocks() if block.language in ("sh", "python") and "make " not in block.text
       and SERVE not in block.text]


@pytest.mark.parametrize("block", RUN, ids=lambda block: f"{block.page}:{block.line}")
def test_a_block_runs_and_says_what_it_should(place, block):
    done = place.run(block.text, block.language)
    assert done.returncode == 0, done.stdout + done.stderr
    (expected,) = [pattern for word, pattern in SAYS.items() if word in block.text]  # none? say there what it prints
    assert re.search(expected, done.stdout), done.stdout


def test_the_signal_gave_back_what_the_switch_took(place):
    assert json.loads(place.run(STATUS).stdout)["switch"] == "auto"  # all-api by the call, and back by SIGUSR1


def test_every_block_is_run_or_listed_with_a_reason():
    def stray(found: list[Block]) -> list[Block]:
        return [block for block in found if block.language not in ("sh", "python", "yaml", "sql")
                and not block.text.startswith(tuple(SHOWN_ONLY))]

    assert not stray(blocks())
    assert stray(blocks_of("x.md", "a\n```ruby\nputs 1\n```\n"))


def test_make_commands_are_targets_and_do_what_the_comment_says():
    makefile = page("Makefile")
    for block in blocks("sh"):
        for target in re.findall(r"^make (\S+)", block.text, re.MULTILINE):
            assert re.search(rf"^{target}:.*## ", makefile, re.MULTILINE), target
    for name in set(re.findall(r"`make ([a-z-]+)`", "".join(map(Path.read_text, PAGES)))):
        assert re.search(rf"^{name}:", makefile, re.MULTILINE), name
    assert all(re.search(rf"^{name}:.*\n\t.*{what}", makefile, re.MULTILINE)
               for name, what in (("run", "breakeven demo"), ("test", "pytest")))


def test_the_configuration_shown_is_the_minimal_one_and_the_rest_fits_into_a_route(tmp_path, monkeypatch):
    whole, part, money, cores = blocks("yaml")
    assert whole.text == page("config/minimal.yaml")
    monkeypatch.setenv("OPENAI_API_KEY", "sk-x")
    tree = yaml.safe_load(whole.text)
    tree["routes"]["gpt-4o"] |= yaml.safe_load(part.text)
    tree |= yaml.safe_load(money.text) | yaml.safe_load(cores.text)
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(tree))
    settings = load(tmp_path / "config.yaml")
    assert settings.routes["gpt-4o"].policy == "threshold"
    assert [str(line.spending) for line in settings.budgets] == ["500/month", "300/day"]
    assert settings.api_spend_max is not None and str(settings.api_spend_max.spending) == "200/hour"
    assert settings.server.workers == 4


def test_the_report_that_is_shown_has_the_words_of_a_real_one(place):
    shown = next(block for block in blocks("text") if block.text.startswith("Savings"))
    real = place.run(".venv/bin/breakeven report --config config/minimal.yaml").stdout
    labels = re.findall(r"^ {0,2}([A-Z][A-Za-z, :]+?) {2,}", shown.text, re.MULTILINE)
    assert len(labels) == 6
    assert all(label in real for label in (*labels, "(unallocated)"))
    assert "GPU minutes were paid while no gateway watched" in page("proxy/reports/render.py")
    head = next(line for line in shown.text.splitlines() if line.startswith("route"))
    assert head.split() == next(line for line in real.splitlines() if line.startswith(" route")).split()


# ---------------------------------------------------------------- figures and their rows
def test_the_queries_shown_lead_from_a_figure_to_its_rows(place):
    assert place.run(next(block.text for block in blocks("sh") if "curl -i" in block.text)).returncode == 0
    traffic, end = f"{place.folder}/data/ledger.db", time.time_ns()
    begin = end // NS_PER_MINUTE * NS_PER_MINUTE - 10 * NS_PER_MINUTE
    statement = build(f"sqlite:///{traffic}", begin, end)
    with sqlite3.connect(traffic) as ledger:
        ledger.row_factory = sqlite3.Row
        (request_id,) = ledger.execute("SELECT request_id FROM requests").fetchone()
        bound = {"from_ns": begin, "to_ns": end, "request_id": request_id}
        by_route, by_reason, one = ([dict(row) for row in ledger.execute(block.text, bound)] for block in blocks("sql"))
    assert [(row["requests"], row["api_nano"], row["baseline_nano"]) for row in by_route] == [
        (row.requests, row.api, row.baseline) for row in statement.rows if row.allocated]
    assert sum(row["api_nano"] for row in by_reason) == statement.total.api
    assert one and one[0]["source"] and isinstance(one[0]["bid_price"], float)


def test_every_table_and_column_of_the_ledger_is_described():
    text = page("docs/accounting.md")
    described = section(text, "## Tables")
    exist = {column.name for one in metadata.tables.values() for column in one.columns} | set(metadata.tables)
    assert exist <= set(CODE.findall(described))
    assert first_codes(described) <= exist


# ---------------------------------------------------------------- tables of codes
def test_every_reason_a_decision_can_give_is_explained_and_no_other():
    produced = set(get_args(Health)).union(*(reason_codes(tree(name)) for name in REASONS_IN)) - {"ok"}
    assert first_codes(section(page("docs/operating.md"), "## Reasons")) == produced


def test_every_error_code_is_in_the_table_with_its_status_and_no_other():
    rows = table(section(page("docs/http.md"), "## Errors"))
    documented = {code: row[1] for row in rows for code in CODE.findall(row[0])}
    produced = {code for name, tree in sources() if not name.startswith(("proxy/demo/", "proxy/cli/"))
                for code in error_codes(tree)}
    assert set(documented) - {"null"} == produced | set(CODES.values())
    kinds = [one for kind in GatewayError.__subclasses__() for one in (kind, *kind.__subclasses__())]
    for code, status in [(one.code, one.status) for one in kinds if one.code] + [(b, a) for a, b in CODES.items()]:
        assert documented[code] == str(status), code


@pytest.mark.parametrize(("collector", "text"), [
    (reason_codes, 'refuse("brand_new", f"{x}")'), (reason_codes, 'Refusal(a, b, "brand_new", "why")'),
    (reason_codes, 'Attempt(a, None, "api", "brand_new", 0)'), (reason_codes, 'reason = "brand_new" if x else y'),
    (reason_codes, 'def f():\n    return "brand_new", f"{x}"'), (reason_codes, 'settle(unsent(call, "brand_new"))'),
    (reason_codes, 'def _x_reason():\n    return "brand_new"'), (reason_codes, 'Plan((), "brand_new")'),
    (reason_codes, 'for code, r in (("brand_new", 1),):\n    pass'), (reason_codes, 'RequestEntry(reason="brand_new")'),
    (error_codes, 'raise X("m", code="brand_new")'), (error_codes, 'class A(B):\n    code = "brand_new"'),
    (error_codes, 'e.type, e.code = "t", "brand_new"')])
def test_a_new_code_would_be_noticed(collector, text):
    assert "brand_new" in collector(ast.parse(text))


def test_every_metric_is_in_the_table_and_no_other(place):
    scraped = place.run('curl -sf http://127.0.0.1:8000/metrics -H "authorization: Bearer $BREAKEVEN_ADMIN_KEY"').stdout
    exported = set(re.findall(r"^# HELP (\S+)", scraped, re.MULTILINE))
    exported = {name for name in exported if not name.endswith("_created")}
    assert exported
    assert first_codes(section(page("docs/operating.md"), "## Metrics")) == exported


def test_every_state_and_freshness_is_in_the_table_and_no_other():
    tables = section(page("docs/operating.md"), "## States of a replica")
    assert first_codes(tables) == {*get_args(Health), *get_args(Freshness)}


def test_every_limit_of_the_server_is_in_the_table_at_its_default():
    rows = table(section(page("docs/operating.md"), "## Limits"))
    shown = {code.removeprefix("server."): row for row in rows for code in CODE.findall(row[1]) if "server." in code}
    fields = {name: float(field.default) for name, field in Server.model_fields.items()
              if name not in ("host", "port", "admin", "workers")}
    assert {name: float(row[2]) for name, row in shown.items()} == fields
    assert all(re.search(rf"(?:server|waits)\.{name}\b", everything()) for name in fields), "a setting nobody reads"


def test_figures_in_the_text_are_those_of_the_code():
    says = " ".join(page("docs/operating.md").split())
    for bound in (judge.UPSTREAMS_MAX, journal.QUEUE_MAX, journal.SPOOL_MAX, DECISIONS_KEPT,
                  TAGS_MAX, f"{openai.JSON_DEPTH_MAX}; {openai.CHOICES_MAX}; {openai.BATCH_MAX}",
                  f"{relay.ANSWER_BYTES_MAX >> 20} MiB; {sse.FRAME_BYTES_MAX >> 10} KiB",
                  f"{events.EVENT_BYTES_MAX >> 20} MiB; {relay.EARLY_EVENTS_BYTES_MAX >> 10} KiB"):
        assert f"| fixed | {bound} |" in says
    for told in (f"{health.EJECT_S:.0f} s later, longer by as much each time, at most {health.EJECT_S_MAX:.0f} s",
                 f"no progress for {liveness.WEDGED_AFTER} stall budgets", f"at most {health.HOLD_OFF_S_MAX:.0f} s",
                 f"{liveness.STALL_S_MIN:.0f} s to {liveness.STALL_S_MAX:.0f} s",
                 f"up to {liveness.UNKNOWN_AFTER_S:.0f} s", f"at most {room.BATCH_UNKNOWN_MAX} sequences",
                 f"for up to {replica.CONGESTED_S:.0f} s"):
        assert told in says, told
    assert f"time constant of {replica.UTILIZATION_MEMORY_S:.0f} s" in page("docs/concepts.md")
    longest = routing.Limits().ttft_s - routing.API_TTFT_S - routing.API_MARGIN_S
    assert f"`wait_ms_max: auto`; {longest:.2f} s" in page("docs/concepts.md").replace("\n", " ")
    assert f"from {prefix.CACHE_MIN:,} tokens on, in steps of {prefix.CACHE_STEP}" in page("docs/accounting.md")


def test_every_endpoint_is_in_the_table_and_no_other():
    rows = table(section(page("docs/http.md"), "## Endpoints"))
    served = routes(tree("proxy/server/app.py")) | routes(tree("proxy/server/dashboard.py"))
    served |= {(path, "POST") for path in ENDPOINTS}
    assert {(CODE.findall(row[0])[0], row[1]) for row in rows} == served
    assert routes(ast.parse('@app.get("/new/{x:path}")\nasync def f(): ...')) == {("/new/{x}", "GET")}


# ---------------------------------------------------------------- commands, links, names
@pytest.fixture
def commands(monkeypatch) -> dict[str, set[str]]:
    """Every command, `keys create` among them, and its options."""
    monkeypatch.setattr(sys, "argv", ["breakeven", "x"])
    from proxy.cli import app

    found: dict[str, set[str]] = {}

    def walk(command: Any, name: str) -> None:
        found[name] = {"--help", *(option for param in command.params for option in param.opts)}
        if hasattr(command, "list_commands"):
            for inner in command.list_commands(None):
                walk(command.get_command(None, inner), f"{name} {inner}".strip())

    walk(typer.main.get_command(app), "")
    return found


def wrong_uses(text: str, commands: dict[str, set[str]]) -> list[str]:
    """Commands and options in code that do not exist."""
    wrong = []
    spans = CODE.findall(re.sub(r"```.*?```", "", text, flags=re.DOTALL))
    everywhere = set().union(*commands.values())
    for span in spans + [line for one in blocks_of("", text) if one.language == "sh" for line in one.text.splitlines()]:
        used = re.search(r"\bbreakeven ((?:[a-z]+(?:-[a-z]+)* ?){1,2})", span)
        options = re.findall(r"(?<![\w-])--[a-z][a-z-]*", span)
        if used is None:
            wrong += [option for option in options if option not in everywhere and span.startswith("--")]
            continue
        first, *second = used[1].split()
        name = f"{first} {second[0]}" if second and f"{first} {second[0]}" in commands else first
        wrong += [one for one in options if one not in commands[name]] if name in commands else [name]
    return wrong


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_every_command_and_option_that_is_mentioned_exists(path, commands):
    assert wrong_uses(path.read_text(), commands) == []


@pytest.mark.parametrize("text", ["`breakeven fly`", "`--fly`", "```sh\n.venv/bin/breakeven report --fly 1\n```\n",
                                  "`breakeven keys create --fly`"])
def test_a_command_that_does_not_exist_is_noticed(text, commands):
    assert wrong_uses(text, commands)


def broken_references(path: Path, text: str) -> list[str]:
    """Links and files that lead nowhere, and `Class.method` that no code has."""
    broken = []
    for target in re.findall(r"\]\((?!http)([^)\s]+)\)", text):
        name, _, anchor = target.partition("#")
        there = (path.parent / name) if name else path
        if not there.exists():
            broken.append(target)
        elif anchor and not re.search(rf"^#+ {anchor.replace('-', ' ')}$", there.read_text(), re.M | re.I):
            broken.append(target)
    for span in CODE.findall(text):
        if re.fullmatch(r"(?:proxy|config|tests|docs|requirements)/[\w./*-]+|core/[\w.]+|Makefile|Dockerfile", span):
            broken += [span] if not any(ROOT.glob(span)) and not any(ROOT.glob(f"proxy/{span}")) else []
        elif found := re.fullmatch(r"([A-Z]\w+)\.([a-z_]\w*)(?:\(.*\))?", span):
            if not re.search(rf"class {found[1]}\b.*?def {found[2]}\b", everything(), re.DOTALL):
                broken.append(span)
    return broken


@cache
def everything() -> str:
    return "\n".join(path.read_text() for path in sorted((ROOT / "proxy").rglob("*.py")))


@pytest.mark.parametrize("path", [*PAGES, ROOT / "CHANGELOG.md", ROOT / "SECURITY.md"], ids=lambda path: path.name)
def test_links_files_and_names_lead_somewhere(path):
    assert broken_references(path, path.read_text()) == []


@pytest.mark.parametrize("text", ["[a](docs/nowhere.md)", "[a](docs/http.md#nowhere)", "`proxy/core/nowhere.py`",
                                  "`Journal.fly`"])
def test_a_broken_reference_is_noticed(text):
    assert broken_references(ROOT / "README.md", text)


def test_decisions_are_numbered_without_gaps_and_listed():
    names = sorted(path.name for path in (ROOT / "docs/decisions").glob("0*.md"))
    assert [name[:4] for name in names] == [f"{number:04}" for number in range(1, len(names) + 1)]
    assert all(name in page("docs/decisions/README.md") for name in names)


def test_pictures_fetch_nothing_and_run_nothing():
    for path in (ROOT / "docs").glob("*.svg"):
        assert not re.search(r"(?:href|src|url)\s*[=(:]\s*[\"']?https?:|<script", path.read_text())
