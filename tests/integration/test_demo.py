"""`breakeven demo` and `breakeven status`: real processes, real HTTP, nothing left behind."""

import asyncio
import datetime as dt
import io
import itertools
import json
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import time
from decimal import Decimal
from pathlib import Path

import aiohttp
import pytest
from rich.console import Console

from proxy.demo.children import Child, ChildDied, first_death
from proxy.demo.live import View, is_status
from proxy.demo.run import DemoOptions, running
from proxy.demo.traffic import schedule
from tests.support.patience import PATIENCE_S

CANARY = "sk-canary-3f9a77"
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="looks for processes in /proc")


def demo(*arguments: str, **environment: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "proxy.cli", "demo", *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        text=True, env={**os.environ, **environment})


def command(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "proxy.cli", *arguments], capture_output=True, text=True,
                          timeout=PATIENCE_S, env={**os.environ, **environment}, check=False)


def children_of(parent: int) -> list[int]:
    """Processes that some demo with this process id started, alive or not waited for."""
    found = []
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            try:
                with open(f"/proc/{entry}/cmdline", "rb") as stream:
                    words = stream.read().split(b"\0")
            except OSError:
                continue
            if b"proxy.demo.child" in words and str(parent).encode() in words:
                found.append(int(entry))
    return found


def no_children_of(parent: int) -> bool:
    deadline = time.monotonic() + PATIENCE_S
    while children_of(parent):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


def read_until(process: subprocess.Popen[str], words: str) -> list[str]:
    lines = []
    for line in process.stdout:
        lines.append(line)
        if words in line:
            return lines
    raise AssertionError(f"{words!r} was never printed: {lines} {process.stderr.read()}")


def holds(report: dict) -> None:
    money = {name: Decimal(report[name]) for name in (
        "baseline", "api", "gpu", "gpu_serving", "gpu_failed", "gpu_foreign", "gpu_startup", "gpu_idle", "energy",
        "overhead", "actual", "savings")}
    assert money["gpu"] == sum(money[f"gpu_{part}"] for part in ("serving", "failed", "foreign", "startup", "idle"))
    assert money["actual"] == money["api"] + money["gpu"] + money["energy"] + money["overhead"]
    assert money["savings"] == money["baseline"] - money["actual"]


def test_six_seconds_end_in_one_json_object_that_adds_up_and_no_process_is_left():
    process = demo("--seconds", "6", "--seed", "1", "--json", "--port", "0", OPENAI_API_KEY=CANARY)
    out, err = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 0, err
    assert len(out.splitlines()) == 1
    summary = json.loads(out)
    assert summary["base_url"].startswith("http://127.0.0.1:") and summary["base_url"].endswith("/v1")
    assert summary["seed"] == 1 and summary["seconds"] >= 6
    assert summary["requests"] == summary["report"]["requests"] == sum(summary["by_backend"].values()) > 0
    assert set(summary["by_backend"]) == {"llama-8b-a", "llama-8b-b", "openai"}
    holds(summary["report"])
    assert Decimal(summary["report"]["gpu_idle"]) > 0
    assert CANARY not in out + err
    assert no_children_of(process.pid)


def test_ctrl_c_prints_the_report_and_exits_0():
    process = demo("--port", "0")
    lines = read_until(process, "openai:")
    assert any(line.startswith("curl 127.0.0.1:") for line in lines)
    assert "simulated" in "".join(lines) and any(re.match(r"Dashboard.*http://127.0.0.1:\d+/dashboard$", line)
                                                 for line in lines)
    time.sleep(1.5)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 0, err
    assert "Savings" in out and "GPU, idle" in out and "play money" in out
    assert no_children_of(process.pid)


def test_a_second_ctrl_c_ends_it_at_once():
    process = demo("--port", "0")
    read_until(process, "openai:")
    time.sleep(1)
    process.send_signal(signal.SIGINT)
    time.sleep(0.2)
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=PATIENCE_S)
    assert process.returncode in (0, 130)
    assert no_children_of(process.pid)


def test_a_killed_demo_takes_its_processes_along():
    process = demo("--port", "0", "--no-traffic")
    read_until(process, "openai:")
    assert len(children_of(process.pid)) == 4
    process.kill()
    process.communicate(timeout=PATIENCE_S)
    assert no_children_of(process.pid)


def test_a_port_in_use_is_told_and_nothing_is_started():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        process = demo("--port", str(port))
        out, err = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 2
    assert f"port {port} " in err and "--port" in err and "Traceback" not in err
    assert out == ""
    assert no_children_of(process.pid)


def test_the_real_api_needs_a_key_and_says_that_it_costs_money():
    process = demo("--real-api", "--port", "0", OPENAI_API_KEY="")
    out, err = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 2 and "OPENAI_API_KEY" in err
    assert out == ""


async def test_the_key_of_the_environment_is_never_sent(monkeypatch):
    """Even where the processes inherit it: the configuration does not name it, so nothing reads it."""
    monkeypatch.setenv("OPENAI_API_KEY", CANARY)
    seen: list[str] = []

    async def listen(reader, writer):
        seen.append((await reader.readuntil(b"\r\n\r\n")).decode())
        writer.close()

    server = await asyncio.start_server(listen, "127.0.0.1", 0)
    async with server, running(DemoOptions(port=0, traffic=False)) as world:
        text = world.config.read_text()
        assert CANARY not in text and "OPENAI_API_KEY" not in text and "api.openai.com" not in text
        stolen = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        path = world.config.with_name("listening.yaml")
        path.write_text(text.replace(world.api_url, stolen).replace("ledger.db", "listening.db"))
        gateway = await Child.start("a second gateway", "proxy.cli", ["serve", "--config", str(path), "--port", "0"],
                                    None)
        try:
            async with aiohttp.ClientSession() as session:
                body = {"model": "text-embedding-3-small", "input": "x"}
                async with session.post(f"{await gateway.url()}/v1/embeddings", json=body) as answer:
                    assert answer.status >= 400
        finally:
            await gateway.stop(1)
    assert seen and all(CANARY not in head and "authorization" not in head.lower() for head in seen)


async def test_the_world_answers_is_watched_and_can_be_kept(tmp_path):
    async with running(DemoOptions(port=0, traffic=False, keep=tmp_path / "kept")) as world:
        async with aiohttp.ClientSession() as session:
            body = {"model": "gpt-4o", "messages": [{"role": "user", "content": "Hello"}]}
            async with session.post(f"{world.base_url}/chat/completions", json=body) as answer:
                assert answer.status == 200
                assert answer.headers["x-breakeven-backend"] in world.engine_urls
        page = await world.status()
        assert page["requests"] == 1 and {one["health"] for one in page["backends"]} == {"ok"}
        statement = await world.finish()
        assert statement.total.requests == 1
        assert statement.total.savings < 0  # one request does not pay two GPUs
    assert (tmp_path / "kept" / "ledger.db").exists() and (tmp_path / "kept" / "demo.yaml").exists()
    told = command("demo", "--keep", str(tmp_path / "kept"), "--port", "0")
    assert told.returncode == 1 and "earlier demo" in told.stderr


def test_the_command_that_a_kept_demo_ends_with_gives_the_same_report(tmp_path):
    told = command("demo", "--seconds", "3", "--port", "0", "--keep", str(tmp_path / "kept"))
    assert told.returncode == 0, told.stderr
    [line] = [line for line in told.stdout.splitlines() if line.startswith("The same again: ")]
    program, *words = shlex.split(line.removeprefix("The same again: "))
    assert Path(program).name == "breakeven" and "--to" in words
    ended = dt.datetime.fromisoformat(words[words.index("--to") + 1]).timestamp()
    while time.time() < ended:  # it was rounded up to a second, and no report ends later than now
        time.sleep(0.05)
    again = command(*words)
    assert again.returncode == 0, again.stderr
    assert money(again.stdout) == money(told.stdout) and len(money(again.stdout)) >= 4
    while time.time() < ended + 2:  # later its GPUs are given back: they cost no more
        time.sleep(0.05)
    later = command("report", "--config", str(tmp_path / "kept" / "demo.yaml"), *words[words.index("--from"):][:2])
    assert money(later.stdout)[1:] == money(told.stdout)[1:], later.stderr


def money(text):
    """The waterfall of a report, as it stands."""
    return [" ".join(line.split()) for line in text.splitlines()
            if line.startswith(("Savings", "Baseline", "  API", "  GPU"))]


async def test_a_process_that_dies_is_named_with_its_last_lines():
    async with running(DemoOptions(port=0, traffic=False)) as world:
        engine = world.children[0]
        engine.kill()
        error = await first_death(world.children)
    assert isinstance(error, ChildDied)
    assert "llama-8b-a was killed by SIGKILL" in str(error) and "listening on" in str(error)
    assert no_children_of(os.getpid())


async def test_status_shows_a_gateway_once_and_as_json():
    async with running(DemoOptions(port=0, traffic=False)) as world:
        told = await asyncio.to_thread(command, "status", "--url", world.base_url)
        assert told.returncode == 0, told.stderr
        assert "llama-8b-a" in told.stdout and "bid price" in told.stdout and "\x1b" not in told.stdout
        assert re.search(r"requests per second +\d", told.stdout), "a rate, though it is asked for once"
        page = json.loads((await asyncio.to_thread(command, "status", "--json", "--url", world.gateway_url)).stdout)
        assert is_status(page)
        other = await asyncio.to_thread(command, "status", "--url", world.api_url)
        assert other.returncode == 2 and "not as a Breakeven gateway" in other.stderr
        url = world.gateway_url
    gone = command("status", "--url", url)
    assert gone.returncode == 2 and "no gateway answers" in gone.stderr
    assert command("status", "--url", "nowhere").returncode == 2


def test_a_seed_gives_the_same_traffic_and_a_mix_of_it():
    def first(seed: int) -> list:
        return list(itertools.islice(schedule(seed, 10.0), 400))

    shots = first(1)
    assert shots == first(1) != first(2)
    assert {shot.kind for shot in shots} == {"chat", "tools", "extract", "completion", "embedding"}
    assert len({shot.tags for shot in shots}) == 2
    assert any(shot.body.get("stream") for shot in shots) and all(a.at_s < b.at_s for a, b in itertools.pairwise(shots))
    assert 20 < shots[-1].at_s < 60
    assert not any(shot.kind == "completion" for shot in itertools.islice(schedule(1, 10.0, real_api=True), 400))


def page(requests: int = 1000, saved: str = "-0.5", at_s: int = 10) -> dict:
    backend = {"backend": "llama-8b-a", "replica": 0, "health": "ok", "readings": "fresh", "age_s": 0.4, "in_flight": 7,
               "running": 7.0, "waiting": 0, "congested": False, "kv_fraction": 0.3, "utilization": 0.9,
               "max_running": 24}
    return {
        "at_ns": at_s * 10**9, "since_ns": 0, "switch": "auto", "ready": "ready", "in_flight": 9, "waiting": 2,
        "ledger": {"healthy": True}, "requests": requests, "bid_prices": {"gpt-4o": 0.0004}, "ended": {"complete": 990},
        "backends": [backend, {**backend, "backend": "a-backend-with-a-name-that-is-too-long", "age_s": None,
                               "kv_fraction": None, "utilization": None, "readings": "unknown",
                               "health": "unreachable"}],
        "apis": [{"backend": "openai", "health": "ok", "ttft_s": 0.35}], "by_backend": {"llama-8b-a": requests},
        "by_reason": [{"backend": "openai", "reason": f"reason_{n}_\x1b[31m", "requests": n} for n in range(12)],
        "in_time_percent": 99.5, "usd": {"baseline": "1", "api": "0.5", "gpu": "1", "saved": saved}}


@pytest.mark.parametrize("width", [40, 60, 79, 80, 99, 100, 120, 200])
def test_no_line_is_wider_than_the_terminal_and_no_control_character_reaches_it(width):
    view = View("Breakeven demo  http://127.0.0.1:8000/v1")
    view.observe(page())
    view.observe(page(1100, at_s=20))
    out = io.StringIO()
    Console(file=out, width=width, height=24, highlight=False).print(view)
    assert all(len(line) <= width for line in out.getvalue().splitlines())
    assert "\x1b" not in out.getvalue()


def test_a_screen_of_24_lines_holds_everything():
    view = View("Breakeven", fill=True)
    view.observe(page())
    lines = Console(width=80, height=24).render_lines(view)
    text = "\n".join("".join(segment.text for segment in line) for line in lines)
    assert len(lines) <= 24
    assert "more reasons" in text and "lost" in text and "in flight 9" in text
