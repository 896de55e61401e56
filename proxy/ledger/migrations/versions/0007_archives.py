"""Archives: old rows of `requests` may be moved to files, and sums stand for them.

Revision ID: 0007
Revises: 0006
"""

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"
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
    "prompt_bytes", "prompt_tokens", "recounted_tokens", "recounted_input", "posted_nano", "api_most_nano",
)


def _int(name: str) -> sa.Column:
    return sa.Column(name, Int, nullable=False)


def _text(name: str) -> sa.Column:
    return sa.Column(name, sa.Text, nullable=False)


def upgrade() -> None:
    op.create_table(
        "archive_files", sa.Column("id", Int, primary_key=True), _text("path"), _text("sha256"), _int("bytes"),
        _int("rows"), _int("from_ns"), _int("to_ns"), _text("sums"), _int("at_ns"), _text("who"),
        sa.UniqueConstraint("path", name="uq_archive_files_path"), sqlite_strict=True)
    op.create_table(
        "archives", sa.Column("id", Int, primary_key=True), _int("file_id"), _int("from_ns"), _int("to_ns"),
        _int("last_id"), _int("rows"), _text("sums"), _int("at_ns"), sqlite_strict=True)
    op.create_index("ix_archives_file", "archives", ["file_id"])
    op.create_table(
        "archived", _int("day"), *map(_text, PLACE), *map(_int, SUMS),
        sa.PrimaryKeyConstraint("day", *PLACE, name="pk_archived"), sqlite_strict=True, sqlite_with_rowid=False)
    op.create_table(
        "archived_use", _text("scope"), _text("per"), _int("start_ns"), _int("posted_nano"),
        sa.PrimaryKeyConstraint("scope", "per", "start_ns", name="pk_archived_use"), sqlite_strict=True,
        sqlite_with_rowid=False)
    for table in ("archive_files", "archives"):
        for verb, past in (("UPDATE", "edited"), ("DELETE", "deleted")):
            op.execute(sa.DDL(
                f"CREATE TRIGGER {table}_no_{verb.lower()} BEFORE {verb} ON {table} "
                f"BEGIN SELECT RAISE(ABORT, '{table}: rows are appended, never {past}'); END"))
    op.execute(sa.DDL("DROP TRIGGER requests_no_delete"))
    op.execute(sa.DDL(
        "CREATE TRIGGER requests_no_delete BEFORE DELETE ON requests "
        "WHEN NOT EXISTS (SELECT 1 FROM archives WHERE id = (SELECT max(id) FROM archives) AND OLD.ended_ns >= from_ns "
        "AND OLD.ended_ns < to_ns AND OLD.id <= last_id) OR EXISTS (SELECT 1 FROM corrections "
        "WHERE request_id = OLD.request_id AND attempt = OLD.attempt) "
        "BEGIN SELECT RAISE(ABORT, 'requests: rows are appended, never deleted'); END"))


def downgrade() -> None:
    raise NotImplementedError("a ledger is never taken back; restore a backup with the older program")
