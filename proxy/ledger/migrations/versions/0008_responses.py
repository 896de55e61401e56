"""Responses that upstreams keep: where they lie.

Revision ID: 0008
Revises: 0007
"""

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None

Int = sa.Integer().with_variant(sa.BigInteger, "postgresql")


def upgrade() -> None:
    op.create_table(
        "responses", sa.Column("digest", sa.Text, primary_key=True, nullable=False),
        *(sa.Column(name, sa.Text, nullable=False) for name in ("backend", "replica")),
        *(sa.Column(name, Int, nullable=False) for name in ("tokens", "at_ns", "expires_ns")),
        sqlite_strict=True, sqlite_with_rowid=False)
    op.create_index("ix_responses_expires", "responses", ["expires_ns"])


def downgrade() -> None:
    raise NotImplementedError("a ledger is never taken back; restore a backup with the older program")
