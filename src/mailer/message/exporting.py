"""Export a mailing's messages as a CSV file."""

from collections.abc import AsyncGenerator

from sqlalchemy.ext.asyncio import AsyncEngine

from mailer.access.model import Actor
from mailer.access.reauthorize import stream_while_authorized
from mailer.client.exporting import escape_formula_sql
from mailer.db.csv_export import CsvPart, CsvSource, copy_in_chunks
from mailer.message.reading import SENT_OR_DUE, SHOWN_TEXT

# an SQL expression in place of {}, formatted as in the API
UTC_TIMESTAMP = """to_char({} AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"')"""
MESSAGE_EXPORT_COLUMNS = ", ".join(
    (
        *("id", "mailing_id", "client_id", "phone", "status", "reason", "last_failure", "attempts"),
        "gateway",
        f"{escape_formula_sql('gateway_message_id')} AS gateway_message_id",
        "parts",
        f"{UTC_TIMESTAMP.format(SENT_OR_DUE)} AS datetime_send",
        f"{UTC_TIMESTAMP.format('created_at')} AS created_at",
        f"{UTC_TIMESTAMP.format('updated_at')} AS updated_at",
        "text_version",
        f"{escape_formula_sql(SHOWN_TEXT)} AS text",
    )
)
# OFFSET 0 keeps the planner from reading the whole directory for each chunk of messages.
MESSAGES_WITH_PHONES = """(
    SELECT message.*, client.phone FROM message
    LEFT JOIN LATERAL (SELECT phone FROM client WHERE client.id = client_id OFFSET 0) AS client
        ON true) AS message"""
# ordered by client, because an index holds a mailing's messages in this order
MESSAGES = CsvSource(MESSAGES_WITH_PHONES, "client_id", MESSAGE_EXPORT_COLUMNS, where="true")


def export_messages(
    engine: AsyncEngine, mailing_id: int, actor: Actor, **filters: str | int
) -> AsyncGenerator[CsvPart, None]:
    """Yield a mailing's messages as CSV, ordered by client.

    `filters` maps columns to the values that they must equal. No value is one that a spreadsheet
    interprets as a formula. Raises `AccessRevokedError` in the
    middle of the file when `actor` may no longer read.
    """
    chunks = copy_in_chunks(engine, MESSAGES, {"mailing_id": mailing_id, **filters})
    return stream_while_authorized(engine, actor, "read", chunks)
