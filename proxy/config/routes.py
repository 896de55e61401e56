"""From the model name in a request to its route.

Exact names first, then exact aliases, then globs in file order, then the route "*". Names are
compared as written. A name over 256 characters is no model's.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from fnmatch import translate
from typing import Generic, TypeVar

NAME_LENGTH_MAX = 256
R = TypeVar("R")


def is_glob(alias: str) -> bool:
    return any(c in alias for c in "*?[")


class RouteTable(Generic[R]):
    """Compiled once per configuration; asked once per request."""

    def __init__(self, routes: Mapping[str, R], aliases: Mapping[str, Iterable[str]]) -> None:
        self._rest = routes.get("*")
        self._exact: dict[str, R] = {name: route for name, route in routes.items() if name != "*"}
        self._globs: list[tuple[re.Pattern[str], R]] = []
        for name, route in routes.items():
            for alias in aliases.get(name, ()):
                if is_glob(alias):
                    self._globs.append((re.compile(translate(alias)), route))
                else:
                    self._exact.setdefault(alias, route)

    def find(self, model_name: str) -> R | None:
        route = self._exact.get(model_name)
        if route is not None:
            return route
        if len(model_name) > NAME_LENGTH_MAX:
            return None
        for pattern, candidate in self._globs:
            if pattern.match(model_name):
                return candidate
        return self._rest
