"""What a prompt holds, read once and tolerantly: bytes of text, media, URLs to fetch.

Bytes, not tokens: counting tokens needs the model's tokenizer and milliseconds; a token is at
least one byte, so bytes bound tokens from above. Shapes we do not know count as text and are
passed on; a URL anywhere in a part we do not know counts as remote media, because the question
it answers is whether some server might fetch it. What names a file or a recording at a provider is
refused, see stored.py.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import orjson

from proxy.core.errors import InvalidRequest
from proxy.wire.stored import refuse_in_tools, refuse_named, refuse_named_within, refuse_recording

_MEDIA_KEYS = {
    "image_url": "images", "input_image": "images", "image": "images", "image_embeds": "images",
    "image_pil": "images", "images": "images",
    "input_audio": "audio", "audio_url": "audio", "audio": "audio", "audio_embeds": "audio",
    "video_url": "video", "input_video": "video", "video": "video", "video_embeds": "video",
    "file": "files", "input_file": "files", "file_url": "files", "file_data": "files", "document": "files",
}
_TEXT_KEYS = ("text", "refusal", "thinking", "reasoning", "reasoning_content")
_LABELS = ("type", "detail", "format", "uuid", "id", "mime_type", "media_type", "cache_control")
_DEPTH_MAX = 8
_AUTHORITY = re.compile(r"[\x00-\x20]*[/\\][\x00-\x20]*[/\\]")  # //host, and what some take for it


@dataclass(slots=True)
class Prompt:
    """The tally of one walk. `urls`: media whose data was left out of the document, and their bytes as they came."""

    urls: Mapping[str, int]
    urls_met: int = 0
    chars: int = 0
    token_ids: int = 0
    media_count: int = 0
    media_bytes: int = 0  # of the media themselves, or of their URLs: no text
    remote_media: bool = False
    features: set[str] = field(default_factory=set)

    def messages(self, messages: list[Any], field: str = "messages") -> None:
        """Chat messages: content as text or parts, tool calls, anything else that is text. Raises InvalidRequest."""
        message, key = None, ""
        try:
            for message in messages:
                for key, value in message.items():
                    if type(value) is str and key not in _MEDIA_KEYS:  # as a rule
                        self.chars += len(value) if value.isascii() else len(value.encode("utf-8", "replace"))
                    elif key == "content":
                        self._content(value)
                    elif key in _MEDIA_KEYS:
                        self._part({key: value})
                    elif isinstance(value, (dict, list)):  # calls of tools, thinking, what a template may print
                        self.definitions(value)
        except InvalidRequest as refused:
            at = next(at for at, one in enumerate(messages) if one is message)
            refused.param = f"{field}[{at}].{key}"
            raise

    def items(self, items: list[dict[str, Any]], field: str = "input") -> None:
        """Input of the Responses API: messages, calls of tools and what came of them, reasoning given back. Raises
        InvalidRequest."""
        for at, item in enumerate(items):
            for key, value in item.items():
                try:
                    self._member(item, key, value)
                except InvalidRequest as refused:
                    refused.param = f"{field}[{at}].{key}"
                    raise

    def _member(self, item: dict[str, Any], key: str, value: Any) -> None:
        if key == "content" or key == "output" or key == "summary":
            self._content(value)
        elif key == "result" and item.get("type") == "image_generation_call":
            self._part({"image": value})
        elif key == "action" and item.get("type") == "web_search_call":  # the pages that it has read
            self.definitions(value)
        elif key in _MEDIA_KEYS:
            self._part({key: value})
        elif isinstance(value, str):
            refuse_named(key, value)
            self._text(value)
        else:
            if key == "tools":
                refuse_in_tools(value, key)
            self._unknown(key, value, 0)

    def texts(self, prompt: Any) -> None:
        """A text, token ids, or a list of either."""
        if isinstance(prompt, str):
            self._text(prompt)
        elif isinstance(prompt, list):
            if type(prompt[0]) is int:
                self.token_ids += len(prompt)
            else:
                for one in prompt:
                    if isinstance(one, list):
                        self.token_ids += len(one)
                    else:
                        self._text(one)

    def definitions(self, value: Any) -> None:
        """Tools and schemas reach the model as JSON, about as long as ours."""
        if value:
            self.chars += len(orjson.dumps(value))

    def _content(self, content: Any) -> None:
        if isinstance(content, str):
            self._text(content)
        elif isinstance(content, list):
            for part in content:
                if isinstance(part, str):
                    self._text(part)
                elif isinstance(part, dict):
                    self._part(part)
        elif isinstance(content, dict):
            self._part(content)

    def _part(self, part: dict[str, Any]) -> None:
        medium = None
        for key, value in part.items():
            if key in _MEDIA_KEYS:
                if value is None:
                    continue
                medium = _MEDIA_KEYS[key]
                if key == "audio":
                    refuse_recording(value)
                self._media(value)
                if isinstance(value, list):
                    self.media_count += max(0, len(value) - 1)
            elif key == "source" and _is_medium(part, value):  # as Anthropic has it
                medium = _MEDIA_KEYS[part["type"]]
                self._media(value)
            elif key in _TEXT_KEYS and isinstance(value, str):
                self._text(value)
            elif key == "annotations":  # of an answer given back: where its text is from
                self.definitions(value)
            elif key not in _LABELS:
                self._unknown(key, value, 0)
        if medium is not None:
            self.features.add(medium)
            self.media_count += 1

    def _media(self, value: Any) -> None:
        """A URL, or an object with one, or with the data itself. Base64 is no prompt text."""
        if isinstance(value, str):
            self._url(value)
        elif isinstance(value, dict):
            for key, inner in value.items():
                refuse_named(key, inner)
                if isinstance(inner, str) and (key == "url" or key.endswith("_url")):
                    self._url(inner)
                elif isinstance(inner, str):
                    if "://" in inner:
                        self._url(inner)
                    else:
                        self.media_bytes += self._length(inner)
                elif isinstance(inner, dict) and key == "source":
                    self._media(inner)
                else:
                    self._unknown(key, inner, 1)
        elif isinstance(value, list):
            for inner in value:
                self._media(inner)

    def _url(self, url: str) -> None:
        # Exactly `data:`, with nothing before it: two parsers that disagree about a leading blank
        # or a backslash are how a URL gets past a check (CVE-2026-24779). Blanks and control
        # characters before a scheme are skipped by most, however many; bare base64 has no colon.
        self.media_bytes += self._length(url)
        if url[:5].lower() != "data:" and (":" in url or _AUTHORITY.match(url)):
            self.remote_media = True

    def _length(self, medium: str) -> int:
        if medium not in self.urls:
            return len(medium)
        self.urls_met += 1
        return self.urls[medium]

    def _unknown(self, key: str, value: Any, depth: int) -> None:
        refuse_named(key, value)
        if isinstance(value, str):
            if key == "url" or key.endswith("_url"):
                self.media_count += 1
                self._url(value)
            else:
                self._text(value)
        elif isinstance(value, (dict, list)) and depth >= _DEPTH_MAX:
            flat = orjson.dumps(value)
            self.chars += len(flat)
            self.remote_media |= b"://" in flat
            refuse_named_within(flat)
        elif isinstance(value, dict):
            for inner_key, inner in value.items():
                self._unknown(inner_key, inner, depth + 1)
        elif isinstance(value, list):
            for inner in value:
                self._unknown(key, inner, depth + 1)

    def _text(self, text: Any) -> None:
        if isinstance(text, str):
            self.chars += len(text) if text.isascii() else len(text.encode("utf-8", "replace"))


def _is_medium(part: dict[str, Any], source: Any) -> bool:
    """Whether a part's `source` holds a medium; a document may also be given as text."""
    kind = part.get("type")
    return (isinstance(kind, str) and kind in _MEDIA_KEYS and isinstance(source, dict)
            and source.get("type") in ("base64", "url", "file"))
