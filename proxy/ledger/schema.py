"""The ledger's tables.

Invariants: rows of every table except `rollup`, `hours`, `budget_use`, `holds` and `responses` are appended, never
edited (triggers refuse); `rollup` equals the sum of `requests` and `corrections`, `hours` that of `rollup` and of what
GPUs cost, and `budget_use` that of the requests in its window and of `holds`, because they are written in one
transaction; a hold lives until its request is settled. Amounts are integers of nano-USD, times UTC nanoseconds, minutes
and hours whole ones since the epoch. Rates are exact decimal strings.

A change here is a new migration beside it, a new entry in `REVISIONS`, and nothing else; a fresh ledger is
created from this page and stamped, and a test proves that both ways give the same tables.
"""

from __future__ import annotations

from sqlalchemy import (
    DDL,
    BigInteger,
    Column,
    Index,
    Integer,
    MetaData,
    PrimaryKeyConstraint,
    String,
    Table,
    Text,
    UniqueConstraint,
    event,
    text,
)

from proxy.core.cells import FIELDS, SUMS, Place
from proxy.core.gpucost import GpuShare
from proxy.core.usage import BUCKETS

REVISIONS = ("0001", "0002", "0003", "0004", "0005", "0006", "0007", "0008")  # oldest first; what this program can open
HEAD = REVISIONS[-1]

Int = Integer().with_variant(BigInteger, "postgresql")

metadata = MetaData()


def _int(name: str, *, null: bool = False) -> Column[int]:
    return Column(name, Int, nullable=null)


def _text(name: str, *, null: bool = False) -> Column[str]:
    return Column(name, Text, nullable=null)


def _added(name: str) -> Column[int]:
    """A column that came after the first version, and is 0 in the rows before it."""
    return Column(name, Int, nullable=False, server_default=text("0"))


requests = Table(
    "requests", metadata,
    Column("id", Int, primary_key=True),
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
    _int("hold_nano", null=True), _added("internal_nano"), _added("posted_nano"),
    _int("baseline_list_nano", null=True), _int("baseline_contracted_nano", null=True),
    _added("prompt_bytes"), _added("trial"), _int("recounted_tokens", null=True),
    UniqueConstraint("request_id", "attempt", name="uq_requests_attempt"),
    Index("ix_requests_ended", "ended_ns"),
    Index("ix_requests_key", "key_id", "ended_ns"),  # a key's first hold in a window counts what it has spent
    sqlite_strict=True,
)

ROLLUP_KEY = ("minute", *Place._fields)
ROLLUP_SUMS = SUMS

rollup = Table(
    "rollup", metadata,
    _int("minute"), *(_text(name) for name in Place._fields),
    *(_int(name) for name in ROLLUP_SUMS[:-2]), *(_added(name) for name in ROLLUP_SUMS[-2:]),
    PrimaryKeyConstraint(*ROLLUP_KEY, name="pk_rollup"),
    sqlite_strict=True, sqlite_with_rowid=False,
)

# Hours that have passed, summed once more so that a month is read quickly (hours.py). Not there: read from the minutes.
hours = Table("hours", metadata, Column("hour", Int, primary_key=True, nullable=False), _int("closed_ns"),
              sqlite_strict=True)

hour_cells = Table(
    "hour_cells", metadata,
    _int("hour"), *(_text(name) for name in Place._fields), *(_int(name) for name in FIELDS),
    PrimaryKeyConstraint("hour", *Place._fields, name="pk_hour_cells"),
    sqlite_strict=True, sqlite_with_rowid=False,
)

hour_gpus = Table(
    "hour_gpus", metadata,
    _int("hour"), _text("backend"), *(_int(name) for name in GpuShare.__slots__), _int("unpriced"),
    PrimaryKeyConstraint("hour", "backend", name="pk_hour_gpus"),
    sqlite_strict=True, sqlite_with_rowid=False,
)

# What was booked wrong, by how much, and who says so. It counts in the minute in which it was made.
corrections = Table(
    "corrections", metadata,
    Column("id", Int, primary_key=True),
    _int("at_ns"), _text("request_id"), _int("attempt"),
    _int("api_nano"), _int("baseline_nano"),  # to be added, may be negative
    _text("reason"), _text("who"),
    Index("ix_corrections_request", "request_id"),
    sqlite_strict=True,
)

# What the windows of budgets have taken. A window appears with its first hold, counted from the rows before it.
budget_use = Table(
    "budget_use", metadata,
    _text("scope"), _text("per"), _int("start_ns"), _int("posted_nano"), _int("pending_nano"),
    PrimaryKeyConstraint("scope", "per", "start_ns", name="pk_budget_use"),
    sqlite_strict=True, sqlite_with_rowid=False,
)

holds = Table(
    "holds", metadata,
    _text("request_id"), _int("attempt"), _text("scope"), _text("per"), _int("start_ns"), _int("amount_nano"),
    _text("owner"), _int("expires_ns"),
    PrimaryKeyConstraint("request_id", "attempt", "scope", "per", "start_ns", name="pk_holds"),
    sqlite_strict=True, sqlite_with_rowid=False,
)

# Where the responses lie that upstreams keep for who made them; forgotten when they are (responses.py).
responses = Table(
    "responses", metadata,
    Column("digest", Text, primary_key=True, nullable=False),
    _text("backend"), _text("replica"), _int("tokens"), _int("at_ns"), _int("expires_ns"),
    Index("ix_responses_expires", "expires_ns"),
    sqlite_strict=True, sqlite_with_rowid=False,
)

# Old rows of `requests` that were moved to files (archive.py): each file; each piece of one that was taken out; and, as
# sums, what stands for them.
archive_files = Table(
    "archive_files", metadata,
    Column("id", Int, primary_key=True),
    _text("path"), _text("sha256"), _int("bytes"), _int("rows"), _int("from_ns"), _int("to_ns"), _text("sums"),
    _int("at_ns"), _text("who"),
    UniqueConstraint("path", name="uq_archive_files_path"),
    sqlite_strict=True,
)

archives = Table(
    "archives", metadata,
    Column("id", Int, primary_key=True),
    _int("file_id"), _int("from_ns"), _int("to_ns"), _int("last_id"), _int("rows"), _text("sums"), _int("at_ns"),
    Index("ix_archives_file", "file_id"),
    sqlite_strict=True,
)

ARCHIVED_KEY = ("day", *Place._fields)
ARCHIVED_SUMS = (*ROLLUP_SUMS, "posted_nano", "api_most_nano")  # the last two: what budgets count of them

archived = Table(
    "archived", metadata,
    _int("day"), *(_text(name) for name in Place._fields), *(_int(name) for name in ARCHIVED_SUMS),
    PrimaryKeyConstraint(*ARCHIVED_KEY, name="pk_archived"),
    sqlite_strict=True, sqlite_with_rowid=False,
)

archived_use = Table(
    "archived_use", metadata,
    _text("scope"), _text("per"), _int("start_ns"), _int("posted_nano"),
    PrimaryKeyConstraint("scope", "per", "start_ns", name="pk_archived_use"),
    sqlite_strict=True, sqlite_with_rowid=False,
)

gpu_time = Table(
    "gpu_time", metadata,
    _int("minute"), _text("backend"),
    _int("cost_nano"), _int("observed_ns"), _int("foreign_ns"), _int("startup_ns"),
    _int("energy_nano", null=True),
    PrimaryKeyConstraint("minute", "backend", name="pk_gpu_time"),
    sqlite_strict=True, sqlite_with_rowid=False,
)

rates = Table(
    "rates", metadata,
    Column("id", Int, primary_key=True),
    _text("kind"), _text("name"), _text("usd"),  # gpu: USD per hour; overhead: per month; electricity: per kWh
    _int("from_ns"), _int("until_ns", null=True),
    _text("billing"), _text("energy"), _text("watts", null=True), _text("idle_watts", null=True),
    _text("pue"), _int("recorded_ns"), _text("hash"),
    sqlite_strict=True,
)

prices = Table(
    "prices", metadata,
    Column("version", Text, primary_key=True, nullable=False),
    _text("provider"), _text("model"), _text("price"), _text("source"),
    _int("from_ns"), _int("recorded_ns"),
    sqlite_strict=True,
)

keys = Table(
    "keys", metadata,
    Column("id", Text, primary_key=True, nullable=False),
    _text("sha256"), _text("name"), _text("role"), _text("tags"), _int("created_ns"),
    UniqueConstraint("sha256", name="uq_keys_sha256"),
    sqlite_strict=True,
)

# What a key may do; the newest row counts. Without one: anything its role allows.
key_limits = Table(
    "key_limits", metadata,
    Column("id", Int, primary_key=True),
    _text("key_id"), _text("budget", null=True), _int("rpm", null=True), _int("tpm", null=True),
    _text("routes", null=True), _int("expires_ns", null=True), _int("at_ns"),
    sqlite_strict=True,
)

key_events = Table(
    "key_events", metadata,
    Column("id", Int, primary_key=True),
    _text("key_id"), _text("event"), _int("at_ns"),
    sqlite_strict=True,
)

# What a provider's or a cloud's bill was found to differ by; `cells` and `causes` are JSON, `files` has their hashes.
reconciliations = Table(
    "reconciliations", metadata,
    Column("id", Int, primary_key=True),
    _int("at_ns"), _text("kind"), _text("provider"), _int("from_ns"), _int("to_ns"), _text("files"),
    _text("tolerance"), _int("within"), _int("ours_nano"), _int("theirs_nano"), _int("apart_nano"),
    _text("causes"), _text("cells"), _text("who"),
    sqlite_strict=True,
)

# A period whose figures are final: the statement as it was signed, as JSON, and its SHA-256.
closed_periods = Table(
    "closed_periods", metadata,
    Column("id", Int, primary_key=True),
    _int("from_ns"), _int("to_ns"), _int("closed_ns"), _text("time_zone"), _int("reconciliation_id", null=True),
    _text("reason"), _text("who"), _text("statement"), _text("hash"),
    sqlite_strict=True,
)

# What a closed period cost more (or less) than its statement says, found later; it counts in the minute it was made.
adjustments = Table(
    "adjustments", metadata,
    Column("id", Int, primary_key=True),
    _int("at_ns"), _int("closed_id"), _text("kind"), _text("name"), _int("cost_nano"), _text("reason"), _text("who"),
    sqlite_strict=True,
)

# Alerts for people: when one fired and recovered, and which webhook was told. `detail` is JSON.
alert_events = Table(
    "alert_events", metadata,
    Column("id", Int, primary_key=True),
    _int("at_ns"), _text("alert"), _text("event"), _text("webhook"), _text("detail"),
    Index("ix_alert_events_alert", "alert", "id"),
    sqlite_strict=True,
)

# Alembic's own table, the same to the letter, so that a fresh ledger can be stamped without importing it.
version_metadata = MetaData()
alembic_version = Table(
    "alembic_version", version_metadata,
    Column("version_num", String(32), nullable=False),
    PrimaryKeyConstraint("version_num", name="alembic_version_pkc"),
)

APPENDED = (requests, corrections, gpu_time, rates, prices, keys, key_events, key_limits, reconciliations,
            closed_periods, adjustments, alert_events, archive_files, archives)

# %(table)s is filled in by SQLAlchemy's DDL from the table itself.
NO_UPDATE = DDL("CREATE TRIGGER %(table)s_no_update BEFORE UPDATE ON %(table)s "
                "BEGIN SELECT RAISE(ABORT, '%(table)s: rows are appended, never edited'); END")
NO_DELETE = DDL("CREATE TRIGGER %(table)s_no_delete BEFORE DELETE ON %(table)s "
                "BEGIN SELECT RAISE(ABORT, '%(table)s: rows are appended, never deleted'); END")

# A row of `requests` leaves with the archive that was recorded last, if it is one of its rows and was never corrected.
NO_DELETE_BUT_ARCHIVED = DDL(
    "CREATE TRIGGER %(table)s_no_delete BEFORE DELETE ON %(table)s "
    "WHEN NOT EXISTS (SELECT 1 FROM archives WHERE id = (SELECT max(id) FROM archives) AND OLD.ended_ns >= from_ns "
    "AND OLD.ended_ns < to_ns AND OLD.id <= last_id) OR EXISTS (SELECT 1 FROM corrections "
    "WHERE request_id = OLD.request_id AND attempt = OLD.attempt) "
    "BEGIN SELECT RAISE(ABORT, '%(table)s: rows are appended, never deleted'); END")

for _table in APPENDED:
    for _ddl in (NO_UPDATE, NO_DELETE_BUT_ARCHIVED if _table is requests else NO_DELETE):
        event.listen(_table, "after_create", _ddl.execute_if(dialect="sqlite"))
