"""`breakeven report --format focus`: the period as a FOCUS Cost and Usage dataset."""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from proxy.cli.currency import currency_in
from proxy.cli.progress import bar, sum_up

if TYPE_CHECKING:
    from proxy.core.pricing import PriceBook
    from proxy.reports.focus.rows import Row

    Rows = Callable[[], AbstractContextManager[Iterable[Row]]]


def write(from_: str | None, to: str | None, ledger: str | None, config: Path | None, time_zone: str | None,
          asked: str | None, version: str | None, output: Path | None) -> None:
    """Write it to `output`, or as CSV to standard output; nothing of it appears before it is whole and adds up.

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
    currency, public = currency_in(config, location.currency, asked), _public(config)
    sum_up(location.url)

    @contextmanager
    def rows() -> Iterator[Export]:
        with store.reading(location.url) as connection, bar("writing", "hours") as progress:
            yield Export(connection, from_ns, to_ns, public, progress, currency)

    try:
        if output is None:
            _show(rows, version, currency.code)
        else:
            _save(rows, version, currency.code, output)
    except IdentityBroken as broken:
        typer.echo(f"breakeven report: {broken}; see `breakeven ledger verify`", err=True)
        raise typer.Exit(1) from None
    except OSError as error:
        raise ValueError(f"{output or 'standard output'}: {error.strerror or error}") from None


def _show(rows: Rows, version: str, code: str) -> None:
    """Shown once it is whole, and once the bar is gone, which takes what is printed meanwhile to itself."""
    from proxy.reports.focus.writers import write_csv

    with tempfile.TemporaryFile("w+", encoding="utf-8", newline="") as text:
        with rows() as export:
            write_csv(export, text, version, code)
        text.seek(0)
        shutil.copyfileobj(text, sys.stdout)


def _save(rows: Rows, version: str, code: str, output: Path) -> None:
    from proxy.reports.focus.writers import write_csv, write_parquet

    part = output.with_name(f".{output.name}.part")
    try:
        with rows() as export:
            if output.suffix == ".parquet":
                with part.open("wb") as binary:
                    write_parquet(export, binary, version, code)
            else:
                with part.open("w", encoding="utf-8", newline="") as text:
                    write_csv(export, text, version, code)
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
