"""One module per parser: `run(data)` raises AssertionError, or anything else, when a promise is broken; `WORDS` are
worth putting into its inputs."""

from collections.abc import Callable
from importlib import import_module

TARGETS = ("stream", "events", "request", "metrics", "answer", "reply")


def target(name: str) -> Callable[[bytes], None]:
    return import_module(f"tests.fuzz.targets.{name}").run


def words(name: str) -> tuple[bytes, ...]:
    return import_module(f"tests.fuzz.targets.{name}").WORDS
