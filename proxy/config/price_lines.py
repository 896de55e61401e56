"""New lines for the operator's price file: added to its text, so that nothing that stands there is touched.

The file is somebody's, with comments and an order of its own, and its lines are what old months were billed by. So a
line is put under its model as text, and what comes out is read again: every old line must still be there, in its place,
and say the same, or nothing is written.
"""

from __future__ import annotations

import json
import os
import re
import tempfile
from collections.abc import Sequence
from pathlib import Path as FsPath

import yaml

from proxy.config.problem import ConfigError, Source

Addition = tuple[str, str, str]  # provider, model, the line in braces
Insert = tuple[int, int, list[str]]  # after how many lines, how far in, what
_PLAIN = re.compile(r"[A-Za-z][A-Za-z0-9_.\-]*\Z")
_WORDS = {"yes", "no", "on", "off", "true", "false", "null", "y", "n"}
_NOTHING = re.compile(r"(\s*prices\s*:)[ \t]*(?:\{\s*\}|~|null)?[ \t]*(#.*)?$")


def quoted(name: str) -> str:
    """A name as YAML takes it for text."""
    return name if _PLAIN.match(name) and name.lower() not in _WORDS else json.dumps(name)


def with_lines(text: str, additions: Sequence[Addition], source: Source) -> str:
    """The file's text with the lines in it, under their models. ConfigError where it cannot be done without touching
    what stands there."""
    lines = text.splitlines()
    root = yaml.compose(text, Loader=yaml.SafeLoader) if text.strip() else None
    if root is not None and not isinstance(root, yaml.MappingNode):
        raise ConfigError([source.at(1, None, "must be a mapping")])
    found = _entry(root, "prices") if root is not None else None
    replaced = None
    grouped: dict[str, dict[str, list[str]]] = {}
    for provider, model, line in additions:
        grouped.setdefault(provider, {}).setdefault(model, []).append(line)
    inserts: list[Insert] = []
    if found is None:
        inserts.append((len(lines), 0, ["prices:", *_providers(grouped, 2)]))
    elif not isinstance(found[1], yaml.MappingNode) or not found[1].value:
        replaced = found[0].start_mark.line
        nothing = _NOTHING.match(lines[replaced])
        if nothing is None:
            raise _by_hand(source, found[0], "prices")
        lines[replaced] = nothing[1] + (f"  {nothing[2]}" if nothing[2] else "")
        inserts.append((replaced + 1, 1, _providers(grouped, 2)))
    else:
        inserts = _into(found, grouped, source)
    # From the end; of those in one place the innermost last, so that it comes first.
    for after, _, new in sorted(reversed(inserts), key=lambda one: (-one[0], one[1])):
        lines[after:after] = new
    end = "\r\n" if "\r\n" in text else "\n"
    result = end.join([*lines, ""])
    _untouched(text, result, replaced, source)
    return result


def _into(prices: tuple[yaml.Node, yaml.Node], grouped: dict[str, dict[str, list[str]]],
          source: Source) -> list[Insert]:
    inserts: list[Insert] = []
    node = _block(source, *prices, "prices")
    for provider, models in grouped.items():
        owner = _entry(node, provider)
        if owner is None:
            inserts.append((_end(node), 1, _providers({provider: models}, node.value[0][0].start_mark.column)))
            continue
        owned = _block(source, *owner, provider)
        for model, new in models.items():
            entry = _entry(owned, model)
            if entry is None:
                inserts.append((_end(owned), 2, _model(model, new, owned.value[0][0].start_mark.column)))
                continue
            listed = entry[1]
            if not isinstance(listed, yaml.SequenceNode) or listed.flow_style or not listed.value:
                raise _by_hand(source, entry[0], model)
            inserts.append((_end(listed), 3, [" " * listed.start_mark.column + f"- {line}" for line in new]))
    return inserts


def _providers(grouped: dict[str, dict[str, list[str]]], indent: int) -> list[str]:
    found = []
    for provider, models in grouped.items():
        found.append(" " * indent + f"{quoted(provider)}:")
        for model, new in models.items():
            found += _model(model, new, indent + 2)
    return found


def _model(model: str, new: list[str], indent: int) -> list[str]:
    return [" " * indent + f"{quoted(model)}:", *(" " * (indent + 2) + f"- {line}" for line in new)]


def _entry(node: yaml.Node | None, key: str) -> tuple[yaml.Node, yaml.Node] | None:
    assert isinstance(node, yaml.MappingNode)
    return next(((name, value) for name, value in node.value if name.value == key), None)


def _block(source: Source, key: yaml.Node, node: yaml.Node, name: str) -> yaml.MappingNode:
    if not isinstance(node, yaml.MappingNode) or node.flow_style or not node.value:
        raise _by_hand(source, key, name)
    return node


def _by_hand(source: Source, node: yaml.Node, name: str) -> ConfigError:
    return ConfigError([source.at(node.start_mark.line + 1, node.start_mark.column + 1,
                                  f"{name} is not written as indented lines, so none can be added below it",
                                  "write it as in the example in config/prices.yaml")])


def _end(node: yaml.Node) -> int:
    """How many lines there are up to and with the node's last."""
    if isinstance(node, yaml.ScalarNode) or node.flow_style or not node.value:
        at = node.end_mark
        return at.line + (1 if at.column else 0)
    last = node.value[-1]
    return _end(last[1] if isinstance(last, tuple) else last)


def _untouched(before: str, after: str, replaced: int | None, source: Source) -> None:
    """Every line is still there, in order, but for an empty `prices: {}`."""
    old = before.splitlines()
    if replaced is not None:
        old[replaced] = after.splitlines()[replaced]
    new = iter(after.splitlines())
    if not all(line in new for line in old):  # each after the one before it
        raise ConfigError([source.at(0, None, "cannot be added to without touching what stands there",
                                     "add the lines by hand")])


def text_of(path: FsPath) -> str:
    """With the ends of its lines as they are."""
    return path.read_bytes().decode("utf-8-sig")


def write(path: FsPath, text: str) -> None:
    """Whole or not at all."""
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8", newline="") as stream:
            stream.write(text)
        os.chmod(name, path.stat().st_mode & 0o777 if path.exists() else 0o644)
        os.replace(name, path)
    except OSError:
        os.unlink(name)
        raise
