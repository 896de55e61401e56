"""What importing a price list or a rate card would add to the operator's files: dated lines, after all that is there.

A line that was in force is never edited, and nothing is put before the last line of its kind: what is now different
becomes a new line, from its day on. What says the same as what is in force adds nothing.
"""

from __future__ import annotations

import csv
import datetime as dt
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, Literal

from pydantic import ValidationError

from proxy.config.fields import epoch_ns
from proxy.config.gpu_card import COLUMNS, Card, CardLine
from proxy.config.litellm_prices import ListPrice
from proxy.config.operator_prices import BUCKETS, OperatorPrices, PriceLine, price_of
from proxy.config.price_lines import quoted
from proxy.config.problem import Source
from proxy.config.translate import problems_of
from proxy.config.versions import plain
from proxy.core.pricing import Price, PriceBook, in_force

PriceKind = Literal["contracted", "list"]


@dataclass(frozen=True, slots=True)
class Change:
    """One line that an import comes to: `why` says why it adds nothing, where it does not. `before` and `after`: USD by
    kind of token, or for a GPU's hour."""

    name: tuple[str, ...]  # provider, model, service tier; or gpu, provider, kind, region
    from_: dt.datetime
    before: dict[str, Decimal]
    after: dict[str, Decimal]
    line: str  # what is written
    why: Literal["", "same", "refused"] = ""
    reason: str = ""


# ---------------------------------------------------------------- API prices


def price_changes(wanted: Sequence[tuple[str, str, Sequence[ListPrice]]], own: OperatorPrices, book: PriceBook,
                  kind: PriceKind, from_: dt.datetime, source: str) -> Iterator[Change]:
    """`wanted`: provider and model as our price book says them, and what the list says of it. `source` has a place for
    the list's own name of the model."""
    for provider, model, found in wanted:
        for price in found:
            yield _price_change(provider, model, price, own, book, kind, from_, source.replace("{key}", price.key))


def _price_change(provider: str, model: str, listed: ListPrice, own: OperatorPrices, book: PriceBook, kind: PriceKind,
                  from_: dt.datetime, source: str) -> Change:
    name, tier, at_ns = (provider, model, listed.service_tier), listed.service_tier, epoch_ns(from_)
    after = {_bucket(rate, above): usd for above, rates in listed.rates.items() for rate, usd in rates.items()}
    text = _line(listed, kind, from_, source)
    lines = own.listed if kind == "list" else own.contracted
    there = [price for price in lines.exact.get((provider, model), ()) if price.service_tier == tier]
    try:
        price = price_of(provider, model, PriceLine.model_validate(_values(listed, kind, from_, source)), source)
    except ValidationError as error:
        _, _, problem = next(iter(problems_of(error, PriceLine, Source(""))))
        return Change(name, from_, {}, after, text, "refused", f"{problem.field}: {problem.message}")
    known = book.find_listed if kind == "list" else book.find
    current = in_force(there, at_ns) or known(provider, model, at_ns, tier)
    before = {} if current is None else _rates(current)
    if current is not None and (current.tiers, current.usd_per_request) == (price.tiers, price.usd_per_request):
        return Change(name, from_, before, after, text, "same")
    if (provider, model) not in lines.exact and lines.find(provider, model):
        return Change(name, from_, before, after, text, "refused", "a pattern in the file covers it: add it by hand")
    if there and there[-1].from_ns >= at_ns:
        day = dt.datetime.fromtimestamp(there[-1].from_ns // 10**9, dt.UTC).date()
        return Change(name, from_, before, after, text, "refused", f"its last line begins on {day}: a later --from")
    return Change(name, from_, before, after, text)


def _values(listed: ListPrice, kind: PriceKind, from_: dt.datetime, source: str) -> dict[str, Any]:
    longer = [{"above_input_tokens": above, **rates} for above, rates in listed.rates.items() if above]
    return {"from": from_, "kind": kind, "service_tier": listed.service_tier, "source": source,
            **listed.rates.get(0, {}), "tiers": longer}


def _line(listed: ListPrice, kind: PriceKind, from_: dt.datetime, source: str) -> str:
    """As it is written in the file."""
    said = [f"from: {_moment(from_)}"]
    said += [f"kind: {kind}"] if kind != "contracted" else []
    said += [f"service_tier: {listed.service_tier}"] if listed.service_tier != "default" else []
    rates = {above: ", ".join(f"{name}: {plain(usd)}" for name, usd in rates.items())
             for above, rates in listed.rates.items()}
    said += [rates.pop(0)]
    longer = [f"{{above_input_tokens: {above}, {text}}}" for above, text in rates.items()]
    said += [f"tiers: [{', '.join(longer)}]"] if longer else []
    return "{" + ", ".join([*said, f"source: {quoted(source)}"]) + "}"


def _rates(price: Price) -> dict[str, Decimal]:
    names = {bucket: name for name, bucket in BUCKETS.items()}
    return {_bucket(names[bucket], tier.above_input_tokens): usd
            for tier in price.tiers for bucket, usd in tier.usd_per_mtok.items()}


def _bucket(name: str, above: int) -> str:
    return f"{name} > {above}" if above else name


def _moment(moment: dt.datetime) -> str:
    return moment.date().isoformat() if moment.time() == dt.time() else moment.strftime("%Y-%m-%dT%H:%M:%SZ")


# ---------------------------------------------------------------- GPU prices


def card_changes(given: Card, card: Card | None) -> Iterator[Change]:
    """What the lines of a rate card add to ours (None: it is not there yet), in the order of their dates."""
    columns = card.columns if card is not None else COLUMNS
    for key in given.keys():
        there = card.of(key) if card is not None else []
        at = {line.from_: line for line in there}
        last = there[-1] if there else None
        for line in given.of(key):
            known = at.get(line.from_)
            before = known or last
            change = (key, line.from_, {} if before is None else {"usd_per_hour": before.usd_per_hour},
                      {"usd_per_hour": line.usd_per_hour}, _row(line, columns))
            if "region" not in columns and line.region:
                yield Change(*change, "refused", "our card has no column region")
            elif known is not None and known.usd_per_hour != line.usd_per_hour:
                yield Change(*change, "refused", f"line {known.number} says otherwise, and stays")
            elif before is not None and (known is not None or before.usd_per_hour == line.usd_per_hour):
                yield Change(*change, "same")
            elif there and line.from_ < there[-1].from_:
                yield Change(*change, "refused", f"line {there[-1].number} begins later: the past stays as it was")
            else:
                yield Change(*change)
                last = line


def _row(line: CardLine, columns: tuple[str, ...]) -> str:
    values = {"gpu": line.gpu, "provider": line.provider, "usd_per_hour": plain(line.usd_per_hour), "kind": line.kind,
              "from": _moment(line.from_), "region": line.region, "source": line.source}
    text = io.StringIO()
    csv.writer(text, lineterminator="").writerow([values[name] for name in columns])
    return text.getvalue()


def card_text(text: str, changes: Sequence[Change]) -> str:
    """The card with its new lines after all that is there."""
    head, end = text if text.strip() else ",".join(COLUMNS), "\r\n" if "\r\n" in text else "\n"
    return end.join([head.rstrip("\r\n"), *(change.line for change in changes if not change.why), ""])
