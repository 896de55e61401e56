"""Holds a FOCUS file to tests/data/focus/requirements.yaml: every column, every row, every rule across them."""

import datetime as dt
import json
import re
from collections import defaultdict
from decimal import Context, Decimal
from itertools import pairwise
from pathlib import Path

import yaml

MODEL = yaml.safe_load((Path(__file__).parents[1] / "data/focus/requirements.yaml").read_text())
NUMBER = re.compile(r"-?(0|[1-9][0-9]*)(\.[0-9]+)?")
TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ")
OURS = re.compile(r"x_[A-Z][A-Za-z0-9]{1,47}")
EXACT = Context(prec=100)
PLACEHOLDERS = {"null", "none", "n/a", "nan"}


def problems(header: list[str], rows: list[dict[str, str]], version: str, *, converted: bool = False) -> list[str]:
    """What the model finds wrong with a file of that version; `rows` are texts by column, empty for null. `converted`:
    billed in another currency than it is priced in."""
    wanted = {name: rule for name, rule in MODEL["columns"].items() if version in rule.get("in", [version])
              and (converted or "where" not in rule)}
    found = [f"{name}: is missing, it is {rule['need']} in {version}" for name, rule in wanted.items()
             if name not in header]
    found += [f"{name}: is no column of {version}, and not our own" for name in header
              if name not in wanted and not OURS.fullmatch(name)]
    found += [f"{name}: comes after {last}" for last, name in pairwise([one for one in header if one in wanted])
              if name < last]
    if len(set(header)) != len(header):
        found.append("a column is there twice")
    for number, row in enumerate(rows):
        found += [f"row {number}: {problem}" for problem in _row(row, {one: wanted[one] for one in wanted
                                                                       if one in header})]
    return found + list(_ones(rows)) + (list(_allocation(rows)) if version != "1.2" else [])


def _row(row, wanted):
    for name, rule in wanted.items():
        value = row[name]
        if value == "":
            if rule["nulls"] == "never":
                yield f"{name} is null"
            for when in rule.get("set_when", []):
                if holds(row, when):
                    yield f"{name} is null when {when}"
            continue
        for when in rule.get("null_when", []):
            if holds(row, when):
                yield f"{name} is {value!r} when {when}"
        if "values" in rule and value not in rule["values"]:
            yield f"{name} is {value!r}, not one of {rule['values']}"
        if problem := _typed(rule["type"], value):
            yield f"{name} is {value!r}: {problem}"
        elif "least" in rule and Decimal(value) < rule["least"]:
            yield f"{name} is {value}, less than {rule['least']}"
    for name, value in row.items():
        if name.startswith("x_") and value.strip().lower() in PLACEHOLDERS:
            yield f"{name} is {value!r}: null is empty"
    yield from _across(row)


def _typed(type_, value):
    if value != value.strip() or value.lower() in PLACEHOLDERS:
        return "a placeholder, or blanks around it"
    if type_ == "decimal":
        return None if NUMBER.fullmatch(value) else "no plain number"
    if type_ == "time":
        return None if TIME.fullmatch(value) and dt.datetime.fromisoformat(value) else "no time in UTC"
    if type_ == "currency":
        return None if re.fullmatch("[A-Z]{3}", value) else "no currency code"
    if type_ == "unit":
        return None if value in MODEL["units"] else "no unit"
    if type_ == "pairs":
        return _pairs(value)
    return _method(value) if type_ == "allocation" else None


def _pairs(value):
    names = []
    try:
        found = json.loads(value, object_pairs_hook=lambda pairs: names.extend(one for one, _ in pairs) or dict(pairs))
    except ValueError:
        return "no JSON"
    if not isinstance(found, dict) or any(isinstance(one, dict | list) for one in found.values()):
        return "no object of plain values"
    return "a key twice" if len(set(names)) != len(names) else None


def _method(value):
    try:
        elements = json.loads(value, parse_float=Decimal)["Elements"]
    except (ValueError, KeyError, TypeError):
        return "no object with Elements"
    for one in elements:
        if not 0 <= one["AllocatedRatio"] <= 1:
            return "a ratio that is none"
        if "UsageQuantity" in one and "UsageUnit" not in one:
            return "a quantity without its unit"
    return None if elements else "no element"


def _across(row):
    for rule in MODEL["rows"]:
        if not holds(row, rule.get("when", {})):
            continue
        if "product" in rule:
            cost, price, quantity = (row[name] for name in rule["product"])
            numbers = all(map(NUMBER.fullmatch, (cost, price, quantity)))
            if numbers and EXACT.multiply(Decimal(price), Decimal(quantity)) != Decimal(cost):
                yield f"{rule['product'][0]} is {cost}, not {price} * {quantity}"
        elif "equal" in rule:
            one, other = (row[name] for name in rule["equal"])
            if all(map(NUMBER.fullmatch, (one, other))) and Decimal(one) != Decimal(other):
                yield f"{rule['equal']}: {one} is not {other}"
        elif "before" in rule and not row[rule["before"][0]] < row[rule["before"][1]]:
            yield f"{rule['before']}: out of order"
        elif "within" in rule:
            (start, end), (first, last) = ([row[name] for name in names] for names in rule["within"])
            if not first <= start < end <= last:
                yield f"{start} to {end} is not within {first} to {last}"
        elif "differs" in rule and row[rule["differs"][0]] == rule["differs"][1]:
            yield f"{rule['differs'][0]} is {rule['differs'][1]}"


def holds(row, when):
    for name, wanted in when.items():
        value = row.get(name, "")
        if wanted is None:
            fine = value == ""
        elif isinstance(wanted, list):
            fine = value in wanted
        elif wanted.startswith("!"):
            fine = value != wanted[1:]
        else:
            fine = value == wanted
        if not fine:
            return False
    return True


def _ones(rows):
    for first, others in MODEL["one_of"].items():
        for other in others:
            seen = defaultdict(set)
            for row in rows:
                if row[first] and row["ChargeClass"] == "":
                    seen[row[first]].add(row[other])
            for value, found in seen.items():
                if len(found) > 1:
                    yield f"{first} {value!r} has several {other}: {sorted(found)[:3]}"


def _allocation(rows):
    groups = defaultdict(list)
    for row in rows:
        if row["AllocatedMethodId"]:
            groups[tuple(row[name] for name in MODEL["allocation"]["of"])].append(row)
    for key, group in groups.items():
        ratios = [json.loads(row["AllocatedMethodDetails"], parse_float=Decimal)["Elements"] for row in group]
        total = sum(one["AllocatedRatio"] for elements in ratios for one in elements)
        if total != 1:
            yield f"{key}: the ratios add up to {total}"
        names = [row["AllocatedResourceId"] for row in group if row["AllocatedResourceId"]]
        if len(set(names)) != len(names):
            yield f"{key}: an AllocatedResourceId twice"
        for name in MODEL["allocation"]["same"]:
            if len({row[name] for row in group}) > 1:
                yield f"{key}: several {name} in what one charge was split into"
