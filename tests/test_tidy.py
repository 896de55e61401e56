"""The style as a test: which door opens where, what stays out of money, how long is too long.

One small function per rule: it takes a file and yields problems. Every rule is shown a bad snippet in BAD, because a
rule that cannot fail guards nothing. `python -m tests.test_tidy` lists the files that are getting long.
"""

from __future__ import annotations

import ast
import os
import re
import site
import sys
import tokenize
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache, cached_property
from io import StringIO
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
MADE_HERE = {".git", ".venv", ".bench", ".browser", ".real-vllm", ".ruff_cache", ".pytest_cache", ".hypothesis",
             ".fuzz", "build", "dist", "data"}

# Which rooms (or single modules of one) each room may import. Modules directly in proxy/, and those in FREE, see all.
DOORS = {
    "core": (),
    "wire": ("core",),
    "config": ("core",),
    "ledger": ("wire", "core"),
    "upstream": ("config", "wire", "core"),
    "signals": ("config", "wire", "core", "upstream.transport"),  # asks engines through the narrow interface
    "server": ("config", "upstream", "signals", "ledger", "planner.breakeven", "wire", "core"),
    "planner": ("core",),
    "replay": ("core",),
    "reports": ("ledger", "planner.breakeven", "core"),
    "demo": (),  # a simulated engine that shares code with the gateway would share its mistakes
}
FREE = re.compile(r"proxy/(\w+\.py|cli/.*|demo/run\w*\.py)")  # demo/run*.py puts gateway and engines together
PURE = ("core", "wire")
IMPURE = {
    "asyncio", "datetime.datetime.now", "logging", "multiprocessing", "os", "pathlib", "random", "secrets", "shutil",
    "socket", "sqlite3", "subprocess", "tempfile", "threading", "time", "urllib.request", "uuid",
}  # fmt: skip
ONLY_IN = {"litellm": "proxy/upstream/commercial.py", "genai_prices": "proxy/config/prices.py"}
MONEY = re.compile(r"proxy/(core/(money|currency|pricing|contracts|charges|savings|entries)\.py|ledger/.*)")
AUTH = re.compile(r"proxy/.*(auth|key|secret|token)\w*\.py")
SECRET_WORDS = {"key", "secret", "token", "digest", "password"}
ENVIRONMENT = re.compile(r"proxy/(config/.*|cli/.*|cli\.py|upstream/(commercial|tokenizers)\.py)")
PRINTS = re.compile(r"proxy/(cli/.*|cli\.py|demo/.*)")
SQL_CALLS = {"text", "execute", "executemany", "executescript", "exec_driver_sql", "scalar", "scalars"}
LINES_MAX, LINES_LONG, FUNCTION_LINES_MAX = 500, 300, 70
TEST_LINES_MAX = 700
BROAD_EXCEPTS_MAX = 15  # less than 1.2 per thousand lines, as in uvicorn and httpx


@dataclass(frozen=True)
class Source:
    """One Python file; `path` is relative to the repository."""

    path: str
    text: str

    @cached_property
    def tree(self) -> ast.Module:
        return ast.parse(self.text)

    @cached_property
    def nodes(self) -> list[ast.AST]:
        return list(ast.walk(self.tree))

    @property
    def room(self) -> str | None:
        parts = self.path.split("/")
        return parts[1] if parts[0] == "proxy" and len(parts) > 2 else None

    @cached_property
    def comments(self) -> dict[int, str]:
        tokens = tokenize.generate_tokens(StringIO(self.text).readline)
        return {token.start[0]: token.string for token in tokens if token.type == tokenize.COMMENT}

    def imports(self) -> Iterator[tuple[int, str]]:
        """Line and full dotted name of all that is imported, wherever in the file."""
        for node in self.nodes:
            if isinstance(node, ast.Import):
                yield from ((node.lineno, alias.name) for alias in node.names)
            elif isinstance(node, ast.ImportFrom):
                here = self.path.removesuffix(".py").split("/")[: -node.level] if node.level else []
                base = ".".join([*here, *([node.module] if node.module else [])])
                yield from ((node.lineno, f"{base}.{alias.name}") for alias in node.names)


def within(name: str, parent: str) -> bool:
    return name == parent or name.startswith(parent + ".")


def name_of(node: ast.AST) -> str:
    """The last name of `a`, `x.a` or `x.a(...)`; empty for anything else."""
    if isinstance(node, ast.Call):
        return name_of(node.func)
    return node.id if isinstance(node, ast.Name) else node.attr if isinstance(node, ast.Attribute) else ""


# ---------------------------------------------------------------- rules about one file

Problem = tuple[int, str]  # line, what is wrong


def doors_open_one_way(source: Source) -> Iterator[Problem]:
    if source.room is None or FREE.fullmatch(source.path):
        return
    if source.room not in DOORS:
        yield 1, f"room {source.room} has no line in DOORS"
        return
    allowed = [f"proxy.{door}" for door in (source.room, *DOORS[source.room])]
    for line, name in source.imports():
        if within(name, "proxy") and not any(within(name, door) for door in allowed):
            yield line, f"{source.room} may not import {name}"


def core_and_wire_are_pure(source: Source) -> Iterator[Problem]:
    if source.room not in PURE:
        return
    outside = {"core": {"proxy"}, "wire": {"proxy", "orjson"}}[source.room]
    for line, name in source.imports():
        if name.split(".")[0] not in sys.stdlib_module_names | outside:
            yield line, f"{source.room} leans on the standard library, not on {name}"
        if any(within(name, impure) for impure in IMPURE):
            yield line, f"{source.room} may not use {name}: time, chance and facts come in as arguments"
    for node in source.nodes:
        if isinstance(node, ast.AsyncFunctionDef | ast.Await | ast.AsyncFor | ast.AsyncWith):
            yield getattr(node, "lineno", 0), f"{source.room} is synchronous"
        if isinstance(node, ast.Call) and name_of(node) in {"open", "now", "today", "utcnow", "print"}:
            yield node.lineno, f"{source.room} may not call {name_of(node)}()"


def heavy_packages_stay_in_one_module(source: Source) -> Iterator[Problem]:
    for line, name in source.imports():
        for package, home in ONLY_IN.items():
            if within(name, package) and source.path.startswith("proxy/") and source.path != home:
                yield line, f"{package} is imported by {home} alone"


def litellm_is_imported_lazily(source: Source) -> Iterator[Problem]:
    """It takes seconds and much memory, and a fleet of engines never needs it."""
    top = [node for node in source.tree.body if isinstance(node, ast.Import | ast.ImportFrom)]
    for node in top:
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else [node.module or ""]
        if source.path.startswith("proxy/") and any(within(name, "litellm") for name in names):
            yield node.lineno, "litellm is imported inside the function that needs it"


def bindings(node: ast.AST) -> Iterator[tuple[str, ast.AST]]:
    """The names that this node binds, each with what it is bound to."""
    match node:
        case ast.Assign():
            yield from ((name_of(target), node.value) for target in node.targets)
        case ast.AnnAssign(value=ast.AST()):
            yield name_of(node.target), node.value
        case ast.For():
            yield name_of(node.target), node.iter
        case ast.keyword(arg=str()):
            yield node.arg, node.value
        case ast.arguments():
            positional = zip(reversed(node.args), reversed(node.defaults), strict=False)
            yield from ((arg.arg, default) for arg, default in positional)
            yield from ((arg.arg, value) for arg, value in zip(node.kwonlyargs, node.kw_defaults, strict=True) if value)


def money_has_no_floats(source: Source) -> Iterator[Problem]:
    """In the ledger a float may be a time, if the name it is bound to says so: ..._s, ..._at."""
    if not MONEY.fullmatch(source.path):
        return
    bound = [pair for node in source.nodes for pair in bindings(node)] if source.room == "ledger" else []
    times = {id(n) for name, value in bound if name.lower().endswith(("_s", "_at")) for n in ast.walk(value)}
    for node in source.nodes:
        if isinstance(node, ast.Constant) and type(node.value) is float and id(node) not in times:
            yield node.lineno, f"float {node.value} near money"
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "float":
            yield node.lineno, "float() near money"


def is_built(node: ast.AST) -> bool:
    """An f-string, `%`, `+`, `.format()` or `.join()`: text put together at run time."""
    match node:
        case ast.JoinedStr() | ast.BinOp(op=ast.Mod() | ast.Add()):
            return True
        case ast.Call(func=ast.Attribute(attr="format" | "join")):
            return True
    return False


def sql_is_never_built_from_values(source: Source) -> Iterator[Problem]:
    if not source.path.startswith("proxy/"):
        return
    built = {
        name_of(target)
        for node in source.nodes
        if isinstance(node, ast.Assign) and is_built(node.value)
        for target in node.targets
    }
    for node in source.nodes:
        if isinstance(node, ast.Call) and name_of(node) in SQL_CALLS and node.args:
            statement = node.args[0]
            if is_built(statement) or (isinstance(statement, ast.Name) and statement.id in built):
                yield node.lineno, f"{name_of(node)}() takes a constant statement and bound parameters"


def secrets_are_compared_in_constant_time(source: Source) -> Iterator[Problem]:
    """A column compared in a query (`keys.c.sha256 == digest`) is a look-up, and fine."""
    if not AUTH.fullmatch(source.path):
        return
    for node in source.nodes:
        if isinstance(node, ast.Compare) and any(isinstance(op, ast.Eq | ast.NotEq) for op in node.ops):
            sides = [node.left, *node.comparators]
            columns = [side for side in sides if isinstance(side, ast.Attribute) and name_of(side.value) == "c"]
            if not columns and any(name_of(side).lower().split("_")[-1] in SECRET_WORDS for side in sides):
                yield node.lineno, "compare with hmac.compare_digest"


def exceptions_are_named(source: Source) -> Iterator[Problem]:
    for node in source.nodes:
        if not isinstance(node, ast.ExceptHandler):
            continue
        if node.type is None:
            yield node.lineno, "bare except"
        elif name_of(node.type) == "BaseException" and not any(isinstance(n, ast.Raise) for n in ast.walk(node)):
            yield node.lineno, "except BaseException that does not raise again"


def broad_excepts(source: Source) -> list[ast.ExceptHandler]:
    handlers = [node for node in source.nodes if isinstance(node, ast.ExceptHandler)]
    return [node for node in handlers if node.type is not None and name_of(node.type) == "Exception"]


def broad_excepts_say_why(source: Source) -> Iterator[Problem]:
    for handler in broad_excepts(source) if source.path.startswith("proxy/") else ():
        if not {handler.lineno - 1, handler.lineno} & source.comments.keys():
            yield handler.lineno, "`except Exception` without a comment on its line or the one before"


def functions_fit_on_a_screen(source: Source) -> Iterator[Problem]:
    for node in source.nodes:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            lines = (node.end_lineno or node.lineno) - node.lineno + 1
            if lines > FUNCTION_LINES_MAX:
                yield node.lineno, f"{node.name} has {lines} lines, more than {FUNCTION_LINES_MAX}"


def files_fit_in_a_sitting(source: Source) -> Iterator[Problem]:
    lines = len(source.text.splitlines())
    most = LINES_MAX if source.path.startswith("proxy/") else TEST_LINES_MAX  # a list of sentences reads quicker
    if lines > most:
        yield lines, f"{lines} lines, more than {most}"


def only_commands_print(source: Source) -> Iterator[Problem]:
    if source.path.startswith("proxy/") and not PRINTS.fullmatch(source.path):
        for node in source.nodes:
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print":
                yield node.lineno, "print() belongs to cli/ and demo/"


def modules_introduce_themselves(source: Source) -> Iterator[Problem]:
    if source.path.startswith("proxy/") and source.text.strip() and ast.get_docstring(source.tree) is None:
        yield 1, "no docstring"


def environment_is_read_at_the_door(source: Source) -> Iterator[Problem]:
    if not source.path.startswith("proxy/") or ENVIRONMENT.fullmatch(source.path):
        return
    names = [(node.lineno, name_of(node)) for node in source.nodes if isinstance(node, ast.Attribute)]
    for line, name in names + [(line, name.split(".")[-1]) for line, name in source.imports()]:
        if name in {"environ", "getenv", "environb"}:
            yield line, f"{name} outside config/, cli/, upstream/commercial.py and tokenizers.py"


def nothing_is_left_for_later(source: Source) -> Iterator[Problem]:
    for line, text in enumerate(source.text.splitlines(), 1):
        if found := re.search(r"\b(TO[D]O|FI[X]ME|X[X]X)\b", text):
            yield line, f"{found[0]}: do it, or write an issue"


RULES: list[Callable[[Source], Iterator[Problem]]] = [
    doors_open_one_way, core_and_wire_are_pure, heavy_packages_stay_in_one_module, litellm_is_imported_lazily,
    money_has_no_floats, sql_is_never_built_from_values, secrets_are_compared_in_constant_time,
    exceptions_are_named, broad_excepts_say_why, functions_fit_on_a_screen, files_fit_in_a_sitting,
    only_commands_print, modules_introduce_themselves, environment_is_read_at_the_door, nothing_is_left_for_later,
]  # fmt: skip


# ---------------------------------------------------------------- rules about any file

LOCAL = re.compile(r"/wor[k]/|/roo[t]/|/Use[r]s/|/opt/py[p]i|/opt/whee[l]s")
REGISTRY = re.compile(r"(pyp[i]|pythonhoste[d])\.org|download\.pytorc[h]\.org")


def text_is_about_no_one_machine(text: str) -> Iterator[Problem]:
    for line, words in enumerate(text.splitlines(), 1):
        if found := LOCAL.search(words) or REGISTRY.search(words):
            yield line, f"{found[0]!r}: a path of one machine, or a registry's host"


def pins(lock: str) -> dict[str, str]:
    """Package -> version of a pip-compile list; every entry must carry hashes."""
    entries = re.findall(r"^([\w.\[\]-]+)==([^\s;\\]+)((?:[^\n]*\\\n)*[^\n]*)", lock, re.MULTILINE)
    assert all("--hash=sha256:" in rest for _, _, rest in entries), "an entry without a hash"
    return {name: version for name, version, _ in entries}


# ---------------------------------------------------------------- the tests


@cache
def files() -> list[Path]:
    """All that belongs to the repository. What is made here is not entered: an environment has tens of thousands."""
    found = []
    for folder, inside, names in os.walk(ROOT):
        made = MADE_HERE if Path(folder) == ROOT else {"__pycache__"}
        inside[:] = [name for name in inside if name not in made and not name.endswith(".egg-info")]
        found += [Path(folder, name) for name in names]
    return sorted(path for path in found if path.is_file())


@cache
def sources() -> list[Source]:
    found = [(path.relative_to(ROOT).as_posix(), path) for path in files() if path.suffix == ".py"]
    return [Source(name, path.read_text()) for name, path in found if name.startswith(("proxy/", "tests/"))]


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_every_file_keeps_the_rule(rule):
    problems = [f"{s.path}:{line}: {what}" for s in sources() for line, what in rule(s)]
    assert not problems, "\n".join(["", *problems])


def test_broad_excepts_stay_few():
    found = [f"{s.path}:{node.lineno}" for s in sources() if s.path.startswith("proxy/") for node in broad_excepts(s)]
    assert len(found) <= BROAD_EXCEPTS_MAX, found


def test_no_file_speaks_of_one_machine():
    problems = []
    for path in files():
        if b"\0" not in (data := path.read_bytes()):
            found = text_is_about_no_one_machine(data.decode(errors="replace"))
            problems += [f"{path.relative_to(ROOT)}:{line}: {what}" for line, what in found]
    assert not problems, "\n".join(["", *problems])


def test_an_environment_for_tests_also_runs_the_gateway():
    """`make run` after `make test` installs nothing, because dev.txt holds all of run.txt at the same versions."""
    run, dev = (pins((ROOT / "requirements" / name).read_text()) for name in ("run.txt", "dev.txt"))
    assert run and run.items() <= dev.items()


def test_nothing_unknown_runs_at_every_start_of_python():
    """A `.pth` file is run by any Python that starts: how litellm 1.82.8 stole credentials (PYSEC-2026-2)."""
    known = re.compile(r"__editable__\.breakeven-.*\.pth|distutils-precedence\.pth")  # ours; setuptools'
    found = [path.name for folder in site.getsitepackages() for path in Path(folder).glob("*.pth")]
    assert [name for name in found if not known.fullmatch(name)] == []


LONG_FUNCTION = "def f():\n" + "    x = 1\n" * FUNCTION_LINES_MAX
TRY = "try:\n    f()\n"
BAD = [
    (doors_open_one_way, "proxy/core/a.py", "from proxy.wire import sse"),
    (doors_open_one_way, "proxy/core/a.py", "from ..wire import sse"),
    (doors_open_one_way, "proxy/wire/a.py", "import proxy.ledger.store"),
    (doors_open_one_way, "proxy/ledger/a.py", "from proxy import server"),
    (doors_open_one_way, "proxy/signals/a.py", "from proxy.upstream import engine"),
    (doors_open_one_way, "proxy/upstream/a.py", "def f():\n    from proxy.signals import board"),
    (doors_open_one_way, "proxy/replay/a.py", "from proxy.ledger import store"),
    (doors_open_one_way, "proxy/reports/a.py", "from proxy.server import app"),
    (doors_open_one_way, "proxy/demo/engine.py", "from proxy.core import money"),
    (doors_open_one_way, "proxy/attic/a.py", ""),
    (core_and_wire_are_pure, "proxy/core/a.py", "import orjson"),
    (core_and_wire_are_pure, "proxy/wire/a.py", "import pydantic"),
    (core_and_wire_are_pure, "proxy/wire/a.py", "from time import monotonic"),
    (core_and_wire_are_pure, "proxy/core/a.py", "import os.path"),
    (core_and_wire_are_pure, "proxy/core/a.py", "async def f(): ..."),
    (core_and_wire_are_pure, "proxy/core/a.py", "import datetime\nx = datetime.datetime.now()"),
    (heavy_packages_stay_in_one_module, "proxy/server/a.py", "def f():\n    import litellm"),
    (heavy_packages_stay_in_one_module, "proxy/core/a.py", "from genai_prices import calc_price"),
    (litellm_is_imported_lazily, "proxy/upstream/commercial.py", "from litellm import acompletion"),
    (money_has_no_floats, "proxy/core/money.py", "x = 1e-9"),
    (money_has_no_floats, "proxy/core/savings.py", "x = float(y)"),
    (money_has_no_floats, "proxy/core/pricing.py", "WAIT_S = 0.5"),
    (money_has_no_floats, "proxy/ledger/sub/a.py", "factor = 0.5"),
    (sql_is_never_built_from_values, "proxy/ledger/a.py", "c.execute(f'SELECT {x}')"),
    (sql_is_never_built_from_values, "proxy/ledger/a.py", "text('SELECT %s' % x)"),
    (sql_is_never_built_from_values, "proxy/ledger/a.py", "text('SELECT {}'.format(x))"),
    (sql_is_never_built_from_values, "proxy/server/a.py", "c.execute('SELECT ' + x)"),
    (sql_is_never_built_from_values, "proxy/ledger/a.py", "query = f'SELECT {x}'\nc.execute(query)"),
    (secrets_are_compared_in_constant_time, "proxy/server/auth.py", "ok = given_key == wanted"),
    (secrets_are_compared_in_constant_time, "proxy/ledger/keys.py", "ok = row.digest != digest"),
    (exceptions_are_named, "proxy/core/a.py", TRY + "except:\n    pass"),
    (exceptions_are_named, "proxy/core/a.py", TRY + "except BaseException:\n    pass"),
    (broad_excepts_say_why, "proxy/server/a.py", TRY + "except Exception:\n    pass"),
    (functions_fit_on_a_screen, "proxy/core/a.py", LONG_FUNCTION),
    (files_fit_in_a_sitting, "proxy/core/a.py", "x = 1\n" * (LINES_MAX + 1)),
    (only_commands_print, "proxy/server/a.py", "print(1)"),
    (modules_introduce_themselves, "proxy/core/a.py", "x = 1"),
    (environment_is_read_at_the_door, "proxy/server/a.py", "import os\nos.environ['HOME']"),
    (environment_is_read_at_the_door, "proxy/ledger/a.py", "from os import getenv"),
    (nothing_is_left_for_later, "tests/a.py", "# TO" + "DO: later"),
]
GOOD = [
    (doors_open_one_way, "proxy/server/a.py", "from proxy.ledger.store import open_ledger"),
    (doors_open_one_way, "proxy/signals/a.py", "from proxy.upstream.transport import Target"),
    (doors_open_one_way, "proxy/demo/run.py", "from proxy import main"),
    (doors_open_one_way, "proxy/main.py", "from proxy.server import app"),
    (doors_open_one_way, "proxy/core/a.py", "from . import money"),
    (core_and_wire_are_pure, "proxy/wire/a.py", "import re, orjson"),
    (litellm_is_imported_lazily, "proxy/upstream/commercial.py", "def f():\n    import litellm"),
    (money_has_no_floats, "proxy/ledger/a.py", "RETRY_S = (0.5, 1.0)\nf(wait_s=1.5)\ndef f(*, wait_s=0.1): ..."),
    (sql_is_never_built_from_values, "proxy/ledger/a.py", "c.execute('SELECT :a', {'a': f'{x}'})"),
    (secrets_are_compared_in_constant_time, "proxy/ledger/keys.py", "select(k).where(k.c.digest == digest)"),
    (broad_excepts_say_why, "proxy/server/a.py", TRY + "except Exception:  # the top of a task\n    log()"),
    (exceptions_are_named, "proxy/core/a.py", TRY + "except BaseException:\n    g()\n    raise"),
]


@pytest.mark.parametrize(("rule", "path", "text"), BAD)
def test_the_rule_can_fail(rule, path, text):
    assert list(rule(Source(path, text)))


@pytest.mark.parametrize(("rule", "path", "text"), GOOD)
def test_the_rule_lets_good_code_pass(rule, path, text):
    assert not list(rule(Source(path, text)))


def test_every_rule_is_known_to_fail():
    assert {rule for rule, _, _ in BAD} == set(RULES)


@pytest.mark.parametrize("words", ["cd /wor" + "k/main", "see /roo" + "t/x", "https://pyp" + "i.org/simple"])
def test_a_path_or_a_registry_is_noticed(words):
    assert list(text_is_about_no_one_machine(words))


def test_an_entry_without_a_hash_is_noticed():
    with pytest.raises(AssertionError):
        pins("a==1 \\\n    --hash=sha256:00\nb==2\n")


if __name__ == "__main__":
    sizes = {source.path: len(source.text.splitlines()) for source in sources()}
    for name, lines in sorted(sizes.items(), key=lambda size: -size[1]):
        if lines > LINES_LONG:
            print(f"{lines} lines, {LINES_LONG} would be better: {name}")
