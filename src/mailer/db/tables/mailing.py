"""Tables of mailings: the mailings, the counts of their messages, and totals of settled ones.

An *open* mailing may still send something. A *closed* one has ended and has no open message, or is
a draft: nothing of it is sent until a user launches it. A *settled* one has ended and all its
messages are final, so that its counts do not change any more.
"""

from sqlalchemy import (
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
    Double,
    ForeignKey,
    Identity,
    Index,
    Integer,
    Sequence,
    String,
    Table,
    Time,
    text,
)
from sqlalchemy.dialects.postgresql import ARRAY, JSONB

from mailer.db.sql import count_columns, metadata, one_of, timestamp, timestamp_now
from mailer.statuses import MAILING_STATUSES, MESSAGE_STATUSES, OUTCOMES

# PostgreSQL uses a partial index only for a statement that repeats the index's condition. So
# statements use the same constants as the indexes below.
OPEN_MAILING = "NOT is_closed AND deleted_at IS NULL"
"""Condition in indexes: a mailing of which something may still be sent."""
UNSETTLED_MAILING = "NOT is_settled AND deleted_at IS NULL"
"""Condition in an index: a mailing whose messages or counts may still change."""
FINISHED_IN_WINDOW = (
    "status = 'finished' AND deleted_at IS NULL AND send_interval_time_start IS NOT NULL"
)
"""Condition in an index: a finished mailing (perhaps before its end) that had a sending window."""

# The three expressions below are spelled exactly as PostgreSQL prints them, line breaks included,
# so that `alembic check` recognizes their indexes.
ENDED_AT = """LEAST(datetime_end,
CASE
    WHEN status::text = 'cancelled'::text THEN '-infinity'::timestamp with time zone
    ELSE NULL::timestamp with time zone
END)"""
"""Expression in an index: when a mailing stops sending; `-infinity` for a cancelled one. LEAST
ignores null."""
RETENTION_START = """GREATEST(updated_at,
CASE
    WHEN status::text = 'finished'::text THEN datetime_end
    ELSE NULL::timestamp with time zone
END)"""
"""Expression in an index: when the retention period of a settled mailing starts. That is its last
change of counts, or its end when that is later. For a cancelled mailing it is always the last
change of counts."""
ACTIVE_PERIOD = "tstzrange(datetime_start, GREATEST(datetime_start, updated_at), '[]'::text)"
"""Expression in an index: from the start of a settled mailing to its last change of counts. Only
the start for a mailing that was cancelled before."""

NO_LABELS = text("'{}'::character varying[]")
"""Default of the columns with labels."""

# Stop numbers: each pause, cancel, delete or replan draws one. Workers publish the newest number
# that they have applied; see `mailer.mailing.stop_number`.
Sequence("stop_number", metadata=metadata)

mailing = Table(
    "mailing",
    metadata,
    Column("id", BigInteger, Identity(always=True), primary_key=True),
    # for users; null when the mailing has no name
    Column("name", String),
    # as written by the user, in the order of `label_keys`
    Column("labels", ARRAY(String), nullable=False, server_default=NO_LABELS),
    # the labels in the form in which they are compared: folded by `mailer.text.fold_label`
    Column("label_keys", ARRAY(String), nullable=False, server_default=NO_LABELS),
    timestamp("datetime_start"),
    timestamp("datetime_end"),
    # the sending window; both null when the mailing has none
    Column("send_interval_time_start", Time),
    Column("send_interval_time_end", Time),
    Column("text", String, nullable=False),
    # Number of this text. Triggers count each change, and keep all texts in `mailing_text`.
    Column("text_version", Integer, nullable=False, server_default="1"),
    # null: all clients
    Column("client_filter", JSONB(none_as_null=True)),
    # what happens to a message whose delivery is unknown: `retry` sends it again, `hold` does not
    Column("on_unknown", String, nullable=False, server_default="retry"),
    # `marketing` is not sent to clients who have opted out; `service` ignores opt-outs
    Column("purpose", String, nullable=False, server_default="marketing"),
    # its share of the capacity while several mailings compete
    Column("priority", String, nullable=False, server_default="normal"),
    # most messages a second, over all workers; null without a limit
    Column("rate", Double),
    Column("status", String, nullable=False, server_default="scheduled"),
    # size of the audience; an estimate until the mailing starts
    Column("clients_count", BigInteger, nullable=False),
    # Clients with audience_cursor < id <= audience_until are still to be enqueued, if they match.
    # audience_until is null until the mailing starts.
    Column("audience_cursor", BigInteger, nullable=False, server_default="0"),
    Column("audience_until", BigInteger),
    # The PostgreSQL snapshot, as text, taken when the mailing started or its filter was last
    # changed. It shows which transactions had committed then; clients created by others are not in
    # the audience.
    Column("audience_snapshot", String),
    # After a change of a running mailing, its messages are replanned in the order of their ids;
    # replan_cursor is the last id that is done. Nothing is claimed meanwhile.
    Column("is_replanning", Boolean, nullable=False, server_default="false"),
    Column("replan_cursor", BigInteger, nullable=False, server_default="0"),
    # whether replanning also cancels messages to clients that no longer match the filter
    Column("filter_changed", Boolean, nullable=False, server_default="false"),
    # the stop number that every worker must have applied before replanning; null until it is drawn
    Column("replan_stop", BigInteger),
    # The id of the last transaction that changed the row, set by a trigger. Workers find changed
    # mailings by it.
    Column("changed_by", BigInteger, nullable=False, server_default="0"),
    # A user's retry schedules the messages that failed before retry_before again, in the order of
    # their ids; retry_cursor is the last id that is done. retry_before is null without a retry.
    timestamp("retry_before", nullable=True),
    Column("retry_cursor", BigInteger, nullable=False, server_default="0"),
    # closed and settled: see the module's docstring; a retry opens a closed mailing again
    Column("is_closed", Boolean, nullable=False, server_default="false"),
    Column("is_settled", Boolean, nullable=False, server_default="false"),
    # Messages past their retention are deleted: when that started, and whether all are deleted.
    # The counts stay.
    timestamp("purge_started_at", nullable=True),
    Column("is_purged", Boolean, nullable=False, server_default="false"),
    # Name of the gateway that takes all messages instead of those of `operator_route`, and the id
    # in `route` of this one gateway; both null when the mailing has none.
    Column("gateway", String),
    Column("route", Integer),
    # name or number that clients see; null: that of the gateway
    Column("sender", String),
    timestamp_now("created_at"),
    timestamp_now("updated_at"),
    timestamp("deleted_at", nullable=True),
    CheckConstraint("char_length(name) BETWEEN 1 AND 100", name="name"),
    CheckConstraint(
        "cardinality(labels) <= 10 AND cardinality(label_keys) = cardinality(labels)", name="labels"
    ),
    CheckConstraint("char_length(sender) BETWEEN 1 AND 20", name="sender"),
    CheckConstraint("datetime_end > datetime_start", name="end_after_start"),
    CheckConstraint("char_length(text) BETWEEN 1 AND 1600", name="text"),
    CheckConstraint(one_of("on_unknown", ("retry", "hold")), name="on_unknown"),
    CheckConstraint(one_of("purpose", ("marketing", "service")), name="purpose"),
    CheckConstraint(one_of("priority", ("low", "normal", "high")), name="priority"),
    CheckConstraint("rate BETWEEN 0.01 AND 10000", name="rate"),
    CheckConstraint(one_of("status", MAILING_STATUSES), name="status"),
    CheckConstraint(
        "num_nulls(send_interval_time_start, send_interval_time_end) IN (0, 2)"
        " AND send_interval_time_start <> send_interval_time_end",
        name="window",
    ),
    CheckConstraint("clients_count >= 0", name="clients_count"),
    CheckConstraint(
        "NOT is_closed OR status IN ('draft', 'finished', 'cancelled')", name="closed_has_ended"
    ),
    # as a closed mailing, a draft is in no index of the dispatcher's work
    CheckConstraint(
        "status <> 'draft' OR is_closed AND NOT is_settled AND audience_until IS NULL",
        name="draft_is_closed",
    ),
    CheckConstraint("NOT is_settled OR is_closed", name="settled_is_closed"),
    CheckConstraint("audience_cursor <= coalesce(audience_until, 0)", name="audience"),
    # for counts of mailings and their messages (those of settled mailings are stored as totals),
    # and for the dispatcher, which closes and settles mailings
    Index("mailing_unsettled_idx", "id", postgresql_where=text(UNSETTLED_MAILING)),
    # for the dispatcher: all open mailings, then those to start, to end, to enqueue, to retry, to
    # replan, and those that have changed
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
    # for the purge of messages past their retention
    Index(
        "mailing_retention_idx",
        text(RETENTION_START),
        postgresql_where=text("is_settled AND NOT is_purged AND deleted_at IS NULL"),
    ),
    # for the report of a day: settled mailings that were active on it
    Index(
        "mailing_active_idx",
        text(ACTIVE_PERIOD),
        postgresql_using="gist",
        postgresql_where=text("is_settled AND deleted_at IS NULL"),
    ),
    # for finished mailings whose end has not come
    Index("mailing_finished_idx", "datetime_end", postgresql_where=text(FINISHED_IN_WINDOW)),
    # for the purge of deleted mailings
    Index("mailing_deleted_idx", "id", postgresql_where=text("deleted_at IS NOT NULL")),
    # for pages of mailings, newest first, filtered by status
    Index(None, "status", "id", postgresql_where=text("deleted_at IS NULL")),
    # for pages of mailings in other orders, with or without a filter by status
    Index(None, "status", "datetime_start", "id", postgresql_where=text("deleted_at IS NULL")),
    Index(None, "status", "datetime_end", "id", postgresql_where=text("deleted_at IS NULL")),
    Index(None, "status", "clients_count", "id", postgresql_where=text("deleted_at IS NULL")),
    # for the mailings between whose start and end a moment is
    Index(
        "mailing_period_idx",
        text("tstzrange(datetime_start, datetime_end)"),
        postgresql_using="gist",
        postgresql_where=text("deleted_at IS NULL"),
    ),
    # for the search; the migration that creates the index also creates the function
    Index(
        "mailing_words_idx",
        text("mailing_words(id, text::text, status::text, name::text, label_keys::text[])"),
        postgresql_using="gin",
        postgresql_with={"fastupdate": "off"},
    ),
)

# Each text that a mailing has had, by version, also the present one. Triggers write it.
mailing_text = Table(
    "mailing_text",
    metadata,
    Column(
        "mailing_id",
        BigInteger,
        ForeignKey("mailing.id", ondelete="CASCADE"),
        primary_key=True,
        autoincrement=False,
    ),
    Column("version", Integer, primary_key=True, autoincrement=False),
    Column("text", String, nullable=False),
    timestamp_now("created_at"),
)

# When the next message of a mailing with a rate may be sent, over all workers: one row for each,
# also after the rate was removed. A trigger creates it. Workers reserve slots in time by moving the
# moment; the row is apart from that of the mailing, because a change of that is news for them.
mailing_pace = Table(
    "mailing_pace",
    metadata,
    Column(
        "mailing_id",
        BigInteger,
        ForeignKey("mailing.id", ondelete="CASCADE"),
        primary_key=True,
        autoincrement=False,
    ),
    timestamp_now("next_slot_at"),
    # room for the new versions of the row on the same page (HOT)
    postgresql_with={"fillfactor": "20"},
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
    *count_columns(MESSAGE_STATUSES),
    *(CheckConstraint(f"{name} >= 0", name=name) for name in MESSAGE_STATUSES),
    timestamp("first_sent_at", nullable=True),
    timestamp("last_sent_at", nullable=True),
    # Every batch of messages updates this row. A page that is 80 % empty has space for the new row
    # versions, so that no index changes (HOT).
    postgresql_with={"fillfactor": "20"},
)

# Totals in one row: the numbers of settled mailings that are not deleted, and the outcomes of all
# settled or deleted mailings.
settled_totals = Table(
    "settled_totals", metadata, *count_columns(["finished", "cancelled_mailings", *OUTCOMES])
)
