"""One module per parser: `run(data)` raises AssertionError, or anything else, when a promise is broken."""

from importlib import import_module

TARGETS = ("stream", "request", "metrics", "answer")


def target(name: str):
    """The `run` of a target."""
    return import_module(f"tests.fuzz.targets.{name}").run
