"""Random samples of the clients on lists.

A sample depends on the ids of the clients alone. So the same sample is drawn each time, and each
client is as likely to be in it as any other, whenever the two were created.
"""

from collections.abc import Iterable
from typing import NamedTuple

from sqlalchemy import ARRAY, BigInteger, ColumnElement, String, any_, func, literal, select
from sqlalchemy.ext.asyncio import AsyncConnection

from mailer.db.tables.client import client_list

HASHES = 2**20
"""Numbers to which the ids of clients are hashed."""


def is_sampled(client_id: ColumnElement[int], share: float) -> ColumnElement[bool]:
    """Return the condition that a client is in the sample that has this share of all, 0 to 1."""
    client_hash = func.hashint8extended(client_id, 0, type_=BigInteger)
    return client_hash.bitwise_and(HASHES - 1) < max(1, round(share * HASHES))


class ListSize(NamedTuple):
    """A list and how many clients are on it."""

    id: int
    clients: int


async def read_sizes(connection: AsyncConnection, name_keys: Iterable[str]) -> dict[str, ListSize]:
    """Return the sizes of those lists that exist, by their folded names."""
    columns = (client_list.c.name_key, client_list.c.id, client_list.c.clients_count)
    is_named = client_list.c.name_key == any_(literal(list(name_keys), ARRAY(String)))
    rows = await connection.execute(select(*columns).where(is_named))
    return {row.name_key: ListSize(row.id, row.clients_count) for row in rows}


async def read_share(
    connection: AsyncConnection, name_keys: Iterable[str], *, wanted: float, max_read: int
) -> float:
    """Return the share of the clients on lists that a sample should have, above 0 and up to 1.

    `wanted` is the share that would be enough. About `max_read` clients are read at most.
    """
    sizes = await read_sizes(connection, name_keys)
    size = sum(found.clients for found in sizes.values())
    return min(1.0, wanted, max_read / max(1, size))
