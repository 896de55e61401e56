"""Upstream text that goes to a client or a log, without what neither may see.

Upstreams quote credentials in their errors ("Incorrect API key provided: sk-..."), and proxies
and HTTP stacks name hosts and URLs. What is taken out is replaced by a word that says so."""

from __future__ import annotations

import re
from typing import Any

import orjson

REDACTED = "[redacted]"
UPSTREAM = "[upstream]"

_PRIVATE = (r"(?:localhost|127\.\d+\.\d+\.\d+|10\.\d+\.\d+\.\d+|192\.168\.\d+\.\d+|169\.254\.\d+\.\d+"
            r"|172\.(?:1[6-9]|2\d|3[01])\.\d+\.\d+|\[[0-9a-fA-F:]{2,39}\]"
            r"|[\w-]+(?:\.[\w-]+){0,8}\.(?:internal|local|lan|svc|cluster))")

_RULES: tuple[tuple[re.Pattern[str], str], ...] = tuple(
    (re.compile(pattern, re.IGNORECASE), word) for pattern, word in (
        (rf"\b[a-z][a-z0-9+.-]{{1,15}}://{_PRIVATE}[^\s\"'<>`]*", UPSTREAM),
        (r"\b[a-z][a-z0-9+.-]{1,15}://[^\s\"'<>`@/?]{0,1024}@[^\s\"'<>`]*", UPSTREAM),  # user:password@
        (r"\b[a-z][a-z0-9+.-]{1,15}://[^\s\"'<>`?]{0,1024}\?[^\s\"'<>`]*", UPSTREAM),  # ?key=
        (rf"(?<![\w.-]){_PRIVATE}(?::\d{{1,5}})?(?!\w)", UPSTREAM),
        (r"(?<![\w.-])(?=[\w.-]{0,100}[.\d-])[a-z][\w.-]{0,100}:\d{3,5}(?!\w)", UPSTREAM),  # vllm-0:8000
        (r"(?<![\w.])\d{1,3}(?:\.\d{1,3}){3}(?::\d{1,5})?(?!\w)", UPSTREAM),
        (r"\b(?:bearer|basic)\s+[\w.~+/*-]{6,}=*", REDACTED),
        (r"(?<![\w-])(?:sk|gsk|xai)-[\w*-]{4,}", REDACTED),
        (r"(?<![\w-])(?:pk|rk|hf|gsk|ghp|glpat|org|proj|sess)[-_](?=[\w*-]{0,64}\d)[\w*-]{8,}", REDACTED),
        (r"\b(?:AKIA|ASIA)[0-9A-Z]{12,}|\bAIza[\w-]{20,}|\beyJ[\w-]{10,}(?:\.[\w-]+){0,2}", REDACTED),
        (r"\b((?:api[-_ ]?key|access[-_ ]?key|secret|password|passwd|authorization|x-api-key)"
         r"[\"']?\s*[:=]\s*[\"']?)[^\s\"',;}]{4,}", r"\1" + REDACTED),
        (r"(?<![\w/+-])[0-9a-f]{32,}(?!\w)", REDACTED),
        (r"(?<![\w/+-])(?=[\w/+-]*\d)(?=[\w/+-]*[a-z])[\w/+-]{40,}={0,2}", REDACTED),
    ))
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029]+")
_ALIASES = re.compile(r"(?<!\s)\s*+Valid aliases:.*", re.DOTALL)  # vLLM lists what else it serves


def text_of(value: Any) -> str:
    """What an upstream put where a message belongs, as text: JSON if it is none. Parsing goes deeper
    than writing does, so what is nested beyond that has no text."""
    if isinstance(value, str):
        return value
    try:
        return orjson.dumps(value).decode() if value else ""
    except orjson.JSONEncodeError:
        return ""


def scrub(text: str) -> str:
    """`text` without credentials, URLs with credentials or queries, private hosts, long hex or
    base64, control characters. Give it a bounded text."""
    text = _ALIASES.sub("", _CONTROL.sub(" ", text))
    for pattern, word in _RULES:
        text = pattern.sub(word, text)
    return text
