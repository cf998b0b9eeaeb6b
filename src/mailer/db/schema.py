"""Every table but those of `access.py`; constraints hold what the contract says, whoever writes.

Rows of `message` name their client and mailing without a foreign key: see docs/decisions/0003.
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

MAILING_STATUSES = ("scheduled", "running", "paused", "finished", "cancelled")
MESSAGE_STATUSES = (
    "scheduled",
    "sending",
    "delivered",
    "undelivered",
    "unknown",
    "cancelled",
)

LIVE = "NOT is_settled AND deleted_at IS NULL"
"""A mailing of which something may still move, in the words of the indexes."""
FINISHED_IN_WINDOW = (
    "status = 'finished' AND deleted_at IS NULL AND send_interval_time_start IS NOT NULL"
)
"""A mailing that was through, perhaps before its end, and that had a sending window."""

metadata = MetaData(
    naming_convention={
        "pk": "%(table_name)s_pkey",
        "uq": "%(table_name)s_%(column_0_N_name)s_key",
        "ix": "%(table_name)s_%(column_0_N_name)s_idx",
        "ck": "%(table_name)s_%(constraint_name)s_check",
        "fk": "%(table_name)s_%(column_0_N_name)s_fkey",
    }
)


def one_of(column: str, values: tuple[str, ...]) -> str:
    """Return the rule that a column holds one of some words."""
    return f"{column} IN ({', '.join(repr(value) for value in values)})"


def moment(name: str, *, nullable: bool = False) -> Column[object]:
    """Return a column for a moment."""
    return Column(name, DateTime(timezone=True), nullable=nullable)


def now(name: str) -> Column[object]:
    """Return a column for the moment at which its row came to be."""
    return Column(name, DateTime(timezone=True), nullable=False, server_default=func.now())


# what `mailer.mailing.stopping` draws
Sequence("stop_number", metadata=metadata)

client = Table(
    "client",
    metadata,
    Column("id", BigInteger, Identity(always=True), primary_key=True),
    Column("phone", String, unique=True),
    Column("operator_code", String, nullable=False),
    # as it is compared: folded by `mailer.text.fold_label`
    Column("tag", String),
    # as it was written, where that differs
    Column("tag_written", String),
    Column("time_zone", String, nullable=False, server_default="UTC"),
    now("created_at"),
    # the transaction that made the row: who was in the directory when an audience was taken
    Column(
        "created_by",
        BigInteger,
        nullable=False,
        server_default=text("(pg_current_xact_id()::text)::bigint"),
    ),
    now("updated_at"),
    moment("deleted_at", nullable=True),
    CheckConstraint("phone ~ '^7[0-9]{10}$'", name="phone"),
    CheckConstraint("operator_code ~ '^[0-9]{3}$'", name="operator_code"),
    # folding makes three characters of one at most
    CheckConstraint("char_length(tag) BETWEEN 1 AND 192", name="tag"),
    CheckConstraint(
        "tag_written IS NULL OR (tag IS NOT NULL AND char_length(tag_written) BETWEEN 1 AND 64)",
        name="tag_written",
    ),
    # PostgreSQL raises "time zone not recognized" for a name that only Python knows
    CheckConstraint(
        "(timestamptz '2000-01-01 00:00Z' AT TIME ZONE time_zone) IS NOT NULL", name="time_zone"
    ),
    CheckConstraint(
        "CASE WHEN deleted_at IS NULL THEN phone IS NOT NULL"
        " ELSE phone IS NULL AND tag IS NULL END",
        name="erased",
    ),
    # pages, newest first; what else may be asked for is in the index, and what differs is not read
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
    # some clients of each kind: a sample of an audience
    Index(
        "client_kind_idx",
        *("operator_code", "time_zone", "tag"),
        postgresql_where=text("deleted_at IS NULL"),
    ),
)

# From when on the retention of a settled mailing counts: its last change of counts, or its end when
# that is later. One that was cancelled has ended before that change. Written as PostgreSQL writes
# it, line ends and all: by that `alembic check` knows the index.
OVER_AT = """LEAST(datetime_end,
CASE
    WHEN status::text = 'cancelled'::text THEN '-infinity'::timestamp with time zone
    ELSE NULL::timestamp with time zone
END)"""
"""From when on nothing more of a mailing is sent, in the words of an index."""
KEPT_SINCE = """GREATEST(updated_at,
CASE
    WHEN status::text = 'finished'::text THEN datetime_end
    ELSE NULL::timestamp with time zone
END)"""

mailing = Table(
    "mailing",
    metadata,
    Column("id", BigInteger, Identity(always=True), primary_key=True),
    moment("datetime_start"),
    moment("datetime_end"),
    Column("send_interval_time_start", Time),
    Column("send_interval_time_end", Time),
    Column("text", String, nullable=False),
    Column("client_filter", JSONB(none_as_null=True)),
    Column("on_unknown", String, nullable=False, server_default="retry"),
    Column("status", String, nullable=False, server_default="scheduled"),
    Column("clients_count", BigInteger, nullable=False),
    # The audience is every matching client with audience_cursor < id <= audience_until that is
    # still to be taken; audience_until is null until the mailing starts.
    Column("audience_cursor", BigInteger, nullable=False, server_default="0"),
    Column("audience_until", BigInteger),
    # what of the directory there was when the audience was taken, as PostgreSQL writes a snapshot
    Column("audience_snapshot", String),
    # after a change while it runs its messages are planned anew, so far up to this id; nothing is
    # claimed meanwhile. With a new filter those that it does not match are cancelled.
    Column("replanning", Boolean, nullable=False, server_default="false"),
    Column("replan_cursor", BigInteger, nullable=False, server_default="0"),
    Column("filter_changed", Boolean, nullable=False, server_default="false"),
    # the number of the stop that every worker must have applied before; null until it is drawn
    Column("replan_stop", BigInteger),
    # the transaction that changed the row last, set by a trigger: workers read what has changed
    Column("changed_by", BigInteger, nullable=False, server_default="0"),
    # what was given up before this moment is to be sent again; null when all of it is scheduled
    moment("retry_before", nullable=True),
    # the messages up to this id are gone through for that
    Column("retry_cursor", BigInteger, nullable=False, server_default="0"),
    # whether it has ended and nothing of it moves any more
    Column("is_settled", Boolean, nullable=False, server_default="false"),
    # since when its messages are deleted, being past their retention, and whether none is left;
    # its counts stay
    moment("retired_at", nullable=True),
    Column("is_emptied", Boolean, nullable=False, server_default="false"),
    now("created_at"),
    now("updated_at"),
    moment("deleted_at", nullable=True),
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
        "NOT is_settled OR status IN ('finished', 'cancelled')", name="settled_has_ended"
    ),
    CheckConstraint("audience_cursor <= coalesce(audience_until, 0)", name="audience"),
    # what the dispatcher looks through, and nothing that has ended
    Index("mailing_live_idx", "id", postgresql_where=text(LIVE)),
    Index(
        "mailing_start_idx",
        "datetime_start",
        postgresql_where=text(f"{LIVE} AND audience_until IS NULL"),
    ),
    Index(
        "mailing_over_idx",
        text(OVER_AT),
        postgresql_where=text(f"{LIVE} AND audience_until IS NOT NULL"),
    ),
    Index(
        "mailing_take_idx",
        *("audience_cursor", "id"),
        postgresql_where=text(f"{LIVE} AND audience_cursor < audience_until AND NOT replanning"),
    ),
    Index(
        "mailing_retry_idx",
        *("retry_cursor", "retry_before"),
        postgresql_where=text(f"{LIVE} AND retry_before IS NOT NULL"),
    ),
    Index(
        "mailing_replan_idx",
        *("replan_cursor", "id"),
        postgresql_where=text(f"{LIVE} AND replanning"),
    ),
    Index(
        "mailing_settled_idx",
        "updated_at",
        postgresql_where=text("is_settled AND NOT is_emptied AND deleted_at IS NULL"),
    ),
    Index("mailing_changed_idx", "changed_by"),
    Index(
        "mailing_retention_idx",
        text(KEPT_SINCE),
        postgresql_where=text("is_settled AND NOT is_emptied AND deleted_at IS NULL"),
    ),
    # those of them whose end has not come
    Index("mailing_finished_idx", "datetime_end", postgresql_where=text(FINISHED_IN_WINDOW)),
    Index("mailing_deleted_idx", "id", postgresql_where=text("deleted_at IS NOT NULL")),
    Index(None, "status", "id", postgresql_where=text("deleted_at IS NULL")),
    # what a search looks through; the function is in the migration that makes the index
    Index(
        "mailing_words_idx",
        text("mailing_words(id, text::text, status::text)"),
        postgresql_using="gin",
        postgresql_with={"fastupdate": "off"},
    ),
)

# One row a mailing, moved by triggers on `message` in the transaction that moves the messages.
ledger = Table(
    "ledger",
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
    moment("first_sent_at", nullable=True),
    moment("last_sent_at", nullable=True),
    # room for updates in place: every batch of messages rewrites this row
    postgresql_with={"fillfactor": "20"},
)

message = Table(
    "message",
    metadata,
    # what gateways drop repeats by; `origin` keeps two copies of the database from giving one twice
    Column("id", BigInteger, Identity(always=True, maxvalue=2**53 - 1), primary_key=True),
    Column("mailing_id", BigInteger, nullable=False),
    Column("client_id", BigInteger, nullable=False),
    # the client's, as they were when the message was made: what it counts under for good
    Column("operator_code", String, nullable=False),
    Column("time_zone", String, nullable=False),
    moment("due_at"),
    moment("sent_at", nullable=True),
    Column("lease_expires_at", DateTime(timezone=True)),
    Column("lease_owner", Uuid),
    now("created_at"),
    now("updated_at"),
    Column("attempts", Integer, nullable=False, server_default="0"),
    Column("status", String, nullable=False, server_default="scheduled"),
    Column("reason", String),
    # why the last attempt that failed did
    Column("last_failure", String),
    # why the delivery by an attempt is unknown, the newest such one; null when none is, and once
    # the gateway has said what became of the message
    Column("unknown_reason", String),
    # when the pause after the last failed attempt ends; due_at is inside the window as well
    moment("retry_at", nullable=True),
    # when the last attempt began that has ended; that of one under way is `updated_at`
    moment("claimed_at", nullable=True),
    # the newest attempts that failed, an array of objects, oldest first; null when none did
    Column("failures", JSONB(none_as_null=True)),
    CheckConstraint(one_of("status", MESSAGE_STATUSES), name="status"),
    CheckConstraint(
        "(status = 'sending') = (lease_owner IS NOT NULL)"
        " AND (status = 'sending') = (lease_expires_at IS NOT NULL)",
        name="lease",
    ),
    CheckConstraint("attempts >= 0", name="attempts"),
    # what may have been accepted never counts as what was not sent
    CheckConstraint(
        "unknown_reason IS NULL OR status IN ('scheduled', 'sending', 'unknown')", name="unknown"
    ),
    # one message a client and mailing
    Index("message_mailing_id_client_id_key", "mailing_id", "client_id", unique=True),
    # claiming reads what is due, and never walks over what is done
    Index(
        "message_due_idx",
        *("mailing_id", "due_at", "id"),
        postgresql_where=text("status = 'scheduled'"),
    ),
    Index("message_lease_idx", "lease_expires_at", postgresql_where=text("status = 'sending'")),
    # what waits after a failed attempt
    Index(
        "message_retry_idx",
        "retry_at",
        postgresql_where=text("status = 'scheduled' AND retry_at IS NOT NULL"),
    ),
    # pages of one mailing's messages, newest first, with and without a status
    Index(None, "mailing_id", "status", "id"),
    # and with a reason, with and without a status
    Index(
        None, "mailing_id", "reason", "status", "id", postgresql_where=text("reason IS NOT NULL")
    ),
)

# of a table whose rows go as they came: it is vacuumed by what has gone, not by what is there
SHORT_LIVED = {"autovacuum_vacuum_scale_factor": "0", "autovacuum_vacuum_threshold": "10000"}

# Clients whose time zone has changed, so that their open messages are to be planned anew.
moved_client = Table(
    "moved_client",
    metadata,
    Column("client_id", BigInteger, nullable=False),
    postgresql_with=SHORT_LIVED,
)

OUTCOMES = ("delivered", "undelivered", "unknown", "cancelled")
TALLY = ("messages", *OUTCOMES)


def _counts(*names: str) -> list[Column[int]]:
    return [Column(name, BigInteger, nullable=False, server_default="0") for name in names]


def _tallied() -> list[Column[Any]]:
    return [
        Column("mailing_id", BigInteger, nullable=False, autoincrement=False),
        Column("dimension", String, nullable=False),
        Column("key", String, nullable=False),
        *_counts(*TALLY),
    ]


def _kinds() -> list[Column[Any]]:
    return [
        Column("operator_code", String, nullable=False),
        Column("tag", String),
        Column("time_zone", String, nullable=False),
        *_counts("clients"),
    ]


# A mailing's messages by operator code, time zone, reason, attempts and second of their outcome:
# how many they are and what became of them. `tally_move` holds what is not folded yet, into it or
# into `outcome_count`.
tally = Table(
    "tally", metadata, *_tallied(), PrimaryKeyConstraint("mailing_id", "dimension", "key")
)
tally_move = Table("tally_move", metadata, *_tallied(), postgresql_with=SHORT_LIVED)

# Outcomes of all mailings, also of those that are deleted, by the quarter of an hour in which they
# happened and their reason: what the daily reports add up.
outcome_count = Table(
    "outcome_count",
    metadata,
    moment("quarter_start"),
    Column("reason", String),
    *_counts(*OUTCOMES),
    Index(
        "outcome_count_quarter_start_reason_key",
        *("quarter_start", "reason"),
        unique=True,
        postgresql_nulls_not_distinct=True,
    ),
)

# How many living clients are alike in all that a filter asks for; and the moves not folded yet.
directory = Table(
    "directory",
    metadata,
    *_kinds(),
    Index(
        "directory_operator_code_tag_time_zone_key",
        *("operator_code", "tag", "time_zone"),
        unique=True,
        postgresql_nulls_not_distinct=True,
    ),
    Index("directory_tag_idx", "tag"),
    Index("directory_time_zone_idx", "time_zone"),
)
directory_move = Table("directory_move", metadata, *_kinds(), postgresql_with=SHORT_LIVED)

# One row a day whose report was due: which process sends it until when, or is to wait until then.
report = Table(
    "report",
    metadata,
    Column("day", Date, primary_key=True),
    # what its mail is known by, however often it is sent
    Column("id", Uuid, nullable=False, server_default=func.gen_random_uuid()),
    moment("taken_until"),
    Column("attempts", Integer, nullable=False, server_default="0"),
    moment("sent_at", nullable=True),
    # digests of the recipients that have it, or that the server has refused permanently
    Column("decided", ARRAY(LargeBinary), nullable=False, server_default="{}"),
)

# One row: the mailings that are settled and not deleted, and the outcomes of all that are settled
# or gone.
settled = Table("settled", metadata, *_counts("finished", "cancelled_mailings", *OUTCOMES))

# One row: where the database was when it was last looked at, by the function `update_origin()` of
# the migration. Ids go on elsewhere when it is another place, and where it is a restored one,
# nothing is sent until a person agrees. A statement that writes the row anew also says so in
# `written_by`, or it counts as restored.
origin = Table(
    "origin",
    metadata,
    # the system identifier, the oid of the database and the timeline; null where they are not told
    Column("server", BigInteger),
    Column("database", BigInteger, nullable=False),
    Column("timeline", BigInteger),
    # since when the server runs: a copy of its disk is a server that was started anew
    moment("started_at"),
    # the transaction that wrote this row, which a dump cannot bring along
    Column("written_by", BigInteger, nullable=False),
    moment("moved_at"),
    # since when a person is to agree; null when it may send
    moment("held_since", nullable=True),
    # the newest trace of work in a database that was restored
    moment("data_until", nullable=True),
)
