"""`breakeven report --from-rows`: every row of the period counted once more before the report is given."""

from __future__ import annotations

import time
from pathlib import Path

import typer

from proxy.cli.progress import bar


def count(from_: str | None, to: str | None, ledger: str | None, config: Path | None, time_zone: str | None) -> None:
    """Say how many rows add up to what the report says; exit 1 where they do not.

    ValueError for what makes no sense, LedgerUnavailable for the ledger."""
    from proxy.core.savings import IdentityBroken
    from proxy.ledger.location import locate
    from proxy.reports import raw
    from proxy.reports.period import resolve
    from proxy.reports.statement import zone_of

    location = locate(ledger, config)
    from_ns, to_ns = resolve(from_, to, zone_of(time_zone or location.time_zone), time.time_ns())
    began = time.monotonic()
    try:
        with bar("counting", "days") as progress:
            rows = raw.check(location.url, from_ns, to_ns, progress)
    except IdentityBroken as broken:
        typer.echo(f"breakeven report: {broken}; see `breakeven ledger verify`", err=True)
        raise typer.Exit(1) from None
    typer.echo(f"{rows:,} rows counted in {time.monotonic() - began:.1f} s: they add up to the report, to the "
               "nano-dollar", err=True)
