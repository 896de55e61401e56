"""The hot path as machine code: `python -m tests.bench.compiled build/compiled` makes a copy of the package in which
the modules that every request passes through are compiled by mypyc, from the same source and its annotations.

Run what is there with `PYTHONSAFEPATH=1 PYTHONPATH=build/compiled`: nothing is ever compiled into the source tree, so
what an editor shows there is what runs. The copy differs from the source in how a `record` is spelled: mypyc makes
classes of its own of dataclasses that it knows by name, which have slots anyway.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "proxy"
MODULES = {
    "core": "bidprice budgets capacity entries fleet health learning lengths line liveness market money prefix pricing "
            "ratelimit reasons retry room routing usage",
    "wire": "chunks fields lean metering openai prompt splice sse usage",
    "signals": "board crew follower inflight iterations market memory replica shared shared_health shared_prefixes "
               "speed",
    "upstream": "answer connection engine heads origin pool transport",
    "server": "auth bodies calls dispatch exchange guard handler ids judge offers planning purse rates relay repeats "
              "replies settlement socket_exchange tally turns",
    "ledger": "items journal leases marks writer",
}

_RECORD = re.compile(r"^@record$", re.MULTILINE)
_RECORD_IMPORT = re.compile(r"^from proxy\.core\.records import record$", re.MULTILINE)
_SLOTS = re.compile(r"(?<=\()slots=True(?:, )?|, slots=True")
_DATACLASS_IMPORT = re.compile(r"^from dataclasses import (.*)$", re.MULTILINE)
_TYPE = re.compile(r"^static PyTypeObject \w+ = \{\n(?:.*\n)*?\};\n", re.MULTILINE)
_END = re.compile(r"\.tp_dealloc = \(destructor\)(\w+),")
_WEAK = "*((PyObject **)((char *)self + sizeof(PyObject *) + sizeof("  # where an object's weak references begin
_UNTRACK = "    PyObject_GC_UnTrack(self);\n"

SETUP = """
from concurrent.futures import ThreadPoolExecutor
from mypyc.build import mypycify
from setuptools import setup
from setuptools.command.build_ext import build_ext

from tests.bench.compiled import mend

class Beside(build_ext):  # one file beside another: setuptools compiles those of one library in turn
    def build_extensions(self):
        one = self.compiler.compile
        def several(sources, **how):
            with ThreadPoolExecutor() as pool:
                return sum(pool.map(lambda source: one([source], **how), sources), [])
        self.compiler.compile = several
        super().build_extensions()


libraries = mypycify({options!r}, opt_level={level!r}, debug_level="0", multi_file=True)
mend(source for library in libraries for source in library.sources)
setup(name="breakeven-compiled", packages=[], cmdclass={{"build_ext": Beside}}, ext_modules=libraries)
"""


def modules() -> list[str]:
    """The files that are compiled, relative to the package's parent."""
    return [f"proxy/{room}/{name}.py" for room, names in MODULES.items() for name in names.split()]


def spelled(source: str) -> str:
    """The source as mypyc is given it."""
    if _RECORD.search(source):
        source = _RECORD.sub("@dataclass(unsafe_hash=True)", source)
        found = _DATACLASS_IMPORT.search(source)
        if found is None:
            source = _RECORD_IMPORT.sub("from dataclasses import dataclass", source)
        else:
            source = _RECORD_IMPORT.sub("", source)
            if "dataclass" not in [name.strip() for name in found[1].split(",")]:
                source = _DATACLASS_IMPORT.sub(r"from dataclasses import dataclass, \1", source, count=1)
    return _SLOTS.sub("", source)


def mend(sources: Iterable[str]) -> None:
    """Put right what mypyc makes of weak references (mypyc's issue 1102). Whatever of its has a `__dict__` (nested
    functions, exceptions, a class with an interpreted base such as a `threading.Thread`) can be referred to weakly. It
    takes the first such reference for its own, so that its end frees one that others hold; and it tells none."""
    for path in {Path(source) for source in sources if source.endswith(".c")}:
        path.write_text(mended(path.read_text()))


def mended(source: str) -> str:
    """One C file of mypyc's. ValueError where it isn't as this version writes it."""
    lines = source.splitlines(keepends=True)
    its_own = (f"Py_VISIT({_WEAK}", f"Py_CLEAR({_WEAK}")
    source = "".join(line for line in lines if not line.lstrip().startswith(its_own))
    for kind in _TYPE.findall(source):
        if ".tp_weaklistoffset" in kind and (end := _END.search(kind)):
            head, begins, body = source.partition(f"\n{end[1]}(")
            before, untracks, rest = body.partition(_UNTRACK)
            if not untracks or "\n}\n" in before:
                raise ValueError(f"{end[1]}: mypyc writes another C than is known here")
            source = head + begins + before + untracks + "    PyObject_ClearWeakRefs((PyObject *)self);\n" + rest
    if "Py_TPFLAGS_MANAGED_WEAKREF" in source or _WEAK in source:
        raise ValueError("mypyc writes another C than is known here")
    return source


def build(out: Path, level: str = "2") -> None:
    """Raises CalledProcessError, once the compiler has said why."""
    shutil.rmtree(out, ignore_errors=True)
    shutil.copytree(PACKAGE, out / "proxy", ignore=shutil.ignore_patterns("__pycache__", "*.so"))
    for name in modules():
        path = out / name
        path.write_text(spelled(path.read_text()))
    options = ["--python-executable", sys.executable, "--follow-imports", "silent", "--ignore-missing-imports",
               *modules()]
    script = out / "setup.py"
    script.write_text(SETUP.format(options=options, level=level))
    subprocess.run([sys.executable, "setup.py", "-q", "build_ext", "--inplace"], cwd=out, check=True,
                   env={**os.environ, "PYTHONPATH": str(ROOT)})
    shutil.rmtree(out / "build")
    script.unlink()


def main() -> None:
    if len(sys.argv) != 2:
        raise SystemExit("usage: python -m tests.bench.compiled FOLDER")
    try:
        build(Path(sys.argv[1]))
    except subprocess.CalledProcessError:
        raise SystemExit("not compiled: why is said above; gcc and mypy are needed (make compiled)") from None


if __name__ == "__main__":
    main()
