"""Which ledger a command means: `--ledger URL`, or the `ledger:` of `--config FILE`, or the default."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import yaml

from proxy.core.currency import USD
from proxy.ledger.store import DEFAULT_URL


@dataclass(frozen=True, slots=True)
class Location:
    url: str
    time_zone: str = "UTC"
    currency: str = USD
    routes: tuple[str, ...] | None = None  # by name; None where no configuration is at hand, or it has none yet


def locate(ledger: str | None = None, config: Path | None = None) -> Location:
    """`--ledger` wins. Only four settings are read from the file, so that a report can be made while the rest of it
    is being edited; `breakeven check` judges the whole. ValueError says what is wrong with it."""
    if config is None:
        return Location(ledger or DEFAULT_URL)
    try:
        tree = yaml.safe_load(config.read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(f"{config}: {error.strerror or error}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{config}: not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(tree, dict):
        raise ValueError(f"{config}: not a configuration; try `breakeven check {config}`")
    report = tree.get("report")
    zone = report.get("time_zone", "UTC") if isinstance(report, dict) else "UTC"
    currency = report.get("currency", USD) if isinstance(report, dict) else USD
    url = ledger or tree.get("ledger") or DEFAULT_URL
    if not all(isinstance(one, str) for one in (url, zone, currency)):
        raise ValueError(f"{config}: ledger, report.time_zone and report.currency are text; try `breakeven check "
                         f"{config}`")
    routes = tree.get("routes")
    return Location(url, zone, currency, tuple(map(str, routes)) if isinstance(routes, dict) else None)


def alone(ledger: str | None, config: Path | None) -> str:
    """The URL, for a command to which a configuration says nothing else. ValueError where both are given."""
    if ledger is not None and config is not None:
        raise ValueError("--ledger and --config both say which ledger is meant: leave one out")
    return locate(ledger, config).url
