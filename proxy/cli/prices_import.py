"""`breakeven prices import`: a price list or a GPU rate card, merged into the operator's files as dated lines."""

from __future__ import annotations

import datetime as dt
import hashlib
from collections.abc import Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Annotated

import typer
from pydantic_core import PydanticCustomError

from proxy.cli.check_prices import load_or_exit, percent, prices_app, table
from proxy.config import ConfigError, Settings
from proxy.config.fields import utc
from proxy.config.gpu_card import read_card
from proxy.config.litellm_prices import ListPrice, read_litellm
from proxy.config.load import cards_of
from proxy.config.operator_prices import OperatorPrices, read_operator_prices
from proxy.config.price_import import Change, PriceKind, card_changes, card_text, price_changes
from proxy.config.price_lines import text_of, with_lines, write
from proxy.config.prices import listed_as, load_price_book
from proxy.config.problem import Source
from proxy.config.versions import plain
from proxy.core.pricing import PriceBook

LINES_MAX = 2_000  # new ones of an import: more is a whole catalogue, and a price file that nobody reads
Wanted = list[tuple[str, str, list[ListPrice]]]


@prices_app.command("import")
def import_(
    file: Annotated[Path, typer.Argument(help="A GPU rate card (.csv: gpu, provider, usd_per_hour, kind, from, region, "
                                         "source) or API prices in litellm's form (.json).", show_default=False)],
    config: Annotated[Path | None, typer.Option("--config", help="The configuration whose models are looked for, and "
                                                "whose files are added to.", show_default=False)] = None,
    into: Annotated[Path | None, typer.Option("--into", help="The file that is added to.",
                                              show_default="the configuration's own")] = None,
    model: Annotated[list[str] | None, typer.Option("--model", help="Of API prices: these names or globs instead of "
                                                    "the configuration's models.", show_default=False)] = None,
    contracted: Annotated[bool, typer.Option("--contracted", help="Of API prices: what you pay, not list "
                                             "prices.")] = False,
    from_: Annotated[str | None, typer.Option("--from", help="Of API prices: the day they begin, UTC.",
                                              show_default="today")] = None,
    source: Annotated[str | None, typer.Option("--source", help="Of API prices: where they come from.",
                                               show_default="the file, its hash and its name of the model")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what would be added; write nothing.")] = False,
) -> None:
    """Add what a price list or a GPU rate card says to your own files, as dated lines, and show what that changes.

    No line that stands in a file is touched: what is now different becomes a new line after the last of its kind. Exits
    with 1 where a line was refused; the others are written all the same.
    """
    settings = load_or_exit(config) if config is not None else None
    try:
        if file.suffix.lower() == ".csv":
            if model or contracted or from_ is not None or source is not None:
                raise _stop("--model, --contracted, --from and --source are of API prices: a rate card says these")
            if into is not None and config is not None:
                raise _stop("--into and --config both say which rate card is added to: leave one out")
            target = _target(into, _card_of(config), "a rate card", "config/gpus.csv")
            changes, text = _cards(file, target)
        else:
            target = _target(into, settings.prices if settings else None, "a price file", "config/prices.yaml")
            changes, text = _prices(file, target, settings, model or [], "contracted" if contracted else "list",
                                    _day(from_), source)
    except ConfigError as error:
        raise _stop(str(error)) from None
    _show(changes)
    new, refused = (sum(one.why == why for one in changes) for why in ("", "refused"))
    same = len(changes) - new - refused
    if new and not dry_run:
        try:
            write(target, text)
        except OSError as error:
            raise _stop(f"{target} cannot be written: {error.strerror}") from None
    typer.echo(f"{target}: {new} new, {same} as before, {refused} refused"
               + ("; nothing was written (--dry-run)" if dry_run else ""))
    if refused:
        raise typer.Exit(1)


def _stop(message: str) -> typer.Exit:
    typer.echo(message, err=True)
    return typer.Exit(2)


def _target(into: Path | None, configured: Path | None, what: str, such_as: str) -> Path:
    if into is None and configured is None:
        raise _stop(f"give --into FILE, or --config of a configuration with {what}, such as {such_as}")
    target = into or configured
    assert target is not None
    if not target.parent.is_dir():
        raise _stop(f"there is no folder {target.parent}")
    return target


def _card_of(config: Path | None) -> Path | None:
    """The one card that the configuration's backends refer to."""
    if config is None:
        return None
    cards = cards_of(config)
    return cards[0] if len(cards) == 1 else None


def _cards(file: Path, target: Path) -> tuple[list[Change], str]:
    given, ours = read_card(file), read_card(target) if target.exists() else None
    changes = list(card_changes(given, ours))
    return changes, card_text(text_of(target) if ours else "", changes)


def _prices(file: Path, target: Path, settings: Settings | None, globs: Sequence[str], kind: PriceKind,
            from_: dt.datetime, source: str | None) -> tuple[list[Change], str]:
    listed = read_litellm(file)
    if settings is None and not globs:
        raise _stop("give --config FILE, or --model NAME (a glob such as 'gpt-4o*' will do)")
    own = read_operator_prices(target) if target.exists() else OperatorPrices()
    book = load_price_book(settings) if settings is not None else PriceBook()
    wanted = _globbed(listed, globs) if globs else _configured(settings, listed)
    said = source or f"{file.name} sha256:{hashlib.sha256(file.read_bytes()).hexdigest()[:12]} {{key}}"
    changes = list(price_changes(wanted, own, book, kind, from_, said))
    added = [(*one.name[:2], one.line) for one in changes if not one.why]
    if len(added) > LINES_MAX:
        raise _stop(f"{len(added)} new lines; at most {LINES_MAX}: choose with --model")
    text = text_of(target) if target.exists() else "version: 1\n"
    if added:
        text = with_lines(text, added, Source(str(target)))
    return changes, text


def _globbed(listed: list[ListPrice], globs: Sequence[str]) -> Wanted:
    found: dict[tuple[str, str], list[ListPrice]] = {}
    for price in listed:
        if any(fnmatchcase(name, glob) for name in price.names() for glob in globs):
            found.setdefault((price.provider, price.model), []).append(price)
    if not found:
        raise _stop(f"the file prices no model called {' or '.join(globs)} by the token")
    return [(provider, model, _one(prices)) for (provider, model), prices in found.items()]


def _configured(settings: Settings | None, listed: list[ListPrice]) -> Wanted:
    """What the list says of the models of the configuration's APIs."""
    assert settings is not None
    wanted: Wanted = []
    for backend in settings.backends.values():
        if backend.is_api and backend.provider is not None and backend.model != "*":
            names = {backend.model, listed_as(backend, backend.model)}
            found = [price for price in listed if price.provider == backend.provider and names & {*price.names()}]
            if found:
                wanted.append((backend.provider, backend.model, _one(found)))
            else:
                typer.echo(f"the file does not price {backend.provider}/{backend.model} by the token", err=True)
    return wanted


def _one(prices: list[ListPrice]) -> list[ListPrice]:
    """Of several entries that mean one model, the one with the shortest name: in all its service tiers."""
    key = min((price.key for price in prices), key=lambda key: (len(key), key))
    return [price for price in prices if price.key == key]


def _day(text: str | None) -> dt.datetime:
    if text is None:
        return dt.datetime.combine(dt.datetime.now(dt.UTC).date(), dt.time(), dt.UTC)
    try:
        return utc(text)
    except PydanticCustomError:
        raise _stop(f"--from {text}: must be a date such as 2026-03-01") from None


def _show(changes: Sequence[Change]) -> None:
    rows = []
    for one in changes:
        if one.why == "same":
            continue
        kinds = [kind for kind in dict.fromkeys([*one.after, *one.before])
                 if one.before.get(kind) != one.after.get(kind)]
        first = [" ".join(filter(None, one.name)), str(one.from_.date())]
        for kind in kinds or [""]:
            before, after = one.before.get(kind), one.after.get(kind)
            rows.append([*first, kind, *("" if usd is None else plain(usd) for usd in (before, after)),
                         "" if not kind else "no longer" if after is None else "new" if before is None
                         else percent(before, after), f"refused: {one.reason}" if one.why and first[0] else ""])
            first = ["", ""]
    if rows:
        table(["what", "from", "USD for", "before", "after", "difference", ""], rows)
