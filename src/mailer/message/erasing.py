"""SQL that erases the field values of a deleted client from the client's messages."""

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from mailer.db.tables.mailing import OPEN_MAILING
from mailer.db.tables.message import HAS_OUTCOME

HAS_VALUES = """(message.field_values IS NOT NULL
        OR jsonb_path_exists(message.failures, '$[*].field_values'))"""
# Messages with an outcome are found by client, as in `across_mailings`. The others are in open
# mailings, of each of which the client has at most one.
ERASE_VALUES = text(f"""
    UPDATE message SET field_values = NULL, failures = (
        SELECT jsonb_agg(failure - 'field_values' ORDER BY position)
        FROM jsonb_array_elements(failures) WITH ORDINALITY AS kept (failure, position))
    WHERE id = ANY (ARRAY(
        SELECT id FROM message WHERE client_id = :client_id AND {HAS_OUTCOME} AND {HAS_VALUES}
        UNION ALL
        SELECT message.id FROM mailing JOIN message ON message.mailing_id = mailing.id
        WHERE {OPEN_MAILING} AND audience_until IS NOT NULL AND client_id = :client_id
            AND {HAS_VALUES}
        ORDER BY id))""")  # noqa: S608  # no user input


async def erase_values_of_client(connection: AsyncConnection, client_id: int) -> None:
    """Erase the field values in the messages of a client who is being erased.

    Call it once the scheduled messages are cancelled: that waits for claims, which copy fields.
    """
    await connection.execute(ERASE_VALUES, {"client_id": client_id})
