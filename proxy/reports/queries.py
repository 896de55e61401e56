"""The report's questions to the ledger beside its cells, each by name."""

from __future__ import annotations

from sqlalchemy import select

from proxy.ledger.schema import keys

KEY_NAMES = select(keys.c.id, keys.c.name)
