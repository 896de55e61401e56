"""`make simulate`: a thousand seeds of a thousand requests, in virtual time, with every rule looked at all along.

    python -m tests.simulation [--seeds 1000] [--requests 1000]
    python -m tests.simulation --seed 17          that one again, with what happened last
    python -m tests.simulation --mutations        the gateway broken on purpose, each way in turn: is it noticed?

Seeds that ever failed stand in seeds.txt and are always run. A fault that never fired, over all seeds, fails the run
too: it proves nothing. The last line is JSON: how many seeds, and how many of them broke a rule.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

from proxy.config import prices
from proxy.core.records import guard
from tests.simulation.mutations import MUTATIONS
from tests.simulation.world import FAULTS, Case, simulated, template

SEEDS = Path(__file__).with_name("seeds.txt")
ENOUGH_SEEDS = 200  # from which on every fault must have fired
CHILD_SEEDS = 12  # served by one process, which then takes what crashes left in memory with it
MUTATION_SEEDS, MUTATION_REQUESTS = 15, 200  # in which a broken gateway must be noticed
T = TypeVar("T")
_folder = Path()
_blank = b""


def main(arguments: Sequence[str] | None = None) -> int:
    guard()
    options = _options(arguments)
    if options.mutations:
        return broken_on_purpose(options)
    seeds = [options.seed] if options.seed is not None else list(dict.fromkeys(
        [*known_seeds(), *range(options.first, options.first + options.seeds)]))
    begun, total, broken = time.monotonic(), Case(0, options.requests), 0
    for number, case in enumerate(forked(_one, [(seed, options.requests) for seed in seeds], options), 1):
        total.add(case)
        if case.broken:
            broken += 1
            print(told(case, options.last), file=sys.stderr)
        if number % 50 == 0:
            took = time.monotonic() - begun
            print(f"{number} seeds, {total.served} requests, {total.served / took:.0f} a second", file=sys.stderr)
        if options.trace:
            print(f"{case.seed} {case.trace}")
    took = time.monotonic() - begun
    print(f"{total.served} requests in {took:.0f} s ({total.served / took:.0f} a second), {total.looks} looks; lives "
          f"ended: {dict(total.ends)}; faults fired: {dict(total.fired.most_common())}; answers: "
          f"{dict(total.answers.most_common())}", file=sys.stderr)
    never = [fault for fault in FAULTS if not total.fired[fault]] if len(seeds) >= ENOUGH_SEEDS else []
    if never:
        print(f"never fired: {', '.join(never)}", file=sys.stderr)
    print(json.dumps({"seeds": len(seeds), "violations": broken}))
    return 1 if broken or never else 0


def broken_on_purpose(options: argparse.Namespace) -> int:
    """Each mutation in a process of its own, until a rule is broken."""
    found = dict(forked(_mutated, list(MUTATIONS), options, each=1))
    for name, rule in sorted(found.items()):
        print(f"{name}: {rule or 'NOT NOTICED'}", file=sys.stderr)
    print(json.dumps({"mutations": len(found), "noticed": sum(bool(rule) for rule in found.values())}))
    return 0 if all(found.values()) else 1


def forked(work: Callable[[Any], T], parts: Iterable[Any], options: argparse.Namespace,
           each: int = CHILD_SEEDS) -> Iterator[T]:
    """What comes of every part, in the order in which they end. Processes are forked from this one, and have what it
    imported; each does so many parts."""
    global _folder, _blank
    shm = Path("/dev/shm")
    with tempfile.TemporaryDirectory(prefix="breakeven-sim-", dir=shm if shm.is_dir() else None) as folder:
        _folder = Path(folder)
        _blank = template(_folder)
        prices.known_models("openai")  # what each process would read again
        with multiprocessing.get_context("fork").Pool(options.workers, maxtasksperchild=each) as pool:
            yield from pool.imap_unordered(work, parts)


def _one(part: tuple[int, int]) -> Case:
    folder = _folder / str(os.getpid())
    folder.mkdir(exist_ok=True)
    return simulated(*part, folder, _blank)


def _mutated(name: str) -> tuple[str, str]:
    """(the mutation, the rule that was broken; "" where none was)."""
    MUTATIONS[name]()
    rules = (_one((seed, MUTATION_REQUESTS)).rule for seed in range(MUTATION_SEEDS))
    return name, next(filter(None, rules), "")


def known_seeds() -> list[int]:
    lines = (line.partition("#")[0].strip() for line in SEEDS.read_text().splitlines())
    return [int(line) for line in lines if line]


def told(case: Case, last: int) -> str:
    """What a person needs to see it again."""
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False).stdout
    events = "\n".join(f"    {line[:200]}" for line in case.last[-last:])
    return (f"seed {case.seed} at commit {commit.strip() or 'unknown'} broke {case.broken[:2000]}\n{events}\n"
            f"  again: python -m tests.simulation --seed {case.seed} --requests {case.requests}")


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="make simulate", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=1000, help="how many, beside those in seeds.txt")
    parser.add_argument("--first", type=int, default=0, help="the first of them")
    parser.add_argument("--seed", type=int, help="this one alone")
    parser.add_argument("--requests", type=int, default=1000, help="of each seed")
    parser.add_argument("--workers", type=int, default=os.cpu_count(), help="processes")
    parser.add_argument("--last", type=int, default=12, help="events to print where a rule is broken")
    parser.add_argument("--trace", action="store_true", help="print what each seed's events hash to")
    parser.add_argument("--mutations", action="store_true", help="break the gateway on purpose, to see it noticed")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
