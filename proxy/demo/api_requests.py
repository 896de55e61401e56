"""What a simulated commercial API accepts, and how it refuses: OpenAI's rules and words. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import orjson

from proxy.demo import tokens
from proxy.demo.answers import Answer, Limits, Malformed, check_shapes, plan
from proxy.demo.api_bill import ApiModel, ApiProfile
from proxy.demo.tokens import BYTES_PER_TOKEN

_VLLM_FIELDS = ("ignore_eos", "min_tokens", "top_k", "repetition_penalty", "priority", "guided_json",
                "chat_template_kwargs")
_COMPLETION_MAX_TOKENS = 16
_CHOICES_MAX = 128
_LOGPROBS_MAX = 20


class ApiError(Exception):
    """A refusal in OpenAI's error format. `retry_after_s` becomes the headers."""

    def __init__(self, status: int, message: str, kind: str = "invalid_request_error", code: str | None = None,
                 param: str | None = None, retry_after_s: float | None = None):
        super().__init__(message)
        self.status, self.retry_after_s = status, retry_after_s
        self.body = orjson.dumps({"error": {"message": message, "type": kind, "param": param, "code": code}})


SERVER_ERROR = ApiError(500, "The server had an error while processing your request. Sorry about that!",
                        "server_error")
OVERLOADED = ApiError(503, "The engine is currently overloaded, please try again later.", "server_error",
                      "service_unavailable", retry_after_s=0.05)
RATE_LIMITED = ApiError(429, "Rate limit reached for requests. Please try again in 50ms.", "requests",
                        "rate_limit_exceeded", retry_after_s=0.05)


@dataclass(frozen=True, slots=True)
class Wanted:
    """A valid (chat) completion with its answers decided."""

    chat: bool
    model_name: str
    model: ApiModel
    prompts: tuple[bytes, ...]
    answers: tuple[Answer, ...]
    n: int
    max_tokens: int | None
    stream: bool
    include_usage: bool
    logprobs: int | None
    named_tool: bool

    @property
    def prompt_tokens(self) -> int:
        return sum(map(len, self.prompts)) // BYTES_PER_TOKEN

    def finish_reason(self, choice: int) -> str:
        answer = self.answers[choice]
        if answer.tool is None or answer.finish_reason == "length":
            return answer.finish_reason
        return "stop" if self.named_tool else "tool_calls"


def parse(raw: bytes) -> dict[str, Any]:
    try:
        body = orjson.loads(raw)
    except orjson.JSONDecodeError:
        body = None
    if not isinstance(body, dict):
        raise ApiError(400, "We could not parse the JSON body of your request. (HINT: This likely means you aren't "
                            "using your HTTP library correctly.)")
    return body


def model_of(profile: ApiProfile, body: dict[str, Any]) -> tuple[str, ApiModel]:
    name = body.get("model")
    if not isinstance(name, str):
        raise ApiError(400, "you must provide a model parameter")
    if name not in profile.models:
        raise ApiError(404, f"The model `{name}` does not exist or you do not have access to it.",
                       code="model_not_found")
    return name, profile.models[name]


def texts(value: Any, name: str) -> list[bytes]:
    """A text, a list of texts, a list of token ids, or a list of such lists."""
    if isinstance(value, str):
        return [tokens.render_text(value)]
    if isinstance(value, list) and value:
        if all(isinstance(v, int) for v in value):
            return [tokens.render_tokens(value)]
        if all(isinstance(v, str | list) for v in value):
            return [part for v in value for part in texts(v, name)]
    raise ApiError(400, f"Invalid type for '{name}': expected a string or an array.", code="invalid_type",
                   param=name)


def count(body: dict[str, Any], names: Iterable[str], least: int) -> int | None:
    for name in names:
        value = body.get(name)
        if value is None:
            continue
        if isinstance(value, bool) or not isinstance(value, int):
            raise ApiError(400, f"Invalid type for '{name}': expected an integer.", code="invalid_type", param=name)
        if value < least:
            raise ApiError(400, f"Invalid '{name}': integer below minimum value. Expected a value >= {least}, "
                                f"but got {value} instead.", code="integer_below_min_value", param=name)
        return value
    return None


def _well_formed(body: dict[str, Any]) -> None:
    try:
        check_shapes(body)
    except Malformed as exc:
        raise malformed(exc) from None


def malformed(exc: Malformed) -> ApiError:
    return ApiError(400, f"Invalid value for '{exc.field}'.", code="invalid_value", param=exc.field)


def chat(profile: ApiProfile, body: dict[str, Any]) -> Wanted:
    messages = body.get("messages")
    if messages is None:
        raise ApiError(400, "Missing required parameter: 'messages'.", code="missing_required_parameter",
                       param="messages")
    _well_formed(body)
    if not messages:
        raise ApiError(400, "Invalid 'messages': empty array.", code="empty_array", param="messages")
    tools = body.get("tools") if body.get("tool_choice") != "none" else None
    prompt = tokens.render_chat(messages, tools)
    logprobs = (count(body, ["top_logprobs"], 0) or 0) if body.get("logprobs") else None
    return _wanted(profile, body, (prompt,), count(body, ["max_completion_tokens", "max_tokens"], 1), logprobs)


def completion(profile: ApiProfile, body: dict[str, Any]) -> Wanted:
    if "prompt" not in body:
        raise ApiError(400, "Missing required parameter: 'prompt'.", code="missing_required_parameter",
                       param="prompt")
    prompts = tuple(texts(body["prompt"], "prompt"))
    plain = {k: v for k, v in body.items() if k not in ("tools", "messages")}
    _well_formed(plain)
    asked = count(body, ["max_tokens"], 1) or _COMPLETION_MAX_TOKENS
    return _wanted(profile, plain, prompts, asked, count(body, ["logprobs"], 0))


def _wanted(profile: ApiProfile, body: dict[str, Any], prompts: tuple[bytes, ...], asked: int | None,
            logprobs: int | None) -> Wanted:
    name, model = model_of(profile, body)
    stream, options = bool(body.get("stream")), body.get("stream_options")
    if options is not None and not stream:
        raise ApiError(400, "The 'stream_options' parameter is only allowed when 'stream' is enabled.",
                       param="stream_options")
    options = options if isinstance(options, dict) else {}
    extra = [f for f in _VLLM_FIELDS if f in body] + ["continuous_usage_stats"] * (
        "continuous_usage_stats" in options)
    if profile.strict and extra:
        raise ApiError(400, f"Unrecognized request argument supplied: {extra[0]}")
    n = count(body, ["n"], 1) or 1
    for field, value, most in (("n", n, _CHOICES_MAX), ("logprobs", logprobs or 0, _LOGPROBS_MAX)):
        if value > most:
            raise ApiError(400, f"Invalid '{field}': integer above maximum value. Expected a value <= {most}, but "
                                f"got {value} instead.", code="integer_above_max_value", param=field)
    answers: list[Answer] = []
    for prompt in prompts:
        room = min(asked or model.context, model.context - check_length(model, prompt, asked))
        limits = Limits(profile.tokens_per_answer_mean, room, bool(body.get("ignore_eos")),
                        min(room, count(body, ["min_tokens"], 0) or 0))
        try:
            answers += [plan(body, prompt, i, profile.seed, limits) for i in range(n)]
        except Malformed as exc:
            raise malformed(exc) from None
    return Wanted("messages" in body, name, model, prompts, tuple(answers), n, asked, stream,
                  bool(options.get("include_usage")), logprobs, isinstance(body.get("tool_choice"), dict))


def check_length(model: ApiModel, prompt: bytes, asked: int | None) -> int:
    used = len(prompt) // BYTES_PER_TOKEN
    if used + (asked or 1) > model.context:
        raise ApiError(400, f"This model's maximum context length is {model.context} tokens. However, you requested "
                            f"{used + (asked or 0)} tokens ({used} in the messages, {asked or 0} in the "
                            "completion). Please reduce the length of the messages or completion.",
                       code="context_length_exceeded", param="messages")
    return used
