"""What lies at a provider and is named by id. The account there is the gateway's, so all its callers share it: whoever
names a file, a recording, a vector store or a container by id could name another caller's. So none may, on any
endpoint, and each refusal says what to send instead."""

from __future__ import annotations

import re
from typing import Any

from proxy.core.errors import InvalidRequest

# Tools that the caller runs itself. Whatever else stands in `tools` is run by the provider, at prices of its own.
OWN_TOOLS = frozenset({"function", "custom"})
_FILES = "Files", "Send the content, as 'file_data' or a data: URL."
_STORES = "Vector stores", "Search on your side, with a tool of type 'function', and send what was found."
_CONTAINERS = "Containers", ("Ask for a new one, {\"type\": \"auto\"}, and leave items out that were made in another; "
                             "'previous_response_id' goes on with them.")
_SKILLS = "Skills", "Send the skill inline."
_AUDIO = "Recordings", "Send what was said, as 'content'."
STORED = {"file_id": _FILES, "file_ids": _FILES, "vector_store_id": _STORES, "vector_store_ids": _STORES,
          "container_id": _CONTAINERS, "skill_id": _SKILLS}
_NAMED = re.compile(rb'"(%s)":(?!null|\{|\[\])' % b"|".join(map(str.encode, STORED)))


def refuse_named(key: str, value: Any) -> None:
    """Raises InvalidRequest, without its `param`, for a member that names what is stored. Objects name nothing: they
    are schemas of what a tool may be called with."""
    if key in STORED and value is not None and not isinstance(value, dict) and value != []:
        raise _refusal(*STORED[key])


def refuse_named_within(flat: bytes) -> None:
    """The same of compact JSON, at any depth."""
    if found := _NAMED.search(flat):
        raise _refusal(*STORED[found[1].decode()])


def refuse_recording(value: Any) -> None:
    """The same of an answer's `audio`, which a chat names by its id."""
    if isinstance(value, dict) and value.get("id") is not None:
        raise _refusal(*_AUDIO)


def refuse_in_tools(tools: Any, param: str) -> None:
    """The same of all tools that a provider would run."""
    try:
        for tool in tools if isinstance(tools, list) else (tools,):
            if isinstance(tool, dict) and tool.get("type") == "namespace":
                refuse_in_tools(tool.get("tools"), param)
            elif not is_own(tool):
                _walk("", tool)
    except InvalidRequest as refused:
        refused.param = refused.param or param
        raise


def is_own(tool: Any) -> bool:
    kind = tool.get("type") if isinstance(tool, dict) else None
    return isinstance(kind, str) and kind in OWN_TOOLS


def _walk(key: str, value: Any) -> None:
    refuse_named(key, value)
    if key == "container" and isinstance(value, str):
        raise _refusal(*_CONTAINERS)
    if isinstance(value, dict):
        for inner_key, inner in value.items():
            _walk(inner_key, inner)
    elif isinstance(value, list):
        for inner in value:
            _walk(key, inner)


def _refusal(what: str, instead: str) -> InvalidRequest:
    return InvalidRequest(f"{what} cannot be named by id: they lie in the provider's account, which all callers share. "
                          f"{instead}", code="unsupported_value")
