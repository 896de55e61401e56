"""The price of a replica's hour from a GPU rate card, as the gateway's configuration refers to it."""

from __future__ import annotations

import datetime as dt
from fractions import Fraction
from pathlib import Path

from proxy.config.gpu_card import CardLine, read_card
from proxy.config.problem import ConfigError
from proxy.planner.names import PlanRefused


def hourly(path: Path, gpu: str, count: int, kind: str, provider: str | None) -> tuple[Fraction, str]:
    """USD per hour for all cards, in force now, and where that stands.

    Raises PlanRefused where the card is no card, knows no such price, or several.
    """
    try:
        card = read_card(path)
    except ConfigError as error:
        raise PlanRefused(f"--card {error.problems[0]}") from None
    now = dt.datetime.now(dt.UTC)
    lines = [line for line in card.lines if line.gpu.upper() == gpu.upper() and line.from_ <= now]
    fitting = [line for line in lines if line.kind == kind and provider in (None, line.provider)]
    if not fitting:
        known = ", ".join(dict.fromkeys(f"{line.kind} at {line.provider}" for line in lines))
        raise PlanRefused(f"--card {path}: no {kind} price of {gpu}" + (f" at {provider}" if provider else "")
                          + (f"; it knows {known} (--kind, --provider)" if known else "; it does not know the card"))
    latest: dict[tuple[str, ...], CardLine] = {}
    for line in sorted(fitting, key=lambda one: one.from_):
        latest[line.key] = line
    if len(latest) > 1:
        several = ", ".join(f"{line.provider} {line.region}".strip() for line in latest.values())
        raise PlanRefused(f"--card {path}: several {kind} prices of {gpu}: {several}; choose with --provider")
    (line,) = latest.values()
    return (Fraction(line.usd_per_hour) * count,
            f"{count} x {line.usd_per_hour} {kind}, {path}:{line.number}, from {line.from_.date()}: {line.source}")
