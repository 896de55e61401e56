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
from proxy.config.operator_prices import OperatorPrices, read_operator_prices
from proxy.config.prices import listed_as, load_price_book, package_prices, providers_with
from proxy.config.routes import is_glob
from proxy.config.versions import plain
from proxy.core.pricing import Price, PriceBook, in_force
from proxy.core.usage import BUCKETS

prices_app = typer.Typer(no_args_is_help=True, add_completion=False,
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
        book = load_price_book_or_exit(load_or_exit(config))
    else:
        found = {(p, model or ""): package_prices(p, model or "") for p in providers_with(model or "")}
        book = PriceBook({key: prices for key, prices in found.items() if prices})
    chosen = [(kind, price) for provider, name in book.entries if model in (None, name)
              for kind, prices in _kinds(book, provider, name, at_ns) for price in prices]
    if as_json:
        typer.echo(json.dumps([_price_json(kind, price) for kind, price in chosen], indent=2))
    elif chosen:
        _price_table(chosen)
    else:
        typer.echo("no price is known" + (f" for {model}" if model else "") + "; see `prices:` in the configuration")
    if not chosen:
        raise typer.Exit(1)


@prices_app.command()
def diff(config: Config = None, as_json: AsJson = False) -> None:
    """Compare the operator's own prices, discounts among them, with the list prices in force on the day they begin."""
    if config is None:
        typer.echo("give --config FILE", err=True)
        raise typer.Exit(2)
    settings = load_or_exit(config)
    if settings.prices is None:
        typer.echo(f"{config} has no `prices:` file; list prices are in force")
        raise typer.Exit(0)
    own, book = _own(settings), load_price_book_or_exit(settings)
    rows = [row for price in own.listed.all() for row in _compared(price, "list", _packaged(settings, price))]
    contracted = own.contracted.all()
    said = {price.version for price in contracted}
    contracted += [price for provider, model in book.listed for kind, prices in _kinds(book, provider, model)
                   for price in prices if kind == "contracted" and price.version not in said]  # by discounts and globs
    rows += [row for price in contracted for row in _compared(price, "contracted", book.find_listed(
        price.provider, price.model, price.from_ns, price.service_tier))]
    if as_json:
        typer.echo(json.dumps(rows, indent=2))
        return
    table(["provider", "model", "service tier", "above", "from", "tokens", "kind", "list", "own", "difference"],
           [[str(row[key]) for key in ("provider", "model", "service_tier", "above_input_tokens", "from", "bucket",
                                       "kind", "list", "own", "difference")] for row in rows])


def _own(settings: Settings) -> OperatorPrices:
    assert settings.prices is not None
    try:
        return read_operator_prices(settings.prices)
    except ConfigError as error:
        typer.echo(str(error), err=True)
        raise typer.Exit(2) from None


def _kinds(book: PriceBook, provider: str, model: str, at_ns: int | None = None) -> list[tuple[str, list[Price]]]:
    """(kind, prices): list prices, and what contracts make of them, also by how much is used; with `at_ns` only those
    in force, whatever was used."""
    every = book.entries[provider, model]
    public = book.listed.get((provider, model), every)
    of_list = {price.source for price in public}
    paid, listed = (list(prices) if at_ns is None else _in_force(prices, at_ns) for prices in (every, public))
    found = [("list", listed), ("contracted", [price for price in paid if price.source not in of_list])]
    terms = book.terms.get((provider, model))
    if terms is not None and at_ns is None:
        for place, contract in enumerate(terms.contracts):
            instead = (terms.prices.get((place, price.version), ()) for price in paid)
            found.append((contract.kind, [price for prices in instead for price in prices if price not in paid]))
    return found


def _packaged(settings: Settings, own: Price) -> Price | None:
    """The package's list price in force when an operator's begins."""
    name = next((listed_as(b, own.model) for b in settings.backends.values()
                 if b.provider == own.provider and b.model == own.model), own.model)
    known = package_prices(own.provider, own.model, name) if not is_glob(own.model) else ()
    return in_force([price for price in known if price.service_tier == own.service_tier], own.from_ns)


def _compared(own: Price, kind: str, listed: Price | None) -> list[dict[str, Any]]:
    """One row for each kind of token that the operator priced."""
    rows = []
    for tier in own.tiers:
        for bucket in (b for b in BUCKETS if b in tier.usd_per_mtok):
            before = listed.tier(tier.above_input_tokens + 1).of(bucket) if listed else None
            rows.append({
                "provider": own.provider, "model": own.model, "service_tier": own.service_tier,
                "above_input_tokens": tier.above_input_tokens, "from": _day(own.from_ns), "bucket": bucket,
                "kind": kind,
                "list": plain(before) if before is not None else None, "own": plain(tier.usd_per_mtok[bucket]),
                "difference": percent(before, tier.usd_per_mtok[bucket]), "source": own.source,
            })
    return rows


def percent(before: Decimal | None, after: Decimal) -> str:
    if before is None:
        return "not listed"
    if before == 0:
        return "0 %" if after == 0 else "was free"
    return f"{(after - before) / before * 100:+.1f} %"


def load_or_exit(config: Path, *, secrets: bool = False) -> Settings:
    try:
        return load(config, secrets=secrets)
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


def _price_json(kind: str, price: Price) -> dict[str, Any]:
    return {
        "provider": price.provider, "model": price.model, "service_tier": price.service_tier, "kind": kind,
        "from": _day(price.from_ns), "source": price.source, "version": price.version,
        "usd_per_request": plain(price.usd_per_request),
        "tiers": [{"above_input_tokens": tier.above_input_tokens,
                   "usd_per_mtok": {bucket: plain(rate) for bucket, rate in tier.usd_per_mtok.items()}}
                  for tier in price.tiers],
    }


def _price_table(prices: list[tuple[str, Price]]) -> None:
    rows = []
    for kind, price in prices:
        for tier in price.tiers:
            rates = [plain(rate) if (rate := tier.usd_per_mtok.get(bucket)) is not None else ""
                     for bucket in ("input_text", "cache_read", "cache_write_5m", "output_text")]
            above = f"> {tier.above_input_tokens}" if tier.above_input_tokens else ""
            rows.append([price.provider, price.model, price.service_tier, kind, above, *rates, _day(price.from_ns),
                         price.source, price.version])
    table(["provider", "model", "service tier", "kind", "input tokens", "input", "cached", "cache write", "output",
            "from", "source", "version"], rows)


def table(columns: list[str], rows: list[list[str]]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text
    table = Table(*columns, box=None, header_style="bold", pad_edge=False)
    for row in rows:
        table.add_row(*map(Text, row))
    Console(width=None if sys.stdout.isatty() else 200, highlight=False).print(table)
