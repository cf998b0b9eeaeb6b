"""Tables of notices by mail: who gets them, what they tell, and what has been reported.

Notices are an outbox. A trigger writes the mailings that have ended in the transaction that ends
them. The periodic job `watch_notices` writes the notices, one for each user who wants it.
"""

from sqlalchemy import (
    ARRAY,
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
    ForeignKey,
    Identity,
    Index,
    Integer,
    String,
    Table,
)
from sqlalchemy.dialects.postgresql import JSON

from mailer.db.sql import metadata, timestamp, timestamp_now

# Users with a mail address, the notices that they want, and the state of sending to them. The row
# is the lease of the worker that sends the user's next mail.
notice_recipient = Table(
    "notice_recipient",
    metadata,
    Column(
        "user_id",
        BigInteger,
        ForeignKey("app_user.id", ondelete="CASCADE"),
        primary_key=True,
        autoincrement=False,
    ),
    Column("address", String, nullable=False),
    Column("kinds", ARRAY(String), nullable=False),
    # language and time zone of the mails
    Column("language", String, nullable=False),
    Column("time_zone", String, nullable=False),
    # when the next mail may be sent; during an attempt, when the lease of the worker expires
    timestamp_now("next_mail_at"),
    # number of claims, by which a worker that has lost its lease is recognized
    Column("claims", BigInteger, nullable=False, server_default="0"),
    # last notice of the mail that is being sent, so that a repeat is the same mail
    Column("batch_until", BigInteger),
    timestamp("attempted_at", nullable=True),
    timestamp("sent_at", nullable=True),
    # consecutive failed attempts, and why the last one failed
    Column("failures", Integer, nullable=False, server_default="0"),
    Column("failure", String),
    CheckConstraint("char_length(address) BETWEEN 3 AND 254", name="address"),
    CheckConstraint("(failures > 0) = (failure IS NOT NULL)", name="failures"),
)

# Notices that are to be mailed to a user. A row is deleted when its mail was sent.
notice = Table(
    "notice",
    metadata,
    Column("id", BigInteger, Identity(always=True), primary_key=True),
    Column(
        "user_id",
        BigInteger,
        ForeignKey("notice_recipient.user_id", ondelete="CASCADE"),
        nullable=False,
    ),
    Column("kind", String, nullable=False),
    Column("data", JSON, nullable=False),
    timestamp_now("created_at"),
    Index(None, "user_id", "id"),
)

# Mailings that have ended and of which no notice has been written yet.
notice_ended_mailing = Table(
    "notice_ended_mailing",
    metadata,
    Column("mailing_id", BigInteger, primary_key=True, autoincrement=False),
    timestamp_now("ended_at"),
)

# Trouble: gateways that are out, and mailings that are held (`kind`); `subject` is the name of the
# gateway or the id of the mailing. The row of trouble that is over is kept for a while, so that
# trouble that comes back again and again is not reported each time.
notice_trouble = Table(
    "notice_trouble",
    metadata,
    Column("kind", String, primary_key=True),
    Column("subject", String, primary_key=True),
    # null when it is over
    timestamp("since", nullable=True),
    # since when it has not been seen; null while it is seen
    timestamp("absent_since", nullable=True),
    timestamp("reported_at", nullable=True),
    # whether the trouble of this moment has been reported
    Column("is_reported", Boolean, nullable=False, server_default="false"),
    CheckConstraint("NOT is_reported OR reported_at IS NOT NULL", name="reported"),
)
