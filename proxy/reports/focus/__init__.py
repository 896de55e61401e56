"""The period as a FOCUS Cost and Usage dataset (FinOps Open Cost and Usage Specification 1.2, 1.3 or 1.4).

A row for each hour, app, backend, model and meter. Invariants, to the nano-dollar:

    BilledCost = EffectiveCost                                        on every row
    sum of BilledCost where ChargeClass is null           = the statement's `actual`
    sum of x_CounterfactualCost where ChargeClass is null = the statement's `baseline`
    the same sums where ChargeClass is "Correction"       = its `corrections_api` and `corrections_baseline`
    ListCost = ListUnitPrice * PricingQuantity, ContractedCost likewise, without rounding
    the AllocatedRatios of what one backend's hour was split into add up to exactly 1

What pure-API billing would have charged is in columns of our own (`x_`) only, never a credit.
"""
