"""An hour's rows: a charge for each app, backend, model and meter.

API calls: a row for each meter of a cell. A backend's GPUs: one charge a backend and hour, split to the apps that
worked in it and to what belongs to nobody (foreign, start-up, idle), each a row; electricity likewise. Overheads, and
throughput reserved at an API: a recurring purchase. What a commitment falls short by: a recurring adjustment. What has
no price is an "Adjustment" of nothing that names the tokens: unknown is not free. A row is a dict by column name; a
column that is not in it is null. Times are UTC nanoseconds.
"""

from __future__ import annotations

import datetime as dt
import json
from collections.abc import Iterator
from decimal import Decimal
from typing import Any

from proxy.core.money import NANO_PER_USD, NS_PER_S, usd
from proxy.core.pricing import Price
from proxy.reports.focus.allocation import Part, allocated
from proxy.reports.focus.meters import TOKENS_PER_UNIT, Metered, metered
from proxy.reports.focus.quantities import Charge, gpu_hours, kilowatt_hours, months, times
from proxy.reports.focus.slices import Book, Cell, Slice

Row = dict[str, Any]

SELF_HOSTED = "Self-hosted"
OPERATOR = "Operator"
AI = {"ServiceCategory": "AI and Machine Learning", "ServiceSubcategory": "Generative AI"}
COMPUTE = {"ServiceCategory": "Compute", "ServiceSubcategory": "Other (Compute)"}
OTHER = {"ServiceCategory": "Other", "ServiceSubcategory": "Other (Other)"}


def rows(piece: Slice, book: Book) -> Iterator[Row]:
    """All charges of an hour, in the order of its cells, backends and overheads."""
    frame = _frame(piece, book)
    charges = {backend: charge for backend, share in sorted(piece.backends.items())
               if (charge := gpu_hours(book.card("gpu", backend), piece.from_ns, piece.to_ns, share.gpu)) is not None}
    for cell in piece.cells:
        if cell.kind == "api":
            yield from _api(frame, cell, book)
        elif cell.kind != "gpu" or cell.backend not in charges:
            yield from _unpriced(frame, cell, book)
        if cell.corrected_api or cell.corrected_baseline:
            yield _correction(frame, cell, book)
    for backend, charge in charges.items():
        yield from _gpu(frame, piece, backend, charge, book)
        yield from _energy(frame, piece, backend, book)
    yield from _contracts(frame, piece, book)
    yield from _overheads(frame, piece, book)
    yield from _adjustments(frame, piece)


def _frame(piece: Slice, book: Book) -> Row:
    """What all rows of an hour have in common."""
    start, end = month_of(piece.from_ns)
    return {"BillingAccountId": book.account, "BillingAccountName": book.account, "BillingCurrency": "USD",
            "BillingPeriodStart": start, "BillingPeriodEnd": end, "ChargePeriodStart": piece.from_ns,
            "ChargePeriodEnd": piece.to_ns, "x_CostBasis": "estimated"}


def month_of(at_ns: int) -> tuple[int, int]:
    """The calendar month of UTC that a moment is in."""
    moment = dt.datetime.fromtimestamp(at_ns // NS_PER_S, dt.UTC)
    start = moment.replace(day=1, hour=0, minute=0, second=0)
    end = start.replace(year=start.year + start.month // 12, month=start.month % 12 + 1)
    return int(start.timestamp()) * NS_PER_S, int(end.timestamp()) * NS_PER_S


def tags_of(text: str) -> dict[str, str | bool] | None:
    """'team=search,app=chat' as an object; a tag without a value is true."""
    found: dict[str, str | bool] = {}
    for pair in text.split(","):
        name, given, value = pair.partition("=")
        if name:
            found[name] = value if given else True
    return found or None


def compact(value: object) -> str | None:
    return None if value is None else json.dumps(value, ensure_ascii=False, separators=(",", ":"), sort_keys=True)


def _app(cell: Cell, book: Book) -> Row:
    """Who asked, and for what."""
    against = book.prices.get(cell.baseline_price_version)
    return {"SubAccountId": cell.key or None, "SubAccountName": book.keys.get(cell.key) if cell.key else None,
            "Tags": compact(tags_of(cell.tags)), "x_Route": cell.route or None, "x_Model": cell.model or None,
            "x_BackendKind": cell.kind, "x_RouteReason": cell.reason or None, "x_BidPrice": cell.bid_price,
            "x_TokenCountBasis": _basis(cell), "x_CounterfactualModel": against.model if against else None,
            "x_CounterfactualPriceBookHash": cell.baseline_price_version or None}


def _basis(cell: Cell) -> str | None:
    tokens = sum(cell.tokens)
    if not tokens:
        return None
    return "reported" if not cell.estimated_tokens else "estimated" if cell.estimated_tokens >= tokens else "mixed"


def _who(provider: str, service: str) -> Row:
    return {"InvoiceIssuerName": provider, "ProviderName": provider, "PublisherName": provider,
            "ServiceProviderName": provider, "HostProviderName": provider, "ServiceName": service}


def _resource(name: str, type_: str) -> Row:
    return {"ResourceId": name, "ResourceName": name, "ResourceType": type_}


def _cost(nano: int) -> Row:
    amount = usd(nano)
    return {"BilledCost": amount, "EffectiveCost": amount}


def at_price(price: Decimal, quantity: Decimal, unit: str, listed: Decimal | None = None) -> Row:
    """What is paid, and the list price where that is another."""
    public = price if listed is None else listed
    return {"ListUnitPrice": public, "ContractedUnitPrice": price, "ListCost": times(public, quantity),
            "ContractedCost": times(price, quantity), "PricingQuantity": quantity, "PricingUnit": unit}


def without_price(nano: int) -> Row:
    return {**_cost(nano), "ListCost": usd(nano), "ContractedCost": usd(nano)}


def _api(frame: Row, cell: Cell, book: Book) -> Iterator[Row]:
    price = book.prices.get(cell.price_version)
    provider = price.provider if price else cell.backend
    common = {**frame, **_app(cell, book), **AI, **_who(provider, f"{provider} model API"),
              **_resource(cell.backend, "Model API"), "x_PriceBookHash": cell.price_version or None,
              "x_CostBasis": book.cost_basis(provider, frame["ChargePeriodStart"], frame["ChargePeriodEnd"])}
    for part in metered(cell, price, book.listed(price, frame["ChargePeriodStart"]),
                        book.prices.get(cell.baseline_price_version)):
        against = {"x_CounterfactualCost": usd(part.baseline)}
        if part.price is None or price is None:
            yield {**common, **without_price(part.api), **against, "ChargeCategory": "Adjustment",
                   "ChargeFrequency": "Usage-Based", "x_UnpricedTokens": None if part.requests else Decimal(part.count),
                   "ChargeDescription": f"{cell.model or cell.backend}, {part.meter}: no price is known"}
        else:
            yield {**common, **_meter(price, part), **_cost(part.api), **against}


def _meter(price: Price, part: Metered) -> Row:
    sku = f"{price.provider}/{price.model}/{part.meter}"
    unit, quantity = ("Requests", Decimal(part.count)) if part.requests else (
        f"{TOKENS_PER_UNIT} Tokens", Decimal(part.count).scaleb(-6))
    assert part.price is not None
    return {**at_price(part.price, quantity, unit, part.listed), "ChargeCategory": "Usage",
            "ChargeFrequency": "Usage-Based", "PricingCategory": "Standard", "ConsumedQuantity": Decimal(part.count),
            "ConsumedUnit": "Requests" if part.requests else "Tokens",
            "SkuId": sku, "SkuPriceId": f"{sku}/{price.service_tier}", "SkuMeter": part.meter,
            "SkuPriceDetails": compact({"x_ModelId": price.model, "x_ServiceTier": price.service_tier}),
            "ChargeDescription": f"{price.model} at {price.provider}, {part.meter}"}


def _unpriced(frame: Row, cell: Cell, book: Book) -> Iterator[Row]:
    """What a GPU without a rate, or nobody, answered: no cost is known, yet a baseline may be."""
    if cell.baseline or cell.api:
        tokens = sum(cell.tokens)
        yield {**frame, **_app(cell, book), **COMPUTE, **_who(SELF_HOSTED, "GPU serving"),
               **_resource(cell.backend, "GPU Backend"), **without_price(cell.api), "ChargeCategory": "Adjustment",
               "ChargeFrequency": "Usage-Based", "x_UnpricedTokens": Decimal(tokens) if tokens else None,
               "x_CounterfactualCost": usd(cell.baseline), "ChargeDescription": f"{cell.backend}: no rate is known"}


def _correction(frame: Row, cell: Cell, book: Book) -> Row:
    """What rows of earlier were found wrong by, in the hour in which that was booked."""
    gpu = cell.kind == "gpu"
    price = book.prices.get(cell.price_version)
    provider = SELF_HOSTED if gpu else price.provider if price else cell.backend
    return {**frame, **_app(cell, book), **(COMPUTE if gpu else AI),
            **_who(provider, "GPU serving" if gpu else f"{provider} model API"),
            **_resource(cell.backend, "GPU Backend" if gpu else "Model API"), **without_price(cell.corrected_api),
            "ChargeCategory": "Usage", "ChargeClass": "Correction", "ChargeFrequency": "One-Time",
            "x_TokenCountBasis": None, "x_CounterfactualCost": usd(cell.corrected_baseline),
            "x_PriceBookHash": cell.price_version or None,
            "ChargeDescription": f"Correction of earlier requests to {cell.backend}"}


def _gpu(frame: Row, piece: Slice, backend: str, charge: Charge, book: Book) -> Iterator[Row]:
    share = piece.backends[backend]
    parts = []
    for cell in piece.cells:
        if cell.backend == backend and cell.kind == "gpu":
            if cell.gpu_serving or cell.baseline:
                parts.append(Part("serving", cell.gpu_serving, cell, cell.work_ns, cell.baseline))
            if cell.gpu_failed:
                parts.append(Part("failed", cell.gpu_failed, cell, cell.failed_work_ns))
    parts += [Part(name, amount) for name, amount in (("foreign", share.foreign), ("startup", share.startup),
                                                      ("idle", share.idle)) if amount]
    common = {**frame, **COMPUTE, **_who(SELF_HOSTED, "GPU serving"), **_resource(backend, "GPU Backend"),
              "ChargeCategory": "Usage", "ChargeFrequency": "Usage-Based", "x_BackendKind": "gpu",
              "PricingCategory": "Dynamic" if charge.dynamic else "Standard", "SkuMeter": "GPU Time",
              "SkuId": f"gpu/{backend}", "SkuPriceId": f"gpu/{backend}"}
    yield from _split(common, parts, charge.price, charge.quantity, "Hours", book)


def _energy(frame: Row, piece: Slice, backend: str, book: Book) -> Iterator[Row]:
    share = piece.backends[backend]
    if not share.energy:
        return
    parts = [Part("serving", cell.energy, cell, cell.work_ns + cell.failed_work_ns) for cell in piece.cells
             if cell.backend == backend and cell.kind == "gpu" and cell.energy]
    rest = share.energy - sum(part.nano for part in parts)
    parts += [Part("idle", rest)] if rest else []
    common = {**frame, **OTHER, **_who(OPERATOR, "Electricity"), **_resource(backend, "GPU Backend"),
              "ChargeCategory": "Usage", "ChargeFrequency": "Usage-Based", "x_BackendKind": "gpu",
              "PricingCategory": "Standard", "SkuMeter": "Electricity", "SkuId": "electricity",
              "SkuPriceId": "electricity"}
    charge = kilowatt_hours(book.card("electricity"), piece.from_ns, piece.to_ns, share.energy)
    if charge is None:  # measured, though no tariff was in force
        for part in parts:
            yield {**common, **_of(part, book), **without_price(part.nano), "ChargeCategory": "Adjustment",
                   "SkuMeter": None, "SkuId": None, "SkuPriceId": None, "PricingCategory": None,
                   "ChargeDescription": f"Electricity of {backend}: no tariff is known"}
        return
    yield from _split(common, parts, charge.price, charge.quantity, "Kilowatt-Hours", book)


def _split(common: Row, parts: list[Part], price: Decimal, quantity: Decimal, unit: str, book: Book) -> Iterator[Row]:
    what = f"{common['SkuMeter']} of {common['ResourceId']}"
    for part, columns, amount in allocated(parts, quantity):
        yield {**common, **_of(part, book), **columns, **at_price(price, amount, unit), **_cost(part.nano),
               "ConsumedQuantity": amount, "ConsumedUnit": unit, "x_AllocationPart": part.name,
               "x_CounterfactualCost": usd(part.baseline) if part.cell else None,
               "ChargeDescription": f"{what}, {part.name}"}


def _of(part: Part, book: Book) -> Row:
    """The app that a part is allocated to. Its tags are the app's, not the resource's."""
    if part.cell is None:
        return {}
    app = _app(part.cell, book)
    tags = app.pop("Tags")
    names = _allocated_to(part.cell, book)
    return {**app, "AllocatedTags": tags, "AllocatedResourceId": f"{names}/{part.name}",
            "AllocatedResourceName": names}


def _allocated_to(cell: Cell, book: Book) -> str:
    """Unique among the cells of a backend's hour."""
    who = [cell.tags, book.keys.get(cell.key, cell.key), cell.route, cell.model, cell.baseline_price_version[:12],
           cell.price_version[:12]]
    return "/".join(part for part in who if part) or "(none)"


def _contracts(frame: Row, piece: Slice, book: Book) -> Iterator[Row]:
    """What contracts with APIs owe beside requests, and would owe in pure-API billing."""
    for name, nano in piece.contracts.paid.items():
        kind, _, scope = name.partition(" ")
        alone, provider = piece.contracts.alone[name], scope.partition("/")[0]
        if not nano and not alone:
            continue
        common = {**frame, **AI, **_who(provider, f"{provider} model API"), "ChargeFrequency": "Recurring",
                  "x_CounterfactualCost": usd(alone)}
        charge = gpu_hours(book.card(kind, scope), piece.from_ns, piece.to_ns, nano) if kind == "reservation" else None
        if charge is not None:
            yield {**common, **at_price(charge.price, charge.quantity, "Hours"), **_cost(nano),
                   "ChargeCategory": "Purchase", "PricingCategory": "Standard", "SkuId": name, "SkuPriceId": name,
                   "SkuMeter": "Provisioned Throughput", "ChargeDescription": f"Reserved throughput: {scope}"}
        else:
            yield {**common, **without_price(nano), "ChargeCategory": "Adjustment",
                   "ChargeDescription": f"Commitment, what requests fall short by: {scope}"}


def _adjustments(frame: Row, piece: Slice) -> Iterator[Row]:
    """What periods that are closed were found to cost more, or less."""
    for (kind, name), nano in sorted(piece.adjustments.items()):
        what = {"gpu": (COMPUTE, SELF_HOSTED, "GPU serving"), "contract": (AI, name.partition(" ")[2].partition("/")[0],
                "Contract")}.get(kind, (OTHER, OPERATOR, "Overhead"))
        yield {**frame, **what[0], **_who(what[1] or OPERATOR, what[2]), **without_price(nano),
               **(_resource(name, "GPU Backend") if kind == "gpu" else {}), "ChargeCategory": "Adjustment",
               "ChargeClass": "Correction", "ChargeFrequency": "One-Time",
               "ChargeDescription": f"Found after its period was closed: {kind} {name}"}


def _overheads(frame: Row, piece: Slice, book: Book) -> Iterator[Row]:
    for name, nano in sorted(piece.overheads.items()):
        charges = months(book.card("overhead", name), piece.from_ns, piece.to_ns)
        common = {**frame, **OTHER, **_who(OPERATOR, "Overhead"), "ChargeCategory": "Purchase",
                  "ChargeFrequency": "Recurring", "PricingCategory": "Standard", "SkuId": f"overhead/{name}",
                  "SkuPriceId": f"overhead/{name}", "SkuMeter": name, "ChargeDescription": f"Overhead: {name}"}
        for at, charge in enumerate(charges):
            rest = nano - sum(_worth(other.price, other.quantity) for other in charges[1:])
            booked = rest if at == 0 else _worth(charge.price, charge.quantity)
            yield {**common, **at_price(charge.price, charge.quantity, "Months"), **_cost(booked)}


def _worth(price: Decimal, quantity: Decimal) -> int:
    return round(times(price, quantity) * NANO_PER_USD)
