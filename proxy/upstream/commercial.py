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
import time
import warnings
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from importlib import metadata
from typing import Any

import orjson

from proxy.core.errors import UpstreamFailed
from proxy.upstream import translation
from proxy.upstream.connections import Connections
from proxy.upstream.heads import USER_AGENT
from proxy.upstream.origin import fixed_origin, fixed_url, joined
from proxy.upstream.translated import StreamAnswer, WholeAnswer, refused
from proxy.upstream.transport import Answer, Opening, Outgoing, Target

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
# What it does when a call has ended, callbacks or not: price it, copy the prompt, queue both. A third of
# its time, and prompts kept in memory.
_HANDLERS = ("success_handler", "failure_handler", "async_success_handler", "async_failure_handler",
             "handle_sync_success_callbacks_for_async_calls")
_SWITCHES = {
    "suppress_debug_info": True, "set_verbose": False, "turn_off_message_logging": True, "telemetry": False,
    "disable_streaming_logging": True, "disable_token_counter": True, "num_retries": 0, "cache": None,
    "drop_params": False, "modify_params": False, "model_fallbacks": None, "api_key": None,
    "enable_anthropic_prompt_caching": False, "redact_messages_in_exceptions": True,
}
# These reach OpenAI's SDK, which takes no client of litellm's; they get ours through its session.
_SDK_PROVIDERS = frozenset(("openai", "azure", "text-completion-openai", "azure_text"))
_NO_KEY = "none"
MODELS_MAX = 256  # whose abilities are remembered


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
    warnings.filterwarnings("ignore", message=".*`ReadOnly` qualifier")  # pydantic, on litellm's types
    import litellm
    from litellm.litellm_core_utils.litellm_logging import Logging
    from litellm.llms.custom_httpx.http_handler import AsyncHTTPHandler

    from proxy.upstream import bridge

    for name, value in _SWITCHES.items():
        setattr(litellm, name, value)
    for name in _CALLBACKS:
        setattr(litellm, name, [])
    for name in _LOGGERS:
        logging.getLogger(name).handlers.clear()
    for name in _HANDLERS:
        setattr(Logging, name, _nothing_later if name.startswith("async_") else _nothing)
    handler = AsyncHTTPHandler(transport=bridge.Transport(), follow_redirects=False)
    litellm.aclient_session = handler.client
    return _Loaded(litellm, handler, bridge.Exchange, bridge.current)


def _nothing(*_args: Any, **_kwargs: Any) -> None: ...


async def _nothing_later(*_args: Any, **_kwargs: Any) -> None: ...


async def warm_up() -> None:
    """Loads litellm in a thread, so that the first commercial call need not wait for it.

    RuntimeError says what to install where it is missing: call this at the start, if a backend needs it.
    """
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

    def begin(self, outgoing: Outgoing) -> Opening:
        return asyncio.ensure_future(self.open(outgoing))

    async def open(self, outgoing: Outgoing) -> Answer:
        loaded = self._loaded or await self._load()
        try:
            document = orjson.loads(outgoing.body)
            call = self._call(loaded, outgoing, document)
        except orjson.JSONDecodeError:
            return WholeAnswer(400, translation.refusal(400, "The body is not JSON."))
        except translation.Untranslatable as exc:
            return WholeAnswer(400, translation.refusal(400, str(exc), exc.param))
        exchange = loaded.exchange(self._target, self._connections, outgoing,
                                   data_only=self._provider == "anthropic")
        token = loaded.current.set(exchange)
        try:
            answer = await call()
            if outgoing.stream:
                return self._stream(exchange, answer, _wants_usage(document))
            return WholeAnswer(200, _whole(outgoing, document, answer), exchange.headers())
        except Exception as exc:  # litellm raises a hundred kinds, some of them bare
            return refused(self._target, exchange, exc)
        finally:
            loaded.current.reset(token)
            if not isinstance(exchange.owner, StreamAnswer):
                exchange.abort()

    async def get(self, path: str, timeout_s: float, bytes_max: int) -> tuple[int, bytes]:
        if not self._target.url:
            raise UpstreamFailed(f"{self._target.name}: has no address of its own to ask")
        headers = {"accept-encoding": "identity", "user-agent": USER_AGENT}
        if self._target.api_key is not None:
            key = self._target.api_key.reveal()
            headers |= ({"x-api-key": key, "anthropic-version": "2023-06-01"} if self._provider == "anthropic"
                        else {"authorization": f"Bearer {key}"})
        origin, prefix = fixed_origin(self._target)
        return await self._connections.get(origin, joined(self._target, prefix, path), headers, timeout_s, bytes_max)

    async def close(self) -> None:
        await self._connections.close()

    async def _load(self) -> _Loaded:
        try:
            await warm_up()
        except RuntimeError as exc:
            raise UpstreamFailed(f"{self._target.name}: {exc}") from None
        self._loaded = load()
        return self._loaded

    def _call(self, loaded: _Loaded, outgoing: Outgoing, document: Any) -> Callable[[], Awaitable[Any]]:
        """The call to make, its arguments checked."""
        if not isinstance(document, dict):
            raise translation.Untranslatable("The body must be a JSON object.")
        model = self._model if self._model != "*" else document.get("model")
        if not isinstance(model, str):
            raise translation.Untranslatable("'model' must be a string.", "model")
        common = {"model": model, "custom_llm_provider": self._provider, "max_retries": 0, "num_retries": 0,
                  "timeout": self._target.head_s(outgoing.stream) + self._target.idle_s}
        if self._target.url:
            # A key is always given: without one litellm would look for another in the environment.
            common["api_base"] = self._api_base()
            common["api_key"] = _NO_KEY
        if self._target.api_key is not None:
            common["api_key"] = self._target.api_key.reveal()
        if self._provider not in _SDK_PROVIDERS:
            common["client"] = loaded.handler
        if outgoing.path == _EMBEDDINGS:
            return functools.partial(loaded.litellm.aembedding,
                                     **translation.embedding_arguments(document), **common)
        if outgoing.path != _CHAT:
            raise translation.Untranslatable(f"This model's provider does not offer {outgoing.path}.")
        arguments = translation.chat_arguments(document, self._supported_by(loaded, model))
        if outgoing.stream:
            arguments |= {"stream": True, "stream_options": {"include_usage": True}}
        # Tools would otherwise be offered to litellm's own MCP gateway, and import it.
        return functools.partial(loaded.litellm.acompletion, **arguments, **common, _skip_mcp_handler=True)

    def _api_base(self) -> str:
        """The address as litellm wants it: OpenAI's with its /v1, others as they were given."""
        if self._provider in ("openai", "text-completion-openai"):
            return fixed_url(self._target) + "/v1"
        return fixed_url(self._target) if self._provider == "anthropic" else self._target.url.rstrip("/")

    def _stream(self, exchange: Any, stream: Any, with_usage: bool) -> StreamAnswer:
        head = translation.stream_head(stream.model, int(time.time()))
        if self._provider == "anthropic":
            return StreamAnswer(self._target, exchange, aiter(stream.completion_stream), head, with_usage)
        return StreamAnswer(self._target, exchange, aiter(stream), head, with_usage, stopped=lambda: (
            stream.received_finish_reason is not None or stream.intermittent_finish_reason is not None))

    def _supported_by(self, loaded: _Loaded, model: str) -> frozenset[str]:
        supported = self._supported.get(model)
        if supported is None:
            supported = frozenset(loaded.litellm.get_supported_openai_params(model, self._provider) or ())
            if len(self._supported) < MODELS_MAX:
                self._supported[model] = supported
        return supported


def _wants_usage(document: Mapping[str, Any]) -> bool:
    options = document.get("stream_options")
    return isinstance(options, dict) and options.get("include_usage") is True


def _whole(outgoing: Outgoing, document: Mapping[str, Any], answer: Any) -> bytes:
    if outgoing.path == _EMBEDDINGS:
        return translation.embeddings(answer, document.get("encoding_format"))
    return translation.completion(answer)
