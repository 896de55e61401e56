"""Secrets are planted wherever one may stand, and looked for wherever one may end up: none is found.

A real gateway process, its standard error read to the end; an upstream that quotes all it was sent, in its errors, its
headers, its streams and its metrics; callers who put their keys where they do not belong.
"""

import asyncio
import base64
import contextlib
import json
import os
import random
import sqlite3
import sys
from pathlib import Path

import aiohttp
import pytest
import yaml
from typer.testing import CliRunner

from proxy.cli import app
from proxy.demo.serving import serve
from proxy.ledger.keys import KeyStore
from tests.support.patience import PATIENCE_S
from tests.support.world import GPU, configuration

ROOT = Path(__file__).resolve().parents[2]


def word(name, shape="{}"):
    """A secret that is found nowhere by chance, and in no dictionary: letters alone, so that no pattern knows it."""
    chance = random.Random(name)
    return shape.format("".join(chance.choices("bcdfghjklmnpqrstvwxz", k=24)))


# What must be found nowhere but with its owner.
PROVIDER = {"provider key, by env": word("env", "sk-{}"), "provider key, by file": word("file"),
            "engine key, by env": word("engine")}
CALLERS = {name: word(name) for name in (
    "prompt", "system prompt", "prompt of a stream", "prompt of an embedding", "tool definition", "image", "user",
    "metadata", "answer", "wrong key", "key in the query", "key in a cookie", "key under Basic", "key in a body",
    "key in a header of another name", "key as a user of a URL", "key in a path", "idempotency key", "user agent",
    "refused field")}
UPSTREAMS = {name: word(name) for name in (
    "password in an error", "host in an error", "token in an error", "set-cookie", "key in its metrics")}
# How the upstream answers, by the request's `seed`; what ends in its being left alone comes last.
MODES = (400, 403, 404, 413, 422, None, 3, None, 2, None, 1, None, 500, None, 429, None, 503, None, 401)


class Gossip:
    """An upstream that repeats what it hears: an engine and an API in one. `mode` says how it answers."""

    def __init__(self):
        self.keys = set()

    async def __call__(self, scope, receive, send):
        body = b""
        while True:
            message = await receive()
            body += message.get("body", b"")
            if not message.get("more_body"):
                break
        heard = dict(scope["headers"])
        key = heard.get(b"authorization", b"").decode().removeprefix("Bearer ")
        self.keys.add(key)
        status, kind, answer = self._answer(scope["path"], key, json.loads(body) if body else {})
        await send({"type": "http.response.start", "status": status, "headers": [
            (b"content-type", kind), (b"set-cookie", UPSTREAMS["set-cookie"].encode()),
            (b"x-request-id", b"id\xff" + key.encode()),
            (b"openai-organization", key.encode()), (b"x-ratelimit-limit-requests", key.encode()),
            (b"openai-processing-ms", key.encode()), (b"www-authenticate", f"Bearer {key}".encode()),
            (b"server", UPSTREAMS["host in an error"].encode())]})
        await send({"type": "http.response.body", "body": answer})

    def _answer(self, path, key, asked):
        if path == "/metrics":
            own = UPSTREAMS["key in its metrics"]
            page = f'vllm:num_requests_running{{model_name="{own}"}} 1\n# {key}\nvllm:{own} 1\n'
            return 200, b"text/plain", page.encode()
        mode = str(asked.get("seed", ""))
        told = (f"Incorrect API key provided: {key}. Authorization: Bearer {key}; api_key='{key}' at "
                f"http://root:{UPSTREAMS['password in an error']}@{UPSTREAMS['host in an error']}.internal:8000/v1 "
                f"token: {UPSTREAMS['token in an error']}x{'0' * 40} you said {json.dumps(asked)[:200]}")
        if mode.startswith("4") or mode.startswith("5"):
            return int(mode), b"application/json", json.dumps({"error": {
                "message": told, "type": key, "param": key, "code": key}}).encode()
        if mode == "1":
            return 200, b"application/json", json.dumps({"error": {"message": told, "code": key}}).encode()
        if mode == "2":
            return 200, b"text/html", f"<html>{told}</html>".encode()
        chunk = {"id": "x", "object": "chat.completion.chunk", "created": 1, "model": "m", "choices": [
            {"index": 0, "delta": {"content": CALLERS["answer"]}, "finish_reason": None}]}
        if mode == "3":
            return 200, b"text/event-stream", (f"data: {json.dumps(chunk)}\n\ndata: " + json.dumps({"error": {
                "message": told, "code": key}}) + "\n\n").encode()
        if asked.get("stream"):
            return 200, b"text/event-stream", f"data: {json.dumps(chunk)}\n\ndata: [DONE]\n\n".encode()
        usage = {"prompt_tokens": 5, "completion_tokens": 1, "total_tokens": 6}
        if "input" in asked:
            return 200, b"application/json", json.dumps({"object": "list", "model": "m", "data": [
                {"object": "embedding", "index": 0, "embedding": [0.1]}], "usage": usage}).encode()
        choice = {"index": 0, "message": {"role": "assistant", "content": CALLERS["answer"]}, "finish_reason": "stop"}
        return 200, b"application/json", json.dumps({**chunk, "object": "chat.completion", "usage": usage,
                                                     "choices": [choice]}).encode()


def asked(route, seed=None, **more):
    return {"model": route, "messages": [
        {"role": "system", "content": CALLERS["system prompt"]}, {"role": "user", "content": CALLERS["prompt"]}],
        "tools": [{"type": "function", "function": {"name": "f", "description": CALLERS["tool definition"],
                                                    "parameters": {"type": "object"}}}],
        "user": CALLERS["user"], "metadata": {"m": CALLERS["metadata"]}, "max_tokens": 4,
        **({} if seed is None else {"seed": seed}), **more}


def requests(key):
    """(method, path, body, headers) of everything that is sent; keys where they do not belong among them."""
    good = {"authorization": f"Bearer {key}", "user-agent": CALLERS["user agent"]}
    data = "data:image/png;base64," + base64.b64encode(CALLERS["image"].encode()).decode()
    picture = [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": data}}]}]
    for route in ("by-env", "by-file", "by-engine"):
        for seed in MODES:
            yield "POST", "/v1/chat/completions", asked(route, seed), good
            yield "POST", "/v1/chat/completions", asked(route, seed, stream=True, messages=[
                {"role": "user", "content": CALLERS["prompt of a stream"]}]), good
        yield "POST", "/v1/embeddings", {"model": route, "input": CALLERS["prompt of an embedding"]}, good
        yield "POST", "/v1/chat/completions", asked(route, messages=picture), good
    once = {**good, "idempotency-key": CALLERS["idempotency key"]}
    for route in ("by-env", "by-file"):  # and the second time with another body
        yield "POST", "/v1/chat/completions", asked(route), once
    yield "POST", "/v1/chat/completions", asked("by-env", api_key=CALLERS["key in a body"]), good
    yield "POST", "/v1/chat/completions", asked("by-env", temperature=f"{CALLERS['refused field']}", n="x"), good
    yield "POST", "/v1/chat/completions", f'{{"model": "{CALLERS["refused field"]}'.encode(), good
    for headers, path in (({"authorization": f"Bearer {CALLERS['wrong key']}"}, ""),
                          ({"x-api-key": CALLERS["wrong key"]}, ""),
                          ({"authorization": f"Basic {CALLERS['key under Basic']}"}, ""),
                          ({"cookie": f"key={CALLERS['key in a cookie']}"}, ""),
                          ({"x-goog-api-key": CALLERS["key in a header of another name"]}, ""),
                          ({"host": f"root:{CALLERS['key as a user of a URL']}@x"}, ""),
                          ({}, f"?key={CALLERS['key in the query']}"), ({}, f"/{CALLERS['key in a path']}")):
        for method, route, body in (("POST", "/v1/chat/completions", asked("by-env")), ("GET", "/admin/status", None),
                                    ("GET", "/metrics", None), ("POST", "/admin/switch", {"to": "auto"})):
            yield method, route + path, body, headers


def configured(tmp_path, gossip):
    secret = tmp_path / "secret"
    secret.write_text(PROVIDER["provider key, by file"])
    tree = configuration(f"sqlite:///{tmp_path}/ledger.db", [], gossip, keys={"required": True})
    api = {**tree["backends"]["api"], "forward_headers": ["traceparent"]}
    tree["backends"] = {
        "env": {**api, "api_key": "env:CANARY_KEY"}, "file": {**api, "api_key": f"file:{secret}"},
        "engine": {"kind": "vllm", "url": gossip, "model": "m", "api_key": "env:CANARY_ENGINE", "gpu": GPU,
                   "scrape_s": 0.2, "capabilities": ["chat", "embeddings", "tools", "images"]}}
    tree["routes"] = {"by-env": {"backends": ["env"], "baseline": "env"},
                      "by-file": {"backends": ["file"], "baseline": "env"},
                      "by-engine": {"backends": ["engine"], "baseline": "env", "policy": "self-hosted-only"}}
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(tree))
    return path


@contextlib.asynccontextmanager
async def gateway(config, environment):
    """(URL, process) of a real gateway; its standard error is read when it has ended."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "proxy.cli", "serve", "--config", str(config), "--port", "0", cwd=ROOT,
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE, env={**os.environ, **environment})
    try:
        line = (await asyncio.wait_for(process.stdout.readline(), PATIENCE_S)).decode()
        yield line.split()[4], process
    finally:
        if process.returncode is None:
            process.kill()
            await process.communicate()


def looks_of(secret):
    """A secret as it may be written: itself, in hex, in base64 at each alignment, backwards."""
    raw = secret.encode()
    yield from (raw, raw.hex().encode(), raw[::-1])
    for shift in range(3):
        yield base64.b64encode(b"\0" * shift + raw)[4:-4]


def found(secrets, places):
    return sorted({f"{name} in {place}" for name, secret in secrets.items() for place, text in places.items()
                   for look in looks_of(secret) if look in text})


async def test_no_secret_is_found_anywhere(tmp_path, monkeypatch):
    environment = {"CANARY_KEY": PROVIDER["provider key, by env"], "CANARY_ENGINE": PROVIDER["engine key, by env"]}
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    gossip = Gossip()
    async with serve(gossip) as url:
        config = configured(tmp_path, url)
        ledger = f"sqlite:///{tmp_path}/ledger.db"
        store = KeyStore(ledger)
        made = {f"key of {role}": store.create(role, role=role)[1] for role in ("application", "reader", "admin")}
        gone, made["revoked key"] = store.create("gone")
        store.revoke(gone)
        errors, heads, operations = {}, {}, {}
        async with gateway(config, environment) as (where, process), aiohttp.ClientSession() as session:
            number = 0
            for key in (made["key of application"], made["revoked key"]):
                for method, path, body, headers in requests(key):
                    number += 1
                    sent = body if isinstance(body, bytes) else None if body is None else json.dumps(body).encode()
                    async with session.request(method, where + path, data=sent, headers={
                            "content-type": "application/json", **headers}) as answer:
                        text = await answer.read()
                        heads[f"head {number}"] = repr(answer.raw_headers).encode()
                        if answer.status >= 400 or b'"error"' in text:
                            seed = body.get("seed") if isinstance(body, dict) else None
                            errors[f"error {number} ({answer.status} after {seed})"] = text
            for path in ("/metrics", "/admin/status", "/admin/decisions?limit=500",
                         "/admin/explain?model=by-engine&prompt_tokens=5&output_tokens=5", "/v1/models", "/readyz"):
                async with session.get(where + path, headers={"x-api-key": made["key of admin"]}) as answer:
                    assert answer.status == 200, path
                    operations[path] = await answer.read()
            monkeypatch.setenv("BREAKEVEN_ADMIN_KEY", made["key of admin"])
            shown = await asyncio.to_thread(CliRunner().invoke, app, ["status", "--url", where, "--json"])
            operations["status --json"] = shown.output.encode()
            books = {path.name: path.read_bytes() for path in tmp_path.glob("ledger.db*")}
            assert any(name.endswith("-wal") for name in books)
            process.terminate()
            out, err = await asyncio.wait_for(process.communicate(), PATIENCE_S)
    assert set(PROVIDER.values()) <= gossip.keys, "each was used"
    books |= {f"{path.name}, closed": path.read_bytes() for path in tmp_path.glob("ledger.db*")}
    reports = {}
    for by in ("route", "backend", "key", "tag", "day", "model"):
        for form in ("table", "json", "csv"):
            done = CliRunner().invoke(app, ["report", "--ledger", ledger, "--by", by, "--format", form])
            assert done.exit_code == 0, done.output
            reports[f"report by {by} as {form}"] = done.output.encode()
    for command in (["keys", "list", "--ledger", ledger, "--json"], ["check", str(config), "--json"],
                    ["check", str(config)]):
        reports[" ".join(command[:2])] = CliRunner().invoke(app, command).output.encode()
    logs = {"standard output": out, "standard error": err}
    everywhere = {**logs, **operations, **books, **reports}
    planted = {**PROVIDER, **CALLERS, **UPSTREAMS, **made}
    with sqlite3.connect(tmp_path / "ledger.db") as connection:
        (rows,) = connection.execute("SELECT count(*) FROM requests").fetchone()
    print(f"{len(planted)} secrets planted, {number} requests, {rows} rows, {len(errors)} errors, "
          f"{sum(map(len, everywhere.values()))} bytes searched")
    assert len(planted) >= 20 and rows > 50 and len(errors) > 50
    assert found(planted, everywhere) == []
    # A caller's own words may come back to him in his upstream's refusal; nobody else's may, nor any key.
    keys = {name: secret for name, secret in planted.items() if "key" in name and name != "key in a path"}
    assert found({**PROVIDER, **UPSTREAMS, **made, **keys}, errors) == []
    assert found(planted, heads) == []
    for line in err.splitlines():
        if line[:1] == b"{":
            assert line.isascii() and json.loads(line)["level"]
        else:
            assert line.startswith(b"warning:"), line


@pytest.mark.parametrize("shape", ["{}", "sk-{}", "{}-{}", "key_{}=="])
def test_the_search_can_find(shape):
    secret = word("x", shape.replace("{}-{}", "{0}-{0}"))
    for look in looks_of(secret):
        assert found({"x": secret}, {"there": b"before " + look + b" after"}) == ["x in there"]
