"""Prompts counted again with the tokenizer of the baseline's model. Hours are summed up again as they are read.

Revision ID: 0006
Revises: 0005
"""

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
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
    "prompt_bytes", "prompt_tokens", "recounted_tokens", "recounted_input",
)
SHARES = ("gpu_serving_nano", "gpu_failed_nano", "energy_nano")


def upgrade() -> None:
    op.add_column("requests", sa.Column("recounted_tokens", Int, nullable=True))
    for name in SUMS[-2:]:
        op.add_column("rollup", sa.Column(name, Int, nullable=False, server_default=sa.text("0")))
    op.drop_table("hour_cells")
    op.create_table(
        "hour_cells", sa.Column("hour", Int, nullable=False),
        *(sa.Column(name, sa.Text, nullable=False) for name in PLACE),
        *(sa.Column(name, Int, nullable=False) for name in (*SUMS, *SHARES)),
        sa.PrimaryKeyConstraint("hour", *PLACE, name="pk_hour_cells"), sqlite_strict=True, sqlite_with_rowid=False)
    for table in ("hours", "hour_gpus"):
        op.execute(sa.delete(sa.table(table)))


def downgrade() -> None:
    raise NotImplementedError("a ledger is never taken back; restore a backup with the older program")
