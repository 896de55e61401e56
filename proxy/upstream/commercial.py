"""Providers that do not speak OpenAI's protocol, translated by litellm. Its only importer.

litellm takes seconds to import and tens of megabytes, so it is loaded by the first call or by
`warm_up`; self-hosted traffic never does. Of all it offers we use the translation: retries,
fallbacks, callbacks, caches, prices, image downloads and its network code are off.

`drop_params` stays False. litellm's way of dropping whatever a provider lacks would answer a request
for `logprobs` without them; `translation` decides by name what may be dropped and what is refused.
"""

from __future__ import annotations

import asyncio
import functools
import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import metadata
from typing import Any

import orjson
from yarl import URL

from proxy.core.errors import (UpstreamCut, UpstreamError, UpstreamFailed, UpstreamOverloaded,
                               UpstreamTimeout)
from proxy.upstream import translation
from proxy.upstream.answer import HttpAnswer
from proxy.upstream.connections import USER_AGENT, Connections
from proxy.upstream.engine import fixed_origin
from proxy.upstream.transport import Answer, Outgoing, Target

MALICIOUS = ("1.82.7", "1.82.8")  # PYSEC-2026-2: they send credentials away when imported
_CHAT, _EMBEDDINGS = "/v1/chat/completions", "/v1/embeddings"
_ENVIRONMENT = {
    "LITELLM_LOCAL_MODEL_COST_MAP": "True",  # no download of prices
    "LITELLM_LOCAL_ANTHROPIC_BETA_HEADERS": "True",  # nor of header lists
    "LITELLM_LOCAL_BLOG_POSTS": "True",
    "LITELLM_MODE": "PRODUCTION",  # no .env of the working directory
    "LITELLM_LOG": "CRITICAL",
    "MAX_IMAGE_URL_DOWNLOAD_SIZE_MB": "0",  # a client's URL is never fetched from here
}
_LOGGERS = ("LiteLLM", "LiteLLM Router", "LiteLLM Proxy")
_CALLBACKS = ("input_callback", "success_callback", "failure_callback", "service_callback", "callbacks",
              "_async_input_callback", "_async_success_callback", "_async_failure_callback")
_SWITCHES = {
    "suppress_debug_info": True, "set_verbose": False, "turn_off_message_logging": True, "telemetry": False,
    "disable_streaming_logging": True, "disable_token_counter": True, "num_retries": 0, "cache": None,
    "drop_params": False, "modify_params": False, "model_fallbacks": None, "api_key": None,
    "enable_anthropic_prompt_caching": False, "redact_messages_in_exceptions": True,
}
# These reach OpenAI's SDK, which takes no client of litellm's; they get ours through its session.
_SDK_PROVIDERS = frozenset(("openai", "azure", "text-completion-openai", "azure_text"))
_POOR = ("credit balance is too low",)  # Anthropic's 400 for an unpaid account: not the client's fault
_NO_KEY = "none"


@dataclass(frozen=True, slots=True)
class _Loaded:
    """litellm and what hangs on it."""

    litellm: Any
    handler: Any
    exchange: Any  # the class `bridge.Exchange`
    current: Any


@functools.cache
def load() -> _Loaded:
    """Imports litellm with everything off that calls out, and puts our transport under it."""
    try:
        version = metadata.version("litellm")
    except metadata.PackageNotFoundError:
        raise RuntimeError("backends of kind anthropic and litellm need litellm, which is not installed: "
                           "pip install 'breakeven[litellm]'") from None
    if version in MALICIOUS:
        raise RuntimeError(f"litellm {version} is a malicious release (PYSEC-2026-2); it was not imported. "
                           "Install 1.83 or newer, and replace the credentials of this machine")
    os.environ.update(_ENVIRONMENT)
    for name in _LOGGERS:
        logging.getLogger(name).disabled = True
    logging.getLogger("httpx").setLevel(logging.WARNING)  # its URLs can hold a provider's key
    import litellm
    from litellm.llms.custom_httpx.http_handler import AsyncHTTPHandler

    from proxy.upstream import bridge

    for name, value in _SWITCHES.items():
        setattr(litellm, name, value)
    for name in _CALLBACKS:
        setattr(litellm, name, [])
    for name in _LOGGERS:
        logging.getLogger(name).handlers.clear()
    handler = AsyncHTTPHandler(transport=bridge.Transport(), follow_redirects=False)
    litellm.aclient_session = handler.client
    return _Loaded(litellm, handler, bridge.Exchange, bridge.current)


async def warm_up() -> None:
    """Loads litellm in a thread, so that the first commercial call need not wait for it."""
    await asyncio.to_thread(load)


class LiteLLMUpstream:
    """One provider's model as an OpenAI-compatible upstream. See `transport.Upstream`.

    `model` "*" takes the request's. An empty `target.url` leaves the address to litellm.
    """

    __slots__ = ("_connections", "_loaded", "_model", "_provider", "_supported", "_target")

    def __init__(self, target: Target, provider: str, model: str) -> None:
        if target.url:
            fixed_origin(target)
        self._target = target
        self._provider = provider
        self._model = model
        self._connections = Connections(target)
        self._loaded: _Loaded | None = None
        self._supported: dict[str, frozenset[str]] = {}

    def __repr__(self) -> str:
        return f"LiteLLMUpstream({self._target.name})"

    async def open(self, outgoing: Outgoing) -> Answer:
        if self._loaded is None:
            await warm_up()
            self._loaded = load()
        try:
            document = orjson.loads(outgoing.body)
            call = self._call(outgoing, document)
        except (translation.Untranslatable, orjson.JSONDecodeError, TypeError) as exc:
            param = getattr(exc, "param", None)
            return WholeAnswer(400, translation.refusal(400, str(exc), param), {})
        exchange = self._loaded.exchange(self._target, self._connections, outgoing)
        token = self._loaded.current.set(exchange)
        try:
            answer = await call()
            return self._answer(outgoing, document, exchange, answer)
        except Exception as exc:  # litellm raises a hundred kinds, some of them bare
            exchange.abort()
            return self._refused(exchange, exc)
        except BaseException:
            exchange.abort()
            raise
        finally:
            self._loaded.current.reset(token)

    async def get(self, path: str, timeout_s: float, bytes_max: int) -> tuple[int, bytes]:
        if not self._target.url:
            raise UpstreamFailed(f"{self._target.name}: has no address of its own to ask")
        ends_at = asyncio.get_running_loop().time() + timeout_s
        headers = {"accept-encoding": "identity", "user-agent": USER_AGENT}
        if self._target.api_key is not None:
            key = self._target.api_key.reveal()
            headers |= ({"x-api-key": key, "anthropic-version": "2023-06-01"} if self._provider == "anthropic"
                        else {"authorization": f"Bearer {key}"})
        url = URL(fixed_origin(self._target) + path, encoded=True)
        if not path.startswith("/"):
            raise ValueError(f"{self._target.name}: not a path that may be asked for")
        response = await self._connections.request("GET", url, headers, None, ends_at)
        answer = HttpAnswer(self._target, response, ends_at)
        try:
            async with asyncio.timeout_at(ends_at):
                return answer.status, await answer.read(bytes_max)
        except TimeoutError:
            raise UpstreamTimeout(f"{self._target.name}: no whole answer in time") from None
        finally:
            answer.abort()

    async def close(self) -> None:
        await self._connections.close()
