"""All tables but those in `access.py`. Constraints enforce the rules for every writer.

Rows of `message` refer to their client and mailing without foreign keys: see docs/decisions/0003.
"""

from typing import Any

from sqlalchemy import (
    ARRAY,
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
    Date,
    DateTime,
    ForeignKey,
    Identity,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    PrimaryKeyConstraint,
    Sequence,
    String,
    Table,
    Time,
    Uuid,
    func,
    text,
)
from sqlalchemy.dialects.postgresql import JSONB

from mailer.db.sql import one_of
from mailer.statuses import MAILING_STATUSES, MESSAGE_STATUSES, OPEN, OUTCOMES

OPEN_MAILING = "NOT is_closed AND deleted_at IS NULL"
"""Condition in indexes: a mailing of which something may still be sent."""
UNSETTLED_MAILING = "NOT is_settled AND deleted_at IS NULL"
"""Condition in an index: a mailing whose messages or counts may still change."""
FINISHED_IN_WINDOW = (
    "status = 'finished' AND deleted_at IS NULL AND send_interval_time_start IS NOT NULL"
)
"""Condition in an index: a finished mailing (perhaps before its end) that had a sending window."""

metadata = MetaData(
    naming_convention={
        "pk": "%(table_name)s_pkey",
        "uq": "%(table_name)s_%(column_0_N_name)s_key",
        "ix": "%(table_name)s_%(column_0_N_name)s_idx",
        "ck": "%(table_name)s_%(constraint_name)s_check",
        "fk": "%(table_name)s_%(column_0_N_name)s_fkey",
    }
)


def timestamp(name: str, *, nullable: bool = False) -> Column[object]:
    """Return a column for a timestamp with time zone."""
    return Column(name, DateTime(timezone=True), nullable=nullable)


def timestamp_now(name: str) -> Column[object]:
    """Return a timestamp column whose default is the time of the transaction."""
    return Column(name, DateTime(timezone=True), nullable=False, server_default=func.now())


# numbers of stops; see `mailer.mailing.stop_number`
Sequence("stop_number", metadata=metadata)

client = Table(
    "client",
    metadata,
    Column("id", BigInteger, Identity(always=True), primary_key=True),
    Column("phone", String, unique=True),
    Column("operator_code", String, nullable=False),
    # in the form in which tags are compared: folded by `mailer.text.fold_label`
    Column("tag", String),
    # as written by the user; null when it equals `tag`
    Column("tag_written", String),
    Column("time_zone", String, nullable=False, server_default="UTC"),
    timestamp_now("created_at"),
    # the transaction that created the row: shows whether the client existed at the moment of
    # `mailing.audience_snapshot`
    Column(
        "created_by",
        BigInteger,
        nullable=False,
        server_default=text("(pg_current_xact_id()::text)::bigint"),
    ),
    timestamp_now("updated_at"),
    timestamp("deleted_at", nullable=True),
    CheckConstraint("phone ~ '^7[0-9]{10}$'", name="phone"),
    CheckConstraint("operator_code ~ '^[0-9]{3}$'", name="operator_code"),
    # folding turns one character into at most three
    CheckConstraint("char_length(tag) BETWEEN 1 AND 192", name="tag"),
    CheckConstraint(
        "tag_written IS NULL OR (tag IS NOT NULL AND char_length(tag_written) BETWEEN 1 AND 64)",
        name="tag_written",
    ),
    # PostgreSQL raises "time zone not recognized" for a name that it does not know
    CheckConstraint(
        "(timestamptz '2000-01-01 00:00Z' AT TIME ZONE time_zone) IS NOT NULL", name="time_zone"
    ),
    CheckConstraint(
        "CASE WHEN deleted_at IS NULL THEN phone IS NOT NULL"
        " ELSE phone IS NULL AND tag IS NULL END",
        name="erased",
    ),
    # For pages, newest first. The index includes the columns of the other filters, so that clients
    # that do not match are skipped without reading the table.
    Index(
        *(None, "operator_code", "id"),
        postgresql_include=["tag", "time_zone"],
        postgresql_where=text("deleted_at IS NULL"),
    ),
    Index(
        *(None, "tag", "id"),
        postgresql_include=["operator_code", "time_zone"],
        postgresql_where=text("tag IS NOT NULL AND deleted_at IS NULL"),
    ),
    Index(
        *(None, "time_zone", "id"),
        postgresql_include=["operator_code", "tag"],
        postgresql_where=text("deleted_at IS NULL"),
    ),
    # for reading a few clients of each segment, as a sample of an audience
    Index(
        "client_segment_idx",
        *("operator_code", "time_zone", "tag"),
        postgresql_where=text("deleted_at IS NULL"),
    ),
)

# The two expressions below are spelled exactly as PostgreSQL prints them, line breaks included, so
# that `alembic check` recognizes their indexes.
ENDED_AT = """LEAST(datetime_end,
CASE
    WHEN status::text = 'cancelled'::text THEN '-infinity'::timestamp with time zone
    ELSE NULL::timestamp with time zone
END)"""
"""Expression in an index: when a mailing stops sending; `-infinity` for a cancelled one."""
RETENTION_START = """GREATEST(updated_at,
CASE
    WHEN status::text = 'finished'::text THEN datetime_end
    ELSE NULL::timestamp with time zone
END)"""
"""Expression in an index: when the retention period of a settled mailing begins. That is its last
change of counts, or its end when that is later. For a cancelled mailing it is always the last
change of counts."""

mailing = Table(
    "mailing",
    metadata,
    Column("id", BigInteger, Identity(always=True), primary_key=True),
    timestamp("datetime_start"),
    timestamp("datetime_end"),
    Column("send_interval_time_start", Time),
    Column("send_interval_time_end", Time),
    Column("text", String, nullable=False),
    Column("client_filter", JSONB(none_as_null=True)),
    Column("on_unknown", String, nullable=False, server_default="retry"),
    Column("status", String, nullable=False, server_default="scheduled"),
    Column("clients_count", BigInteger, nullable=False),
    # Clients with audience_cursor < id <= audience_until are still to be enqueued, if they match.
    # audience_until is null until the mailing starts.
    Column("audience_cursor", BigInteger, nullable=False, server_default="0"),
    Column("audience_until", BigInteger),
    # which transactions had committed when the mailing started or its filter was last changed, as
    # PostgreSQL prints a snapshot; clients created by other transactions are not in the audience
    Column("audience_snapshot", String),
    # After a change of a running mailing its messages are replanned; replan_cursor is the id up to
    # which this is done. Nothing is claimed meanwhile. With filter_changed, messages to clients
    # that no longer match the filter are cancelled.
    Column("is_replanning", Boolean, nullable=False, server_default="false"),
    Column("replan_cursor", BigInteger, nullable=False, server_default="0"),
    Column("filter_changed", Boolean, nullable=False, server_default="false"),
    # the stop number that every worker must have applied before replanning; null until it is drawn
    Column("replan_stop", BigInteger),
    # the last transaction that changed the row, set by a trigger; workers read changed rows by it
    Column("changed_by", BigInteger, nullable=False, server_default="0"),
    # messages that failed before this time are being retried; null when no retry is in progress
    timestamp("retry_before", nullable=True),
    # messages up to this id are scheduled for that retry
    Column("retry_cursor", BigInteger, nullable=False, server_default="0"),
    # Whether nothing more will be sent: the mailing has ended, and no message is open. A retry
    # opens it again.
    Column("is_closed", Boolean, nullable=False, server_default="false"),
    # whether its messages and counts will not change any more either: all messages are final
    Column("is_settled", Boolean, nullable=False, server_default="false"),
    # when the purge of messages past their retention began, and whether all are deleted; the counts
    # stay
    timestamp("purge_started_at", nullable=True),
    Column("is_purged", Boolean, nullable=False, server_default="false"),
    timestamp_now("created_at"),
    timestamp_now("updated_at"),
    timestamp("deleted_at", nullable=True),
    CheckConstraint("datetime_end > datetime_start", name="end_after_start"),
    CheckConstraint("char_length(text) BETWEEN 1 AND 1600", name="text"),
    CheckConstraint(one_of("on_unknown", ("retry", "hold")), name="on_unknown"),
    CheckConstraint(one_of("status", MAILING_STATUSES), name="status"),
    CheckConstraint(
        "num_nulls(send_interval_time_start, send_interval_time_end) IN (0, 2)"
        " AND send_interval_time_start <> send_interval_time_end",
        name="window",
    ),
    CheckConstraint("clients_count >= 0", name="clients_count"),
    CheckConstraint(
        "NOT is_closed OR status IN ('finished', 'cancelled')", name="closed_has_ended"
    ),
    CheckConstraint("NOT is_settled OR is_closed", name="settled_is_closed"),
    CheckConstraint("audience_cursor <= coalesce(audience_until, 0)", name="audience"),
    # for counts of mailings and their messages, because the totals of settled mailings are stored,
    # and for the dispatcher, which closes and settles mailings
    Index("mailing_unsettled_idx", "id", postgresql_where=text(UNSETTLED_MAILING)),
    # for the dispatcher: only mailings that are not closed
    Index("mailing_open_idx", "id", postgresql_where=text(OPEN_MAILING)),
    Index(
        "mailing_start_idx",
        "datetime_start",
        postgresql_where=text(f"{OPEN_MAILING} AND audience_until IS NULL"),
    ),
    Index(
        "mailing_ended_idx",
        text(ENDED_AT),
        postgresql_where=text(f"{OPEN_MAILING} AND audience_until IS NOT NULL"),
    ),
    Index(
        "mailing_enqueue_idx",
        *("audience_cursor", "id"),
        postgresql_where=text(
            f"{OPEN_MAILING} AND audience_cursor < audience_until AND NOT is_replanning"
        ),
    ),
    Index(
        "mailing_retry_idx",
        *("retry_cursor", "retry_before"),
        postgresql_where=text(f"{OPEN_MAILING} AND retry_before IS NOT NULL"),
    ),
    Index(
        "mailing_replan_idx",
        *("replan_cursor", "id"),
        postgresql_where=text(f"{OPEN_MAILING} AND is_replanning"),
    ),
    Index("mailing_changed_idx", "changed_by"),
    Index(
        "mailing_retention_idx",
        text(RETENTION_START),
        postgresql_where=text("is_settled AND NOT is_purged AND deleted_at IS NULL"),
    ),
    # for finished mailings whose end has not come
    Index("mailing_finished_idx", "datetime_end", postgresql_where=text(FINISHED_IN_WINDOW)),
    Index("mailing_deleted_idx", "id", postgresql_where=text("deleted_at IS NOT NULL")),
    Index(None, "status", "id", postgresql_where=text("deleted_at IS NULL")),
    # for the search; the migration that creates the index also creates the function
    Index(
        "mailing_words_idx",
        text("mailing_words(id, text::text, status::text)"),
        postgresql_using="gin",
        postgresql_with={"fastupdate": "off"},
    ),
)

# Counts of a mailing's messages by status: one row per mailing, updated by triggers on `message` in
# the transaction that changes the messages.
mailing_counts = Table(
    "mailing_counts",
    metadata,
    Column(
        "mailing_id",
        BigInteger,
        ForeignKey("mailing.id", ondelete="CASCADE"),
        primary_key=True,
        autoincrement=False,
    ),
    *(Column(name, BigInteger, nullable=False, server_default="0") for name in MESSAGE_STATUSES),
    *(CheckConstraint(f"{name} >= 0", name=name) for name in MESSAGE_STATUSES),
    timestamp("first_sent_at", nullable=True),
    timestamp("last_sent_at", nullable=True),
    # free space for updates within the page (HOT): every batch of messages updates this row
    postgresql_with={"fillfactor": "20"},
)

message = Table(
    "message",
    metadata,
    # Gateways detect repeats by this id. The table `origin` prevents two copies of the database
    # from using the same id.
    Column("id", BigInteger, Identity(always=True, maxvalue=2**53 - 1), primary_key=True),
    Column("mailing_id", BigInteger, nullable=False),
    Column("client_id", BigInteger, nullable=False),
    # of the client when the message was created; statistics always use these values
    Column("operator_code", String, nullable=False),
    Column("time_zone", String, nullable=False),
    timestamp("due_at"),
    timestamp("sent_at", nullable=True),
    Column("lease_expires_at", DateTime(timezone=True)),
    Column("lease_owner", Uuid),
    timestamp_now("created_at"),
    timestamp_now("updated_at"),
    Column("attempts", Integer, nullable=False, server_default="0"),
    Column("status", String, nullable=False, server_default="scheduled"),
    Column("reason", String),
    # reason of the last failed attempt
    Column("last_failure", String),
    # reason of the newest attempt whose delivery is unknown; null when there is none, and when the
    # gateway has reported an outcome since
    Column("unknown_reason", String),
    # when the pause after the last failed attempt ends; `due_at` is also inside the sending window
    timestamp("retry_at", nullable=True),
    # start of the last attempt that has ended; a running attempt began at `updated_at`
    timestamp("claimed_at", nullable=True),
    # the newest failed attempts, an array of objects, oldest first; null when there are none
    Column("failures", JSONB(none_as_null=True)),
    CheckConstraint(one_of("status", MESSAGE_STATUSES), name="status"),
    CheckConstraint(
        "(status = 'sending') = (lease_owner IS NOT NULL)"
        " AND (status = 'sending') = (lease_expires_at IS NOT NULL)",
        name="lease",
    ),
    CheckConstraint("attempts >= 0", name="attempts"),
    # a message that may have been accepted must not end in a status that says it was not sent
    CheckConstraint(
        f"unknown_reason IS NULL OR {one_of('status', (*OPEN, 'unknown'))}", name="unknown"
    ),
    # one message per client and mailing
    Index("message_mailing_id_client_id_key", "mailing_id", "client_id", unique=True),
    # claiming reads due messages only and never scans finished ones
    Index(
        "message_due_idx",
        *("mailing_id", "due_at", "id"),
        postgresql_where=text("status = 'scheduled'"),
    ),
    Index("message_lease_idx", "lease_expires_at", postgresql_where=text("status = 'sending'")),
    # messages that wait after a failed attempt
    Index(
        "message_retry_idx",
        "retry_at",
        postgresql_where=text("status = 'scheduled' AND retry_at IS NOT NULL"),
    ),
    # for pages of a mailing's messages, newest first, filtered by status or not
    Index(None, "mailing_id", "status", "id"),
    # the same, filtered by reason
    Index(
        None, "mailing_id", "reason", "status", "id", postgresql_where=text("reason IS NOT NULL")
    ),
)

# Queue-like table: vacuum by the number of dead rows, not by a fraction of the table's size.
QUEUE_TABLE_OPTIONS = {
    "autovacuum_vacuum_scale_factor": "0",
    "autovacuum_vacuum_threshold": "10000",
}

# Clients whose time zone has changed: their open messages are to be replanned.
client_to_replan = Table(
    "client_to_replan",
    metadata,
    Column("client_id", BigInteger, nullable=False),
    postgresql_with=QUEUE_TABLE_OPTIONS,
)

COUNTERS = ("messages", *OUTCOMES)


def _counter_columns(*names: str) -> list[Column[int]]:
    return [Column(name, BigInteger, nullable=False, server_default="0") for name in names]


def _message_count_columns() -> list[Column[Any]]:
    return [
        Column("mailing_id", BigInteger, nullable=False, autoincrement=False),
        Column("dimension", String, nullable=False),
        Column("key", String, nullable=False, server_default=""),
        timestamp("bucket_start", nullable=True),
        *_counter_columns(*COUNTERS),
    ]


def _segment_count_columns() -> list[Column[Any]]:
    return [
        Column("operator_code", String, nullable=False),
        Column("tag", String),
        Column("time_zone", String, nullable=False),
        *_counter_columns("clients"),
    ]


# Counters of a mailing's messages and their outcomes, by dimension: operator code, time zone,
# reason, number of attempts, or second of the outcome, which is in `bucket_start` instead of `key`.
# `message_count_delta` holds deltas that are not yet merged into `message_count` and
# `outcome_count`.
message_count = Table(
    "message_count",
    metadata,
    *_message_count_columns(),
    Index(
        "message_count_key",
        *("mailing_id", "dimension", "key", "bucket_start"),
        unique=True,
        postgresql_nulls_not_distinct=True,
    ),
)
message_count_delta = Table(
    "message_count_delta", metadata, *_message_count_columns(), postgresql_with=QUEUE_TABLE_OPTIONS
)

# Counts of outcomes by quarter of an hour and reason, over all mailings including deleted ones. The
# daily reports are sums of these.
outcome_count = Table(
    "outcome_count",
    metadata,
    timestamp("bucket_start"),
    # empty: no reason
    Column("reason", String, nullable=False),
    *_counter_columns(*OUTCOMES),
    PrimaryKeyConstraint("bucket_start", "reason"),
)

# Numbers of clients by segment, deleted clients excluded. `segment_count_delta` holds deltas that
# are not merged yet.
segment_count = Table(
    "segment_count",
    metadata,
    *_segment_count_columns(),
    Index(
        "segment_count_operator_code_tag_time_zone_key",
        *("operator_code", "tag", "time_zone"),
        unique=True,
        postgresql_nulls_not_distinct=True,
    ),
    Index("segment_count_tag_idx", "tag"),
    Index("segment_count_time_zone_idx", "time_zone"),
)
segment_count_delta = Table(
    "segment_count_delta", metadata, *_segment_count_columns(), postgresql_with=QUEUE_TABLE_OPTIONS
)

# Daily reports by mail: one row per day whose report was due. Until `leased_until` a worker is
# sending it, or the next attempt is delayed.
daily_report = Table(
    "daily_report",
    metadata,
    Column("day", Date, primary_key=True),
    # identifies the mail; the same for every attempt to send it
    Column("id", Uuid, nullable=False, server_default=func.gen_random_uuid()),
    timestamp("leased_until"),
    Column("attempts", Integer, nullable=False, server_default="0"),
    timestamp("sent_at", nullable=True),
    # digests of recipients that got the mail or that the mail server has permanently refused
    Column("settled_recipients", ARRAY(LargeBinary), nullable=False, server_default="{}"),
)

# Totals in one row: the numbers of settled mailings that are not deleted, and the outcomes of all
# settled or deleted mailings.
settled_totals = Table(
    "settled_totals", metadata, *_counter_columns("finished", "cancelled_mailings", *OUTCOMES)
)

# Origin of the database in one row, recorded by the function `update_origin()` of the migration.
# When the origin has changed, message ids continue in another range. When the database was
# restored, nothing is sent until an admin confirms. A statement that updates the row must also set
# `written_by` to its transaction, or the database counts as restored.
origin = Table(
    "origin",
    metadata,
    # system identifier of the server, oid of the database, and timeline; null when the server does
    # not reveal it
    Column("server", BigInteger),
    Column("database", BigInteger, nullable=False),
    Column("timeline", BigInteger),
    # when the server was started: a server on a copy of the disk has another time
    timestamp("started_at"),
    # the transaction that wrote this row; wrong in a database restored from a dump
    Column("written_by", BigInteger, nullable=False),
    timestamp("moved_at"),
    # when the restore was detected and sending stopped; null when the database may send
    timestamp("held_since", nullable=True),
    # time of the newest work recorded in a restored database
    timestamp("data_until", nullable=True),
)
