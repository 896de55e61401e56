"""`breakeven report --format focus`: the period as a FOCUS Cost and Usage dataset."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from proxy.cli.progress import bar, sum_up

if TYPE_CHECKING:
    from proxy.core.pricing import PriceBook
    from proxy.reports.focus.rows import Row


def write(from_: str | None, to: str | None, ledger: str | None, config: Path | None, time_zone: str | None,
          version: str | None, output: Path | None) -> None:
    """Write it to `output`, which appears only once it is whole and adds up; without one, CSV to standard output.

    ValueError for what makes no sense, LedgerUnavailable for the ledger; exit 1 where it does not add up."""
    from proxy.core.savings import IdentityBroken
    from proxy.ledger import store
    from proxy.ledger.location import locate
    from proxy.reports.focus.columns import DEFAULT_VERSION, columns
    from proxy.reports.focus.export import Export
    from proxy.reports.period import resolve
    from proxy.reports.statement import zone_of

    version = version or DEFAULT_VERSION
    columns(version)  # says so if there is no such version
    location = locate(ledger, config)
    from_ns, to_ns = resolve(from_, to, zone_of(time_zone or location.time_zone), time.time_ns())
    public = _public(config)
    sum_up(location.url)
    try:
        with store.reading(location.url) as connection, bar("writing", "hours") as progress:
            _out(Export(connection, from_ns, to_ns, public, progress), version, output)
    except IdentityBroken as broken:
        typer.echo(f"breakeven report: {broken}; see `breakeven ledger verify`", err=True)
        raise typer.Exit(1) from None
    except OSError as error:
        raise ValueError(f"{output}: {error.strerror or error}") from None


def _out(rows: Iterable[Row], version: str, output: Path | None) -> None:
    from proxy.reports.focus.writers import write_csv, write_parquet

    if output is None:
        write_csv(rows, sys.stdout, version)
        return
    part = output.with_name(f".{output.name}.part")
    try:
        if output.suffix == ".parquet":
            with part.open("wb") as binary:
                write_parquet(rows, binary, version)
        else:
            with part.open("w", encoding="utf-8", newline="") as text:
                write_csv(rows, text, version)
        os.replace(part, output)
    finally:
        part.unlink(missing_ok=True)


def _public(config: Path | None) -> PriceBook:
    """List prices beside what was paid: of a configuration, because the ledger has what was paid. ValueError where it
    is not valid."""
    from proxy.core.pricing import PriceBook

    if config is None:
        return PriceBook()
    from proxy.config import ConfigError, load
    from proxy.config.prices import load_price_book

    try:
        return load_price_book(load(config, secrets=False))
    except ConfigError as error:
        raise ValueError(f"{config}: its list prices are needed, and it is not valid:\n{error}") from None
