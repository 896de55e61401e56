"""`breakeven calibrate` against a simulated engine whose speed it is not told, and engines that cannot be measured."""

from __future__ import annotations

import asyncio
import json
import re
import sys
from pathlib import Path

import pytest
import yaml
from aiohttp import web

from proxy.config import load
from proxy.demo.engine import Behaviour, SimulatedEngine
from proxy.demo.engine_profile import EngineProfile
from proxy.demo.serving import serve

# Slow on purpose: what a busy machine adds is then small beside a step.
SLOW = {"model": "sim", "alpha_ms": 10.0, "beta_ms": 1.0, "kappa_ms_per_1k": 0.25, "prefill_tokens_per_s": 8000.0,
        "max_num_seqs": 6, "kv_tokens": 65_536, "max_model_len": 4096}


async def calibrate(*arguments: str, **environment: str) -> tuple[int, str, str]:
    """(exit code, standard output, standard error) of the command, in a process of its own."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "proxy.cli", "calibrate", *arguments, stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE, env={"PATH": "", "LANG": "C.UTF-8", **environment})
    out, error = await process.communicate()
    return process.returncode or 0, out.decode(), error.decode()


async def test_what_nobody_told_it_is_recovered_and_goes_into_a_configuration(tmp_path, monkeypatch):
    file = tmp_path / "capacity.yaml"
    for _ in range(3):  # on a machine that was busy with something else meanwhile one measures again
        async with serve(SimulatedEngine(EngineProfile(**SLOW))) as url:
            code, out, error = await calibrate("--url", url, "--seconds", "10", "--json", "--output", str(file))
        assert code == 0, out + error
        found = json.loads(out)
        if right(found):
            break
    assert right(found), found
    _configured(tmp_path, monkeypatch, file.read_text(), found["capacity"])


def right(found: dict) -> bool:
    measured = found["capacity"]
    alpha, beta, kappa = measured["step_ms"]
    return (measured["prefill_tokens_per_s"] == pytest.approx(1 / (1 / 8000 + 0.010 / 2048), rel=0.25)
            and alpha == pytest.approx(10, rel=0.25) and beta == pytest.approx(1, rel=0.25)
            and kappa == pytest.approx(0.25, abs=0.2)  # of contexts this short it is a hundredth of a step
            and measured["max_running"] == 6 and measured["kv_tokens"] == 65_536
            and found["requests"] < 600 and "wait" in found["stopped"])


def _configured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, block: str, measured: dict) -> None:
    """The block, indented under a backend, is a good configuration with those numbers."""
    monkeypatch.setenv("KEY", "sk-x")
    tree = {"backends": {
        "llama": {"kind": "vllm", "url": "http://10.0.0.5:8000", "model": "sim",
                  "gpu": {"type": "H100", "usd_per_hour": 2.5}, **yaml.safe_load(block)},
        "api": {"kind": "openai", "model": "gpt-4o", "api_key": "env:KEY"}},
        "routes": {"gpt-4o": {"backends": ["llama", "api"], "baseline": "api"}}}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(tree))
    capacity = load(tmp_path / "config.yaml").backends["llama"].capacity
    assert capacity is not None and capacity.max_running == measured["max_running"]
    assert list(capacity.step_ms) == pytest.approx(measured["step_ms"], rel=0.001, abs=1e-5)
    assert capacity.chunk_tokens == 2048


async def test_an_engine_that_refuses_ends_the_ramp_and_the_table_says_so():
    profile = EngineProfile(**{**SLOW, "max_num_seqs": 64, "queue_max": 2})
    async with serve(SimulatedEngine(profile)) as url:
        code, out, error = await calibrate("--url", url, "--seconds", "5", "--model", "sim")
    assert code == 0, out + error
    # Four at once are refused, or more where a busy machine sends them too far apart.
    assert "refused with 503" in out and re.search(r"timed up to \d+ at once", out)
    assert "max_running: 256  # assumed" in out and "±" in out


@pytest.mark.parametrize(("behaviour", "arguments", "says"), [
    ({}, ["--model", "other"], "does not serve other; it serves sim"),
    ({"error_500": True}, [], "answers 500"),
    ({"paused": True}, [], "asleep: wake it"),
    ({}, ["--api-key", "sk-secret-itself"], "never the key itself"),
    ({}, ["--api-key", "env:NOT_THERE"], "NOT_THERE is not set"),
    ({}, ["--backend", "x"], "--config FILE"),
])
async def test_an_engine_that_cannot_be_measured_is_said_to_be(behaviour, arguments, says):
    async with serve(SimulatedEngine(EngineProfile(**SLOW), Behaviour(**behaviour))) as url:
        code, out, error = await calibrate("--url", url, *arguments)
    assert code == 2 and out == "" and says in error and "sk-secret-itself" not in error


async def test_nobody_there_is_said_in_one_line():
    code, _, error = await calibrate("--url", "http://127.0.0.1:9")
    assert code == 2 and "unreachable: Connection refused" in error and "Traceback" not in error


def _stub(frames: int, pause_s: float) -> web.Application:
    """An engine of few words: wants the key `sk-right`, and sends its answer `pause_s` late and all at once."""
    async def answer(request: web.Request) -> web.StreamResponse:
        if request.headers.get("authorization") != "Bearer sk-right":
            return web.json_response({"error": {"message": "who are you?"}}, status=401)
        if request.path == "/v1/models":
            return web.json_response({"data": [{"id": "stub"}]})
        if request.path == "/health":
            return web.Response()
        if request.method != "POST" or not (await request.json()).get("stream"):
            return web.json_response({}, status=200 if request.method == "POST" else 404)
        await asyncio.sleep(pause_s)
        usage = {"prompt_tokens": 40, "completion_tokens": frames}
        events = [{"choices": [{"index": 0, "text": " word"}]}] * frames + [{"choices": [], "usage": usage}]
        body = "".join(f"data: {json.dumps(event)}\n\n" for event in events) + "data: [DONE]\n\n"
        return web.Response(text=body, content_type="text/event-stream")

    app = web.Application()
    app.router.add_route("*", "/{path:.*}", answer)
    return app


@pytest.fixture
async def stub():
    runner = web.AppRunner(_stub(32, 0.05))
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    await runner.cleanup()


async def test_a_key_that_is_refused_is_named_and_not_shown(stub):
    code, _, error = await calibrate("--url", stub, "--api-key", "env:KEY", KEY="sk-wrong")
    assert code == 2 and "refuses the key env:KEY (401)" in error and "sk-wrong" not in error


async def test_answers_that_come_all_at_once_are_not_timed(stub):
    code, _, error = await calibrate("--url", stub, "--api-key", "env:KEY", KEY="sk-right")
    assert code == 2 and "all at once" in error
