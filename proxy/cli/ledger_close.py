"""What `breakeven ledger close` does."""

from __future__ import annotations

import json
from pathlib import Path

import typer

DAYS_SHOWN = 5


def run(to: str, from_: str | None, without_bill: str | None, who: str, time_zone: str | None, asked: str | None,
        ledger: str | None, config: Path | None, *, as_json: bool) -> None:
    """Close the period and say so; exit 1 with the reason where it cannot be closed. ValueError, LedgerUnavailable."""
    from proxy.cli.currency import currency_in
    from proxy.cli.progress import sum_up
    from proxy.core.currency import plain, rate_of
    from proxy.ledger.location import locate
    from proxy.reports.bills import days_of
    from proxy.reports.closing import CONVERTED, Refused, close, held_to
    from proxy.reports.figures import rate_words
    from proxy.reports.period import parse, show
    from proxy.reports.statement import zone_of

    location = locate(ledger, config)
    name = time_zone or location.time_zone
    zone, currency = zone_of(name), currency_in(config, location.currency, asked)
    sum_up(location.url)
    try:
        period = close(location.url, parse(to, zone), who=who, time_zone=name, without_bill=without_bill,
                       from_ns=None if from_ is None else parse(from_, zone), currency=currency,
                       meant=asked is not None)
    except Refused as refused:
        typer.echo(f"breakeven ledger: {refused}", err=True)
        raise typer.Exit(1) from None
    if without_bill is not None and not period.reason:
        typer.echo("breakeven ledger: no day with API spend is without a bill that agrees, so --without-bill was not "
                   "needed, and its reason is not kept", err=True)
    said, held = json.loads(period.statement), held_to(period)
    days = [f"{day} {provider}".strip() for day, provider in held["open"]]
    total = said.get(CONVERTED, said)["total"]
    rates = [rate_of(one) for one in said.get(CONVERTED, {}).get("exchange_rates", ())]
    figures = {key: currency.text(total[key]) for key in ("baseline", "actual", "savings")}
    if as_json:
        typer.echo(json.dumps({
            "id": period.id, "from": show(period.from_ns, zone), "to": show(period.to_ns, zone), "time_zone": name,
            "reconciliations": [{key: bill[key] for key in ("id", "provider", "from", "to")} for bill in held["bills"]],
            "unreconciled_days": days, "without_bill": period.reason or None, "who": period.who, "hash": period.hash,
            "currency": currency.code, **figures,
            "exchange_rates": [{"from": one.day, "per_usd": plain(one.per_usd), "source": one.source} for one in rates],
        }, indent=2))
        return
    typer.echo(f"Closed {show(period.from_ns, zone)} to {show(period.to_ns, zone)} as period {period.id}: "
               f"{', '.join(f'{name} {amount}' for name, amount in figures.items())} {currency.code}")
    if rates:
        typer.echo(f"Its exchange rates are kept: {'; '.join(rate_words(currency.code, one) for one in rates)}")
    else:
        typer.echo("It is closed in USD, and no exchange rates are kept with it"
                   f"{'' if config else ' (--config FILE closes in the currency of its report)'}")
    for bill in held["bills"]:
        typer.echo(f"Reconciled to the bill of {bill['provider'] or 'the API'} for {bill['from']} to {bill['to']} "
                   f"(reconciliation {bill['id']})")
    if days:
        open_ = days_of(held["open"])
        shown = ", ".join(f"{day} ({', '.join(whose)})" for day, whose in list(open_.items())[:DAYS_SHOWN])
        more = f" and {len(open_) - DAYS_SHOWN} more" if len(open_) > DAYS_SHOWN else ""
        typer.echo(f"{len(open_):,} UTC day(s) with API spend not reconciled: {shown}{more}; closed without a bill: "
                   f"{period.reason}")
    typer.echo(f"SHA-256 of the statement: {period.hash}")
