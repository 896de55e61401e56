"""Sums by price, list and contracted baselines, control groups, and hours that are summed once more.

The rollups get a longer key: they begin empty here, and are filled from the rows when the upgrade is through
(`booking.sum_up_again`).

Revision ID: 0004
Revises: 0003
"""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

Int = sa.Integer().with_variant(sa.BigInteger, "postgresql")
PLACE = ("backend", "backend_kind", "route", "key_id", "tags", "model", "price_version", "baseline_price_version")
SUMS = (
    "requests", "finals", "succeeded", "input_text", "cache_read", "cache_write_5m", "cache_write_1h", "input_audio",
    "input_image", "output_text", "reasoning", "output_audio", "api_nano", "api_unknown", "api_retry_nano",
    "marginal_nano", "baseline_nano", "baseline_unknown", "baseline_unknown_nano", "baseline_late_nano", "estimated",
    "estimated_tokens", "work_ns", "failed_work_ns", "internal_nano", "corrected_api_nano", "corrected_baseline_nano",
    "baseline_list_nano", "baseline_contracted_nano", "substituted", "substituted_baseline_nano", "estimated_api_nano",
    "estimated_baseline_nano", "unknown_most_nano", "control_api_nano", "trial", "trial_output", "trial_squares",
    "prompt_bytes", "prompt_tokens",
)
SHARES = ("gpu_serving_nano", "gpu_failed_nano", "energy_nano")
GPUS = ("serving", "failed", "foreign", "startup", "idle", "energy", "work_ns", "unobserved_ns", "unpriced")


def _int(name: str) -> sa.Column:
    return sa.Column(name, Int, nullable=False)


def _text(name: str) -> sa.Column:
    return sa.Column(name, sa.Text, nullable=False)


def upgrade() -> None:
    for name in ("baseline_list_nano", "baseline_contracted_nano"):
        op.add_column("requests", sa.Column(name, Int, nullable=True))
    for name in ("prompt_bytes", "trial"):
        op.add_column("requests", sa.Column(name, Int, nullable=False, server_default=sa.text("0")))
    op.drop_table("rollup")
    op.create_table(
        "rollup", _int("minute"), *map(_text, PLACE), *map(_int, SUMS),
        sa.PrimaryKeyConstraint("minute", *PLACE, name="pk_rollup"), sqlite_strict=True, sqlite_with_rowid=False)
    op.create_table("hours", sa.Column("hour", Int, primary_key=True, nullable=False), _int("closed_ns"),
                    sqlite_strict=True)
    op.create_table(
        "hour_cells", _int("hour"), *map(_text, PLACE), *map(_int, (*SUMS, *SHARES)),
        sa.PrimaryKeyConstraint("hour", *PLACE, name="pk_hour_cells"), sqlite_strict=True, sqlite_with_rowid=False)
    op.create_table(
        "hour_gpus", _int("hour"), _text("backend"), *map(_int, GPUS),
        sa.PrimaryKeyConstraint("hour", "backend", name="pk_hour_gpus"), sqlite_strict=True, sqlite_with_rowid=False)


def downgrade() -> None:
    raise NotImplementedError("a ledger is never taken back; restore a backup with the older program")
