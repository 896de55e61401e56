"""The files in config/ work, and config/example.yaml holds every setting at its true default."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import BaseModel

from proxy.config import Settings, load, warnings
from proxy.config.operator_prices import PriceFile, read_operator_prices
from proxy.config.translate import fields_of, model_at

ROOT = Path(__file__).resolve().parents[3]
EXAMPLE = (ROOT / "config/example.yaml").read_text()
ENV = {"OPENAI_API_KEY": "canary-1", "ANTHROPIC_API_KEY": "canary-2", "ALERTS_SECRET": "canary-3"}
SETTING = re.compile(r"^( *)#([a-z_]+: .*)$", re.MULTILINE)
EUROS = re.compile(r"  #currency: USD\n(?:.*\n)*?  # In euros, .*\n  #\n((?:  # .*\n)+)")
IN_EUROS = EUROS.sub(lambda match: re.sub(r"^  # ", "  ", match[1], flags=re.MULTILINE), EXAMPLE)
DEFAULTS = [(match.start(), match[2]) for match in SETTING.finditer(EXAMPLE)]


@pytest.fixture(autouse=True)
def _at_the_root(monkeypatch):
    monkeypatch.chdir(ROOT)


def taken(tmp_path: Path, text: str) -> Settings:
    file = tmp_path / "example.yaml"
    file.write_text(text)
    return load(file, ENV)


@pytest.mark.parametrize("name", ["minimal", "example"])
def test_the_files_that_come_with_it_load_without_a_warning(name):
    settings = load(ROOT / f"config/{name}.yaml", ENV)
    assert warnings(settings) == []


def test_the_minimal_file_has_ten_lines():
    assert len((ROOT / "config/minimal.yaml").read_text().splitlines()) == 10


@pytest.mark.parametrize(("start", "line"), DEFAULTS, ids=[f"{i}-{line[:30]}" for i, (_, line) in enumerate(DEFAULTS)])
def test_a_commented_setting_is_at_its_default(tmp_path, start, line):
    in_use = EXAMPLE[:start] + SETTING.sub(r"\1\2", EXAMPLE[start:], count=1)
    assert taken(tmp_path, in_use) == taken(tmp_path, EXAMPLE)


def test_the_example_is_in_dollars_and_says_how_it_would_be_in_euros(tmp_path):
    """Who starts from it and reads no further has no report at a rate that somebody made up."""
    dollars, euros = taken(tmp_path, EXAMPLE), taken(tmp_path, IN_EUROS)
    assert (dollars.report.currency, dollars.report.exchange_rates) == ("USD", ())
    assert euros.report.currency == "EUR" and len(euros.report.exchange_rates) == 1
    assert euros.model_copy(update={"report": dollars.report}) == dollars, "and nothing else is another"


def mentioned(value: Any, path: tuple = ()) -> set[tuple[type[BaseModel], str]]:
    """Every (model, field) that the file has, walked along the models."""
    found: set[tuple[type[BaseModel], str]] = set()
    if isinstance(value, list):
        return set().union(*(mentioned(item, (*path, index)) for index, item in enumerate(value)))
    if isinstance(value, dict):
        model = model_at(Settings, path)
        for key, inner in value.items():
            if model is not None and key in fields_of(model):
                found.add((model, key))
            found |= mentioned(inner, (*path, key))
    return found


def models(model: type[BaseModel], seen: dict[type[BaseModel], None]) -> dict[type[BaseModel], None]:
    """All models under one, by their annotations."""
    from proxy.config.translate import _alternatives, _is_model

    seen.setdefault(model)
    for info in model.model_fields.values():
        queue = [info.annotation]
        while queue:
            for option in _alternatives(queue.pop()):
                if _is_model(option) and option not in seen:
                    models(option, seen)
                queue += [a for a in getattr(option, "__args__", ()) if a is not ... and not isinstance(a, str)]
    return seen


def test_every_setting_is_in_the_example():
    found = mentioned(yaml.safe_load(SETTING.sub(r"\1\2", IN_EUROS)))
    assert len(models(Settings, {})) == 21
    for model in models(Settings, {}):
        wanted = {name for name, info in fields_of(model).items() if name != "name" or info.is_required()}
        assert wanted == {name for owner, name in found if owner is model}, model


@pytest.mark.parametrize("root", [Settings, PriceFile])
def test_every_setting_says_its_title_default_and_why(root):
    for model in models(root, {}):
        assert model.__doc__
        for name, info in model.model_fields.items():
            assert info.title and info.description and info.json_schema_extra["why"], (model, name)
            assert "Default: " in info.description or "Required." in info.description
            if re.search(r"_(s|ms|bytes|tokens|usd|watts)(_max|$)|usd_per|watts", name) and name != "step_ms":
                assert info.json_schema_extra["unit"], (model, name)


def test_the_example_of_own_prices_loads(tmp_path):
    text = (ROOT / "config/prices.yaml").read_text()
    assert read_operator_prices(ROOT / "config/prices.yaml").all() == []
    head, example = text.split("prices: {}\n")
    file = tmp_path / "prices.yaml"
    file.write_text(head + re.sub(r"^#( *\S)", r"\1", example.split("below.\n", 1)[1], flags=re.MULTILINE))
    assert [(p.provider, p.model) for p in read_operator_prices(file).all()] == [
        ("openai", "gpt-4o"), ("openai", "gpt-4o"), ("anthropic", "claude-sonnet-4-5")]
    assert [one.kind for one in read_operator_prices(file).contracts] == ["volume", "commitment", "provisioned"]
    assert len(read_operator_prices(file).discounts) == 2
