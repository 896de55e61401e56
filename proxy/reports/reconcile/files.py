"""Files in, a bill out: which format each is, read whole, hashed, and refused with its place where it is wrong."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any

import yaml

from proxy.reports.reconcile import tables
from proxy.reports.reconcile.bill import BadBill, Bill, File
from proxy.reports.reconcile.openai import Pages

BYTES_MAX = 256 * 1024 * 1024
LOCATED_BYTES_MAX = 8 * 1024 * 1024  # beyond it a path in JSON is told without its line


def read(paths: Sequence[Path]) -> Bill:
    """All files as one bill. BadBill says which file cannot be used, where, and why."""
    bill = Bill()
    for path in paths:
        try:
            with path.open("rb") as file:
                content = file.read(BYTES_MAX + 1)
        except OSError as error:
            raise BadBill(str(path), None, "", error.strerror or str(error)) from None
        if len(content) > BYTES_MAX:
            raise BadBill(str(path), None, "", f"more than {BYTES_MAX >> 20} MiB")
        digest = hashlib.sha256(content).hexdigest()
        before, charged = len(bill.usage) + len(bill.charges) + len(bill.gpu), len(bill.charges) + len(bill.gpu)
        what = _one(path, content, bill)
        if any(digest == other.sha256 for other in bill.files) and before != (
                len(bill.usage) + len(bill.charges) + len(bill.gpu)):  # two exports without anything are the same
            raise BadBill(str(path), None, "", "the same file twice")
        bill.files.append(File(path.name, digest, what, len(bill.charges) + len(bill.gpu) > charged))
    if bill.gpu and (bill.usage or bill.charges):
        raise BadBill(str(paths[-1]), None, "", "a GPU bill and an API's bill: reconcile them one after the other")
    return bill


def _one(path: Path, content: bytes, bill: Bill) -> str:
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise BadBill(str(path), line, "", "is not UTF-8 text; export it as CSV or JSON") from None
    if text.lstrip()[:1] not in ("{", "["):
        return tables.read(str(path), text, bill)
    pages = Pages(str(path), lambda name: _line_of(text, name))
    pages.read(_json(path, text))
    bill.provider = "openai"
    bill.usage += pages.usage
    bill.charges += pages.charges
    tables.agree(bill, str(path), pages.first, pages.beyond)
    if pages.charges and pages.usage:
        return "OpenAI usage and costs"
    return "OpenAI costs" if pages.charges else "OpenAI usage"


def _json(path: Path, text: str) -> Any:
    """One document, or one a line. Numbers stay exact."""
    try:
        return json.loads(text, parse_float=Decimal, parse_constant=_no_number)
    except (ValueError, ArithmeticError, RecursionError) as error:
        if not text.lstrip().startswith("{") or "\n" not in text.strip():
            raise _invalid(path, error) from None
        whole = error
    pages = []
    for number, line in enumerate(text.splitlines(), 1):
        if line.strip():
            try:
                pages.append(json.loads(line, parse_float=Decimal, parse_constant=_no_number))
            except (ValueError, ArithmeticError, RecursionError) as error:
                raise (_invalid(path, whole) if number == 1 else _invalid(path, error, number)) from None
    return pages


def _no_number(name: str) -> Any:
    raise ValueError(f"{name} is no number")


def _invalid(path: Path, error: Exception, line: int | None = None) -> BadBill:
    what = "nested too deep" if isinstance(error, RecursionError) else getattr(error, "msg", str(error))
    return BadBill(str(path), line or getattr(error, "lineno", None), "", f"not valid JSON: {what}")


def _line_of(text: str, path: str) -> int | None:
    """The line of "data[0].results[2].model": JSON is YAML, whose reader knows where things stand."""
    if len(text) > LOCATED_BYTES_MAX:
        return None
    try:
        node = yaml.compose(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    except yaml.YAMLError:
        return None
    for step in path.replace("[", ".[").strip(".").split("."):
        found = None
        if step.startswith("[") and isinstance(node, yaml.SequenceNode):
            found = next(iter(node.value[int(step[1:-1]):]), None)
        elif isinstance(node, yaml.MappingNode):
            found = next((value for key, value in node.value if key.value == step), None)
        if found is None:
            break  # it is missing: the line of what should have it
        node = found
    return None if node is None else node.start_mark.line + 1
