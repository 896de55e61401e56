"""Fuzz the parsers: each target for so long in a process of its own, from the committed corpus on.

    make fuzz                                            a minute each
    make fuzz ARGS="--seconds 600 --targets stream,request,metrics"
    make fuzz ARGS="--replay .fuzz/findings/stream-crash-..."
    make fuzz ARGS="--keep"                              what was found and adds coverage goes into the corpus

A finding is an input that breaks a promise of its target, crashes, takes more than 50 ms of processor time in one call
of a parser, or 1 GiB of memory. The last line is JSON: the seconds each target ran (the least of them), and findings.
"""

from __future__ import annotations

import argparse
import json
import platform
import re
import shutil
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path

from tests.fuzz.draw import Draw
from tests.fuzz.targets import TARGETS, target, words

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
WORK = ROOT / ".fuzz"
KEPT_BYTES_MAX = 2000  # a longer find is not kept: the corpus is for reading, too
KEPT_MAX = 30  # of each target
LENGTH_MAX = 4000
LONGEST = 1 << 16  # of the corpus, at least
STUCK_S = 30


def main() -> int:
    parser = argparse.ArgumentParser(prog="make fuzz", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=int, default=60, help="for each target (default: 60)")
    parser.add_argument("--targets", default=",".join(TARGETS), help=f"of {','.join(TARGETS)} (default: all)")
    parser.add_argument("--replay", type=Path, metavar="FILE", help="run one input, without atheris")
    parser.add_argument("--as", dest="of", choices=TARGETS, help="the target of --replay, where the name does not say")
    parser.add_argument("--keep", action="store_true", help="minimise what was found into tests/fuzz/corpus")
    wanted = parser.parse_args()
    if unknown := [name for name in wanted.targets.split(",") if name not in TARGETS]:
        parser.error(f"no target {unknown[0]!r}: there are {', '.join(TARGETS)}")
    if wanted.replay is not None:
        return replay(wanted.replay, wanted.of, parser)
    if find_spec("atheris") is None:
        print("make fuzz needs atheris, which exists for Linux and Python 3.11 to 3.14; this is "
              f"{platform.system()} and Python {platform.python_version()}. `make test` replays the corpus anywhere.",
              file=sys.stderr)
        return 2
    if wanted.keep:
        for name in wanted.targets.split(","):
            keep(name)
        return 0
    runs = [fuzz(name, wanted.seconds) for name in wanted.targets.split(",")]
    crashes = sum(crashed for _, crashed in runs)
    print(json.dumps({"seconds": int(min(seconds for seconds, _ in runs)), "crashes": crashes}))
    return 1 if crashes else 0


def fuzz(name: str, seconds: int) -> tuple[float, int]:
    """How long the target ran, and whether something was found; what it was is printed."""
    found, findings = WORK / "corpus" / name, WORK / "findings"
    found.mkdir(parents=True, exist_ok=True)
    findings.mkdir(exist_ok=True)
    began = time.monotonic()
    code, said, stuck = drive(
        name, f"-max_total_time={seconds}", f"-max_len={LENGTH_MAX}", "-rss_limit_mb=1024", "-print_final_stats=1",
        f"-dict={dictionary(name)}", f"-artifact_prefix={findings}/{name}-", str(found), str(HERE / "corpus" / name))
    took = time.monotonic() - began
    inputs = re.search(r"number_of_executed_units: (\d+)", said)
    print(f"{name:8} {took:6.0f} s  {int(inputs[1]) if inputs else 0:9,} inputs  "
          f"{sum(1 for _ in found.iterdir()):5} kept in {found.relative_to(ROOT)}", file=sys.stderr)
    if code == 0:
        return took, 0
    telling = re.compile(r"\s+File|[\w.]*(Error|Hang|Exception)\b|SUMMARY|==\d+==")
    trouble = [line for line in said.splitlines() if telling.match(line)]
    print("\n".join(trouble[-12:] or said.splitlines()[-12:]), file=sys.stderr)
    artifact = re.search(r"Test unit written to (\S+)", said)
    where = Path(artifact[1]) if artifact else findings / f"{name}-stuck"
    if stuck:
        where.write_bytes(stuck)
        print(f"killed: it ran for more than {STUCK_S} s over one input", file=sys.stderr)
    print(f'Replay it: make fuzz ARGS="--replay {where.relative_to(ROOT)}"', file=sys.stderr)
    return took, 1


def dictionary(name: str) -> Path:
    """libFuzzer's file of the words that are worth putting in."""
    path = WORK / f"{name}.dict"
    path.write_text("".join('"' + "".join(f"\\x{byte:02x}" for byte in word) + '"\n' for word in words(name)))
    return path


def keep(name: str) -> None:
    """Into the corpus goes what reaches code that its inputs do not reach, short inputs first."""
    corpus, short = HERE / "corpus" / name, WORK / "short" / name
    shutil.rmtree(short, ignore_errors=True)
    short.mkdir(parents=True)
    for path in (WORK / "corpus" / name).iterdir():
        if path.stat().st_size <= KEPT_BYTES_MAX:
            shutil.copy(path, short)
    before = set(corpus.iterdir())
    code, said, _ = drive(name, "-merge=1", f"-max_len={LENGTH_MAX}", str(corpus), str(short))
    added = sorted(set(corpus.iterdir()) - before, key=lambda path: path.stat().st_size)
    for path in added[KEPT_MAX:]:
        path.unlink()
    print(f"{name:8} {len(added[:KEPT_MAX])} of {len(added)} new inputs kept", file=sys.stderr)
    if code:
        print(said[-2000:], file=sys.stderr)


def drive(name: str, *arguments: str) -> tuple[int, str, bytes]:
    """Exit code and output of the target's process, and the input over which it was killed, if it was."""
    WORK.mkdir(exist_ok=True)
    now, log, command = WORK / f"{name}.now", WORK / f"{name}.log", WORK / f"{name}.sh"
    now.write_bytes(bytes(16 + LONGEST))
    command.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m tests.fuzz.drive {name} "{now}" "$0" "$@"\n')
    command.chmod(0o755)
    with log.open("wb") as output:
        process = subprocess.Popen([command, "-timeout=86400", *arguments], cwd=ROOT, stdout=output,
                                   stderr=subprocess.STDOUT)
        running, since, stuck = b"", time.monotonic(), b""
        while process.poll() is None:
            time.sleep(0.2)
            state = now.read_bytes()
            if state[:8] != running:
                running, since = state[:8], time.monotonic()
            elif time.monotonic() - since > STUCK_S and any(running):
                stuck = state[16:16 + int.from_bytes(state[8:16], "little")]
                process.kill()
                process.wait()
    return process.returncode, log.read_text(errors="replace"), stuck


def replay(path: Path, of: str | None, parser: argparse.ArgumentParser) -> int:
    name = of or next((name for name in TARGETS if name in (path.parent.name, path.name.split("-")[0])), None)
    if name is None:
        parser.error("whose input is it? say --as TARGET")
    try:
        data = path.read_bytes()
    except OSError as error:
        parser.error(f"{path}: {error.strerror}")
    draw = Draw(data)
    print(f"{name}: body of {len(draw.body)} bytes, options {draw.options}, cuts {draw.cuts}\n{draw.body[:2000]!r}")
    began = time.thread_time()
    target(name)(data)
    print(f"its promises hold; {(time.thread_time() - began) * 1000:.1f} ms in all")
    return 0


if __name__ == "__main__":
    sys.exit(main())
