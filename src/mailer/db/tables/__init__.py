"""All tables of the database, one module for each subject.

Constraints enforce the rules for every writer, also for commands typed in psql. What a table cannot
express in SQLAlchemy (triggers, functions, views) is in the migrations only.
"""

from mailer.db.sql import metadata
from mailer.db.tables import (
    access,
    client,
    gateway,
    mailing,
    message,
    notice,
    operation,
    opt_out,
    reply,
    webhook,
)

__all__ = [
    "access",
    "client",
    "gateway",
    "mailing",
    "message",
    "metadata",
    "notice",
    "operation",
    "opt_out",
    "reply",
    "webhook",
]
