"""Reading a configuration: all of it is checked before any of it is used, and all problems are told at once.

text -> values with places (`yaml_tree`) -> `Settings` (`model`) -> what spans several fields (`checks`).
Where a value is refused, its default stands in for it while the rest is checked.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Mapping
from pathlib import Path as FsPath
from typing import Any

from pydantic import ValidationError

from proxy.config import yaml_tree
from proxy.config.checks import cross_check
from proxy.config.gpu_card import with_cards
from proxy.config.model import Settings
from proxy.config.problem import ConfigError, Path, Problem, Source, in_order
from proxy.config.translate import fields_of, model_at, problems_of

ATTEMPTS_MAX = 3  # refused values are replaced by defaults and the rest is looked at again
PROBLEMS_MAX = 100

# Stand in for required values that are missing or wrong; checks that would look at them are skipped.
STAND_INS: dict[str, Any] = {
    "model": "-", "backends": ["-"], "baseline": "-", "type": "-", "usd_per_hour": 0, "name": "-", "usd_per_month": 0,
    "from": "2026-01-01", "prefill_tokens_per_s": 1, "step_ms": [1, 1, 1], "kv_tokens": 1, "max_running": 1,
}


def load(path: str | FsPath, env: Mapping[str, str] | None = None, secrets: bool = True) -> Settings:
    """The settings in the file at `path`, or ConfigError with everything that is wrong.

    `env` (the process environment if None) answers `env:NAME`. With `secrets=False` no secret is looked
    up: for commands that call nobody. Nothing is contacted; of prices only GPU rate cards are read.
    """
    data, source, problems = yaml_tree.read(path)
    settings = None
    if isinstance(data, dict):
        settings, more = _validated(data, source, {"env": os.environ if env is None else env, "secrets": secrets})
        problems += more
    else:
        problems.append(source.problem((), "must be a mapping of settings", "begin with backends: and routes:"))
    if settings is not None and not problems:
        settings._source = source
        settings, problems = with_cards(settings)
    problems += yaml_tree.secrets_in_clear(source, {problem.line for problem in problems})
    if problems or settings is None:
        raise ConfigError(in_order(problems)[:PROBLEMS_MAX])
    source.text = ""
    return settings


def cards_of(path: str | FsPath) -> list[FsPath]:
    """The GPU rate cards that a configuration refers to, whether or not they are there yet."""
    data, _, _ = yaml_tree.read(path)
    backends = data.get("backends") if isinstance(data, dict) else None
    gpus = [backend.get("gpu") for backend in (backends or {}).values() if isinstance(backend, dict)]
    refs = [gpu.get("usd_per_hour") for gpu in gpus if isinstance(gpu, dict)]
    return list(dict.fromkeys(FsPath(ref["card"]) for ref in refs if isinstance(ref, dict) and "card" in ref))


def _validated(data: dict[str, Any], source: Source, context: dict[str, Any]) -> tuple[Settings | None, list[Problem]]:
    problems: list[Problem] = []
    refused: set[Path] = set()
    patched = copy.deepcopy(data)
    for _ in range(ATTEMPTS_MAX):
        try:
            settings = Settings.model_validate(patched, context=context)
        except ValidationError as error:
            found = list(problems_of(error, Settings, source))
        else:
            return settings, problems + cross_check(settings, source, frozenset(refused))
        for path, wrong, problem in found:
            if not any(known == path[:len(known)] for known in refused):
                problems.append(problem)
            if wrong:
                refused.add(path)
        from_the_end = sorted((path for path, _, _ in found), key=lambda p: [str(part).zfill(9) for part in p])[::-1]
        if not all([_patch(patched, path) for path in from_the_end]):
            break
    return None, problems


def _patch(data: Any, path: Path) -> bool:
    """Replace what was refused at `path` by its default or a stand-in; False where there is none."""
    if not path:
        return False
    parent = data
    for part in path[:-1]:
        try:
            parent = parent[part]
        except (KeyError, IndexError, TypeError):
            return False
    last = path[-1]
    if isinstance(parent, list) and isinstance(last, int):
        del parent[last:last + 1]
        return True
    if not isinstance(parent, dict):
        return False
    model = model_at(Settings, path[:-1])
    info = fields_of(model).get(str(last)) if model is not None else None
    if info is None or not info.is_required():
        parent.pop(last, None)
        return True
    stand_in = ("vllm" if "gpu" in parent else "openai") if last == "kind" else STAND_INS.get(str(last))
    parent[last] = stand_in
    return stand_in is not None
