"""Which currency a report is in: what is asked for, or `report.currency` of the configuration."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from proxy.core.currency import Currency


def currency_in(config: Path | None, configured: str, asked: str | None = None) -> Currency:
    """ValueError where its rates are not to be had."""
    from proxy.core.currency import DOLLARS, MINOR, USD

    code = asked or configured
    if code == USD:
        return DOLLARS
    if config is None or code != configured:
        there = "USD is always there, another with --config FILE" if config is None else (
            "this configuration has USD alone" if configured == USD else
            f"this configuration has {configured}, and USD")
        if code not in MINOR:
            raise ValueError(f"--currency {code}: no such currency; {there}")
        if config is None:
            raise ValueError(f"--currency {code}: its rates are those of a configuration with report.currency: {code}; "
                             f"{there}")
        raise ValueError(f"--currency {code}: {there}")
    from proxy.config.report import read_currency

    return read_currency(config)
