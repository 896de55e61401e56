"""The factory, and what loading it costs."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from types import SimpleNamespace

import pytest

from proxy.upstream.engine import HttpUpstream
from proxy.upstream.factory import build, provider_and_model

WAITS = SimpleNamespace(connect_s=2.0, first_byte_s=60.0, idle_s=30.0, answer_s=600.0)


def backend(kind, model="m", **waits):
    return SimpleNamespace(name="b", kind=kind, model=model, api_key=None, tls_verify=True,
                           **({"connect_s": None, "first_byte_s": None, "idle_s": None} | waits))


@pytest.mark.parametrize("kind", ["vllm", "sglang", "tgi", "llamacpp", "openai"])
def test_kinds_that_speak_openai_are_reached_over_plain_http(kind):
    assert isinstance(build(backend(kind), "http://127.0.0.1:8000", WAITS), HttpUpstream)


def test_a_backends_own_waits_win_over_the_servers():
    upstream = build(backend("vllm", idle_s=7.0), "http://127.0.0.1:8000", WAITS)
    assert (upstream._target.idle_s, upstream._target.connect_s) == (7.0, 2.0)


@pytest.mark.parametrize("kind", ["anthropic", "litellm"])
def test_the_other_kinds_are_translated_and_litellm_waits_for_the_first_call(kind):
    assert type(build(backend(kind), "", WAITS)).__name__ == "LiteLLMUpstream"


def test_an_unknown_kind_is_refused():
    with pytest.raises(ValueError, match="gopher"):
        build(backend("gopher"), "http://127.0.0.1", WAITS)


@pytest.mark.parametrize(("kind", "model", "expected"), [
    ("anthropic", "claude-x", ("anthropic", "claude-x")),
    ("anthropic", "anthropic/claude-x", ("anthropic", "claude-x")),
    ("litellm", "bedrock/us.anthropic/x", ("bedrock", "us.anthropic/x")), ("litellm", "gpt-4o", ("openai", "gpt-4o"))])
def test_the_provider_is_the_first_part_of_litellms_model_name(kind, model, expected):
    assert provider_and_model(kind, model) == expected


def run(code: str) -> list[str]:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    return done.stdout.split()


def test_neither_the_factory_nor_an_http_upstream_imports_litellm():
    code = """
import sys
from types import SimpleNamespace as N
import proxy.upstream.factory as f
print("aiohttp" in sys.modules, "litellm" in sys.modules)
w = N(connect_s=1.0, first_byte_s=1.0, idle_s=1.0, answer_s=1.0)
b = lambda kind: N(name="b", kind=kind, model="m", api_key=None, tls_verify=True, connect_s=None,
                   first_byte_s=None, idle_s=None)
f.build(b("vllm"), "http://127.0.0.1:1", w)
f.build(b("anthropic"), "http://127.0.0.1:1", w)
print("aiohttp" in sys.modules, "litellm" in sys.modules, "httpx" in sys.modules)
"""
    assert run(code) == ["False", "False", "False", "False", "False"]


@pytest.mark.skipif(importlib.util.find_spec("litellm") is None, reason="the litellm extra is not installed")
def test_loading_litellm_reaches_for_no_network_and_reads_no_dotenv(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / ".env").write_text("FROM_DOTENV=1\n")
    code = """
import os, sys
calls = []
sys.addaudithook(lambda event, args: calls.append(event) if event in
                 ("socket.connect", "socket.getaddrinfo", "socket.gethostbyname") else None)
from proxy.upstream import commercial
litellm = commercial.load().litellm
print(len(calls), "FROM_DOTENV" in os.environ, litellm.telemetry, commercial.load() is commercial.load())
"""
    path = importlib.util.find_spec("proxy").submodule_search_locations[0].removesuffix("/proxy")
    monkeypatch.setenv("PYTHONPATH", path)
    assert run(code) == ["0", "False", "False", "True"]
