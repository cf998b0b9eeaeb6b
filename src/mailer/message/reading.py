"""SQL that reads messages for the API and the pages: a page of them, or one with its history."""

from collections.abc import Sequence
from typing import Any

import msgspec
from sqlalchemy import Row, String, case, exists, literal_column, select
from sqlalchemy.ext.asyncio import AsyncConnection

from mailer.db.paging import Cursor, RowPage, fetch_page
from mailer.db.sql import has_id
from mailer.db.tables.client import client
from mailer.db.tables.mailing import mailing
from mailer.db.tables.message import message
from mailer.message.model import (
    FailedAttempt,
    Message,
    MessageHistory,
    MessageNotFoundError,
    StoredReceipt,
)
from mailer.statuses import MESSAGE_STATUSES

SENT_OR_DUE = """coalesce(message.sent_at,
    CASE WHEN message.status = 'undelivered' THEN message.updated_at ELSE message.due_at END)"""
"""SQL for when a message was sent, or failed permanently, or else is due. The last change of an
undelivered message is the end of its last attempt. It was due before, perhaps long before."""
COMPUTED_FIELDS = {
    "datetime_send": literal_column(SENT_OR_DUE, message.c.due_at.type),
    # null once the client is deleted
    "phone": select(client.c.phone).where(client.c.id == message.c.client_id).scalar_subquery(),
}
MESSAGE_COLUMNS = [
    COMPUTED_FIELDS[name].label(name) if name in COMPUTED_FIELDS else message.c[name]
    for name in Message.__struct_fields__
]
"""A column for each field of `Message`."""


async def page(
    connection: AsyncConnection,
    mailing_id: int,
    position: Cursor,
    count: int | None = None,
    *,
    client_ids: Sequence[int] | None = None,
    **filters: str | int,
) -> RowPage:
    """Return a page of a mailing's messages.

    `filters` maps columns to the values that they must equal. `client_ids` are the clients whose
    messages are returned; None: those of all. `count` is the number of matching messages if the
    caller knows it; otherwise they are counted.
    """
    rows = select(message.c.id).where(
        message.c.mailing_id == mailing_id,
        *(message.c[name] == value for name, value in filters.items()),
    )
    # The indexes have the status before the id. So each status is read by a query of its own, a
    # branch, in the order of ids. One query is enough with a filter by status, or by client (who
    # has at most one message).
    branches = []
    if client_ids is not None:
        of_clients = rows.where(has_id(message.c.client_id, client_ids))
        ids = (await connection.scalars(of_clients)).all()
        rows = select(message.c.id).where(has_id(message.c.id, ids))
    elif filters.keys().isdisjoint(("status", "client_id")):
        branches = [message.c.status == status for status in MESSAGE_STATUSES]
    return await fetch_page(
        connection,
        rows,
        message.c.id,
        position,
        count=count,
        branches=branches,
        page_columns=MESSAGE_COLUMNS,
    )


def to_message(row: Row[Any]) -> Message:
    """Convert a row of `page` to a message."""
    return Message(**row._asdict())


# A message is sent with the newest text. But if delivery by an earlier attempt is unknown, a repeat
# has the same text. Messages from before texts had versions were sent with version 1 or earlier.
# A text with placeholders is shown with the values that it was sent with, or else with those that
# the client has now. When they are erased, the placeholders are shown.
SHOWN_TEXT = """(
    SELECT render_text(mailing_text.text, mailing_text.template, CASE
        WHEN mailing_text.template IS NULL THEN NULL
        WHEN message.text_version IS NULL
            OR message.status = 'scheduled' AND message.unknown_reason IS NULL
            THEN (SELECT fields FROM client
                WHERE client.id = message.client_id AND client.deleted_at IS NULL)
        ELSE message.field_values END)
    FROM mailing JOIN mailing_text ON mailing_id = mailing.id
    WHERE mailing.id = message.mailing_id AND version = CASE
        WHEN message.status = 'scheduled' AND message.unknown_reason IS NULL
            THEN mailing.text_version
        WHEN message.sent_at IS NOT NULL OR message.attempts > 0
            THEN coalesce(message.text_version, 1)
        ELSE coalesce(message.text_version, mailing.text_version) END)"""
"""SQL for the text of a message as it was sent, or else as it would be sent."""
# While a message is being sent, its last change is its claim.
CLAIMED_AT = case((message.c.status == "sending", message.c.updated_at), else_=message.c.claimed_at)
HISTORY_COLUMNS = [
    *MESSAGE_COLUMNS,
    *(
        message.c[name]
        for name in ("due_at", "retry_at", "sent_at", "lease_expires_at", "failures", "receipts")
    ),
    *(message.c[name] for name in ("operator_code", "time_zone")),
    CLAIMED_AT.label("claimed_at"),
    literal_column(SHOWN_TEXT, String).label("text"),
]
"""A column for each field of `MessageHistory`."""


async def get_history(
    connection: AsyncConnection, mailing_id: int | None, message_id: int
) -> MessageHistory:
    """Return a message of a mailing with its history; None: of any mailing that is not deleted.

    Raises `MessageNotFoundError`.
    """
    mailing_exists = exists().where(
        mailing.c.id == message.c.mailing_id, mailing.c.deleted_at.is_(None)
    )
    rows = await connection.execute(
        select(*HISTORY_COLUMNS).where(
            message.c.id == message_id,
            mailing_exists if mailing_id is None else message.c.mailing_id == mailing_id,
        )
    )
    row = rows.mappings().one_or_none()
    if row is None:
        raise MessageNotFoundError
    failures = msgspec.convert(row["failures"] or (), tuple[FailedAttempt, ...])
    receipts = msgspec.convert(row["receipts"] or (), tuple[StoredReceipt, ...])
    return MessageHistory(**{**row, "failures": failures, "receipts": receipts})


async def read_texts(connection: AsyncConnection, message_ids: Sequence[int]) -> dict[int, str]:
    """Return the texts of messages by the messages' ids; see `SHOWN_TEXT`."""
    texts = select(message.c.id, literal_column(SHOWN_TEXT, String).label("text"))
    rows = await connection.execute(texts.where(has_id(message.c.id, message_ids)))
    return {row.id: row.text for row in rows}
