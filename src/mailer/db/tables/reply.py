"""Tables of replies: the replies, the parts of those that are not complete, and answers to them.

Rows of `reply` refer to their client, mailing and message without foreign keys, because they
outlive these.
"""

from sqlalchemy import (
    BigInteger,
    CheckConstraint,
    Column,
    DateTime,
    ForeignKey,
    Identity,
    Index,
    Integer,
    LargeBinary,
    PrimaryKeyConstraint,
    SmallInteger,
    String,
    Table,
    Uuid,
    text,
)

from mailer.db.sql import (
    QUEUE_TABLE_OPTIONS,
    REVERSED_PHONE,
    metadata,
    one_of,
    timestamp,
    timestamp_now,
)

MAX_REPLY_TEXT = 10_000
"""Most characters of a reply that are stored."""

# Spelled exactly as PostgreSQL prints it, so that `alembic check` recognizes the index.
INBOX_POSITION = """(id +
CASE
    WHEN read_at IS NULL THEN '4503599627370496'::bigint
    ELSE 0::bigint
END)"""
"""Expression in an index: sorts unread replies after all others, and both by id. Ids are smaller
than 2**52, and positions than 2**53."""

reply = Table(
    "reply",
    metadata,
    Column("id", BigInteger, Identity(always=True, maxvalue=2**52 - 1), primary_key=True),
    # the gateway through which it came, and the gateway's id of it; null if it gives none
    Column("gateway", String, nullable=False),
    Column("gateway_reply_id", String),
    # of the sender; null once erased
    Column("phone", String),
    # the number that the sender has written to; null if the gateway does not say it
    Column("recipient", String),
    # null once erased
    Column("text", String),
    timestamp("received_at"),
    # the client who had the phone then, and the message that the reply most likely answers
    Column("client_id", BigInteger),
    Column("mailing_id", BigInteger),
    Column("message_id", BigInteger),
    # what the reply has done; null for most replies
    Column("action", String),
    timestamp("read_at", nullable=True),
    CheckConstraint(one_of("action", ("opted_out", "opted_in")), name="action"),
    CheckConstraint("(phone IS NULL) = (text IS NULL)", name="erased"),
    CheckConstraint(f"char_length(text) <= {MAX_REPLY_TEXT}", name="text"),
    # a gateway repeats a reply whose receipt it did not see
    Index("reply_gateway_gateway_reply_id_key", "gateway", "gateway_reply_id", unique=True),
    # for the page of all replies, unread first, and for the number of unread ones
    Index("reply_inbox_idx", text(INBOX_POSITION)),
    Index("reply_unread_idx", "id", postgresql_where=text("read_at IS NULL")),
    # for pages with a filter
    Index(None, "phone", "id", postgresql_where=text("phone IS NOT NULL")),
    Index(None, "client_id", "id", postgresql_where=text("client_id IS NOT NULL")),
    Index(None, "mailing_id", "id", postgresql_where=text("mailing_id IS NOT NULL")),
    # for the retention
    Index(None, "received_at"),
    # for the search by the last digits of a phone, which are the first ones when it is reversed
    Index(
        "reply_reversed_phone_idx",
        REVERSED_PHONE,
        postgresql_ops={REVERSED_PHONE.name: "text_pattern_ops"},
        postgresql_where=text("phone IS NOT NULL"),
    ),
    # for the search; the migration that creates the index also creates the function
    Index(
        "reply_words_idx",
        text("reply_words(id, phone::text, text::text)"),
        postgresql_using="gin",
        postgresql_with={"fastupdate": "off"},
    ),
)

# The parts of replies that phones have sent in several SMS. Once they are joined, the text is
# removed, and the row stays for a day to recognize repeats.
reply_part = Table(
    "reply_part",
    metadata,
    Column("gateway", String, nullable=False),
    Column("phone", String, nullable=False),
    # the same for all parts of one reply
    Column("reference", String, nullable=False),
    Column("parts", SmallInteger, nullable=False),
    # number of the part, from 1
    Column("part", SmallInteger, nullable=False),
    # distinguishes a repeat from a part of another reply that has the same reference
    Column("text_digest", LargeBinary, nullable=False),
    Column("text", String),
    Column("recipient", String),
    Column("gateway_reply_id", String),
    timestamp("received_at"),
    timestamp("joined_at", nullable=True),
    PrimaryKeyConstraint("gateway", "phone", "reference", "parts", "part", "text_digest"),
    CheckConstraint("(joined_at IS NULL) = (text IS NOT NULL)", name="joined"),
    CheckConstraint("part BETWEEN 1 AND parts", name="part"),
    Index("reply_part_open_idx", "received_at", postgresql_where=text("joined_at IS NULL")),
    Index("reply_part_phone_idx", "phone"),
    Index("reply_part_joined_idx", "joined_at", postgresql_where=text("joined_at IS NOT NULL")),
    postgresql_with=QUEUE_TABLE_OPTIONS,
)

ANSWER_STATUSES = ("waiting", "sending", "accepted", "failed", "unknown")

# The outbox of answers to replies: those that users write, and acknowledgements of opt-outs.
answer = Table(
    "answer",
    metadata,
    # Drawn from the sequence of messages: gateways see both, and no id may be used twice.
    Column("id", BigInteger, primary_key=True, autoincrement=False),
    Column("reply_id", BigInteger, ForeignKey("reply.id", ondelete="CASCADE"), nullable=False),
    Column("kind", String, nullable=False),
    Column("gateway", String, nullable=False),
    # null once erased
    Column("phone", String),
    Column("text", String),
    Column("status", String, nullable=False, server_default="waiting"),
    # why it has this status, or why it waits again
    Column("reason", String),
    Column("attempts", Integer, nullable=False, server_default="0"),
    timestamp_now("due_at"),
    # The claim of a worker: which one, and until when. Null unless the answer is being sent.
    Column("lease_owner", Uuid),
    Column("lease_expires_at", DateTime(timezone=True)),
    # set when the gateway has accepted it
    Column("gateway_message_id", String),
    Column("parts", SmallInteger),
    # name of the user or API key; null for an acknowledgement
    Column("created_by", String),
    timestamp_now("created_at"),
    timestamp_now("updated_at"),
    CheckConstraint("(phone IS NULL) = (text IS NULL)", name="erased"),
    CheckConstraint(one_of("kind", ("answer", "acknowledgement")), name="kind"),
    CheckConstraint(
        "(status = 'sending') = (lease_owner IS NOT NULL)"
        " AND (status = 'sending') = (lease_expires_at IS NOT NULL)",
        name="lease",
    ),
    CheckConstraint(one_of("status", ANSWER_STATUSES), name="status"),
    CheckConstraint("char_length(text) BETWEEN 1 AND 1600", name="text"),
    Index(None, "reply_id", "id"),
    Index(
        "answer_acknowledgement_key",
        "reply_id",
        unique=True,
        postgresql_where=text("kind = 'acknowledgement'"),
    ),
    # for claims, for answers that expire, and for claims whose worker has stopped
    Index("answer_due_idx", "gateway", "due_at", "id", postgresql_where=text("status = 'waiting'")),
    Index("answer_waiting_idx", "created_at", postgresql_where=text("status = 'waiting'")),
    Index("answer_lease_idx", "lease_expires_at", postgresql_where=text("status = 'sending'")),
)
