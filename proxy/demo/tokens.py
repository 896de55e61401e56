"""The simulated tokenizer: one token is four bytes of UTF-8. Pure.

A prompt becomes a byte string whose length is a multiple of four, and its tokens are that
string cut in fours. So counting, prefix hashing and detokenising can never disagree:

- a text costs `ceil(bytes / 4)` tokens (padded with NUL);
- a chat message costs its texts plus 4, a conversation 3 more (the opening of the answer);
- tool definitions and images count as text: their JSON, and IMAGE_TOKENS tokens.

The 4 tokens of a message are 3 before and 1 after its text, and the 3 of the conversation are
an assistant message's opening: thus the next turn's prompt begins with this turn's prompt and
answer, and prefix caches hit as they do in real life.

Every word the simulated models say is exactly one token, so a count of the answer is the
`completion_tokens` that was reported.
"""

from __future__ import annotations

import base64
import random
import struct
from functools import lru_cache
from typing import Any
from zlib import crc32

import orjson

BYTES_PER_TOKEN = 4
IMAGE_TOKENS = 256
_END = b"<|e>"
_WORDS = (
    "the and one two six ten sun sea sky day way man boy dog cat cow owl bee ant fox hen pig tea oil "
    "ice fog air ash oak elm fir ivy hay egg jam pie nut fig bun cup pot pan jar lid box bag net rod "
    "map pen ink key toy hat cap tie bed mat rug tub saw axe hut inn bay dam mud pit oar car van bus "
    "jet who saw was had did ran sat ate met won got let put led fed hid lit dug not but for yet nor "
    "all any few own old new big red wet dry hot shy sad mad raw low dim far now out off too né là où"
).split()


def _padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % BYTES_PER_TOKEN)


def _opening(role: str) -> bytes:
    return b"<|" + role.encode()[:9].ljust(9, b"_") + b">"


def content_text(content: Any) -> bytes:
    """A message's content as counted: strings as they are, content parts one after another."""
    if content is None:
        return b""
    if isinstance(content, str):
        return content.encode("utf-8", "surrogatepass")
    if not isinstance(content, list):
        return orjson.dumps(content)
    parts = []
    for part in content:
        if isinstance(part, dict) and is_image(part):
            digest = crc32(orjson.dumps(part)).to_bytes(4, "big")
            parts.append(digest * IMAGE_TOKENS)
        elif isinstance(part, dict) and isinstance(part.get("text"), str):
            parts.append(part["text"].encode("utf-8", "surrogatepass"))
        else:
            parts.append(orjson.dumps(part))
    return b"".join(parts)


def is_image(part: dict[str, Any]) -> bool:
    return part.get("type") in ("image_url", "image", "input_image")


def render_text(text: str) -> bytes:
    """A plain prompt as token bytes."""
    return _padded(text.encode("utf-8", "surrogatepass"))


def render_tokens(ids: list[int]) -> bytes:
    """A prompt given as token ids."""
    return b"".join((i & 0xFFFFFFFF).to_bytes(BYTES_PER_TOKEN, "little") for i in ids)


def render_chat(messages: list[dict[str, Any]], tools: list[Any] | None = None) -> bytes:
    """A conversation as token bytes, ending in the opening of the answer."""
    out = [_padded(orjson.dumps(tools))] if tools else []
    for message in messages:
        text = content_text(message.get("content"))
        if message.get("tool_calls"):
            text += orjson.dumps(message["tool_calls"])
        out += (_opening(str(message.get("role", ""))), _padded(text), _END)
    out.append(_opening("assistant"))
    return b"".join(out)


def token_ids(rendered: bytes) -> list[int]:
    return [int.from_bytes(rendered[i:i + 4], "little") for i in range(0, len(rendered), BYTES_PER_TOKEN)]


def detokenize(ids: list[int]) -> str:
    """The text of token ids, without padding; the inverse of `token_ids(render_text(text))`."""
    return render_tokens(ids).replace(b"\0", b"").decode("utf-8", "replace")


@lru_cache(maxsize=8)
def _ring(seed: int) -> bytes:
    """8,192 words in an order that depends on the seed; answers are slices of it."""
    rng = random.Random(seed)  # noqa: S311 - reproducible, not secret
    words = [w.encode().rjust(4)[:4] if len(w.encode()) == 3 else b" " + w.encode()[:3] for w in _WORDS]
    return b"".join(rng.choices(words, k=8192))


def words(seed: int, content: int, count: int) -> bytes:
    """`count` tokens of plain words, chosen by the seed and by a hash of the request."""
    ring = _ring(seed)
    start = content % 8192 * BYTES_PER_TOKEN
    need = count * BYTES_PER_TOKEN
    text = ring[start:start + need]
    while len(text) < need:
        text += ring[:need - len(text)]
    return text


def embedding(text: bytes, dimensions: int, encoding: str | None = None) -> list[float] | str:
    """A unit vector that depends on the text only; base64 is of little-endian float32, as everywhere."""
    rng = random.Random(crc32(text))  # noqa: S311 - reproducible, not secret
    vector = [rng.random() - 0.5 for _ in range(dimensions)]
    norm = sum(x * x for x in vector) ** 0.5 or 1.0
    unit = [x / norm for x in vector]
    return base64.b64encode(struct.pack(f"<{dimensions}f", *unit)).decode() if encoding == "base64" else unit
