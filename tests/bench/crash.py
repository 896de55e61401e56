"""`make crash`: the gateway is killed again and again under 64 clients, and the books miss nothing.

Two simulated engines, a simulated API and the gateway, each a process of its own; half of the routes' money is under a
budget. At a random moment of each round the gateway gets SIGKILL; the next one takes over its port and its ledger.
Clients keep a list of their own of what they saw the end of, upstreams of what they were asked; both are compared with
the ledger. After every restart, as soon as /readyz is true: no mark of a dead process is left, nothing is held but by
the living, and every sum computed from the rows is the sum that is kept.

    python -m tests.bench.crash [--kills 200] [--clients 64]

The last line is JSON: `missing` of what clients saw the end of or upstreams were asked, `duplicated` rows,
`open_intents` found after a restart; the exit is 1 unless all are 0.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import sqlite3
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import orjson
from rich.console import Console
from rich.progress import Progress

from proxy.demo import config
from proxy.demo.children import Child, reserved
from proxy.ledger import marks
from proxy.ledger.verify import verify
from tests.support.patience import PATIENCE_S

READY_S_MAX = 5.0
ROUND_S = (0.05, 0.4)  # of traffic before a kill, once everybody has come back
ENGINE = {"model": "sim", "alpha_ms": 8.0, "beta_ms": 0.2, "kappa_ms_per_1k": 0.01, "max_num_seqs": 48,
          "prefill_tokens_per_s": 40_000.0, "max_model_len": 4096, "kv_tokens": 131_072}
WORDS = "a budget that holds is a budget that nobody has to watch ".split()


@dataclass(slots=True)
class Found:
    """What came of it."""

    kills: int = 0
    finished: set[str] = field(default_factory=set)
    answers: int = 0
    in_flight: list[int] = field(default_factory=list)  # at the upstreams, at each kill
    ready_s: list[float] = field(default_factory=list)
    open_intents: int = 0
    problems: list[str] = field(default_factory=list)


def settings(urls: dict[str, str], api_url: str, ledger: Path) -> dict[str, Any]:
    """Engines for one route, the API for another, both under a budget that is never reached."""
    found = config.configuration(urls, api_url, ledger, time.time_ns())
    for name in urls:
        found["backends"][name] |= {"model": "sim", "context_tokens": 4096, "capacity": {
            "prefill_tokens_per_s": 30_000, "step_ms": [8.0, 0.2, 0.01], "kv_tokens": 131_072, "max_running": 48},
            "internal_rate": {"input_usd_per_mtok": 1, "output_usd_per_mtok": 2}}
    found["routes"] = {"sim": {"backends": [*urls, config.API], "baseline": config.API},
                       config.LARGE: {"backends": [config.API], "baseline": config.API}}
    found["budgets"] = [{"route": config.LARGE, "budget": "100000/month"}, {"tag": "team=held", "budget": "9999/day"}]
    return found


class Crowd:
    """Clients that ask, and ask again, whatever happens to the gateway."""

    def __init__(self, url: str, clients: int, found: Found) -> None:
        self._url, self._clients, self._found = url, clients, found
        self.stopping = False
        self.go = asyncio.Event()  # cleared while the books are verified, so that they stay short enough for 200 times
        self.go.set()

    async def run(self) -> None:
        await asyncio.gather(*(self._client(number) for number in range(self._clients)))

    async def _client(self, number: int) -> None:
        pick = random.Random(number)
        while not self.stopping:
            async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=1)) as session:
                try:
                    while not self.stopping:
                        await self._ask(session, number, pick)
                except (aiohttp.ClientError, OSError):  # it was killed: the next one takes over
                    await asyncio.sleep(0.02)

    async def _ask(self, session: aiohttp.ClientSession, number: int, pick: random.Random) -> None:
        await self.go.wait()
        body = {"model": "sim" if pick.random() < 0.8 else config.LARGE, "stream": pick.random() < 0.7,
                "max_tokens": pick.randrange(16, 60), "messages": [{"role": "user", "content": " ".join(
                    pick.choices(WORDS, k=pick.randrange(5, 80)))}]}
        headers = {"x-breakeven-tags": "team=held" if number % 2 else "team=free"}
        async with session.post(f"{self._url}/v1/chat/completions", json=body, headers=headers) as answer:
            text = await answer.read()
            if answer.status == 200 and (not body["stream"] or text.rstrip().endswith(b"data: [DONE]")):
                self._found.finished.add(answer.headers["x-request-id"])
                self._found.answers += 1
            elif answer.status != 200:
                await asyncio.sleep(0.05)


async def kill_again_and_again(kills: int, clients: int, folder: Path, seed: int, progress: Progress) -> Found:
    """The whole run. `folder` keeps configuration and ledger."""
    found, pick, ledger = Found(), random.Random(seed), folder / "ledger.db"
    task = progress.add_task("killed", total=kills)
    children: list[Child] = []
    try:
        with reserved([0] * 4) as (first, second, api_port, port):
            urls = {"one": f"http://127.0.0.1:{first}", "two": f"http://127.0.0.1:{second}"}
            config.write(folder / "config.yaml", settings(urls, f"http://127.0.0.1:{api_port}", ledger))
            for name, number in (("one", first), ("two", second)):
                children.append(await Child.start(f"engine {name}", "proxy.demo.engine", [
                    "--port", str(number), "--profile", json.dumps(ENGINE)], None))
            children.append(await Child.start("the API", "proxy.demo.api", config.api_arguments(api_port, 1), None))
            await asyncio.gather(*(child.url() for child in children))
        url = f"http://127.0.0.1:{port}"
        crowd = Crowd(url, clients, found)
        talking = asyncio.create_task(crowd.run())
        for _ in range(kills):
            gateway = await start(folder, port, url, found, ledger, crowd)
            children.append(gateway)
            await busy(found, clients // 2)
            await asyncio.sleep(pick.uniform(*ROUND_S))
            await crowded(url, clients * 3 // 4)
            gateway.kill()
            await gateway.process.wait()
            children.remove(gateway)
            found.kills += 1
            found.in_flight.append(left_open(ledger))
            progress.advance(task)
        gateway = await start(folder, port, url, found, ledger, crowd)
        crowd.stopping = True
        await asyncio.wait_for(talking, 60)
        asked = await asked_of([*urls.values(), f"http://127.0.0.1:{api_port}"])
        await gateway.stop(patience_s=10)
        compare(found, ledger, asked)
        return found
    finally:
        await asyncio.gather(*(child.stop(patience_s=1) for child in children))


async def start(folder: Path, port: int, url: str, found: Found, ledger: Path, crowd: Crowd) -> Child:
    """The next gateway, ready under the crowd; what is left of the one before is looked at in that moment."""
    began = time.monotonic()
    child = await Child.start("the gateway", "proxy.cli", [
        "serve", "--config", str(folder / "config.yaml"), "--port", str(port)], None)
    await child.url()
    async with aiohttp.ClientSession() as session:
        while True:
            async with session.get(f"{url}/readyz") as answer:
                if answer.status == 200:
                    break
            await asyncio.sleep(0.01)
    found.ready_s.append(time.monotonic() - began)
    dead = marks.left_behind(ledger)
    found.open_intents += sum(len(process.intents) for process in dead)
    for process in dead:
        process.close()
    crowd.go.clear()
    found.problems += await looked_at(ledger)
    crowd.go.set()
    return child


async def looked_at(ledger: Path) -> list[str]:
    """What is wrong with the books, by the command that an operator has, and what the dead still hold."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "proxy.cli", "ledger", "verify", "--json", "--ledger", f"sqlite:///{ledger}",
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE)
    said, error = await process.communicate()
    with sqlite3.connect(f"file:{ledger}?mode=ro", uri=True) as connection:
        owners = [row[0] for row in connection.execute("SELECT DISTINCT owner FROM holds")]
    dead = [owner for owner in owners if not marks.is_alive(ledger, owner)]
    wrong = [] if process.returncode == 0 else [(said or error).decode()]
    return wrong + [f"a dead process holds: {owner}" for owner in dead]


async def busy(found: Found, least: int) -> None:
    """Until so many were answered: then everybody has come back."""
    answers, ends = found.answers, time.monotonic() + PATIENCE_S
    while found.answers - answers < least and time.monotonic() < ends:
        await asyncio.sleep(0.02)


async def crowded(url: str, least: int) -> None:
    """Until so many are in the gateway: at some moments most of the crowd has just been answered."""
    ends = time.monotonic() + PATIENCE_S
    async with aiohttp.ClientSession() as session:
        while time.monotonic() < ends:
            async with session.get(f"{url}/admin/status") as answer:
                if (await answer.json())["in_flight"] >= least:
                    return


def left_open(ledger: Path) -> int:
    """Requests that were at an upstream when the gateway died."""
    dead = marks.left_behind(ledger)
    open_ = {(one.request_id, one.attempt) for process in dead for one in process.intents}
    for process in dead:
        process.close()
    with sqlite3.connect(f"file:{ledger}?mode=ro", uri=True) as connection:
        return len(open_ - rows(connection, "request_id, attempt"))


def rows(connection: sqlite3.Connection, columns: str) -> set[tuple[Any, ...]]:
    return set(connection.execute(f"SELECT {columns} FROM requests"))


async def asked_of(urls: list[str]) -> set[str]:
    """Every request id that the upstreams wrote down."""
    asked: set[str] = set()
    async with aiohttp.ClientSession() as session:
        for url in urls:
            async with session.get(f"{url}/sim/requests") as answer:
                asked |= {row["request_id"] for row in orjson.loads(await answer.read())}
    return asked - {""}


def compare(found: Found, ledger: Path, asked: set[str]) -> None:
    found.problems += verify(f"sqlite:///{ledger}")
    with sqlite3.connect(ledger) as connection:
        answered = {row[0] for row in rows(connection, "request_id, final, end_reason")
                    if row[1] and row[2] == "complete"}
        known = {row[0] for row in rows(connection, "request_id")}
        held = connection.execute("SELECT count(*), coalesce(sum(amount_nano), 0) FROM holds").fetchone()
        twice = connection.execute("SELECT count(*) FROM (SELECT request_id FROM requests WHERE final = 1 "
                                   "GROUP BY request_id HAVING count(*) > 1)").fetchone()[0]
    found.problems += [f"finished, and not in the ledger: {name}" for name in found.finished - answered]
    found.problems += [f"asked of an upstream, and not in the ledger: {name}" for name in asked - known]
    found.problems += [f"{twice} requests were booked twice"] * bool(twice)
    found.problems += [f"{held[0]} holds of {held[1]} nano-USD after the end"] * bool(held[0])


def figures(found: Found) -> dict[str, int | float]:
    missing = sum("not in the ledger" in problem for problem in found.problems)
    twice = [int(problem.split()[0]) for problem in found.problems if "booked twice" in problem]
    return {"kills": found.kills, "finished": len(found.finished), "missing": missing, "duplicated": sum(twice),
            "open_intents": found.open_intents, "in_flight_least": min(found.in_flight, default=0),
            "ready_s_max": round(max(found.ready_s, default=0.0), 2),
            "identities_broken": sum("not in the ledger" not in one and "booked twice" not in one
                                     for one in found.problems)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--seed", type=int, default=1)
    given = parser.parse_args()
    console = Console(stderr=True)
    with tempfile.TemporaryDirectory() as folder, Progress(console=console) as progress:
        found = asyncio.run(kill_again_and_again(given.kills, given.clients, Path(folder), given.seed, progress))
    for problem in found.problems[:20]:
        console.print(problem)
    result = figures(found)
    print(json.dumps(result))
    sound = not (found.problems or found.open_intents) and result["ready_s_max"] <= READY_S_MAX
    sys.exit(0 if sound else 1)


if __name__ == "__main__":
    main()
