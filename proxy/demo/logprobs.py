"""Plausible log probabilities for simulated tokens, in OpenAI's two layouts. Pure."""

from __future__ import annotations

from typing import Any
from zlib import crc32

from proxy.demo.answers import Answer
from proxy.demo.tokens import words


def _logprob(token: str, position: int) -> float:
    return -((crc32(token.encode(), position) % 2000) + 1) / 1000


def _alternatives(token: str, position: int, count: int) -> list[tuple[str, float]]:
    """The token itself and less likely ones, most likely first."""
    own = _logprob(token, position)
    others = words(0, crc32(token.encode(), position), max(0, count - 1)).decode()
    step = 4 if others.isascii() else 0
    texts = [others[i * 4:i * 4 + 4] for i in range(count - 1)] if step else [" the"] * (count - 1)
    return [(token, own), *((text, own - 0.25 * (i + 1)) for i, text in enumerate(texts))][:count]


def _entry(token: str, logprob: float) -> dict[str, Any]:
    return {"token": token, "logprob": logprob, "bytes": list(token.encode())}


def chat_logprobs(answer: Answer, first: int, last: int, top: int) -> dict[str, Any]:
    """`choices[].logprobs` of chat for the tokens [first, last)."""
    content = []
    for i in range(first, last):
        token = answer.piece(i)
        content.append({**_entry(token, _logprob(token, i)),
                        "top_logprobs": [_entry(t, p) for t, p in _alternatives(token, i, top)]})
    return {"content": content}


def completion_logprobs(answer: Answer, first: int, last: int, top: int) -> dict[str, Any]:
    """`choices[].logprobs` of text completions for the tokens [first, last)."""
    pieces = [answer.piece(i) for i in range(first, last)]
    offset, offsets = len(answer.text(first)), []
    for piece in pieces:
        offsets.append(offset)
        offset += len(piece)
    return {"text_offset": offsets,
            "token_logprobs": [_logprob(p, first + i) for i, p in enumerate(pieces)],
            "tokens": pieces,
            "top_logprobs": [dict(_alternatives(p, first + i, top)) for i, p in enumerate(pieces)]}
