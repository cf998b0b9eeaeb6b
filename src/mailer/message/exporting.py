"""A mailing's messages as a CSV file."""

from collections.abc import AsyncGenerator

from sqlalchemy.ext.asyncio import AsyncEngine

from mailer.access.model import Actor
from mailer.access.still import while_allowed
from mailer.db.copying import CsvPart, Source, copy_in_chunks

MOMENT = """to_char({} AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"')"""
COLUMNS = ", ".join(
    (
        *("id", "mailing_id", "client_id", "status", "reason", "last_failure", "attempts"),
        f"{MOMENT.format('coalesce(sent_at, due_at)')} AS datetime_send",
        f"{MOMENT.format('created_at')} AS created_at",
        f"{MOMENT.format('updated_at')} AS updated_at",
    )
)
# by clients, since an index has a mailing's messages in this order
MESSAGES = Source("message", "client_id", COLUMNS, "true")


def export_messages(
    engine: AsyncEngine, mailing_id: int, by: Actor, **equal: str | int
) -> AsyncGenerator[CsvPart, None]:
    """Give a mailing's messages whose columns equal what is given, as CSV, by their clients.

    All is numbers, moments and words of our own, which no spreadsheet takes for a formula.
    It breaks off with `TakenAwayError` when `by` may not read any more.
    """
    chunks = copy_in_chunks(engine, MESSAGES, {"mailing_id": mailing_id, **equal})
    return while_allowed(engine, by, "read", chunks)
