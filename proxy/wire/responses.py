"""What of a Responses API request differs from a chat: its input, and what it may name but not carry.

Ids name what lies at one provider, under the one account that all callers of the gateway share there. So what another
caller may have put there cannot be named: stored conversations, prompts, files and single items are refused, with the
word what to send instead. Answers in the background are refused because nobody would book them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from proxy.core.errors import InvalidRequest
from proxy.wire.prompt import Prompt
from proxy.wire.stored import is_own

LOGPROBS = "message.output_text.logprobs"  # of `include`
DEFINITIONS = ("tools", "text", "structured_outputs", "previous_input_messages")  # reach the model as JSON
TOKENS_ALONE = frozenset({"message", "reasoning", "function_call", "custom_tool_call"})  # items that cost nothing else

ID_CHARS_MAX = 256
REASONING_MAX = 1000  # items that are only named, of a request
_REFUSED = {
    "background": "Answers in the background are not served. Leave 'background' out; 'stream' shows an answer while it "
                  "is made.",
    "conversation": "Stored conversations are not served: they belong to the provider's account, which all callers "
                    "share. Send the earlier messages in 'input'.",
    "prompt": "Stored prompts are not served: they belong to the provider's account, and nobody here knows how long "
              "they are. Send the text in 'instructions' and 'input'.",
}
# An item's own payload, where less of it would be looked up by the item's id; of no type at all, it is a message.
_OWN: dict[str | None, tuple[str, ...]] = {
    None: ("content",), "message": ("content",), "reasoning": ("encrypted_content", "content"),
    "compaction": ("encrypted_content",), "image_generation_call": ("result",), "file_search_call": ("results",)}
_LABELS = frozenset({"id", "type", "role", "status", "phase", "object", "created_by", "call_id", "name"})
_ITEMS = ("Items cannot be named by id: they lie in the provider's account, which all callers share. Send the item "
          "itself, with all that it holds.")
_REASONING = ("Reasoning without its content can be named by id only where this key got it, from a response that was "
              "kept, and only at the backend that has it. Ask with \"store\": false and \"include\": "
              "[\"reasoning.encrypted_content\"] and send the items as they come, or leave reasoning out.")


def read_input(document: dict[str, Any], urls: Mapping[str, int]) -> Prompt:
    """What reaches the model; `urls`, see `Prompt`. Raises InvalidRequest for what is no input, and for what may not be
    named."""
    for name, why in _REFUSED.items():
        if document.get(name):
            raise InvalidRequest(why, param=name, code="unsupported_parameter")
    prompt, given, instructions = Prompt(urls), document.get("input"), document.get("instructions")
    if isinstance(given, str):
        prompt.texts(given)
    elif isinstance(given, list) and given and all(isinstance(item, dict) for item in given):
        for at, item in enumerate(given):
            _refuse_reference(item, f"input[{at}]")
        prompt.items(given)
    else:
        what = "Missing required parameter" if given is None else "Expected a string or a non-empty array of objects"
        raise InvalidRequest(f"{what}: 'input'.", param="input")
    if isinstance(instructions, str):
        prompt.texts(instructions)
    else:
        prompt.definitions(instructions)
    for name in DEFINITIONS:
        prompt.definitions(document.get(name))
    return prompt


def previous(document: dict[str, Any]) -> str | None:
    """The id of the response that it goes on from. Raises InvalidRequest for what is none."""
    given = document.get("previous_response_id")
    if given is None or (isinstance(given, str) and given and len(given) <= ID_CHARS_MAX and given.isprintable()):
        return given
    raise InvalidRequest("Invalid 'previous_response_id': expected the id of a response.", param="previous_response_id")


def features(document: dict[str, Any], stream: bool) -> set[str]:
    """What a backend must be able to do; `hosted_tools`: run tools itself, `store`: keep the answer, as was asked for
    in so many words."""
    text, include = document.get("text"), document.get("include")
    kind = text.get("format") if isinstance(text, dict) else None
    kind = kind.get("type") if isinstance(kind, dict) else None
    found = {
        "stream": stream,
        "tools": bool(document.get("tools")) or any(True for _ in _more_tools(document)),
        "hosted_tools": _hosted(document.get("tools")) or any(map(_hosted, _more_tools(document))),
        "json_schema": kind == "json_schema" or bool(document.get("structured_outputs")),
        "json_object": kind == "json_object",
        "logprobs": bool(document.get("top_logprobs")) or (isinstance(include, list) and LOGPROBS in include),
        "reasoning": document.get("reasoning") is not None,
        "store": document.get("store") is True,
    }
    return {name for name, is_given in found.items() if is_given}


def called(answer: dict[str, Any]) -> bool:
    """Whether tools that the provider runs were called, each of which its output has an item of; and where it does not
    say."""
    output = answer.get("output")
    return not isinstance(output, list) or any(
        not isinstance(item, dict) or not isinstance(kind := item.get("type"), str) or kind not in TOKENS_ALONE
        for item in output)


def _more_tools(document: dict[str, Any]) -> Iterator[Any]:
    """Tools may also be handed over in the middle of the input."""
    given = document.get("input")
    if isinstance(given, list):
        yield from (item["tools"] for item in given if item.get("tools"))


def _hosted(tools: Any) -> bool:
    """Whether the provider would run any of these; a namespace is as its members."""
    if not isinstance(tools, list):
        return bool(tools)
    for tool in tools:
        if isinstance(tool, dict) and tool.get("type") == "namespace":
            if _hosted(tool.get("tools")):
                return True
        elif not is_own(tool):
            return True
    return False


def reasoning_of(answer: dict[str, Any]) -> tuple[str, ...]:
    """Ids of reasoning that an answer names and does not say."""
    output = answer.get("output")
    return tuple(item["id"] for item in (output if isinstance(output, list) else ())
                 if isinstance(item, dict) and _is_named(item))[:REASONING_MAX]


def named_reasoning(document: dict[str, Any]) -> tuple[str, ...]:
    """The same of a request's input, which `read_input` has looked at."""
    given = document.get("input")
    found = tuple(item["id"] for item in given if _is_named(item)) if isinstance(given, list) else ()
    if len(found) > REASONING_MAX:
        raise reasoning_refused()
    return found


def reasoning_refused(param: str = "input") -> InvalidRequest:
    return InvalidRequest(_REASONING, param=param, code="unsupported_value")


def _is_named(item: dict[str, Any]) -> bool:
    ident = item.get("id")
    return item.get("type") == "reasoning" and isinstance(ident, str) and 0 < len(ident) <= ID_CHARS_MAX and (
        ident.isprintable() and not any(item.get(name) for name in _OWN["reasoning"]))


def _refuse_reference(item: dict[str, Any], where: str) -> None:
    """An item with an id must have what it is about in itself: OpenAI looks up by id what it lacks. Of reasoning alone
    it is known who got it, see keeper.py."""
    kind = item.get("type")
    if kind != "item_reference":
        if item.get("id") is None or _is_named(item):
            return
        own = _OWN.get(kind) if kind is None or isinstance(kind, str) else None
        if own is not None:
            if any(item.get(name) for name in own):
                return
        elif any(value is not None for name, value in item.items() if name not in _LABELS):
            return
    if kind == "reasoning":
        raise reasoning_refused(where)
    raise InvalidRequest(_ITEMS, param=where, code="unsupported_value")
