"""Errors: one shape whoever speaks, null for what is absent, and no secret of the upstream's."""

from __future__ import annotations

import time
from pathlib import Path

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.wire.openai import (
    error_body,
    error_event,
    is_context_overflow,
    mentions_stream_options,
    relay_error,
)
from proxy.wire.scrub import scrub
from proxy.wire.sse import frame_data

SAMPLES = Path(__file__).parents[2] / "samples" / "vllm"


def recorded(name: str) -> bytes:
    return (SAMPLES / name).read_bytes()


def relayed(status: int, body: bytes) -> dict:
    envelope = orjson.loads(relay_error(status, body))
    assert list(envelope) == ["error"]
    error = envelope["error"]
    assert list(error) == ["message", "type", "param", "code"]
    assert isinstance(error["message"], str) and error["message"]
    assert isinstance(error["type"], str)
    assert all(error[name] is None or (isinstance(error[name], str) and error[name] != "None")
               for name in ("param", "code"))
    return error


def test_absent_is_null_and_never_the_text_none():
    assert error_body("m", "api_error") == b'{"error":{"message":"m","type":"api_error","param":null,"code":null}}'


@given(st.text())
def test_an_error_event_is_one_event_whatever_the_text(message):
    data = frame_data(error_event(message, "api_error"))
    assert orjson.loads(data)["error"]["type"] == "api_error"
    error_body("\ud800", "api_error")


@pytest.mark.parametrize(("name", "status", "kind", "param", "code"), [
    ("error-too-long-prompt.json", 400, "invalid_request_error", "input_tokens", "context_length_exceeded"),
    ("error-max-tokens-too-large.json", 400, "invalid_request_error", "max_tokens", "context_length_exceeded"),
    ("error-unknown-model.json", 404, "invalid_request_error", "model", "model_not_found"),
    ("error-messages-unknown-model.json", 404, "invalid_request_error", None, "model_not_found"),
    ("error-not-found.json", 404, "invalid_request_error", None, "not_found"),
    ("error-bad-stream-options.json", 400, "invalid_request_error", "stream_options", None),
    ("error-bad-json.json", 400, "invalid_request_error", "body.24", None),
    ("error-no-api-key.json", 401, "authentication_error", None, None),
    ("error-queue-full.json", 503, "api_error", None, None),
    ("error-engine-died.json", 500, "api_error", None, None),
    ("error-wrong-role.json", 400, "invalid_request_error", None, None),
])
def test_what_vllm_says_becomes_what_openai_would_say(name, status, kind, param, code):
    error = relayed(status, recorded(name))
    assert (error["type"], error["code"]) == (kind, code)
    assert param is None or error["param"] == param


def test_openais_own_errors_pass_as_they_are():
    body = error_body("You exceeded your current quota", "insufficient_quota", None, "insufficient_quota")
    assert relay_error(429, body) == body


@pytest.mark.parametrize(("status", "body", "message"), [
    (400, b'{"object":"error","message":"old vllm","type":"BadRequestError","param":null,"code":400}', "old vllm"),
    (400, b'{"type":"error","error":{"type":"invalid_request_error","message":"anthropic"}}', "anthropic"),
    (400, b'[{"error":{"code":400,"message":"gemini","status":"INVALID_ARGUMENT"}}]', "gemini"),
    (422, b'{"detail":[{"loc":["body","model"],"msg":"field required"}]}', "field required"),
    (401, b'{"error":"Unauthorized"}', "Unauthorized"),
    (400, b"plain text", "plain text"),
    (502, b"<html><head><title>502</title></head><body>nginx/1.2 on gpu-7</body></html>", "web page"),
    (404, b"  <!DOCTYPE html><html>x</html>", "web page"),
    (500, b"", "500"),
    (500, b'{"error":', "500"),
    (500, b"[]", "500"),
    (500, b'{"error":null}', "500"),
    (500, b'{"error":{"message":null,"param":"None","code":"None","type":"None"}}', "500"),
    (400, b'{"error":{"message":{"a":1},"param":7,"code":[1],"type":{}}}', '{"a":1}'),
    (503, b'{"error":{"message":' + b"[" * 300 + b"]" * 300 + b"}}", "503"),  # parsed, but too deep to be written
    (503, b'{"detail":' + b"[" * 300 + b"]" * 300 + b"}", "503"),
])
def test_every_dialect_becomes_an_envelope(status, body, message):
    error = relayed(status, body)
    assert message in error["message"]
    assert "nginx" not in error["message"]


def test_the_names_of_other_models_on_the_engine_are_not_relayed():
    assert "tiny-llama" not in relayed(404, recorded("error-unknown-model.json"))["message"]


def test_a_message_is_bounded_in_bytes_and_stays_utf8():
    error = relayed(400, orjson.dumps({"error": {"message": "漢" * 100_000}}))
    assert 4000 < len(error["message"].encode()) <= 4096
    assert relayed(400, b"x" * 10_000_000)["message"] == "x" * 4096
    assert relayed(400, b'{"error":"' + b"x" * 10_000_000 + b'"}')["message"] == "The upstream answered 400."


SECRETS = [
    "sk-proj-abcDEF0123456789abcDEF", "sk-ant-api03-xyz_123", "sk-12345678", "Bearer abc.def-123456",
    "bearer QWERTYUIOP", "http://user:hunter2secret@gw.example.com/v1", "https://api.example.com/v1?key=topsecret99",
    "https://a.blob.core.windows.net/x?sig=abc", "http://10.0.0.5:8000/v1", "10.0.0.5:8000", "192.168.1.7",
    "172.20.3.4:9000", "127.0.0.1:8101", "localhost:8101", "vllm-0:8000", "vllm-0.vllm.ml.svc.cluster.local:8000",
    "gpu7.internal", "[fd00::1]:8000", "AKIAIOSFODNN7EXAMPLE", "AIzaSyA1234567890abcdefghijklmnopq",
    "hf_abcdefghijklmnopqrstuvwxyz012345", "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0In0.abc-def",
    "d41d8cd98f00b204e9800998ecf8427e", "dGhpcyBpcyBhIHNlY3JldCB0aGF0IGlzIGxvbmcgZW5vdWdoMTIz", "org-AbC123dEf456GhI",
]


@pytest.mark.parametrize("secret", SECRETS)
@pytest.mark.parametrize("around", ["Incorrect API key provided: {}.", "cannot connect to {}", '("{}", 1)', "{}"])
def test_secrets_and_private_addresses_are_taken_out(secret, around):
    error = relayed(400, orjson.dumps({"error": {"message": around.format(secret), "param": secret}}))
    for word in [secret, *(w for w in ("hunter2", "topsecret", "8000", "vllm-0", "QWERTY") if w in secret)]:
        assert word not in orjson.dumps(error).decode()


@pytest.mark.parametrize("text", [
    "This model's maximum context length is 8192 tokens. However, you requested 9000 tokens (8000 in the messages, "
    "1000 in the completion). Please reduce the length of the messages or completion.",
    "The model `gpt-4o-mini-2024-07-18` does not exist or you do not have access to it.",
    "Invalid schema for function 'get_current_weather': see https://platform.openai.com/docs/guides/function-calling",
    "temperature must be non-negative, got -1.0. (parameter=temperature, value=-1.0)",
    "Rate limit reached for meta-llama/Llama-3.3-70B-Instruct on tokens per min: Limit 30000, Used 29000.",
])
def test_honest_messages_are_left_alone(text):
    assert scrub(text) == text


@pytest.mark.parametrize("bomb", ["sk-", "hf-", "a-", "http://", "a.", "bearer ", "api_key:", "[", ":8000 ", "model ",
                                  "0a", "x@", " ", "10.", "context "])
def test_no_text_makes_scrubbing_slow(bomb):
    start = time.thread_time()
    relay_error(400, orjson.dumps({"error": {"message": bomb * 20_000}}))
    assert time.thread_time() - start < 0.5


@pytest.mark.parametrize("message", [
    "This model's maximum context length is 1024 tokens. However, ...", "context_length_exceeded",
    "the request exceeds the available context size", "prompt is too long: 210000 tokens > 200000 maximum",
    "`inputs` tokens + `max_new_tokens` must be <= 4096. Given: 5000", "Input token count (9) exceeds the maximum",
    "The input (5000 tokens) is longer than the model's context length (4096 tokens)."])
def test_a_prompt_that_does_not_fit_is_recognised(message):
    body = orjson.dumps({"error": {"message": message}})
    assert is_context_overflow(400, body) and is_context_overflow(422, body)
    assert not is_context_overflow(500, body)
    assert orjson.loads(relay_error(400, body))["error"]["code"] == "context_length_exceeded"


def test_other_refusals_are_not_overflow():
    assert is_context_overflow(400, b'{"error":{"code":"context_length_exceeded","message":"x"}}')
    assert not is_context_overflow(400, recorded("error-bad-stream-options.json"))
    assert not is_context_overflow(400, b"<html>")


def test_a_refusal_of_stream_options_is_recognised():
    assert mentions_stream_options(400, recorded("error-bad-stream-options.json"))
    assert mentions_stream_options(422, b'{"detail":"extra fields: stream_options"}')
    assert not mentions_stream_options(500, recorded("error-bad-stream-options.json"))
    assert not mentions_stream_options(400, b'{"error":"bad temperature"}')


@given(st.integers(400, 599), st.binary(max_size=200))
def test_no_body_crashes_the_relay(status, body):
    relayed(status, body)
