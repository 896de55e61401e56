"""Tokenizers of commercial models, offline: what an API would have counted of a prompt that our own engine answered.

tiktoken has the encodings' rules and litellm's package their files, which is not imported for it. Nothing is fetched: a
file is only used where it is there and is the one that we know. Loading one takes 80 MiB and half a second.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol

# Of each encoding: its file, named after where tiktoken would have it from, and the file's SHA-256.
FILES = {
    "o200k_base": ("fb374d419588a4632f3f557e76b4b70aebbca790",
                   "446a9538cb6c348e3516120d7c08b09f57c36495e2acfffe59a5bf8b0cfb1a2d"),
    "cl100k_base": ("9b5ad71b2ce5302211f9c61530b329a4922fc6a4",
                    "223921b76ee99bde995b7ff738513eef100fb51d18c93597a113bcffe865b2a7"),
}
PER_MESSAGE, PER_ANSWER = 3, 3  # tokens that OpenAI's chat format adds (its cookbook, "counting tokens for chat")


class Encoding(Protocol):
    name: str

    def encode_ordinary(self, text: str) -> list[int]: ...


def encoding_of(model: str) -> Encoding | None:
    """What an OpenAI model counts with; None where that is not known, or not here."""
    if importlib.util.find_spec("tiktoken") is None:
        return None
    from tiktoken.model import encoding_name_for_model
    try:
        name = encoding_name_for_model(model)
    except KeyError:
        return None
    return _encoding(name)


@lru_cache(maxsize=4)
def _encoding(name: str) -> Encoding | None:
    found = importlib.util.find_spec("litellm")
    if name not in FILES or found is None or not found.submodule_search_locations:
        return None
    file, sha256 = FILES[name]
    folder = Path(found.submodule_search_locations[0]) / "litellm_core_utils" / "tokenizers"
    try:
        data = (folder / file).read_bytes()
    except OSError:
        return None
    if hashlib.sha256(data).hexdigest() != sha256:  # tiktoken would go and fetch it
        return None
    os.environ["TIKTOKEN_CACHE_DIR"] = str(folder)
    import tiktoken
    encoding: Encoding = tiktoken.get_encoding(name)
    return encoding


def count(encoding: Encoding, document: dict[str, Any]) -> int:
    """Prompt tokens of a chat or a completion that is all text, by that encoding."""
    if "messages" not in document:
        prompt = document.get("prompt") or document.get("input") or ""
        return sum(len(encoding.encode_ordinary(text)) for text in ([prompt] if isinstance(prompt, str) else prompt))
    total = PER_ANSWER
    for message in document["messages"]:
        total += PER_MESSAGE + ("name" in message)
        for value in message.values():
            texts = [value] if isinstance(value, str) else [
                part["text"] for part in value or () if isinstance(part, dict) and isinstance(part.get("text"), str)]
            total += sum(len(encoding.encode_ordinary(text)) for text in texts)
    return total
