"""What `breakeven ledger close` does."""

from __future__ import annotations

import json
from pathlib import Path

import typer


def run(to: str, from_: str | None, without_bill: str | None, who: str, time_zone: str | None, ledger: str | None,
        config: Path | None, *, as_json: bool) -> None:
    """Close the period and say so; exit 1 with the reason where it cannot be closed. ValueError, LedgerUnavailable."""
    from proxy.cli.progress import sum_up
    from proxy.core.money import usd_string
    from proxy.ledger.location import locate
    from proxy.reports.closing import Refused, close
    from proxy.reports.period import parse, show
    from proxy.reports.statement import zone_of

    location = locate(ledger, config)
    name = time_zone or location.time_zone
    zone = zone_of(name)
    sum_up(location.url)
    try:
        period = close(location.url, parse(to, zone), who=who, time_zone=name, without_bill=without_bill,
                       from_ns=None if from_ is None else parse(from_, zone))
    except Refused as refused:
        typer.echo(f"breakeven ledger: {refused}", err=True)
        raise typer.Exit(1) from None
    total = json.loads(period.statement)["total"]
    if as_json:
        typer.echo(json.dumps({
            "id": period.id, "from": show(period.from_ns, zone), "to": show(period.to_ns, zone), "time_zone": name,
            "reconciliation": period.reconciliation_id, "without_bill": period.reason or None, "who": period.who,
            "hash": period.hash, **{key: usd_string(total[key]) for key in ("baseline", "actual", "savings")},
        }, indent=2))
        return
    typer.echo(f"Closed {show(period.from_ns, zone)} to {show(period.to_ns, zone)} as period {period.id}: baseline "
               f"{usd_string(total['baseline'])}, actual {usd_string(total['actual'])}, savings "
               f"{usd_string(total['savings'])} USD")
    typer.echo(f"SHA-256 of the statement: {period.hash}")
