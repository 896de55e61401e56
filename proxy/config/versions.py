"""A price's version: the first twelve digits of the SHA-256 of what it says, whoever said it.

Two releases of the price package that agree on a price agree on its version, so an old month can be
computed again and checked.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from decimal import Decimal

from proxy.core.pricing import Price


def plain(number: Decimal) -> str:
    """'2.5' for 2.50 and '1000' for 1E+3: one spelling for each number."""
    text = f"{number:f}"
    return (text.rstrip("0").rstrip(".") if "." in text else text) or "0"


def versioned(price: Price) -> Price:
    """`price` with its version filled in."""
    content = {
        "provider": price.provider, "model": price.model, "service_tier": price.service_tier, "from_ns": price.from_ns,
        "usd_per_request": plain(price.usd_per_request),
        "tiers": [{"above_input_tokens": tier.above_input_tokens,
                   "usd_per_mtok": {bucket: plain(rate) for bucket, rate in sorted(tier.usd_per_mtok.items())}}
                  for tier in price.tiers],
    }
    canonical = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return replace(price, version=hashlib.sha256(canonical.encode()).hexdigest()[:12])
