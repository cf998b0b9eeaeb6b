"""Tables of messages: the messages, which are also the jobs of the workers, and their counters.

Rows of `message` refer to their client and mailing without foreign keys: see docs/decisions/0003.
"""

from typing import Any

from sqlalchemy import (
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
    DateTime,
    Identity,
    Index,
    Integer,
    PrimaryKeyConstraint,
    SmallInteger,
    String,
    Table,
    Uuid,
    text,
)
from sqlalchemy.dialects.postgresql import JSONB

from mailer.db.sql import (
    QUEUE_TABLE_OPTIONS,
    count_columns,
    metadata,
    one_of,
    timestamp,
    timestamp_now,
)
from mailer.statuses import MESSAGE_STATUSES, OPEN, OUTCOMES

# PostgreSQL uses a partial index only for a statement that repeats the index's condition.
HAS_OUTCOME = "status NOT IN ('scheduled', 'sending')"
"""Condition in an index: a message whose status is an outcome."""

message = Table(
    "message",
    metadata,
    # Gateways detect repeats by this id. The table `origin` prevents two copies of the database
    # from using the same id. Programs that read JSON numbers as doubles are exact up to 2**53.
    Column("id", BigInteger, Identity(always=True, maxvalue=2**53 - 1), primary_key=True),
    Column("mailing_id", BigInteger, nullable=False),
    Column("client_id", BigInteger, nullable=False),
    # of the client when the message was created; statistics always use these values
    Column("operator_code", String, nullable=False),
    Column("time_zone", String, nullable=False),
    timestamp("due_at"),
    timestamp("sent_at", nullable=True),
    # The claim of a worker: which one, and until when. Null unless the message is being sent.
    Column("lease_expires_at", DateTime(timezone=True)),
    Column("lease_owner", Uuid),
    timestamp_now("created_at"),
    timestamp_now("updated_at"),
    Column("attempts", Integer, nullable=False, server_default="0"),
    Column("status", String, nullable=False, server_default="scheduled"),
    # why the message has its status; null for most statuses
    Column("reason", String),
    # reason of the last failed attempt
    Column("last_failure", String),
    # reason of the newest attempt whose delivery is unknown; null when there is none, and when the
    # gateway has reported an outcome since
    Column("unknown_reason", String),
    # when the pause after the last failed attempt ends; `due_at` is that time or later, because it
    # is also inside the sending window
    timestamp("retry_at", nullable=True),
    # start of the last attempt that has ended; a running attempt started at `updated_at`
    timestamp("claimed_at", nullable=True),
    # the newest failed attempts, an array of objects, oldest first; null when there are none
    Column("failures", JSONB(none_as_null=True)),
    # id in `route`: the gateways that may take the message. The default is the route of the gateway
    # `default`, which the messages of earlier versions have.
    Column("route", Integer, nullable=False, server_default="1"),
    # gateway of the current attempt, or else of the last one; null when there was none
    Column("gateway", String),
    # version of the text in the current attempt, or else in the last one; null when there was none,
    # and for messages of earlier versions of mailer
    Column("text_version", Integer),
    # id that the gateway gave to the message when it accepted it
    Column("gateway_message_id", String),
    # number of SMS that the text takes; null until the message is accepted
    Column("parts", SmallInteger),
    # the newest receipts, an array of objects, oldest first; null when there are none
    Column("receipts", JSONB(none_as_null=True)),
    # what receipts say of a message that is being sent: the status and the reason that it gets once
    # its result is recorded; null when there is none
    Column("receipt_status", String),
    Column("receipt_reason", String),
    # whether receipts name the message by `gateway_message_id` only
    Column("uses_gateway_id", Boolean, nullable=False, server_default="false"),
    # values of the client's fields that the text has, by name, in the current attempt, or else in
    # the last one; null for a literal text, when there was no attempt, and once they are erased
    Column("field_values", JSONB(none_as_null=True)),
    CheckConstraint(one_of("status", MESSAGE_STATUSES), name="status"),
    CheckConstraint(
        "(status = 'sending') = (lease_owner IS NOT NULL)"
        " AND (status = 'sending') = (lease_expires_at IS NOT NULL)",
        name="lease",
    ),
    CheckConstraint("attempts >= 0", name="attempts"),
    CheckConstraint("receipt_status IS NULL OR status = 'sending'", name="receipt"),
    # a message that may have been accepted must not end in a status that says it was not sent
    CheckConstraint(
        f"unknown_reason IS NULL OR {one_of('status', (*OPEN, 'unknown'))}", name="unknown"
    ),
    # one message per client and mailing
    Index("message_mailing_id_client_id_key", "mailing_id", "client_id", unique=True),
    # for claims: they read due messages in this order and never scan finished ones
    Index(
        "message_due_idx",
        *("mailing_id", "route", "due_at", "id"),
        postgresql_where=text("status = 'scheduled'"),
    ),
    # for the rescue of messages whose lease has expired
    Index("message_lease_idx", "lease_expires_at", postgresql_where=text("status = 'sending'")),
    # messages that wait after a failed attempt
    Index(
        "message_retry_idx",
        "retry_at",
        postgresql_where=text("status = 'scheduled' AND retry_at IS NOT NULL"),
    ),
    # messages that await a receipt
    Index(
        "message_awaiting_idx",
        *("mailing_id", "sent_at"),
        postgresql_where=text("status = 'sent' AND reason IS NULL"),
    ),
    # for receipts that name the message by the gateway's id
    Index(None, "gateway_message_id", postgresql_where=text("uses_gateway_id")),
    # For the messages of a client in all mailings, newest first, filtered by status or not. A
    # message comes into this index with its outcome: creating and claiming it cost nothing here.
    # The others are those of open mailings, which are few: `message_mailing_id_client_id_key` finds
    # them.
    Index(
        "message_client_id_status_id_idx",
        *("client_id", "status", "id"),
        postgresql_where=text(HAS_OUTCOME),
    ),
    # for pages of a mailing's messages, newest first, filtered by status or not
    Index(None, "mailing_id", "status", "id"),
    # the same, filtered by reason
    Index(
        None, "mailing_id", "reason", "status", "id", postgresql_where=text("reason IS NOT NULL")
    ),
)

# Receipts that cannot be applied yet: the gateway's message id is not stored, or the message is
# being sent and the number of its parts is not known. They are tried again for some minutes.
early_receipt = Table(
    "early_receipt",
    metadata,
    Column("id", BigInteger, Identity(always=True), primary_key=True),
    Column("gateway", String, nullable=False),
    Column("gateway_message_id", String),
    Column("message_id", BigInteger),
    Column("receipt", JSONB, nullable=False),
    timestamp("received_at"),
    Index(None, "received_at"),
)

# How far a gateway has been asked for receipts, in the order of mailings and times. When
# all messages have been asked for, a new round starts.
receipt_poll = Table(
    "receipt_poll",
    metadata,
    Column("gateway", String, primary_key=True),
    Column("mailing_id", BigInteger, nullable=False, server_default="0"),
    Column("sent_at", DateTime(timezone=True), nullable=False, server_default=text("'-infinity'")),
    Column("message_id", BigInteger, nullable=False, server_default="0"),
    timestamp_now("round_started_at"),
)

# ---- counters of messages and outcomes -------------------------------------------------------

COUNTERS = ("messages", *OUTCOMES, "parts")
"""The counts in a row of `message_count`: all messages, those with each outcome, and the parts of
those that gateways have accepted."""


def _message_count_columns() -> list[Column[Any]]:
    """Return the columns of the counters of a mailing: what is counted, and the counts.

    What is counted is a value of one dimension. The value is in `key`, but for the dimension
    `second` (of the outcome) it is in `bucket_start`.
    """
    return [
        Column("mailing_id", BigInteger, nullable=False, autoincrement=False),
        Column("dimension", String, nullable=False),
        Column("key", String, nullable=False, server_default=""),
        timestamp("bucket_start", nullable=True),
        *count_columns(COUNTERS),
    ]


# Counters of a mailing's messages and their outcomes, by dimension: operator code, time zone,
# reason, number of attempts, gateway, or second of the outcome. A change of messages inserts deltas
# into `message_count_delta`, whose dimension `outcome` is for `outcome_count` below. A periodic job
# adds the deltas to the two tables of counts and deletes them.
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
    "message_count_delta",
    metadata,
    *_message_count_columns(),
    # of the dimensions `outcome` and `operator_code` only
    Column("gateway", String, nullable=False, server_default=""),
    # Of the dimension `operator_code` only: when the gateway accepted the messages, and how many of
    # those that are `sent` do not await a receipt any more. These are for `delivery_count` below.
    timestamp("accepted_quarter", nullable=True),
    *count_columns(("no_receipt",)),
    postgresql_with=QUEUE_TABLE_OPTIONS,
)

# Counts of outcomes by quarter of an hour, reason and gateway, over all mailings including deleted
# ones. The daily reports are sums of these.
outcome_count = Table(
    "outcome_count",
    metadata,
    timestamp("bucket_start"),
    # empty: no reason
    Column("reason", String, nullable=False),
    # empty: the message was never tried
    Column("gateway", String, nullable=False, server_default=""),
    *count_columns((*OUTCOMES, "parts")),
    PrimaryKeyConstraint("bucket_start", "reason", "gateway"),
)

DELIVERY_COUNTS = ("sent", "no_receipt", "delivered", "undelivered")
"""The counts in a row of `delivery_count`: messages that the gateway has accepted, by status.
`no_receipt` are those of `sent` whose receipt is not awaited any more."""

# Counts of the messages that gateways have accepted in the last days, by the quarter of an hour in
# which they did, gateway and operator code, over all mailings.
delivery_count = Table(
    "delivery_count",
    metadata,
    timestamp("bucket_start"),
    Column("gateway", String, nullable=False),
    Column("operator_code", String, nullable=False),
    *count_columns(DELIVERY_COUNTS),
    PrimaryKeyConstraint("bucket_start", "gateway", "operator_code"),
)
