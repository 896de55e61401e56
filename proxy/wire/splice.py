"""Members of a JSON object set in its own bytes, so that a body of megabytes is not written anew for a name.

Done only where it is certain that the bytes found are the outermost object's member and the only one of that name; else
None, and the caller writes the document anew. In valid JSON a quote that no backslash precedes opens or closes a
string, so `"model"` is the string `model`, and a key where a colon follows. It is the outermost object's when all that
comes before it, or all that comes after it, is members without objects inside objects. It is the only one when it
stands there once, and no letter anywhere is written as an escape.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import orjson

_STRING = rb'"(?:[^"\\]++|\\.)*+"'
_ATOM = rb"(?:" + _STRING + rb"|[-+.0-9A-Za-z]++)"
_FLAT = (rb"(?:" + _ATOM + rb"|\{\s*+(?:" + _STRING + rb"\s*+:\s*+" + _ATOM + rb"\s*+,?\s*+)*+\}"
         rb"|\[\s*+(?:" + _ATOM + rb"\s*+,?\s*+)*+\])")
_MEMBER = _STRING + rb"\s*+:\s*+" + _FLAT + rb"\s*+"
_BEFORE = re.compile(rb"\s*+\{\s*+(?:" + _MEMBER + rb",\s*+)*+", re.DOTALL)
_VALUE = re.compile(rb"\s*+:\s*+(" + _FLAT + rb")\s*+", re.DOTALL)
_AFTER = re.compile(rb"(?:,\s*+" + _MEMBER + rb")*+\}\s*+", re.DOTALL)
_LETTER_ESCAPED = re.compile(rb"\\u00[4-7]")


def spliced(body: bytes, document: Mapping[str, Any], changes: Mapping[str, Any]) -> bytes | None:
    """`body`, whose parse is `document`, with these members set, those it lacks at its end; None where it is not
    certain what to change."""
    spans: list[tuple[int, int, bytes]] = []
    more: list[bytes] = []
    for name, value in changes.items():
        if name not in document:
            more.append(b',"%s":%s' % (name.encode(), orjson.dumps(value)))
            continue
        span = _value_of(name, body, document[name])
        if span is None:
            return None
        spans.append((*span, orjson.dumps(value)))
    if more:
        end = body.rfind(b"}")
        spans.append((end, end, b"".join(more)))
    pieces: list[bytes] = []
    at = 0
    for start, end, text in sorted(spans):
        pieces += (body[at:start], text)
        at = end
    return b"".join([*pieces, body[at:]])


def _value_of(name: str, body: bytes, value: Any) -> tuple[int, int] | None:
    """Where the value of the outermost object's member stands; `value` is what it was parsed as."""
    key = b'"%s"' % name.encode()
    at = body.find(key)
    if at < 1 or body.find(key, at + 1) >= 0 or (b"\\u00" in body and _LETTER_ESCAPED.search(body)):
        return None
    found = _VALUE.match(body, at + len(key))
    if found is None or not (_BEFORE.fullmatch(body, 0, at) or _AFTER.fullmatch(body, found.end())):
        return None
    read = orjson.loads(found[1])
    return found.span(1) if read == value and type(read) is type(value) else None
