"""`breakeven prices show` and `diff`: the price book with its sources, and own prices against list prices."""

from __future__ import annotations

import datetime as dt
import json
import sys
from decimal import Decimal
from pathlib import Path
from typing import Annotated, Any

import typer

from proxy.config import ConfigError, Settings, load
from proxy.config.fields import epoch_ns, utc
from proxy.config.operator_prices import read_operator_prices
from proxy.config.prices import listed_as, load_price_book, package_prices, providers_with
from proxy.config.routes import is_glob
from proxy.config.versions import plain
from proxy.core.pricing import Price, PriceBook
from proxy.core.usage import BUCKETS

prices_app = typer.Typer(no_args_is_help=True,
                         help="API prices: what the gateway computes with, and where it comes from.")

Config = Annotated[Path | None, typer.Option("--config", help="The configuration whose backends and own prices count.",
                                             show_default=False)]
AsJson = Annotated[bool, typer.Option("--json", help="Print a JSON list to stdout.")]


@prices_app.command()
def show(
    config: Config = None,
    model: Annotated[str | None, typer.Option(help="Only this model; without --config, at every provider that "
                                              "lists it.", show_default=False)] = None,
    at: Annotated[str | None, typer.Option(help="Only what is in force on this date (UTC), such as 2026-03-01.",
                                           show_default="all dates")] = None,
    as_json: AsJson = False,
) -> None:
    """Show prices in USD per million tokens, with the date each begins, its source and its version.

    The version is the hash that is printed on every booking made with that price.
    """
    if config is None and model is None:
        typer.echo("give --config FILE, or --model NAME to look one up", err=True)
        raise typer.Exit(2)
    at_ns = _moment(at)
    if config is not None:
        book = load_price_book_or_exit(_load_or_exit(config))
    else:
        found = {(p, model or ""): package_prices(p, model or "") for p in providers_with(model or "")}
        book = PriceBook({key: prices for key, prices in found.items() if prices})
    chosen = [price for (_, name), prices in book.entries.items() if model in (None, name)
              for price in (prices if at_ns is None else _in_force(prices, at_ns))]
    if as_json:
        typer.echo(json.dumps([_price_json(price) for price in chosen], indent=2))
    elif chosen:
        _price_table(chosen)
    else:
        typer.echo("no price is known" + (f" for {model}" if model else "") + "; see `prices:` in the configuration")
    if not chosen:
        raise typer.Exit(1)


@prices_app.command()
def diff(config: Config = None, as_json: AsJson = False) -> None:
    """Compare the operator's own prices with the list prices in force on the day they begin."""
    if config is None:
        typer.echo("give --config FILE", err=True)
        raise typer.Exit(2)
    settings = _load_or_exit(config)
    if settings.prices is None:
        typer.echo(f"{config} has no `prices:` file; list prices are in force")
        raise typer.Exit(0)
    rows = [row for price in _own(settings) for row in _compared(settings, price)]
    if as_json:
        typer.echo(json.dumps(rows, indent=2))
        return
    _table(["provider", "model", "service tier", "above", "from", "kind", "list", "own", "difference"],
           [[str(row[key]) for key in ("provider", "model", "service_tier", "above_input_tokens", "from", "bucket",
                                       "list", "own", "difference")] for row in rows])


def _own(settings: Settings) -> list[Price]:
    assert settings.prices is not None
    try:
        return read_operator_prices(settings.prices).all()
    except ConfigError as error:
        typer.echo(str(error), err=True)
        raise typer.Exit(2) from None


def _compared(settings: Settings, own: Price) -> list[dict[str, Any]]:
    """One row for each kind of token that the operator priced."""
    name = next((listed_as(b, own.model) for b in settings.backends.values()
                 if b.provider == own.provider and b.model == own.model), own.model)
    known = package_prices(own.provider, own.model, name) if not is_glob(own.model) else ()
    listed = next(iter(_in_force(tuple(p for p in known if p.service_tier == own.service_tier), own.from_ns)), None)
    rows = []
    for tier in own.tiers:
        for bucket in (b for b in BUCKETS if b in tier.usd_per_mtok):
            before = listed.tier(tier.above_input_tokens + 1).of(bucket) if listed else None
            rows.append({
                "provider": own.provider, "model": own.model, "service_tier": own.service_tier,
                "above_input_tokens": tier.above_input_tokens, "from": _day(own.from_ns), "bucket": bucket,
                "list": plain(before) if before is not None else None, "own": plain(tier.usd_per_mtok[bucket]),
                "difference": _percent(before, tier.usd_per_mtok[bucket]), "source": own.source,
            })
    return rows


def _percent(before: Decimal | None, after: Decimal) -> str:
    if before is None:
        return "not listed"
    if before == 0:
        return "0 %" if after == 0 else "was free"
    return f"{(after - before) / before * 100:+.1f} %"


def _load_or_exit(config: Path) -> Settings:
    try:
        return load(config, secrets=False)
    except ConfigError as error:
        typer.echo(str(error), err=True)
        raise typer.Exit(2) from None


def load_price_book_or_exit(settings: Settings) -> PriceBook:
    try:
        return load_price_book(settings)
    except ConfigError as error:
        typer.echo(str(error), err=True)
        raise typer.Exit(2) from None


def _moment(at: str | None) -> int | None:
    if at is None:
        return None
    try:
        return epoch_ns(utc(at))
    except ValueError:
        typer.echo(f"--at {at}: must be a date such as 2026-03-01", err=True)
        raise typer.Exit(2) from None


def _in_force(prices: tuple[Price, ...], at_ns: int) -> list[Price]:
    """The last of each service tier that has begun."""
    latest = {price.service_tier: price for price in prices if price.from_ns <= at_ns}
    return list(latest.values())


def _day(from_ns: int) -> str:
    if from_ns == 0:
        return "always"
    moment = dt.datetime.fromtimestamp(from_ns // 1_000_000_000, dt.UTC)
    return moment.date().isoformat() if moment.time() == dt.time() else moment.isoformat()


def _price_json(price: Price) -> dict[str, Any]:
    return {
        "provider": price.provider, "model": price.model, "service_tier": price.service_tier,
        "from": _day(price.from_ns), "source": price.source, "version": price.version,
        "usd_per_request": plain(price.usd_per_request),
        "tiers": [{"above_input_tokens": tier.above_input_tokens,
                   "usd_per_mtok": {bucket: plain(rate) for bucket, rate in tier.usd_per_mtok.items()}}
                  for tier in price.tiers],
    }


def _price_table(prices: list[Price]) -> None:
    rows = []
    for price in prices:
        for tier in price.tiers:
            rates = [plain(rate) if (rate := tier.usd_per_mtok.get(bucket)) is not None else ""
                     for bucket in ("input_text", "cache_read", "cache_write_5m", "output_text")]
            above = f"> {tier.above_input_tokens}" if tier.above_input_tokens else ""
            rows.append([price.provider, price.model, price.service_tier, above, *rates, _day(price.from_ns),
                         price.source, price.version])
    _table(["provider", "model", "service tier", "input tokens", "input", "cached", "cache write", "output", "from",
            "source", "version"], rows)


def _table(columns: list[str], rows: list[list[str]]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text
    table = Table(*columns, box=None, header_style="bold", pad_edge=False)
    for row in rows:
        table.add_row(*map(Text, row))
    Console(width=None if sys.stdout.isatty() else 200, highlight=False).print(table)
