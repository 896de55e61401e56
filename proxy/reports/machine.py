"""What the books say beyond one statement, as `--format json` gives it: the second saving, the range, unit costs, the
prices and what is estimated. Amounts are decimal strings in the report's currency; the rate card is in USD."""

from __future__ import annotations

from typing import Any

from proxy.core.currency import Currency
from proxy.reports import pricebook, view
from proxy.reports.books import Books
from proxy.reports.figures import Amount, exact, named


def of_books(books: Books) -> dict[str, Any]:
    of, currency = books.marginal, books.statement.currency
    money = currency.text
    return {
        "marginal": {"displaced": money(of.displaced), "varying": money(of.varying),
                     "retries": money(of.retries), "saving": money(of.saving),
                     "api_difference": money(of.api_difference), "paid_anyway": money(of.paid_anyway),
                     "corrections": money(of.corrections), "fully_loaded": money(of.fully_loaded)},
        "waterfall": [{"step": step.name, "label": step.label, "kind": step.kind,
                       **named(currency, {"amount": step.amount.exact})}
                      for step in view.waterfall(books.statement)],
        "range": _range(view.spread(books)), "units": [_unit(one, currency) for one in view.units(books)],
        "utilisation": [_backend(one, currency) for one in view.backend_lines(books)],
        "spans": [{books.step: one.name, "requests": one.requests, "tokens": one.tokens, "baseline": one.baseline.exact,
                   "actual": one.actual.exact, "savings": one.savings.exact,
                   "marginal_saving": one.marginal_saving.exact} for one in view.span_lines(books)],
        "substitutions": {"requests": books.statement.total.substituted,
                          "baseline": money(books.statement.total.substituted_baseline)},
        "prices": [{"version": one.version, "provider": one.provider, "model": one.model, "source": one.source,
                    "from_ns": one.from_ns, "service_tier": one.service_tier, "api": money(one.api),
                    "baseline": money(one.baseline)} for one in books.prices],
        "rate_card": [{"kind": line.kind, "name": line.name, "usd": str(line.usd), "from_ns": line.from_ns or None,
                       "until_ns": line.until_ns, "billing": line.billing} for line in books.card],
        "prices_sha256": pricebook.fingerprint(books.prices, books.card),
    }


def _range(spread: view.Spread) -> dict[str, Any]:
    return {"low": spread.low.exact, "high": spread.high.exact, "open_low": spread.open_low,
            "open_high": spread.open_high, "doubts": [
                {"doubt": one.name, "what": one.label, "how_much": one.count, "low": _exact(one.low),
                 "high": _exact(one.high)} for one in spread.doubts]}


def _unit(one: view.Unit, currency: Currency) -> dict[str, Any]:
    return {"of": one.name, "label": one.label, "requests": one.requests, "input_tokens": one.input_tokens,
            "output_tokens": one.output_tokens, "cost": one.cost.exact,
            **named(currency, {"per_million_tokens": exact(one.per_million, currency),
                               "per_million_input_tokens": exact(one.per_million_input, currency),
                               "per_million_output_tokens": exact(one.per_million_output, currency),
                               "per_request": exact(one.per_request, currency)})}


def _backend(one: view.BackendLine, currency: Currency) -> dict[str, Any]:
    percents = {name: None if share is None else str(share)
                for name, share in (("utilisation_percent", one.utilization), ("breakeven_percent", one.breakeven))}
    return {"backend": one.name, "kind": "gpu" if one.on_gpu else "api", "requests": one.requests, "tokens": one.tokens,
            "displaced": one.baseline.exact, "cost": one.cost.exact, "idle": one.idle.exact, **percents,
            **named(currency, {"per_million_tokens": exact(one.per_million, currency),
                               "per_request": exact(one.per_request, currency),
                               "baseline_per_million_tokens": exact(one.baseline_per_million, currency)})}


def _exact(amount: Amount | None) -> str | None:
    return None if amount is None else amount.exact
