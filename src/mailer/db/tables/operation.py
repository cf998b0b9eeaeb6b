"""Tables for the operation of mailer: daily reports, and where the database last ran."""

from sqlalchemy import (
    ARRAY,
    BigInteger,
    Column,
    Date,
    Integer,
    LargeBinary,
    Table,
    Uuid,
    func,
)

from mailer.db.sql import metadata, timestamp

# Daily reports by mail: one row per day whose report was due.
daily_report = Table(
    "daily_report",
    metadata,
    Column("day", Date, primary_key=True),
    # identifies the mail; the same for every attempt to send it
    Column("id", Uuid, nullable=False, server_default=func.gen_random_uuid()),
    # No worker may start an attempt before this time: another one is sending the report, or the
    # last attempt failed and the next one is delayed.
    timestamp("leased_until"),
    Column("attempts", Integer, nullable=False, server_default="0"),
    timestamp("sent_at", nullable=True),
    # digests of the recipients who need no further attempt: each has the mail, or the mail server
    # has permanently refused it
    Column("settled_recipients", ARRAY(LargeBinary), nullable=False, server_default="{}"),
)

# Origin of the database, in one row: the server, database and timeline where it last ran. The
# function `update_origin()` of the migration records it. When the origin has changed, message ids
# continue in another range. When the database was restored, nothing is sent until an admin
# confirms. A statement that updates the row must also set `written_by` to its transaction, or the
# database counts as restored.
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
    # The id of the transaction that wrote this row. In a database restored from a dump, another
    # transaction has written it.
    Column("written_by", BigInteger, nullable=False),
    # when the origin last changed
    timestamp("moved_at"),
    # when the restore was detected and sending stopped; null when the database may send
    timestamp("held_since", nullable=True),
    # time of the newest work recorded in a restored database
    timestamp("data_until", nullable=True),
)
