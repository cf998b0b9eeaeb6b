"""Tables of clients: the directory, lists, changes of time zones, and numbers of clients."""

from typing import Any

from sqlalchemy import (
    ARRAY,
    BigInteger,
    CheckConstraint,
    Column,
    DateTime,
    Identity,
    Index,
    String,
    Table,
    text,
)
from sqlalchemy.dialects.postgresql import JSONB

from mailer.db.sql import (
    QUEUE_TABLE_OPTIONS,
    REVERSED_PHONE,
    count_columns,
    metadata,
    timestamp,
    timestamp_now,
)

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
    # since when the client's phone is in `opt_out`; null when it is not
    timestamp("opted_out_at", nullable=True),
    timestamp_now("created_at"),
    # The id of the transaction that created the row. It decides whether the client is in an
    # audience: it must have committed before `mailing.audience_snapshot` was recorded.
    Column(
        "created_by",
        BigInteger,
        nullable=False,
        server_default=text("(pg_current_xact_id()::text)::bigint"),
    ),
    timestamp_now("updated_at"),
    timestamp("deleted_at", nullable=True),
    # values for the placeholders in texts of mailings, by name
    Column("fields", JSONB, nullable=False, server_default=text("'{}'::jsonb")),
    CheckConstraint("phone ~ '^7[0-9]{10}$'", name="phone"),
    CheckConstraint("operator_code ~ '^[0-9]{3}$'", name="operator_code"),
    # a tag has at most 64 characters as written, and folding turns one into at most three
    CheckConstraint("char_length(tag) BETWEEN 1 AND 192", name="tag"),
    CheckConstraint(
        "tag_written IS NULL OR (tag IS NOT NULL AND char_length(tag_written) BETWEEN 1 AND 64)",
        name="tag_written",
    ),
    # For an unknown name, PostgreSQL raises "time zone not recognized"; the check is never false.
    CheckConstraint(
        "(timestamptz '2000-01-01 00:00Z' AT TIME ZONE time_zone) IS NOT NULL", name="time_zone"
    ),
    # a deleted client has no personal data left
    CheckConstraint(
        "CASE WHEN deleted_at IS NULL THEN phone IS NOT NULL"
        " ELSE phone IS NULL AND tag IS NULL AND fields = '{}'::jsonb END",
        name="erased",
    ),
    CheckConstraint("jsonb_typeof(fields) = 'object'", name="fields"),
    # The next three are for pages of the directory, newest first, filtered by the index's first
    # column. They include the columns of the other filters, so that a client that does not match
    # is skipped without reading the table.
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
    # the same for clients who have opted out, a small part of all
    Index(
        "client_opted_out_idx",
        "id",
        postgresql_include=["operator_code", "tag", "time_zone"],
        postgresql_where=text("opted_out_at IS NOT NULL AND deleted_at IS NULL"),
    ),
    # for the search by the last digits of a phone, which are the first ones when it is reversed
    Index(
        "client_reversed_phone_idx",
        REVERSED_PHONE,
        postgresql_ops={REVERSED_PHONE.name: "text_pattern_ops"},
        postgresql_where=text("deleted_at IS NULL"),
    ),
    # for reading a few clients of each segment, as a sample of an audience
    Index(
        "client_segment_idx",
        *("operator_code", "time_zone", "tag"),
        postgresql_where=text("deleted_at IS NULL"),
    ),
)

# Queue of clients whose time zone has changed: their open messages are to be replanned.
client_to_replan = Table(
    "client_to_replan",
    metadata,
    Column("client_id", BigInteger, nullable=False),
    postgresql_with=QUEUE_TABLE_OPTIONS,
)


def _segment_count_columns() -> list[Column[Any]]:
    """Return the columns of a segment, of its number of clients, and of how many have opted out."""
    return [
        Column("operator_code", String, nullable=False),
        Column("tag", String),
        Column("time_zone", String, nullable=False),
        *count_columns(["clients", "opted_out"]),
    ]


# For the contact cap: the newest marketing messages that each client has got, or may have, and when
# each was claimed or sent. Only `record_contacts` writes it. A message that was not sent may be
# among them, and does not count. Without a cap the table is empty. It is unlogged, because its
# contents are found again in the messages.
client_contact = Table(
    "client_contact",
    metadata,
    Column("client_id", BigInteger, primary_key=True, autoincrement=False),
    Column("message_ids", ARRAY(BigInteger), nullable=False, server_default="{}"),
    Column("contacted_at", ARRAY(DateTime(timezone=True)), nullable=False, server_default="{}"),
    # since when no message is missing; infinity: the messages must still be found
    Column("complete_since", DateTime(timezone=True), nullable=False, server_default="infinity"),
    CheckConstraint("cardinality(message_ids) = cardinality(contacted_at)", name="length"),
    # room for a new version of each row in its page, so that a claim of all changes no index
    postgresql_with={"fillfactor": "45"},
    prefixes=["UNLOGGED"],
)

# Numbers of clients by segment, deleted clients excluded. A change of clients inserts deltas into
# `segment_count_delta`; a periodic job adds them to `segment_count` and deletes them.
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

# A deleted list has no name to be found by. Its members are deleted in chunks, and then its row.
client_list = Table(
    "client_list",
    metadata,
    Column("id", BigInteger, Identity(always=True), primary_key=True),
    # as written by the user
    Column("name", String, nullable=False),
    # in the form in which names are compared: folded by `mailer.text.fold_label`
    Column("name_key", String, unique=True),
    # changed in the transactions that change the members
    *count_columns(["clients_count"]),
    timestamp_now("created_at"),
    timestamp("deleted_at", nullable=True),
    CheckConstraint("char_length(name) BETWEEN 1 AND 100", name="name"),
    CheckConstraint("clients_count >= 0", name="clients_count"),
    CheckConstraint("(name_key IS NULL) = (deleted_at IS NOT NULL)", name="deleted"),
    # for the purge of deleted lists
    Index("client_list_deleted_idx", "id", postgresql_where=text("deleted_at IS NOT NULL")),
)

# The clients on each list. It has no foreign keys: they would check each of a million members of an
# import. The statements that write members lock the list and the clients instead.
client_list_member = Table(
    "client_list_member",
    metadata,
    # the primary key is for the clients of a list, in the order in which they are enqueued
    Column("list_id", BigInteger, primary_key=True, autoincrement=False),
    Column("client_id", BigInteger, primary_key=True, autoincrement=False),
    # for the lists of a client
    Index(None, "client_id"),
)

# Numbers of clients by the name of a field that they have, deleted clients excluded. Deltas are
# merged as those of `segment_count` are.
client_field_count = Table(
    "client_field_count",
    metadata,
    Column("name", String, primary_key=True),
    *count_columns(["clients"]),
    Index(None, "clients"),  # for the most used names
)
client_field_count_delta = Table(
    "client_field_count_delta",
    metadata,
    Column("name", String, nullable=False),
    *count_columns(["clients"]),
    postgresql_with=QUEUE_TABLE_OPTIONS,
)
