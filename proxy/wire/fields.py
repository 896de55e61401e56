"""Fields that a request may not carry.

Everything unknown is passed on, so the list is of names, not of what is left: a new sampling
parameter must not need a new gateway. Names are compared in lower case with `-` as `_`, because
upstreams written in Go match them without regard to case.
"""

from __future__ import annotations

from typing import Any

from proxy.core.errors import ForbiddenField

FIELD_NAMES_SHOWN = 64

# They choose where a request goes, with whose credential, what it costs, or what runs beside it.
# Read by litellm and other routers from the body (CVE-2024-6587, CVE-2026-71211); no upstream
# needs them from a client, so no operator can allow them.
FORBIDDEN_FIELDS: frozenset[str] = frozenset({
    "api_base", "base_url", "api_key", "api_type", "api_version", "organization", "openai_organization",
    "project_id", "custom_llm_provider", "use_litellm_proxy", "deployment_id", "specific_deployment",
    "region_name", "tenant_id", "client_id", "client_secret", "credentials", "ssl_verify", "proxy",
    "fallbacks", "default_fallbacks", "context_window_fallbacks", "context_window_fallback_dict",
    "content_policy_fallbacks", "disable_fallbacks", "model_list", "model_info", "base_model",
    "hf_model_name", "headers", "extra_headers", "default_headers", "extra_query", "default_query",
    "extra_body", "client", "aclient", "http_client", "shared_session",
    "num_retries", "max_retries", "retry_policy", "cooldown_time", "allowed_fails", "timeout",
    "stream_timeout", "force_timeout", "request_timeout", "caching", "no_log", "turn_off_message_logging",
    "input_cost_per_token", "output_cost_per_token", "input_cost_per_second", "output_cost_per_second",
    "callbacks", "success_callback", "failure_callback", "input_callback", "service_callback", "logger_fn",
    "allowed_openai_params", "additional_drop_params", "drop_params", "modify_params", "custom_prompt_dict",
    "prompt_variables", "prompt_label", "guardrails", "disable_global_guardrails", "proxy_server_request",
    "secret_fields", "user_api_key", "user_api_key_dict", "custom_logger",
})
# What is metered, routed by or checked: spelled otherwise it would pass us by and reach an upstream that does not mind.
READ_FIELDS: frozenset[str] = frozenset({
    "model", "messages", "prompt", "input", "suffix", "tools", "functions", "response_format", "documents",
    "prediction", "modalities", "n", "best_of", "max_tokens", "max_completion_tokens", "stream", "stream_options",
    "service_tier", "web_search_options", "max_output_tokens", "instructions", "text", "store", "background",
    "conversation", "previous_response_id",
})
FORBIDDEN_PREFIXES: tuple[str, ...] = (
    "aws_", "azure_", "vertex_", "watsonx_", "sagemaker_", "gcp_", "oci_", "sap_", "litellm_", "router_",
    "mock_", "langfuse_", "langsmith_", "user_api_key_", "s3_", "bedrock_",
)

# They are honest parameters of some engine, but dangerous from a stranger, or they bypass what the
# gateway decides or meters. An operator may allow each by name. Left out on purpose: `cache_salt`
# (it only isolates its sender), `documents` (text for the template, counted as prompt),
# `structured_outputs` and `guided_*` (ordinary features; only the choice of their backend is here).
DANGEROUS_ENGINE_FIELDS: dict[str, str] = {
    "chat_template": "a template is a program that runs in the server (CVE-2025-61620)",
    "chat_template_kwargs": "can block the server's event loop (CVE-2025-62426)",
    "mm_processor_kwargs": "changes how media are decoded, past the server's memory limits",
    "media_io_kwargs": "changes how media are loaded, past the server's limits",
    "prompt_embeds": "a serialised tensor the server has to load (CVE-2025-62164)",
    "kv_transfer_params": "names hosts to exchange cache blocks with",
    "ec_transfer_params": "names hosts to exchange encoder output with",
    "bootstrap_host": "names a host to exchange cache blocks with",
    "bootstrap_port": "names a port to exchange cache blocks with",
    "bootstrap_room": "joins a cache transfer that may be another's",
    "data_parallel_rank": "chooses a replica, which the gateway does",
    "routed_dp_rank": "chooses a replica, which the gateway does",
    "priority": "overtakes other callers in the engine's queue",
    "request_id": "may collide with another caller's request",
    "rid": "may collide with another caller's request",
    "vllm_xargs": "arguments of server extensions, unchecked by the server",
    "custom_params": "arguments of server extensions, unchecked by the server",
    "custom_logit_processor": "is code that runs in the server",
    "logits_processors": "names code that runs in the server",
    "guided_decoding_backend": "chooses the parser, some of which a schema can crash or stall",
    "guided_whitespace_pattern": "a regular expression compiled by the server, without a limit",
    "use_beam_search": "multiplies the work, and the usage does not show it",
    "return_hidden_states": "returns megabytes per token",
    "lora_path": "loads an adapter by path",
    "lora": "changes adapter weights of a shared server",
    "adapter_id": "chooses a model past the route",
    "id_slot": "chooses a cache slot that may hold another caller's prompt",
    "slot_id": "chooses a cache slot that may hold another caller's prompt",
    "models": "names other models that may answer, at other prices",
    "route": "chooses how an upstream router falls back",
    "provider": "chooses an upstream router's provider, and its data policy",
    "plugins": "adds tools with prices of their own",
    "data_sources": "names servers for the upstream to read from, with credentials",
    "datasources": "names servers for the upstream to read from, with credentials",
}


# What most requests are made of: none of these is refused, however it is looked at.
ORDINARY_FIELDS: frozenset[str] = READ_FIELDS | {
    "audio", "dimensions", "echo", "encoding_format", "frequency_penalty", "function_call", "logit_bias", "logprobs",
    "include", "max_tool_calls", "metadata", "min_p", "parallel_tool_calls", "presence_penalty", "prompt_cache_key",
    "reasoning", "reasoning_effort", "repetition_penalty", "safety_identifier", "seed", "stop", "temperature",
    "tool_choice", "top_k", "top_logprobs", "top_p", "truncation", "user", "verbosity",
}


def refuse_fields(document: dict[str, Any], allowed: frozenset[str] = frozenset()) -> None:
    """Raises ForbiddenField naming the first field that may not be sent. `allowed` are the
    dangerous ones the operator has opted into; the forbidden ones stay forbidden.

    A null is refused like any value: what an engine makes of null is its own affair."""
    if document.keys() <= ORDINARY_FIELDS:
        return
    for field in document:
        name = field.casefold().replace("-", "_")
        if name in FORBIDDEN_FIELDS or name.startswith(FORBIDDEN_PREFIXES):
            raise ForbiddenField(f"The field '{_shown(field)}' is not accepted: upstreams, credentials and "
                                 "prices are chosen by the gateway's configuration.", param=_shown(field))
        if name in READ_FIELDS and field != name:
            raise ForbiddenField(f"The field '{_shown(field)}' must be spelled '{name}'.", param=_shown(field))
        reason = DANGEROUS_ENGINE_FIELDS.get(name)
        if reason is not None and name not in allowed:
            raise ForbiddenField(f"The field '{_shown(field)}' is not accepted here ({reason}); the "
                                 "operator of the gateway may allow it.", param=_shown(field))


def _shown(field: str) -> str:
    return "".join(c if c.isprintable() else "?" for c in field[:FIELD_NAMES_SHOWN])

