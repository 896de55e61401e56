"""Reconciliations, closed periods and what is found of them later, alerts that were sent.

Revision ID: 0005
Revises: 0004
"""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None

Int = sa.Integer().with_variant(sa.BigInteger, "postgresql")
APPENDED = ("reconciliations", "closed_periods", "adjustments", "alert_events")


def _id() -> sa.Column:
    return sa.Column("id", Int, primary_key=True)


def _int(name: str, *, null: bool = False) -> sa.Column:
    return sa.Column(name, Int, nullable=null)


def _text(name: str) -> sa.Column:
    return sa.Column(name, sa.Text, nullable=False)


def upgrade() -> None:
    op.create_table(
        "reconciliations", _id(),
        _int("at_ns"), _text("kind"), _text("provider"), _int("from_ns"), _int("to_ns"), _text("files"),
        _text("tolerance"), _int("within"), _int("ours_nano"), _int("theirs_nano"), _int("apart_nano"),
        _text("causes"), _text("cells"), _text("who"),
        sqlite_strict=True,
    )
    op.create_table(
        "closed_periods", _id(),
        _int("from_ns"), _int("to_ns"), _int("closed_ns"), _text("time_zone"), _int("reconciliation_id", null=True),
        _text("reason"), _text("who"), _text("statement"), _text("hash"),
        sqlite_strict=True,
    )
    op.create_table(
        "adjustments", _id(),
        _int("at_ns"), _int("closed_id"), _text("kind"), _text("name"), _int("cost_nano"), _text("reason"),
        _text("who"),
        sqlite_strict=True,
    )
    op.create_table(
        "alert_events", _id(),
        _int("at_ns"), _text("alert"), _text("event"), _text("webhook"), _text("detail"),
        sqlite_strict=True,
    )
    op.create_index("ix_alert_events_alert", "alert_events", ["alert", "id"])
    for table in APPENDED:
        for verb, past in (("UPDATE", "edited"), ("DELETE", "deleted")):
            op.execute(sa.DDL(
                f"CREATE TRIGGER {table}_no_{verb.lower()} BEFORE {verb} ON {table} "
                f"BEGIN SELECT RAISE(ABORT, '{table}: rows are appended, never {past}'); END"))


def downgrade() -> None:
    raise NotImplementedError("a ledger is never taken back; restore a backup with the older program")
