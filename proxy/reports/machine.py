"""What the books say beyond one statement, as `--format json` gives it: the second saving, the range, unit costs, the
prices and what is estimated. Amounts are decimal strings in USD."""

from __future__ import annotations

from typing import Any

from proxy.core.money import usd_string
from proxy.reports import pricebook, view
from proxy.reports.books import Books
from proxy.reports.figures import Amount


def of_books(books: Books) -> dict[str, Any]:
    of = books.marginal
    return {
        "marginal": {"displaced": usd_string(of.displaced), "varying": usd_string(of.varying),
                     "retries": usd_string(of.retries), "saving": usd_string(of.saving),
                     "api_difference": usd_string(of.api_difference), "paid_anyway": usd_string(of.paid_anyway),
                     "corrections": usd_string(of.corrections), "fully_loaded": usd_string(of.fully_loaded)},
        "waterfall": [{"step": step.name, "label": step.label, "kind": step.kind, "usd": step.amount.exact}
                      for step in view.waterfall(books.statement)],
        "range": _range(view.spread(books)), "units": [_unit(one) for one in view.units(books)],
        "utilisation": [_backend(one) for one in view.backend_lines(books)],
        "spans": [{books.step: one.name, "requests": one.requests, "tokens": one.tokens, "baseline": one.baseline.exact,
                   "actual": one.actual.exact, "savings": one.savings.exact,
                   "marginal_saving": one.marginal_saving.exact} for one in view.span_lines(books)],
        "substitutions": {"requests": books.statement.total.substituted,
                          "baseline": usd_string(books.statement.total.substituted_baseline)},
        "prices": [{"version": one.version, "provider": one.provider, "model": one.model, "source": one.source,
                    "from_ns": one.from_ns, "service_tier": one.service_tier, "api": usd_string(one.api),
                    "baseline": usd_string(one.baseline)} for one in books.prices],
        "rate_card": [{"kind": line.kind, "name": line.name, "usd": str(line.usd), "from_ns": line.from_ns or None,
                       "until_ns": line.until_ns, "billing": line.billing} for line in books.card],
        "prices_sha256": pricebook.fingerprint(books.prices, books.card),
    }


def _range(spread: view.Spread) -> dict[str, Any]:
    return {"low": spread.low.exact, "high": spread.high.exact, "open_low": spread.open_low,
            "open_high": spread.open_high, "doubts": [
                {"doubt": one.name, "what": one.label, "how_much": one.count, "low": _exact(one.low),
                 "high": _exact(one.high)} for one in spread.doubts]}


def _unit(one: view.Unit) -> dict[str, Any]:
    return {"of": one.name, "label": one.label, "requests": one.requests, "input_tokens": one.input_tokens,
            "output_tokens": one.output_tokens, "cost": one.cost.exact,
            "usd_per_million_tokens": _usd(one.per_million),
            "usd_per_million_input_tokens": _usd(one.per_million_input),
            "usd_per_million_output_tokens": _usd(one.per_million_output), "usd_per_request": _usd(one.per_request)}


def _backend(one: view.BackendLine) -> dict[str, Any]:
    percents = {name: None if share is None else str(share)
                for name, share in (("utilisation_percent", one.utilization), ("breakeven_percent", one.breakeven))}
    return {"backend": one.name, "kind": "gpu" if one.on_gpu else "api", "requests": one.requests, "tokens": one.tokens,
            "displaced": one.baseline.exact, "cost": one.cost.exact, "idle": one.idle.exact, **percents,
            "usd_per_million_tokens": _usd(one.per_million), "usd_per_request": _usd(one.per_request),
            "baseline_usd_per_million_tokens": _usd(one.baseline_per_million)}


def _usd(nano: int | None) -> str | None:
    return None if nano is None else usd_string(nano)


def _exact(amount: Amount | None) -> str | None:
    return None if amount is None else amount.exact
