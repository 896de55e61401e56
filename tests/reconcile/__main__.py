"""The real gateway against the simulated API; the API's own export reconciled with our ledger; then every kind of
discrepancy planted into it, alone and all together, through `breakeven reconcile`.

    python -m tests.reconcile [--requests 400] [--seed 7]

Exit 1 unless the true export agrees to the nano-dollar, and each plant is named where it is, with its amount, and no
other is.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import datetime as dt
import json
import random
import sys
import tempfile
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any

import aiohttp
import yaml
from rich.console import Console

from proxy.demo import config as demo
from proxy.demo.children import Child, reserved
from tests.reconcile import plant
from tests.reconcile.plant import PLANTS, Exports, Prices

console = Console(stderr=True)
WORDS = "the quick brown fox jumps over a lazy dog while seven wizards mix dark violet potions".split()
COMPANY = "You are a helpful assistant of Example Corp. Answer in one sentence. " * 90
EMBEDDINGS = "text-embedding-3-small"
MODELS = {name: Prices(*map(Decimal, usd)) for name, usd in {  # USD per million tokens: OpenAI's list prices
    "gpt-4o": ("2.50", "1.25", "10.00"), "gpt-4o-mini": ("0.15", "0.075", "0.60"), "gpt-4.1": ("2.00", "0.50", "8.00"),
    "gpt-4.1-mini": ("0.40", "0.10", "1.60"), "gpt-4.1-nano": ("0.10", "0.025", "0.40"),
    "o4-mini": ("1.10", "0.275", "4.40")}.items()}
USD_PER_HOUR, DAYS = Decimal("1.39"), 2  # whole days that the GPU was paid before today
GPU = "llama"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=400)
    parser.add_argument("--seed", type=int, default=7)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        figures = asyncio.run(run(Path(folder), options.requests, options.seed))
    print(json.dumps(figures))
    sys.exit(0 if figures["planted"] == figures["named"] and not figures["difference_nano_usd"] else 1)


@dataclass(slots=True)
class Place:
    """Where everything runs."""

    folder: Path
    gateway: str
    api: str
    config: Path
    session: aiohttp.ClientSession


async def run(folder: Path, requests: int, seed: int) -> dict[str, Any]:
    async with world(folder, seed) as place:
        await traffic(place, requests, random.Random(seed))
        true = await exports(place)
    difference = 0
    for files in (write(place, true, "true"), gpu_file(place, true, "true")):
        code, found = await reconcile(place, files)
        difference += sum(abs(nano(row["difference"])) for row in found["rows"]) + (code != 0)
        console.print(f"true bill: exit {code}, ours {found['ours']}, theirs {found['theirs']}")
    cached = [model for model in MODELS if true.of(model)["input_cached_tokens"] > 256]
    where = plant.places(MODELS, cached)
    alone = {name: await named(place, true, [name], where) for name in where}
    together = await named(place, true, list(where), where)
    return {"requests": requests, "difference_nano_usd": difference, "planted": len(PLANTS),
            "named": sum(bool(alone[name]) and name in together for name in where)}


@contextlib.asynccontextmanager
async def world(folder: Path, seed: int) -> AsyncIterator[Place]:
    """A simulated API, an engine whose hours are paid, and a gateway that sends everything to the API."""
    profile = {**demo.API_PROFILE, "ttft_ms": 5.0, "tpot_ms": 0.2, "seed": seed, "models": {
        **{name: {"input": str(one.input), "cached_input": str(one.cached), "output": str(one.output)}
           for name, one in MODELS.items()}, EMBEDDINGS: demo.API_PROFILE["models"][EMBEDDINGS]}}
    today = dt.datetime.now(dt.UTC).date()
    async with contextlib.AsyncExitStack() as stack:
        with reserved([0, 0, 0]) as ports:
            urls = [f"http://127.0.0.1:{port}" for port in ports]
            settings = {
                "ledger": f"sqlite:///{folder}/ledger.db",
                "backends": {
                    GPU: {"kind": "vllm", "url": urls[0], "model": demo.ENGINE_PROFILE["model"], "gpu": {
                        "type": "A100-80GB", "usd_per_hour": str(USD_PER_HOUR),
                        "from": (today - dt.timedelta(days=DAYS)).isoformat()}},
                    "openai": {"kind": "openai", "url": urls[1], "model": "*", "provider": "openai"}},
                "routes": {"*": {"backends": [GPU, "openai"], "baseline": "openai", "policy": "api-only"}},
                "keys": {"required": False}}
            path = folder / "gateway.yaml"
            path.write_text(yaml.safe_dump(settings, sort_keys=False))
            for name, module, arguments in (
                    ("engine", "proxy.demo.engine", demo.engine_arguments(ports[0], seed)),
                    ("API", "proxy.demo.api", ["--port", str(ports[1]), "--profile", json.dumps(profile)]),
                    ("gateway", "proxy.cli", ["serve", "--config", str(path), "--port", str(ports[2])])):
                child = await Child.start(name, module, arguments, None)
                stack.push_async_callback(child.stop, patience_s=8.0)
                await child.url()
        session = await stack.enter_async_context(aiohttp.ClientSession())
        yield Place(folder, urls[2], urls[1], path, session)


async def traffic(place: Place, requests: int, pick: random.Random) -> None:
    """Chats and embeddings, streamed and whole, with a long beginning that the API's prompt cache finds again; some
    clients leave in the middle of a stream."""
    waiting = asyncio.Semaphore(16)

    async def one(number: int) -> None:
        model = list(MODELS)[number % len(MODELS)]
        text = " ".join(pick.choices(WORDS, k=pick.randint(5, 200)))
        body: dict[str, Any] = {
            "model": model, "max_tokens": pick.randint(1, 60), "stream": number % 3 == 0, "messages": [
                {"role": "system", "content": COMPANY if number % 2 else "Be brief."},
                {"role": "user", "content": text}]}
        path = "/v1/chat/completions"
        if number % 11 == 5:
            path, body = "/v1/embeddings", {"model": EMBEDDINGS, "input": [text]}
        async with waiting, place.session.post(place.gateway + path, json=body) as answer:
            assert answer.status == 200, await answer.text()
            if number % 15 == 3 and body.get("stream"):
                await answer.content.readany()  # and goes
            else:
                await answer.read()

    await asyncio.gather(*(one(number) for number in range(requests)))


async def exports(place: Place) -> Exports:
    """What the API's organisation can export, and what a cloud would bill for the GPU."""
    start = int(dt.datetime.combine(dt.datetime.now(dt.UTC).date(), dt.time(), dt.UTC).timestamp()) - DAYS * 86_400

    async def page(path: str, **group: Any) -> dict[str, Any]:
        async with place.session.get(f"{place.api}/v1/organization/{path}", params=[
                ("start_time", str(start)), ("limit", "31"), *(("group_by", name) for name in group["by"])]) as answer:
            assert answer.status == 200, await answer.text()
            return await answer.json()

    by = ("model", "project_id", "service_tier", "batch")
    usage = await page("usage/completions", by=by)
    embeddings = await page("usage/embeddings", by=by[:2])
    for bucket, more in zip(usage["data"], embeddings["data"], strict=True):
        bucket["results"] += more["results"]
    costs = await page("costs", by=("line_item", "project_id"))
    days = [dt.datetime.fromtimestamp(start + day * 86_400, dt.UTC).date().isoformat() for day in range(DAYS)]
    return Exports(usage, costs, [(day, GPU, Decimal(24), USD_PER_HOUR, 24 * USD_PER_HOUR) for day in days])


def write(place: Place, bill: Exports, name: str) -> list[str]:
    files = []
    for kind, page in (("usage", bill.usage), ("costs", bill.costs)):
        file = place.folder / f"{name}-{kind}.json"
        file.write_text(json.dumps(page, indent=1))
        files.append(str(file))
    return files


def gpu_file(place: Place, bill: Exports, name: str) -> list[str]:
    file = place.folder / f"{name}-gpu.csv"
    file.write_text(bill.gpu_csv())
    return [str(file)]


async def reconcile(place: Place, files: list[str]) -> tuple[int, dict[str, Any]]:
    """`breakeven reconcile FILES --format json`: its exit code and what it says."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "proxy.cli", "reconcile", *files, "--config", str(place.config), "--format", "json",
        "--who", "test", stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE)
    out, error = await process.communicate()
    if process.returncode not in (0, 1) or not out:
        raise AssertionError(error.decode())
    return process.returncode, json.loads(out)


def nano(usd: str) -> int:
    return int(Decimal(usd).scaleb(9))


async def named(place: Place, true: Exports, plants: list[str], where: dict[str, str]) -> set[str]:
    """Which of the plants were found where they are, by their amounts; none if anything else was found too."""
    bill, expected = true.copy(), {}
    for one in PLANTS:
        if one.__name__ in plants:
            before, model = bill.total, where[one.__name__]
            one(bill, model, MODELS.get(model, next(iter(MODELS.values()))))
            expected[one.__name__, model or GPU] = round((bill.total - before) * 10**9)
    found: Counter[tuple[str, str]] = Counter()
    label = "-".join(plants)[:40]
    _, api = await reconcile(place, write(place, bill, label))
    _, gpu = await reconcile(place, gpu_file(place, bill, label))
    for row in (*api["rows"], *gpu["rows"]):
        for cause in row["causes"]:
            found[cause["cause"], row["model"]] += nano(cause["usd"])
    right = {name for (name, model), amount in expected.items() if amount and found[name, model] == amount}
    extra = {key: amount for key, amount in found.items() if key not in expected}
    good = right == set(plants) and not extra
    console.print(f"{', '.join(plants)}: {'named' if good else f'{found}, not {expected}'}")
    return set() if extra else right


if __name__ == "__main__":
    main()
