"""The gateway's HTTP described as OpenAPI: the operator's routes as FastAPI knows them, the data routes by hand.

For tests. The data routes take far more than stands here (unknown fields are passed on); what stands here is what the
gateway itself reads, with the statuses that docs/http.md promises and no others.
"""

from __future__ import annotations

from typing import Any

from proxy.main import Gateway
from proxy.server.app import DrainBody, SwitchBody

TEXT = {"type": "string", "maxLength": 200}
ENVELOPE = {"type": "object", "required": ["error"], "additionalProperties": False, "properties": {"error": {
    "type": "object", "required": ["message", "type", "param", "code"], "additionalProperties": False, "properties": {
        "message": {"type": "string", "minLength": 1}, "type": {"type": "string", "minLength": 1},
        "param": {"type": ["string", "null"]}, "code": {"type": ["string", "null"]}}}}}
REFUSALS = (400, 401, 403, 404, 405, 413, 415, 431)  # 429 is for those with limits
UPSTREAMS = (429, 502, 503, 504)  # the upstreams', the line's and the ledger's; never 500
PART = {"oneOf": [
    {"type": "object", "required": ["type", "text"], "properties": {"type": {"const": "text"}, "text": TEXT}},
    {"type": "object", "required": ["type", "image_url"], "properties": {
        "type": {"const": "image_url"}, "image_url": {"type": "object", "required": ["url"], "properties": {"url": {
            "type": "string", "maxLength": 60}}}}}]}
MESSAGE = {"type": "object", "required": ["role", "content"], "properties": {
    "role": {"enum": ["system", "user", "assistant", "tool", "developer"]},
    "content": {"oneOf": [TEXT, {"type": "array", "items": PART, "minItems": 1, "maxItems": 3}, {"type": "null"}]},
    "name": TEXT}}
TOOL = {"type": "object", "required": ["type", "function"], "properties": {"type": {"const": "function"}, "function": {
    "type": "object", "required": ["name"], "properties": {"name": TEXT, "description": TEXT,
                                                          "parameters": {"type": "object"}}}}}
SAMPLING = {
    "model": {"enum": ["gpt-4o", "unknown"]}, "stream": {"type": ["boolean", "null"]},
    "n": {"type": "integer", "minimum": 1, "maximum": 3},
    "max_tokens": {"type": "integer", "minimum": 1, "maximum": 12},
    "temperature": {"type": "number", "minimum": 0, "maximum": 2},
    "top_p": {"type": "number", "minimum": 0, "maximum": 1},
    "stop": {"oneOf": [TEXT, {"type": "array", "items": TEXT, "maxItems": 4}]}, "user": TEXT,
    "seed": {"type": "integer"}, "stream_options": {"type": ["object", "null"], "properties": {
        "include_usage": {"type": "boolean"}}}, "metadata": {"type": "object", "additionalProperties": TEXT}}
ITEM = {"oneOf": [
    {"type": "object", "required": ["role", "content"], "properties": {
        "role": {"enum": ["system", "user", "assistant", "developer"]}, "content": TEXT}},
    {"type": "object", "required": ["type", "call_id", "output"], "properties": {
        "type": {"const": "function_call_output"}, "call_id": TEXT, "output": TEXT}}]}
BODIES: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {"type": "object", "required": ["model", "messages"], "properties": {
        **SAMPLING, "messages": {"type": "array", "items": MESSAGE, "minItems": 1, "maxItems": 4},
        "tools": {"type": "array", "items": TOOL, "maxItems": 3}, "logprobs": {"type": ["boolean", "null"]},
        "response_format": {"type": "object", "properties": {"type": {"enum": ["text", "json_object", "json_schema"]}}},
        "max_completion_tokens": {"type": "integer", "minimum": 1, "maximum": 12}}},
    "/v1/completions": {"type": "object", "required": ["model", "prompt"], "properties": {
        **SAMPLING, "prompt": {"oneOf": [TEXT, {"type": "array", "items": TEXT, "minItems": 1, "maxItems": 4}, {
            "type": "array", "items": {"type": "integer", "minimum": 0, "maximum": 50_000}, "minItems": 1}]},
        "echo": {"type": "boolean"}, "suffix": TEXT, "best_of": {"type": "integer", "minimum": 1, "maximum": 3}}},
    "/v1/embeddings": {"type": "object", "required": ["model", "input"], "properties": {
        "model": SAMPLING["model"], "input": {"oneOf": [TEXT, {"type": "array", "items": TEXT, "minItems": 1}]},
        "encoding_format": {"enum": ["float", "base64"]}, "dimensions": {"type": "integer", "minimum": 1}}},
    "/v1/responses": {"type": "object", "required": ["model", "input"], "properties": {
        "model": SAMPLING["model"], "stream": SAMPLING["stream"], "temperature": SAMPLING["temperature"],
        "input": {"oneOf": [TEXT, {"type": "array", "items": ITEM, "minItems": 1, "maxItems": 4}]},
        "instructions": TEXT,
        "max_output_tokens": {"type": "integer", "minimum": 1, "maximum": 12}, "metadata": SAMPLING["metadata"],
        "tools": {"type": "array", "maxItems": 3, "items": {
            "type": "object", "required": ["type", "name"], "properties": {
                "type": {"enum": ["function", "custom", "web_search"]}, "name": TEXT,
                "parameters": {"type": "object"}}}},
        "store": {"type": ["boolean", "null"]}, "background": {"type": ["boolean", "null"]},
        "previous_response_id": {"type": ["string", "null"], "maxLength": 40}}},
}


def described(gateway: Gateway) -> dict[str, Any]:
    """OpenAPI 3.1 of everything the gateway serves."""
    document = gateway.app._app._app.openapi()
    errors = {str(status): _response(ENVELOPE) for status in REFUSALS}
    for path, item in document["paths"].items():
        for operation in item.values():
            operation["responses"] = {"200": operation["responses"]["200"], **errors}
            operation["security"] = [{"key": []}]
            if path in ("/healthz", "/readyz"):
                operation["security"] = []
                operation["responses"]["503"] = {"description": "not ready"}
    page = {"description": "Prometheus", "content": {"text/plain": {}}}
    document["paths"]["/metrics"]["get"]["responses"]["200"] = page
    for path, model in (("/admin/switch", SwitchBody), ("/admin/backends/{name}/drain", DrainBody)):
        document["paths"][path]["post"]["requestBody"] = _body(model.model_json_schema())
    for path, body in BODIES.items():
        document["paths"][path] = {"post": {
            "operationId": path, "requestBody": _body(body), "security": [{"key": []}], "parameters": [{
                "name": "x-breakeven-tags", "in": "header", "required": False,
                "schema": {"type": "string", "pattern": "^[a-z]{1,9}=[a-z]{1,9}$"}}],
            "responses": {"200": {"description": "answer", "content": {
                "application/json": {"schema": {"type": "object"}}, "text/event-stream": {"schema": {}}}}, **errors,
                **{str(status): _response(ENVELOPE) for status in UPSTREAMS}}}}
    document.setdefault("components", {})["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
    return document


def _body(schema: dict[str, Any]) -> dict[str, Any]:
    return {"required": True, "content": {"application/json": {"schema": schema}}}


def _response(schema: dict[str, Any]) -> dict[str, Any]:
    return {"description": "refused", "content": {"application/json": {"schema": schema}}}
