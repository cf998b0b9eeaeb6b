"""Tables of webhooks: endpoints, events, deliveries, and what has been reported of outages.

Events and deliveries are an outbox: triggers write them in the transaction that causes the event,
and only for the endpoints that subscribe to it. They refer to each other and to their endpoint
without foreign keys, whose locks would make sending wait for a change of an endpoint.
"""

from sqlalchemy import (
    ARRAY,
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
    Identity,
    Index,
    Integer,
    LargeBinary,
    SmallInteger,
    String,
    Table,
    Uuid,
    func,
    text,
)
from sqlalchemy.dialects.postgresql import JSON

from mailer.db.sql import QUEUE_TABLE_OPTIONS, metadata, one_of, timestamp, timestamp_now

DELIVERY_STATUSES = ("waiting", "delivered", "failed")
"""`failed`: no more attempts are made."""

# Endpoints: URLs of other systems that get events. The secrets are stored as they are, because each
# request is signed with them.
webhook = Table(
    "webhook",
    metadata,
    Column("id", BigInteger, Identity(always=True), primary_key=True),
    Column("name", String, nullable=False),
    Column("url", String, nullable=False),
    # the types of events that it gets
    Column("events", ARRAY(String), nullable=False),
    Column("secret", LargeBinary, nullable=False),
    # after a rotation, requests are signed with both secrets until that time
    Column("previous_secret", LargeBinary),
    timestamp("previous_secret_until", nullable=True),
    Column("is_enabled", Boolean, nullable=False, server_default="true"),
    # since when and why it is disabled; both null while it is enabled
    timestamp("disabled_at", nullable=True),
    Column("disabled_reason", String),
    # consecutive failed attempts of all deliveries, and the time of the first
    Column("failures", Integer, nullable=False, server_default="0"),
    timestamp("failing_since", nullable=True),
    timestamp("last_success_at", nullable=True),
    # deliveries that ended as failed because too many were waiting
    Column("dropped", BigInteger, nullable=False, server_default="0"),
    timestamp_now("created_at"),
    timestamp_now("updated_at"),
    CheckConstraint("char_length(name) BETWEEN 1 AND 64", name="name"),
    CheckConstraint("char_length(url) BETWEEN 1 AND 2000", name="url"),
    CheckConstraint("octet_length(secret) BETWEEN 24 AND 64", name="secret"),
    CheckConstraint(
        "num_nulls(previous_secret, previous_secret_until) IN (0, 2)", name="previous_secret"
    ),
    CheckConstraint(
        "num_nulls(disabled_at, disabled_reason) = CASE WHEN is_enabled THEN 2 ELSE 0 END",
        name="disabled",
    ),
    CheckConstraint("(failures > 0) = (failing_since IS NOT NULL)", name="failures"),
)

# Events that at least one endpoint gets. The id is sent as `webhook-id`: it is random, so that a
# restored copy of the database never uses one again.
webhook_event = Table(
    "webhook_event",
    metadata,
    Column("id", Uuid, primary_key=True, server_default=func.gen_random_uuid()),
    Column("type", String, nullable=False),
    # the field `data` of the payload
    Column("data", JSON, nullable=False),
    timestamp_now("created_at"),
    Index(None, "created_at"),
)

# An event for one endpoint: the job of a worker.
webhook_delivery = Table(
    "webhook_delivery",
    metadata,
    Column("id", BigInteger, Identity(always=True), primary_key=True),
    Column("webhook_id", BigInteger, nullable=False),
    Column("event_id", Uuid, nullable=False),
    Column("status", String, nullable=False, server_default="waiting"),
    # attempts that have started since the event, or since a user asked to deliver it again
    Column("attempts", Integer, nullable=False, server_default="0"),
    # when the next attempt is due; during an attempt, when the lease of the worker expires
    timestamp_now("attempt_at"),
    # start, response status and error of the last attempt; no error while an attempt runs
    timestamp("attempted_at", nullable=True),
    Column("response_status", SmallInteger),
    Column("error", String),
    timestamp_now("created_at"),
    CheckConstraint(one_of("status", DELIVERY_STATUSES), name="status"),
    CheckConstraint("attempts >= 0", name="attempts"),
    # for claims, which never read deliveries that are done
    Index(
        "webhook_delivery_due_idx",
        *("webhook_id", "attempt_at", "id"),
        postgresql_where=text("status = 'waiting'"),
    ),
    # for the list of an endpoint's deliveries, newest first
    Index(None, "webhook_id", "id"),
    postgresql_with=QUEUE_TABLE_OPTIONS,
)

# Gateways that at least one worker does not use now. The empty name stands for all gateways of a
# worker together. A worker refreshes `seen_at` while it does not use the gateway.
gateway_outage = Table(
    "gateway_outage",
    metadata,
    Column("gateway", String, primary_key=True),
    Column("reason", String, nullable=False),
    timestamp("since"),
    timestamp_now("seen_at"),
)

# Running mailings that wait for their gateways, and whose event `mailing.held` has been written.
mailing_hold = Table(
    "mailing_hold",
    metadata,
    Column("mailing_id", BigInteger, primary_key=True, autoincrement=False),
)
