"""The first tables.

Revision ID: 0001
Revises:
"""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

Int = sa.Integer().with_variant(sa.BigInteger, "postgresql")

BUCKETS = ("input_text", "cache_read", "cache_write_5m", "cache_write_1h", "input_audio", "input_image",
           "output_text", "reasoning", "output_audio")
APPENDED = ("requests", "gpu_time", "rates", "prices", "keys", "key_events")


def _int(name: str, *, null: bool = False) -> sa.Column:
    return sa.Column(name, Int, nullable=null)


def _text(name: str, *, null: bool = False) -> sa.Column:
    return sa.Column(name, sa.Text, nullable=null)


def upgrade() -> None:
    _requests()
    _intents()
    _rollup()
    _gpu_time_and_rates()
    _prices_and_keys()
    for table in APPENDED:
        op.execute(sa.DDL(
            "CREATE TRIGGER %(name)s_no_update BEFORE UPDATE ON %(name)s "
            "BEGIN SELECT RAISE(ABORT, '%(name)s: rows are appended, never edited'); END", context={"name": table}))
        op.execute(sa.DDL(
            "CREATE TRIGGER %(name)s_no_delete BEFORE DELETE ON %(name)s "
            "BEGIN SELECT RAISE(ABORT, '%(name)s: rows are appended, never deleted'); END", context={"name": table}))


def _requests() -> None:
    op.create_table(
        "requests",
        sa.Column("id", Int, primary_key=True),
        _text("request_id"), _int("attempt"), _int("final"),
        _int("started_ns"), _int("sent_ns"), _int("first_token_ns", null=True), _int("ended_ns"),
        _text("endpoint"), _int("stream"), _text("route"), _text("key_id"), _text("tags"),
        _text("client_model"), _text("backend"), _text("backend_kind"), _text("model"),
        _int("status"), _text("end_reason"),
        *(_int(bucket) for bucket in BUCKETS),
        _int("usage_consistent"), _text("usage_source"), _int("output_tokens_delivered"),
        _int("api_nano", null=True), _text("price_version"), _int("marginal_nano"), _int("work_ns"),
        _int("baseline_nano", null=True), _text("baseline_model"), _text("baseline_price_version"),
        _int("baseline_cached_tokens"), _int("slo_met", null=True), _text("reason"), _text("decision"),
        sa.UniqueConstraint("request_id", "attempt", name="uq_requests_attempt"),
        sqlite_strict=True,
    )
    op.create_index("ix_requests_ended", "requests", ["ended_ns"])


def _intents() -> None:
    op.create_table(
        "intents",
        _text("request_id"), _int("attempt"), _text("owner"),
        _int("started_ns"), _text("route"), _text("key_id"), _text("tags"),
        _text("backend"), _text("backend_kind"), _text("model"), _text("endpoint"),
        _int("prompt_tokens_estimate"), _int("output_tokens_max"), _text("price_version"),
        sa.PrimaryKeyConstraint("request_id", "attempt", name="pk_intents"),
        sqlite_strict=True, sqlite_with_rowid=False,
    )


def _rollup() -> None:
    key = ("backend", "backend_kind", "route", "key_id", "tags", "model")
    sums = ("requests", "finals", "succeeded", *BUCKETS,
            "api_nano", "api_unknown", "api_retry_nano", "marginal_nano",
            "baseline_nano", "baseline_unknown", "baseline_unknown_nano", "baseline_late_nano",
            "estimated", "estimated_tokens", "work_ns", "failed_work_ns")
    op.create_table(
        "rollup",
        _int("minute"), *(_text(name) for name in key), *(_int(name) for name in sums),
        sa.PrimaryKeyConstraint("minute", *key, name="pk_rollup"),
        sqlite_strict=True, sqlite_with_rowid=False,
    )


def _gpu_time_and_rates() -> None:
    op.create_table(
        "gpu_time",
        _int("minute"), _text("backend"),
        _int("cost_nano"), _int("observed_ns"), _int("foreign_ns"), _int("startup_ns"),
        _int("energy_nano", null=True),
        sa.PrimaryKeyConstraint("minute", "backend", name="pk_gpu_time"),
        sqlite_strict=True, sqlite_with_rowid=False,
    )
    op.create_table(
        "rates",
        sa.Column("id", Int, primary_key=True),
        _text("kind"), _text("name"), _text("usd"), _int("from_ns"), _int("until_ns", null=True),
        _text("billing"), _text("energy"), _text("watts", null=True), _text("idle_watts", null=True),
        _text("pue"), _int("recorded_ns"), _text("hash"),
        sqlite_strict=True,
    )


def _prices_and_keys() -> None:
    op.create_table(
        "prices",
        sa.Column("version", sa.Text, primary_key=True, nullable=False),
        _text("provider"), _text("model"), _text("price"), _text("source"), _int("from_ns"), _int("recorded_ns"),
        sqlite_strict=True,
    )
    op.create_table(
        "keys",
        sa.Column("id", sa.Text, primary_key=True, nullable=False),
        _text("sha256"), _text("name"), _text("role"), _text("tags"), _int("created_ns"),
        sa.UniqueConstraint("sha256", name="uq_keys_sha256"),
        sqlite_strict=True,
    )
    op.create_table(
        "key_events",
        sa.Column("id", Int, primary_key=True),
        _text("key_id"), _text("event"), _int("at_ns"),
        sqlite_strict=True,
    )


def downgrade() -> None:
    raise NotImplementedError("a ledger is never taken back; restore a backup with the older program")
