"""Start mailings whose start has come: fix their audiences, and let them run.

To start a mailing means to set `audience_until`, the highest client id of its audience, which is
null before. Its messages are written later, when its audience is enqueued.

The caller owns the transaction. Several workers may run these statements at the same time: each
skips the rows that another worker has locked.
"""

from typing import Any

import msgspec
from sqlalchemy import ARRAY, BigInteger, bindparam, text
from sqlalchemy.ext.asyncio import AsyncConnection

from mailer.client.lists.sampling import read_sizes
from mailer.db.tables.mailing import OPEN_MAILING
from mailer.mailing import combined_filters, mailing_batches
from mailer.mailing.client_filter import ClientFilter, list_name_keys
from mailer.mailing.skipped import SkippedMailings
from mailer.mailing.store import notify_mailings_changed

# A paused mailing is started too: its audience is enqueued, and its messages wait. The clock is in
# a subquery, which is evaluated once, so that an index can be used.
DUE_MAILINGS = """
    SELECT id, client_filter FROM mailing
    WHERE {is_open} AND audience_until IS NULL AND datetime_start <= (SELECT clock_timestamp())
        AND id <> ALL (:skipped)
    ORDER BY datetime_start {order}, id {order} LIMIT :limit FOR UPDATE SKIP LOCKED"""
LATEST_DUE_MAILINGS, EARLIEST_DUE_MAILINGS = (
    text(DUE_MAILINGS.format(is_open=OPEN_MAILING, order=order)).bindparams(
        bindparam("skipped", type_=ARRAY(BigInteger))
    )
    for order in ("DESC", "ASC")
)

# The snapshot excludes clients that are committed later, even if their ids are lower than
# `audience_until` because they were assigned before.
START = text("""
    UPDATE mailing SET status = CASE status WHEN 'scheduled' THEN 'running' ELSE status END,
        clients_count = due.clients_count,
        audience_until = coalesce((SELECT max(id) FROM client), 0),
        audience_snapshot = pg_current_snapshot()::text, updated_at = now()
    FROM unnest(:ids, :counts) AS due (id, clients_count)
    WHERE mailing.id = due.id AND audience_until IS NULL""").bindparams(
    bindparam("ids", type_=ARRAY(BigInteger)), bindparam("counts", type_=ARRAY(BigInteger))
)


async def start_due(
    connection: AsyncConnection,
    limit: int = mailing_batches.MAILINGS_PER_BATCH,
    skipped: SkippedMailings | None = None,
) -> list[int]:
    """Start up to `limit` mailings whose start has come; return their ids.

    A few mailings with the latest start come first, then those with the earliest start. A mailing
    whose filter cannot be read is added to `skipped`.
    """
    skipped = SkippedMailings() if skipped is None else skipped
    due_mailings = await mailing_batches.lock_mailings(
        connection,
        newest=LATEST_DUE_MAILINGS,
        oldest=EARLIEST_DUE_MAILINGS,
        limit=limit,
        skipped=skipped,
    )
    filters = combined_filters.CombinedFilters()
    filter_numbers: dict[int, int] = {}  # by id of the mailing
    for due in due_mailings:
        if filters.is_full:
            break
        with skipped.on_error(due.id):
            listed = await _count_listed(connection, due.client_filter)
            filter_numbers[due.id] = filters.add(due.client_filter, listed)
    ids = list(filter_numbers)
    if ids:
        sizes = await combined_filters.count(connection, filters)
        counts = [sizes.get(number, 0) for number in filter_numbers.values()]
        await connection.execute(START, {"ids": ids, "counts": counts})
        await notify_mailings_changed(connection)
    return ids


async def _count_listed(connection: AsyncConnection, client_filter: Any) -> int:  # noqa: ANN401  # JSON from a row of `mailing`
    """Return how many clients the lists in a stored filter have together; 0 without lists."""
    name_keys = list_name_keys(msgspec.convert(client_filter, ClientFilter))
    if name_keys is None:
        return 0
    return sum(found.clients for found in (await read_sizes(connection, name_keys)).values())
