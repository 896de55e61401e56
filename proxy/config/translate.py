"""What pydantic refuses, in words: the place in the file, the reason, and the nearest right spelling."""

from __future__ import annotations

import difflib
import re
import types
from collections.abc import Iterable, Mapping
from typing import Annotated, Any, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError

from proxy.config.problem import Path, Problem, Source, shown

WORDS: dict[str, tuple[str, str | None]] = {
    "string_type": ("must be text", "put it in quotes"),
    "int_type": ("must be a whole number", "without quotes, point or unit"),
    "bool_type": ("must be true or false", None),
    "greater_than": ("must be more than {gt}", None),
    "greater_than_equal": ("must be at least {ge}", None),
    "less_than": ("must be less than {lt}", None),
    "less_than_equal": ("must be at most {le}", None),
    "string_too_short": ("must not be empty", None),
    "string_too_long": ("is longer than {max_length} characters", None),
    "too_short": ("needs at least {min_length}", None),
    "too_long": ("has more than {max_length} entries", None),
    "tuple_type": ("must be a list", "such as [a, b]"),
    "frozen_set_type": ("must be a list", "such as [a, b]"),
    "dict_type": ("must be a mapping of names", "indent its entries under it"),
    "model_type": ("must be a mapping of settings", "indent its settings under it"),
    "model_attributes_type": ("must be a mapping of settings", "indent its settings under it"),
}
SPECIAL = {
    ("version",): ("this gateway reads version 1", None),
}


def problems_of(error: ValidationError, root: type[BaseModel], source: Source) -> Iterable[tuple[Path, bool, Problem]]:
    """Each refusal as (place, whether a value is missing or wrong rather than merely unknown, problem)."""
    for entry in error.errors(include_url=False):
        path = field_path(entry["loc"])
        yield path, entry["type"] != "extra_forbidden", _problem(entry, path, root, source)


def field_path(loc: Path) -> Path:
    """Pydantic's place of an error as a place in the file: without the names of unions and keys."""
    return tuple(part for part in loc if part not in ("one", "many", "of_card", "[key]"))


def fields_of(model: type[BaseModel]) -> dict[str, Any]:
    """The model's fields under the names that a file uses."""
    return {info.alias or name: info for name, info in model.model_fields.items()}


def model_at(root: type[BaseModel], path: Path) -> type[BaseModel] | None:
    """The model that the mapping at `path` is read into; None where there is a plain value."""
    annotation: Any = root
    for part in path:
        annotation = _below(annotation, part)
    return next((a for a in _alternatives(annotation) if _is_model(a)), None)


def _below(annotation: Any, part: str | int) -> Any:
    for option in _alternatives(annotation):
        if _is_model(option):
            if info := fields_of(option).get(part):
                return info.annotation
        elif get_origin(option) is dict and isinstance(part, str):
            return get_args(option)[1]
        elif get_origin(option) in (tuple, frozenset) and isinstance(part, int):
            return get_args(option)[0]
    return None


def _alternatives(annotation: Any) -> list[Any]:
    """A type without its annotations, or the members of a union."""
    if get_origin(annotation) is Annotated:
        return _alternatives(get_args(annotation)[0])
    if get_origin(annotation) in (Union, types.UnionType):
        return [found for member in get_args(annotation) for found in _alternatives(member)]
    return [annotation]


def _is_model(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, BaseModel)


def _problem(entry: Mapping[str, Any], path: Path, root: type[BaseModel], source: Source) -> Problem:
    kind, context, value = entry["type"], entry.get("ctx") or {}, entry.get("input")
    if path in SPECIAL:
        return source.problem(path, *SPECIAL[path])
    if kind == "extra_forbidden":
        return _unknown_key(path, root, source)
    if kind == "missing":
        return source.problem(path, f"{path[-1]} is missing", _missing_hint(path, root))
    if kind == "literal_error":
        allowed = re.findall(r"'([^']*)'", context.get("expected", ""))
        return source.problem(path, f"{shown(value)} is not one of {', '.join(allowed)}", did_you_mean(value, allowed))
    if "[key]" in entry["loc"] or kind == "string_pattern_mismatch":
        return source.problem(path, "is no name that can be used here", _name_hint(path))
    message, hint = WORDS.get(kind, (None, None))
    if message is None:
        return source.problem(path, context.get("message") or entry["msg"], context.get("hint") or None)
    return source.problem(path, message.format(**context), hint)


def _unknown_key(path: Path, root: type[BaseModel], source: Source) -> Problem:
    model = model_at(root, path[:-1])
    known = [name for name, info in fields_of(model).items() if name != "name" or info.is_required()] if model else []
    hint = did_you_mean(path[-1], known) or (f"known here: {', '.join(known)}" if len(known) <= 20 else None)
    return source.problem(path, f"unknown key {shown(path[-1])}", hint)


def _missing_hint(path: Path, root: type[BaseModel]) -> str | None:
    model = model_at(root, path[:-1])
    info = fields_of(model).get(str(path[-1])) if model else None
    if info is None:
        return None
    if path[-1] == "baseline":
        return "the API backend that savings are measured against"
    return (info.json_schema_extra or {}).get("unit") or info.title


def _name_hint(path: Path) -> str:
    if path[0] == "routes":
        return "up to 128 printable ASCII characters, no spaces"
    if "forward_headers" in path:
        return "a header name in lower case"
    return "up to 64 letters, digits, '.', '_' and '-', a letter or digit first"


def did_you_mean(value: object, known: Iterable[str]) -> str | None:
    """'did you mean ...?', or None when nothing is near."""
    if not isinstance(value, str):
        return None
    folded = {name.lower(): name for name in known}
    close = difflib.get_close_matches(value.lower()[:100], folded, 1, 0.6)
    return f"did you mean '{folded[close[0]]}'?" if close else None
