"""Calling every backend once, and saying in plain words what is wrong with it.

Each replica is asked for its health, its models and one token. Answers are read up to 64 KiB,
redirects are not followed, and nothing that is printed can hold the key.
"""

from __future__ import annotations

import asyncio
import json
import os
import ssl
from dataclasses import dataclass
from typing import Any

import aiohttp

from proxy.config import Backend, Settings
from proxy.config.problem import Source

ANSWER_BYTES_MAX = 65_536
TOTAL_S = 30.0
AT_ONCE_MAX = 16


@dataclass(frozen=True, slots=True)
class Answer:
    """What came of calling one address of one backend."""

    backend: str
    url: str
    ok: bool
    message: str


class Failed(Exception):
    """Its message is what the operator reads."""


async def call_all(settings: Settings) -> list[Answer]:
    """Every replica of every backend, in the order of the file."""
    turn = asyncio.Semaphore(AT_ONCE_MAX)
    async with aiohttp.ClientSession(trust_env=False, auto_decompress=False) as session:
        calls = [_call(session, settings, backend, url, turn)
                 for backend in settings.backends.values() for url in backend.urls or ("",)]
        return list(await asyncio.gather(*calls))


async def _call(session: aiohttp.ClientSession, settings: Settings, backend: Backend, url: str,
                turn: asyncio.Semaphore) -> Answer:
    if backend.kind == "litellm":
        return Answer(backend.name, url or "-", True, "not called: litellm translates, only a real request tells")
    probe = Probe(session, backend, url, backend.connect_s or settings.server.connect_s)
    async with turn:
        try:
            ok, message = True, await probe.run()
        except Failed as failure:
            ok, message = False, str(failure)
        except aiohttp.ClientSSLError:
            ok, message = False, "TLS failed: certificate not trusted (tls_verify: false only for tests)"
        except aiohttp.ClientConnectorError as error:
            number = error.os_error.errno
            reason = os.strerror(number) if number and number > 0 else error.os_error.strerror or "no such host"
            ok, message = False, f"unreachable: {reason}"
        except TimeoutError:
            ok, message = False, "unreachable or stuck: no answer in time"
        except aiohttp.ClientError as error:
            ok, message = False, f"does not speak HTTP as expected ({type(error).__name__})"
    return Answer(backend.name, url, ok, probe.scrub(message))


class Probe:
    """The calls to one address."""

    def __init__(self, session: aiohttp.ClientSession, backend: Backend, url: str, connect_s: float) -> None:
        self._session, self._backend, self._url = session, backend, url
        self._timeout = aiohttp.ClientTimeout(total=TOTAL_S, sock_connect=connect_s)
        self._ssl: ssl.SSLContext | bool = True if backend.tls_verify else False
        self._scrubber = Source("")
        self._headers = {"accept-encoding": "identity"}
        if backend.api_key is not None:
            key = backend.api_key.reveal()
            self._scrubber.secrets.add(key)
            self._headers |= {"x-api-key": key} if backend.kind == "anthropic" else {"authorization": f"Bearer {key}"}
        if backend.kind == "anthropic":
            self._headers["anthropic-version"] = "2023-06-01"

    def scrub(self, text: str) -> str:
        return self._scrubber.scrub(" ".join(text.split()))[:300]

    async def run(self) -> str:
        """What is good, or Failed with what is not."""
        if self._backend.is_gpu:
            await self._healthy()
        listed = await self._model_listed()
        if self._backend.model == "*":
            return f"answers, {len(listed)} models" if listed else "answers"
        await self._one_token()
        return f"serves {self._backend.model}"

    async def _healthy(self) -> None:
        status, body = await self._ask("GET", "/health")
        if status == 503:
            raise Failed("not ready (503): the model is still loading, or the engine has failed; see its log")
        if status >= 500:
            raise Failed(f"unhealthy: /health answers {status}")
        if self._backend.kind in ("vllm", "sglang"):
            status, body = await self._ask("GET", "/is_sleeping")
            if status == 200 and _json(body).get("is_sleeping") is True:
                raise Failed("asleep: wake it with POST /wake_up")

    async def _model_listed(self) -> list[str]:
        status, body = await self._ask("GET", "/v1/models")
        self._refused(status, body)
        if status >= 500:
            raise Failed(f"/v1/models answers {status}{_said(body)}")
        data = _json(body).get("data")
        names = [str(m["id"]) for m in data if isinstance(m, dict) and "id" in m] if isinstance(data, list) else []
        wanted = self._backend.model
        picky = self._backend.kind in ("vllm", "sglang")  # others serve one model under any name
        if picky and names and wanted != "*" and wanted not in names:
            raise Failed(f"does not serve {wanted}; it serves {', '.join(names[:5])}")
        return names

    async def _one_token(self) -> None:
        path, body = self._request()
        status, answer = await self._ask("POST", path, body)
        if status == 200:
            return
        self._refused(status, answer)
        said = _said(answer)
        if status == 400 and ("max_tokens" in said or "output limit" in said or "max_output_tokens" in said):
            return  # one token is too few for a model that reasons: key and name are good
        if status == 404 or (status == 400 and "model" in said.lower()):
            raise Failed(f"no model {self._backend.model} at {path}{said}")
        if status == 429:
            raise Failed(f"out of quota or over its rate limit (429){said}")
        if status == 503:
            raise Failed(f"overloaded or asleep (503){said}")
        raise Failed(f"{path} answers {status}{said}")

    def _request(self) -> tuple[str, dict[str, Any]]:
        model, can = self._backend.model, self._backend.capabilities
        chat = {"model": model, "messages": [{"role": "user", "content": "Hi"}]}
        if self._backend.kind == "anthropic":
            return "/v1/messages", {**chat, "max_tokens": 1}
        if "embedding" in model or can == {"embeddings"}:
            return "/v1/embeddings", {"model": model, "input": "Hi"}
        if "chat" not in can:
            return "/v1/completions", {"model": model, "prompt": "Hi", "max_tokens": 1}
        new_name = self._backend.provider in ("openai", "azure")  # their newer models refuse max_tokens
        return "/v1/chat/completions", {**chat, "max_completion_tokens" if new_name else "max_tokens": 1}

    def _refused(self, status: int, body: bytes) -> None:
        if status in (401, 403):
            key = self._backend.api_key
            name = key.reference if key else "(none is set: api_key)"
            raise Failed(f"refuses the key {name} ({status}){_said(body)}")
        if 300 <= status < 400:
            raise Failed(f"redirects ({status}), which is never followed: set url to where it leads")

    async def _ask(self, method: str, path: str, body: dict[str, Any] | None = None) -> tuple[int, bytes]:
        async with self._session.request(method, self._url + path, json=body, headers=self._headers, ssl=self._ssl,
                                         allow_redirects=False, timeout=self._timeout) as response:
            return response.status, await response.content.read(ANSWER_BYTES_MAX)


def _json(body: bytes) -> dict[str, Any]:
    try:
        value = json.loads(body)
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}


def _said(body: bytes) -> str:
    """The upstream's own words, where it has some."""
    error = _json(body).get("error") or _json(body).get("message")
    text = error.get("message") if isinstance(error, dict) else error
    return f": {text[:200]}" if isinstance(text, str) and text else ""
