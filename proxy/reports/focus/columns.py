"""Which columns the dataset has in which version, and of which type."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from proxy.core.currency import USD

VERSIONS = ("1.2", "1.3", "1.4")
DEFAULT_VERSION = "1.3"
PLACES = 18  # behind the decimal point of every decimal; a price's and a quantity's together

Type = Literal["text", "decimal", "time", "json"]


@dataclass(frozen=True, slots=True)
class Column:
    """`priced`: only where it is billed in another currency than USD, in which it is priced."""

    name: str
    type: Type = "text"
    versions: tuple[str, ...] = VERSIONS
    priced: bool = False


def _since(name: str, since: str, type_: Type = "text") -> Column:
    return Column(name, type_, VERSIONS[VERSIONS.index(since):])


# In alphabetical order, as the specification lists them.
OF_FOCUS = (
    _since("AllocatedMethodDetails", "1.3", "json"), _since("AllocatedMethodId", "1.3"),
    _since("AllocatedResourceId", "1.3"), _since("AllocatedResourceName", "1.3"),
    _since("AllocatedTags", "1.3", "json"),
    Column("BilledCost", "decimal"), Column("BillingAccountId"), Column("BillingAccountName"),
    Column("BillingCurrency"), Column("BillingPeriodEnd", "time"), Column("BillingPeriodStart", "time"),
    Column("ChargeCategory"), Column("ChargeClass"), Column("ChargeDescription"), Column("ChargeFrequency"),
    Column("ChargePeriodEnd", "time"), Column("ChargePeriodStart", "time"),
    Column("ConsumedQuantity", "decimal"), Column("ConsumedUnit"),
    Column("ContractedCost", "decimal"), Column("ContractedUnitPrice", "decimal"), Column("EffectiveCost", "decimal"),
    _since("HostProviderName", "1.3"), _since("InvoiceDetailId", "1.4"), Column("InvoiceId"),
    Column("InvoiceIssuerName"), Column("ListCost", "decimal"), Column("ListUnitPrice", "decimal"),
    Column("PricingCategory"), Column("PricingCurrency", priced=True),
    Column("PricingCurrencyContractedUnitPrice", "decimal", priced=True),
    Column("PricingCurrencyEffectiveCost", "decimal", priced=True),
    Column("PricingCurrencyListUnitPrice", "decimal", priced=True),
    Column("PricingQuantity", "decimal"), Column("PricingUnit"),
    Column("ProviderName", versions=("1.2", "1.3")), Column("PublisherName", versions=("1.2", "1.3")),
    Column("ResourceId"), Column("ResourceName"), Column("ResourceType"),
    Column("ServiceCategory"), Column("ServiceName"), _since("ServiceProviderName", "1.3"),
    Column("ServiceSubcategory"),
    Column("SkuId"), Column("SkuMeter"), Column("SkuPriceDetails", "json"), Column("SkuPriceId"),
    Column("SubAccountId"), Column("SubAccountName"), Column("Tags", "json"),
)

# Version 1.2 has no columns for an allocation yet; there it stands in columns of our own.
OURS = (
    Column("x_AllocatedMethodDetails", "json", ("1.2",)), Column("x_AllocatedMethodId", versions=("1.2",)),
    Column("x_AllocatedResourceId", versions=("1.2",)), Column("x_AllocatedResourceName", versions=("1.2",)),
    Column("x_AllocatedTags", "json", ("1.2",)),
    Column("x_AllocationPart"), Column("x_BackendKind"), Column("x_BidPrice", "decimal"), Column("x_CostBasis"),
    Column("x_CounterfactualCost", "decimal"), Column("x_CounterfactualModel"),
    Column("x_CounterfactualPriceBookHash"), Column("x_ExchangeRate", "decimal", priced=True),
    Column("x_ExchangeRateSource", priced=True), Column("x_Model"), Column("x_PriceBookHash"), Column("x_Route"),
    Column("x_RouteReason"), Column("x_TokenCountBasis"), Column("x_UnpricedTokens", "decimal"),
)


def columns(version: str, code: str = USD) -> tuple[Column, ...]:
    """Those of a version and a billing currency, in the order of the file. ValueError for a version that is not
    known."""
    if version not in VERSIONS:
        raise ValueError(f"FOCUS version {version!r} is not known; use {', '.join(VERSIONS)}")
    return tuple(column for column in OF_FOCUS + OURS if version in column.versions
                 and (code != USD or not column.priced))
