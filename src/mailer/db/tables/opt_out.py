"""Tables of opt-outs: phones to which marketing messages are not sent, as keyed hashes.

An opt-out outlives its client, so that a new import of the same phone does not undo it.
"""

from sqlalchemy import (
    BigInteger,
    CheckConstraint,
    Column,
    Identity,
    Integer,
    LargeBinary,
    String,
    Table,
    UniqueConstraint,
    text,
)

from mailer.db.sql import QUEUE_TABLE_OPTIONS, count_columns, metadata, one_of, timestamp_now

SOURCES = ("reply", "gateway", "page", "api", "import")
"""How an opt-out came: by a stop word, the answer of a gateway, a page, the API, or a file."""

# The random key of the hashes, padded as HMAC needs it. The migration writes the only row. Whoever
# has the key and the hashes can find the phones by trying all.
opt_out_key = Table(
    "opt_out_key",
    metadata,
    Column("id", Integer, primary_key=True, autoincrement=False, server_default="1"),
    Column("inner_key", LargeBinary, nullable=False),
    Column("outer_key", LargeBinary, nullable=False),
    CheckConstraint("id = 1", name="single"),
)

opt_out = Table(
    "opt_out",
    metadata,
    Column("id", BigInteger, Identity(always=True), primary_key=True),
    # HMAC-SHA-256 of the phone
    Column("phone_digest", LargeBinary, nullable=False),
    # The client with this phone, whose `opted_out_at` is the same; null without one. Triggers on
    # `client` keep it up to date.
    Column("client_id", BigInteger),
    timestamp_now("opted_out_at"),
    Column("source", String, nullable=False),
    # the gateway of the reply or of the answer; null for other sources
    Column("gateway", String),
    UniqueConstraint("phone_digest"),
    UniqueConstraint("client_id"),
    CheckConstraint(one_of("source", SOURCES), name="source"),
)

# Queue of phones that have opted out without a client, for a moment: a transaction that has not
# committed yet may be creating the client. A job links them when all such transactions have ended.
opt_out_to_link = Table(
    "opt_out_to_link",
    metadata,
    Column("phone", String, nullable=False),
    # the id of the transaction that inserted the row
    Column(
        "created_by",
        BigInteger,
        nullable=False,
        server_default=text("(pg_current_xact_id()::text)::bigint"),
    ),
    postgresql_with=QUEUE_TABLE_OPTIONS,
)

# The number of opt-outs is the sum over all rows. Triggers on `opt_out` insert changes of it; a
# periodic job replaces all rows by their sum.
opt_out_count = Table(
    "opt_out_count", metadata, *count_columns(["opt_outs"]), postgresql_with=QUEUE_TABLE_OPTIONS
)
