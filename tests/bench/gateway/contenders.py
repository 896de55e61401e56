"""Who is measured: the backend itself, nginx in front of it, a relay in Python that knows nothing, our gateway with
everything on, and peers from a file.

`--peers FILE` names more, as JSON; `{port}` is where it must listen, `{mock}` where the backend does:

    {"haproxy": {"command": "haproxy -db -f my.cfg", "environment": {"PORT": "{port}", "MOCK": "{mock}"},
                 "headers": ["x-team: a"], "path": "/v1/chat/completions", "model": "mock"}}

All but `command` may be left out.
"""

from __future__ import annotations

import http.client
import json
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from proxy.ledger.keys import KeyLimits, KeyStore
from tests.bench.gateway import machine

MODEL, PATH = "mock", "/v1/chat/completions"
START_S_MAX = 60.0
LOOK_EVERY_S = 0.01
PLENTY = 1_000_000_000  # requests or tokens a minute, USD: limits that are looked at and never reached


@dataclass(frozen=True, slots=True)
class Contender:
    """What is started and how it is talked to. `command` empty: nothing is started."""

    name: str
    port: int
    command: Sequence[str] = ()
    environment: Mapping[str, str] = field(default_factory=dict)
    headers: Sequence[str] = ()
    path: str = PATH
    model: str = MODEL
    key: str = "sk-bench"
    admin_key: str | None = None  # it is our gateway: its metrics can be read
    workers: int = 1

    def ask(self, stream: bool = False) -> bytes | None:
        """One request; the answer's body, or None if it is not there yet. Raises AssertionError for a wrong answer."""
        body: dict[str, Any] = {"model": self.model, "max_tokens": 16,
                                "messages": [{"role": "user", "content": "hello #N3D1000W0#"}]}
        if stream:
            body |= {"stream": True, "stream_options": {"include_usage": True}}
        found = self._call("POST", self.path, json.dumps(body), self.key)
        if found is None or found[0] >= 500:
            return None
        assert found[0] == 200 and b'"usage"' in found[1], f"{self.name}: {found[0]} {found[1][:300]!r}"
        return found[1]

    def get(self, path: str) -> bytes:
        """An operator's page. Raises AssertionError where it is not to be had."""
        found = self._call("GET", path, None, self.admin_key or "")
        assert found is not None and found[0] == 200, f"{self.name}: {path}: {found}"
        return found[1]

    def _call(self, method: str, path: str, body: str | None, key: str) -> tuple[int, bytes] | None:
        headers = dict(line.split(": ", 1) for line in self.headers)
        headers |= {"content-type": "application/json", "authorization": f"Bearer {key}"}
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        try:
            connection.request(method, path, body, headers)
            answer = connection.getresponse()
            return answer.status, answer.read()
        except (OSError, http.client.HTTPException):
            return None
        finally:
            connection.close()


@dataclass(frozen=True, slots=True)
class Started:
    """A contender that answers. Seconds of wall clock and of CPU from its start to its first answer."""

    contender: Contender
    process: subprocess.Popen[bytes] | None
    start_s: float
    start_cpu_s: float

    @property
    def pids(self) -> list[int]:
        return machine.tree(None if self.process is None else self.process.pid)

    def end(self) -> None:
        if self.process is not None:
            machine.end(self.process)


def start(contender: Contender, log: Path) -> Started:
    """Start it and wait for its first answer. Raises RuntimeError with the last of its log."""
    if not contender.command:
        assert contender.ask() is not None
        return Started(contender, None, 0.0, 0.0)
    began = time.monotonic()
    process = machine.spawn(contender.command, machine.cpus(contender.workers)[0], contender.environment, log)
    try:
        while time.monotonic() - began < START_S_MAX and process.poll() is None:
            if contender.ask() is not None:
                return Started(contender, process, time.monotonic() - began, machine.cpu_s(machine.tree(process.pid)))
            time.sleep(LOOK_EVERY_S)
        raise RuntimeError(f"{contender.name} does not answer: {log.read_bytes()[-600:].decode(errors='replace')}")
    except BaseException:
        machine.end(process)
        raise


# ---------------------------------------------------------------- the contenders


def direct(ports: Sequence[int], folder: Path) -> Contender:
    return Contender("direct", ports[0])


def nginx(ports: Sequence[int], folder: Path) -> Contender:
    """A plain reverse proxy: unbuffered, keep-alive both ways."""
    (port,) = machine.free_ports(1)
    text = (machine.HERE / "nginx.conf").read_text()
    for name, value in (("LISTEN", str(port)), ("BACKEND", str(ports[0])), ("FOLDER", str(folder))):
        text = text.replace(f"@{name}@", value)
    (folder / "nginx.conf").write_text(text)
    return Contender("nginx", port, (machine.tool("nginx", "nginx-light"), "-p", str(folder), "-c",
                                     str(folder / "nginx.conf")))


def bare(ports: Sequence[int], folder: Path) -> Contender:
    """A relay in Python that knows nothing."""
    (port,) = machine.free_ports(1)
    return Contender("bare", port, (sys.executable, "-m", "tests.bench.gateway.bare", str(port), str(ports[0])))


def ours(ports: Sequence[int], folder: Path, more: Mapping[str, Any] | None = None, *,
         compiled: bool = False) -> Contender:
    """`breakeven serve` with everything on, and a new ledger on this disk. `compiled`: as `make compiled` made it."""
    ledger = folder / "ledger.db"
    asked = settings(ports, ledger) | dict(more or {})
    (folder / "config.yaml").write_text(yaml.safe_dump(asked, sort_keys=False))
    keys = KeyStore(f"sqlite:///{ledger}")
    _, key = keys.create("load", tags="team=bench", limits=KeyLimits(budget=f"{PLENTY}/month", rpm=PLENTY, tpm=PLENTY))
    _, admin = keys.create("me", role="admin")
    (port,) = machine.free_ports(1)
    return Contender("ours", port, (sys.executable, "-m", "proxy.cli", "serve", "--config", str(folder / "config.yaml"),
                                    "--port", str(port)),
                     machine.compiled() if compiled else {}, key=key, admin_key=admin,
                     workers=asked["server"].get("workers", 1))


def settings(ports: Sequence[int], ledger: Path) -> dict[str, Any]:
    """Two engines of known speed, which the margin prefers, an API that may take what they cannot, and every limit.

    Targets are loose, because the backend's pace is the load's to choose: nobody is to be sent to the API for it.
    """
    engine = {
        "kind": "vllm", "model": MODEL, "context_tokens": 131_072,
        "capabilities": ["chat", "completions", "json_schema", "logprobs", "n", "images"],
        "gpu": {"type": "H100", "usd_per_hour": "2.00", "from": "2026-01-01"},
        "capacity": {"prefill_tokens_per_s": 10_000_000, "step_ms": [1, 0.0001, 0.00001], "kv_tokens": 1_000_000_000,
                     "max_running": 100_000, "chunk_tokens": 1_000_000},
    }
    first, second, api = (f"http://127.0.0.1:{port}" for port in ports)
    return {
        "server": {"drain_s": 1}, "ledger": f"sqlite:///{ledger}", "keys": {"required": True},
        "budgets": [{"tag": "team=bench", "budget": f"{PLENTY}/month"}, {"route": MODEL, "budget": f"{PLENTY}/day"}],
        "api_spend_max": {"max": f"{PLENTY}/hour", "then": "queue"},
        "backends": {"one": {**engine, "url": first}, "two": {**engine, "url": second},
                     "api": {"kind": "openai", "url": api, "provider": "openai", "model": "gpt-4o"}},
        "routes": {MODEL: {"backends": ["one", "two", "api"], "baseline": "api",
                           "slo": {"ttft_ms": 60_000, "tpot_ms": 10_000}}},
    }


def peers(file: Path, ports: Sequence[int]) -> dict[str, Callable[[Sequence[int], Path], Contender]]:
    """Those that a file names."""
    found = json.loads(file.read_text())
    return {name: _peer(name, one) for name, one in found.items()}


def _peer(name: str, given: Mapping[str, Any]) -> Callable[[Sequence[int], Path], Contender]:
    def made(ports: Sequence[int], folder: Path) -> Contender:
        (port,) = machine.free_ports(1)

        def filled(text: str) -> str:
            return text.replace("{port}", str(port)).replace("{mock}", str(ports[0]))

        return Contender(name, port, tuple(shlex.split(filled(given["command"]))),
                         {key: filled(value) for key, value in given.get("environment", {}).items()},
                         tuple(map(filled, given.get("headers", ()))), given.get("path", PATH),
                         given.get("model", MODEL))

    return made
