"""Budgets: what a key may do, holds, what windows have taken. Marks of what is in flight leave the tables.

Revision ID: 0002
Revises: 0001
"""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

Int = sa.Integer().with_variant(sa.BigInteger, "postgresql")


def _int(name: str, *, null: bool = False) -> sa.Column:
    return sa.Column(name, Int, nullable=null)


def _text(name: str, *, null: bool = False) -> sa.Column:
    return sa.Column(name, sa.Text, nullable=null)


def _added(name: str) -> sa.Column:
    return sa.Column(name, Int, nullable=False, server_default=sa.text("0"))


def upgrade() -> None:
    open_ = op.get_bind().execute(sa.text("SELECT count(*) FROM intents")).scalar()
    if open_:
        raise RuntimeError(f"{open_} requests were in flight when the earlier version was killed: start that version "
                           "once more, so that it settles them, and then this one")
    op.drop_table("intents")
    op.add_column("requests", _int("hold_nano", null=True))
    op.add_column("requests", _added("internal_nano"))
    op.add_column("requests", _added("posted_nano"))
    op.add_column("rollup", _added("internal_nano"))
    op.create_index("ix_requests_key", "requests", ["key_id", "ended_ns"])
    op.create_table(
        "budget_use",
        _text("scope"), _text("per"), _int("start_ns"), _int("posted_nano"), _int("pending_nano"),
        sa.PrimaryKeyConstraint("scope", "per", "start_ns", name="pk_budget_use"),
        sqlite_strict=True, sqlite_with_rowid=False,
    )
    op.create_table(
        "holds",
        _text("request_id"), _int("attempt"), _text("scope"), _text("per"), _int("start_ns"), _int("amount_nano"),
        _text("owner"), _int("expires_ns"),
        sa.PrimaryKeyConstraint("request_id", "attempt", "scope", "per", "start_ns", name="pk_holds"),
        sqlite_strict=True, sqlite_with_rowid=False,
    )
    op.create_table(
        "key_limits",
        sa.Column("id", Int, primary_key=True),
        _text("key_id"), _text("budget", null=True), _int("rpm", null=True), _int("tpm", null=True),
        _text("routes", null=True), _int("expires_ns", null=True), _int("at_ns"),
        sqlite_strict=True,
    )
    for verb, past in (("UPDATE", "edited"), ("DELETE", "deleted")):
        op.execute(sa.DDL(
            f"CREATE TRIGGER key_limits_no_{verb.lower()} BEFORE {verb} ON key_limits "
            f"BEGIN SELECT RAISE(ABORT, 'key_limits: rows are appended, never {past}'); END"))


def downgrade() -> None:
    raise NotImplementedError("a ledger is never taken back; restore a backup with the older program")
