"""Corrections: what was booked wrong, as rows of their own.

Revision ID: 0003
Revises: 0002
"""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

Int = sa.Integer().with_variant(sa.BigInteger, "postgresql")


def _int(name: str) -> sa.Column:
    return sa.Column(name, Int, nullable=False)


def _text(name: str) -> sa.Column:
    return sa.Column(name, sa.Text, nullable=False)


def upgrade() -> None:
    for name in ("corrected_api_nano", "corrected_baseline_nano"):
        op.add_column("rollup", sa.Column(name, Int, nullable=False, server_default=sa.text("0")))
    op.create_table(
        "corrections",
        sa.Column("id", Int, primary_key=True),
        _int("at_ns"), _text("request_id"), _int("attempt"), _int("api_nano"), _int("baseline_nano"), _text("reason"),
        _text("who"),
        sqlite_strict=True,
    )
    op.create_index("ix_corrections_request", "corrections", ["request_id"])
    for verb, past in (("UPDATE", "edited"), ("DELETE", "deleted")):
        op.execute(sa.DDL(
            f"CREATE TRIGGER corrections_no_{verb.lower()} BEFORE {verb} ON corrections "
            f"BEGIN SELECT RAISE(ABORT, 'corrections: rows are appended, never {past}'); END"))


def downgrade() -> None:
    raise NotImplementedError("a ledger is never taken back; restore a backup with the older program")
