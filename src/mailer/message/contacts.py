"""The marketing messages of each client that the contact cap counts: the table `client_contact`.

Claims fill it, by the database function `record_contacts`.
"""

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

FORGET_CONTACTS = text("""
    DELETE FROM client_contact WHERE client_id = ANY (ARRAY(
        SELECT client_id FROM client_contact LIMIT :limit FOR UPDATE SKIP LOCKED))""")


async def forget(connection: AsyncConnection, limit: int) -> int:
    """Delete the rows of up to `limit` clients; return how many.

    A worker without a contact cap records no messages, so these rows would miss some. With a cap,
    they are created again from the messages of the client.
    """
    return (await connection.execute(FORGET_CONTACTS, {"limit": limit})).rowcount
