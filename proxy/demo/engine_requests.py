"""What a simulated engine accepts and how it refuses: vLLM 0.32's rules and exact words. Pure."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import orjson

from proxy.demo import tokens
from proxy.demo.answers import Answer, Limits, Malformed, check_shapes, plan
from proxy.demo.engine_profile import EngineProfile

BUSY = ("The engine is currently busy and cannot accept new requests. "
        "Please try again later or on a different instance.")
DIED = "EngineCore encountered an issue. See stack trace (above) for the root cause."
_COMPLETION_MAX_TOKENS = 16  # OpenAI's default for text completions, and vLLM's
_CHOICES_MAX = 128
_LOGPROBS_MAX = 20  # --max-logprobs


class Refusal(Exception):
    """A request that the engine answers with an error."""

    def __init__(self, status: int, message: str, kind: str = "BadRequestError", param: str | None = None):
        super().__init__(message)
        self.status = status
        self.body = error_body(status, message, kind, param)


def error_body(status: int, message: str, kind: str, param: str | None = None) -> bytes:
    return orjson.dumps({"error": {"message": message, "type": kind, "param": param, "code": status}})


def _invalid(location: str, kind: str, text: str, shown: str, extra: str = "") -> Refusal:
    detail = f"'type': '{kind}', 'loc': '{location}', 'msg': '{text}', 'input': {shown}{extra}"
    return Refusal(400, f"1 validation error:\n  {{{detail}}}", "Bad Request", location)


def _bad(message: str, param: str, value: Any = None) -> Refusal:
    shown = f"parameter={param}" + ("" if value is None else f", value={value}")
    return Refusal(400, f"{message} ({shown})", "BadRequestError", param)


@dataclass(frozen=True, slots=True)
class Generation:
    """A valid (chat) completion: every choice's answer is already decided."""

    chat: bool
    prompts: tuple[bytes, ...]
    answers: tuple[Answer, ...]  # prompts x n, in the order of choice indices
    n: int
    max_tokens: int
    stream: bool
    include_usage: bool
    continuous_usage: bool
    logprobs: int | None  # alternatives per token; None: not asked for
    named_tool: bool  # the call was demanded by name: vLLM then ends with `stop`, not `tool_calls`

    @property
    def prompt_tokens(self) -> int:
        return sum(map(len, self.prompts)) // tokens.BYTES_PER_TOKEN

    def work(self) -> list[tuple[bytes, Answer]]:
        """The prompt and the answer of each choice."""
        return [(self.prompts[i // self.n], answer) for i, answer in enumerate(self.answers)]

    def finish_reason(self, choice: int) -> str:
        answer = self.answers[choice]
        if answer.tool is None or answer.finish_reason == "length":
            return answer.finish_reason
        return "stop" if self.named_tool else "tool_calls"


def parse(raw: bytes, content_type: str, *required: str) -> dict[str, Any]:
    """The body as a dict that has the required fields, or vLLM's validation error."""
    if "json" not in content_type.lower():
        raise Refusal(400, "1 validation error:\n  Unsupported Media Type: Only 'application/json' is allowed",
                      "Bad Request")
    try:
        body = orjson.loads(raw)
    except orjson.JSONDecodeError:
        raise _broken_json(raw) from None
    if not isinstance(body, dict):
        raise _invalid("body", "model_attributes_type", "Input should be a valid dictionary", repr(str(body)[:64]))
    for name in required:
        if name not in body:
            raise _invalid(f"body.{name}", "missing", "Field required", f"'<dict of {len(body)} items>'")
    return body


def _broken_json(raw: bytes) -> Refusal:
    try:
        json.loads(raw)
        position, reason = 0, "Invalid JSON"
    except json.JSONDecodeError as exc:
        position, reason = exc.pos, exc.msg
    except UnicodeDecodeError:
        position, reason = 0, "Invalid UTF-8"
    return _invalid(f"body.{position}", "json_invalid", "JSON decode error", "'<dict of 0 items>'",
                    f", 'ctx': {{'error': '{reason}'}}")


def check_model(profile: EngineProfile, model: Any) -> None:
    """A missing model means the one that is served, as in vLLM."""
    if model is not None and model != profile.model:
        raise Refusal(404, f"The model `{model}` does not exist. Valid aliases: {profile.model}.",
                      "NotFoundError", "model")


def well_formed(body: dict[str, Any]) -> None:
    try:
        check_shapes(body)
    except Malformed as exc:
        raise malformed(exc, body) from None


def malformed(exc: Malformed, body: dict[str, Any]) -> Refusal:
    shown = repr(str(body.get(exc.field))[:64])
    return _invalid(f"body.{exc.field}", "value_error", f"{exc.field} is malformed", shown)


def chat(profile: EngineProfile, body: dict[str, Any]) -> Generation:
    check_model(profile, body.get("model"))
    well_formed(body)
    messages = body["messages"] or []
    if not profile.multimodal and any(
            isinstance(part, dict) and tokens.is_image(part)
            for m in messages if isinstance(m.get("content"), list) for part in m["content"]):
        raise Refusal(400, f"{profile.model} is not a multimodal model")
    wanted = body.get("max_completion_tokens")
    wanted = body.get("max_tokens") if wanted is None else wanted
    tools = body.get("tools") if body.get("tool_choice") != "none" else None
    logprobs = (whole(body, "top_logprobs", 0) or 0) if body.get("logprobs") else None
    return _generation(profile, body, (tokens.render_chat(messages, tools),), wanted, logprobs, chat=True)


def completion(profile: EngineProfile, body: dict[str, Any]) -> Generation:
    check_model(profile, body.get("model"))
    wanted = body.get("max_tokens", _COMPLETION_MAX_TOKENS)
    plain = {k: v for k, v in body.items() if k not in ("tools", "messages")}
    well_formed(plain)
    return _generation(profile, plain, tuple(prompts(body["prompt"], "prompt")), wanted,
                       whole(body, "logprobs", 0), chat=False)


def prompts(value: Any, name: str) -> list[bytes]:
    """A text, a list of texts, a list of token ids, or a list of such lists."""
    if isinstance(value, str):
        return [tokens.render_text(value)]
    if isinstance(value, list) and value:
        if all(isinstance(v, int) for v in value):
            return [tokens.render_tokens(value)]
        if all(isinstance(v, str) or (isinstance(v, list) and v and all(isinstance(t, int) for t in v))
               for v in value):
            return [prompts(v, name)[0] for v in value]
    raise _invalid(f"body.{name}", "string_type", "Input should be a valid string", repr(str(value)[:64]))


def token_list(value: Any) -> list[int]:
    if not isinstance(value, list) or not all(isinstance(v, int) for v in value):
        raise _invalid("body.tokens", "list_type", "Input should be a valid list", repr(str(value)[:64]))
    return value


def check_length(profile: EngineProfile, prompt: bytes) -> int:
    count, limit = len(prompt) // tokens.BYTES_PER_TOKEN, profile.max_model_len
    if not count:
        raise Refusal(400, "The decoder prompt cannot be empty")
    if count > limit:
        raise _bad(f"This model's maximum context length is {limit} tokens. However, your prompt contains at "
                   f"least {limit + 1} input tokens, which exceeds this limit even without any output tokens. "
                   "Please reduce the length of the input prompt.", "input_tokens", limit + 1)
    return count


def whole(body: dict[str, Any], name: str, least: int) -> int | None:
    value = body.get(name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int):
        raise _invalid(f"body.{name}", "int_type", "Input should be a valid integer", repr(str(value)))
    if value < least:
        raise _bad(f"{name} must be at least {least}, got {value}.", name, value)
    return value


def _generation(profile: EngineProfile, body: dict[str, Any], rendered: tuple[bytes, ...], wanted: Any,
                logprobs: int | None, chat: bool) -> Generation:
    stream, options = bool(body.get("stream")), body.get("stream_options")
    if options is not None and not stream:
        raise _bad("Stream options can only be defined when `stream=True`.", "stream_options")
    options = options if isinstance(options, dict) else {}
    temperature = body.get("temperature")
    if isinstance(temperature, int | float) and temperature < 0:
        raise _bad(f"temperature must be non-negative, got {float(temperature)}.", "temperature",
                   float(temperature))
    if logprobs is not None and logprobs > _LOGPROBS_MAX:
        raise _bad(f"Requested sample logprobs of {logprobs}, which is greater than max allowed: {_LOGPROBS_MAX}",
                   "logprobs", logprobs)
    n = whole(body, "n", 1) or 1
    if n * len(rendered) > _CHOICES_MAX:
        raise _bad(f"n must be at most {_CHOICES_MAX}, got {n}.", "n", n)
    limit = profile.max_model_len
    asked = whole({"max_tokens": wanted}, "max_tokens", 1)
    if asked is not None and asked > limit:
        raise _bad(f"max_tokens={asked} cannot be greater than max_model_len={limit}. Please request fewer "
                   "output tokens.", "max_tokens", asked)
    answers, longest = [], 0
    for prompt in rendered:
        room = _room(profile, check_length(profile, prompt), asked)
        longest = max(longest, room)
        limits = Limits(profile.tokens_per_answer_mean, room, bool(body.get("ignore_eos")),
                        min(room, whole(body, "min_tokens", 0) or 0))
        try:
            answers += [plan(body, prompt, choice, profile.seed, limits) for choice in range(n)]
        except Malformed as exc:
            raise malformed(exc, body) from None
    include = bool(options.get("include_usage"))
    return Generation(chat, rendered, tuple(answers), n, longest, stream, include,
                      include and bool(options.get("continuous_usage_stats")), logprobs,
                      isinstance(body.get("tool_choice"), dict))


def _room(profile: EngineProfile, count: int, asked: int | None) -> int:
    """How many tokens the answer may have. A prompt that fills the context leaves room for none."""
    limit = profile.max_model_len
    output = 1 if asked is None else asked
    if count + output > limit:
        raise _bad(f"This model's maximum context length is {limit} tokens. However, you requested {output} "
                   f"output tokens and your prompt contains at least {count} input tokens, for a total of at "
                   f"least {count + output} tokens. Please reduce the length of the input prompt or the number "
                   "of requested output tokens.", "input_tokens", count)
    return limit - count if asked is None else asked
