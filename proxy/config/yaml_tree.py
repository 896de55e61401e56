"""YAML text to plain values, and where each stands. Safe, bounded, and exact.

Numbers keep their text: an integer is an int, anything with a point or an exponent a Decimal. Refused:
tags, duplicate keys, more than 1 MiB, nesting over 32, aliases that expand to more than 50,000 values
or contain themselves. Anchors and merge keys are fine.
"""

from __future__ import annotations

import re
from decimal import Decimal
from pathlib import Path as FsPath
from typing import Any

import yaml

from proxy.config.problem import SECRET, ConfigError, Path, Problem, Source, dotted, shown

FILE_BYTES_MAX = 1_048_576
DEPTH_MAX = 32
EVENTS_MAX = 100_000
VALUES_MAX = 50_000

_Loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_INT = re.compile(r"[-+]?(0|[1-9][0-9_]*)\Z")
_DECIMAL = re.compile(r"[-+]?([0-9][0-9_]*)?\.?[0-9_]*([eE][-+]?[0-9]{1,3})?\Z")
_KEY_IN_CLEAR = re.compile(r"api_key[\"']?\s*:\s*(.{4,}?)\s*$", re.MULTILINE)
_URL_PASSWORD = re.compile(r"://[^/\s:@]*:([^/\s@]{3,})@")
_QUOTED = re.compile(r"'(?!<)[^'\n]{4,}'")
_PREFIX = "tag:yaml.org,2002:"


def read(path: str | FsPath) -> tuple[Any, Source, list[Problem]]:
    """The file's value, its places and its smaller problems; ConfigError where there is no value."""
    source = Source(str(path))
    try:
        with FsPath(path).open("rb") as stream:
            raw = stream.read(FILE_BYTES_MAX + 1)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "no such file"
        raise ConfigError([source.at(0, None, f"cannot be read: {reason}")]) from None
    if len(raw) > FILE_BYTES_MAX:
        raise ConfigError([source.at(0, None, "is over 1 MiB, too long for a configuration")])
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw[:error.start].count(b"\n") + 1
        raise ConfigError([source.at(line, None, "is not UTF-8 text")]) from None
    return parse(text, source)


def parse(text: str, source: Source) -> tuple[Any, Source, list[Problem]]:
    source.text = text
    _note_secrets(text, source)
    failure = None
    try:
        _bound(text, source)
        node = yaml.compose(text, Loader=_Loader)
    except yaml.YAMLError as error:
        failure = _syntax(error, text, source)
    if failure is not None:  # raised out here: a chained YAMLError would carry a piece of the text
        raise ConfigError([failure])
    if node is None:
        raise ConfigError([source.at(0, None, "is empty")])
    tree = _Tree(source)
    return tree.value(node, ()), source, tree.problems


def _note_secrets(text: str, source: Source) -> None:
    for found in _KEY_IN_CLEAR.finditer(text):
        value = found[1].split(" #")[0].strip().strip("\"',}{ ")
        if len(value) >= 4 and not value.startswith(("env:", "file:")):
            source.secrets.add(value)
    source.secrets.update(found[1] for found in _URL_PASSWORD.finditer(text))


def _bound(text: str, source: Source) -> None:
    """Refuse what would be dear or dangerous to compose (libyaml's composer recurses in C)."""
    depth = 0
    for count, event in enumerate(yaml.parse(text, Loader=_Loader)):
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1
        if depth > DEPTH_MAX or count > EVENTS_MAX:
            what = f"nested deeper than {DEPTH_MAX}" if depth > DEPTH_MAX else "too many values"
            raise ConfigError([source.at(event.start_mark.line + 1, event.start_mark.column + 1, what)])


def _syntax(error: yaml.YAMLError, text: str, source: Source) -> Problem:
    mark = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
    if mark is None:
        position = getattr(error, "position", None)
        line = text[:position].count("\n") + 1 if isinstance(position, int) else 1
        return source.at(line, None, "holds a character that YAML does not allow")
    lines = text.split("\n")
    here = lines[mark.line] if mark.line < len(lines) else ""
    message = _QUOTED.sub("a name", getattr(error, "problem", None) or "is not valid YAML")
    hint = None
    if "\t" in here[:len(here) - len(here.lstrip())]:
        message, hint = "a tab in the indentation", "indent with spaces"
    elif "mapping values are not allowed" in message:
        hint = "quote values that contain ': ', and check the indentation"
    elif "could not find expected ':'" in message:
        hint = "the line above may lack its ':'"
    elif "alias" in message:
        hint = "quote names that begin with * or &"
    return source.at(mark.line + 1, mark.column + 1, f"not valid YAML: {message}", hint)


class _Tree:
    """Walks composed nodes, aliases expanded, with a budget."""

    def __init__(self, source: Source) -> None:
        self.source = source
        self.problems: list[Problem] = []
        self._values = 0
        self._open: set[int] = set()

    def value(self, node: yaml.Node, path: Path) -> Any:
        self._values += 1
        line, column = node.start_mark.line + 1, node.start_mark.column + 1
        self.source.marks.setdefault(path, (line, column))
        if self._values > VALUES_MAX:
            raise ConfigError([self.source.at(line, column, f"aliases expand to more than {VALUES_MAX} values")])
        if isinstance(node, yaml.ScalarNode):
            return self._scalar(node, path)
        if id(node) in self._open:
            raise ConfigError([self.source.at(line, column, "an anchor that contains itself")])
        self._open.add(id(node))
        try:
            if node.tag not in (_PREFIX + "map", _PREFIX + "seq"):
                self._refuse(path, "a YAML tag, which is not allowed here", "take away the !...")
                return None
            if isinstance(node, yaml.SequenceNode):
                return [self.value(item, (*path, index)) for index, item in enumerate(node.value)]
            return self._mapping(node, path)
        finally:
            self._open.discard(id(node))

    def _mapping(self, node: yaml.MappingNode, path: Path) -> dict[str, Any]:
        merged: dict[str, Any] = {}  # first, so that the places of the mapping's own keys win
        for value_node in [value for key, value in node.value if key.tag == _PREFIX + "merge"]:
            several = value_node.value if isinstance(value_node, yaml.SequenceNode) else [value_node]
            for other in reversed(several):
                merged.update(self._merged(other, path))
        own: dict[str, Any] = {}
        for key_node, value_node in node.value:
            if key_node.tag == _PREFIX + "merge":
                continue
            line, column = key_node.start_mark.line + 1, key_node.start_mark.column + 1
            if not isinstance(key_node, yaml.ScalarNode):
                self.problems.append(self.source.at(line, column, "a key must be a plain name"))
                continue
            key = key_node.value
            if key in own:
                first = self.source.marks[(*path, key)][0]
                self.problems.append(self.source.at(line, column, f"key {shown(key)} is given twice",
                                                    f"first on line {first}", where=dotted((*path, key))))
                continue
            self.source.marks[(*path, key)] = (line, column)
            own[key] = self.value(value_node, (*path, key))
        return {**merged, **own}

    def _merged(self, node: yaml.Node, path: Path) -> dict[str, Any]:
        line = node.start_mark.line + 1
        if not isinstance(node, yaml.MappingNode):
            self.problems.append(self.source.at(line, None, "<<: takes a mapping or a list of mappings"))
            return {}
        self._values += 1
        if id(node) in self._open or self._values > VALUES_MAX:
            raise ConfigError([self.source.at(line, None, "an anchor that contains itself, or expands to too much")])
        self._open.add(id(node))
        try:
            return self._mapping(node, path)
        finally:
            self._open.discard(id(node))

    def _scalar(self, node: yaml.ScalarNode, path: Path) -> Any:
        text, kind = node.value, node.tag.removeprefix(_PREFIX)
        if kind == "str":
            return text
        if kind == "null":
            return None
        if kind == "bool":
            return text.lower() in ("true", "yes", "on")
        if kind in ("int", "float"):
            if _INT.match(text) and len(text) <= 40:
                return int(text)
            if _DECIMAL.match(text) and any(c.isdigit() for c in text) and len(text) <= 40:
                return Decimal(text.replace("_", ""))
            return text  # 0o17, 1:30, .inf: whatever YAML 1.1 makes of them, nobody means it
        if kind == "timestamp":
            try:
                return yaml.SafeLoader("").construct_yaml_timestamp(node)
            except (ValueError, OverflowError):
                self._refuse(path, "is no date of the calendar", "such as 2026-01-31")
                return None
        self._refuse(path, "a YAML tag, which is not allowed here", "take away the !...")
        return None

    def _refuse(self, path: Path, message: str, hint: str | None = None) -> None:
        self.problems.append(self.source.problem(path, message, hint))


def secrets_in_clear(source: Source, said: set[int]) -> list[Problem]:
    """Lines, comments included, with something that looks like a credential; not those in `said`."""
    problems = []
    by_line = {line: path for path, (line, _) in source.marks.items()}
    for number, line in enumerate(source.text.split("\n"), 1):
        if number not in said and (found := SECRET.search(line)):
            problems.append(source.at(
                number, found.start() + 1, "something that looks like a secret stands here in clear",
                "write env:NAME or file:PATH, and replace the secret: it may be in backups by now",
                where=dotted(by_line.get(number, ()))))
    return problems
