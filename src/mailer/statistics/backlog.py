"""The backlog of messages to send, of all workers together, counted in the database."""

import msgspec
from msgspec.structs import replace
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from mailer.db.sql import add_up
from mailer.db.tables.mailing import OPEN_MAILING
from mailer.statuses import MESSAGE_STATUSES, OPEN
from mailer.webhook.queue import count_waiting

MAX_COUNTED_DUE = 100_000
"""Due messages that are counted at most; there may be more."""


class Backlog(msgspec.Struct, frozen=True):
    """The work that waits in the database, over all workers."""

    waiting: int
    """Messages of running mailings that are scheduled or being sent."""
    due: int
    """Scheduled messages of running mailings that are due; counted up to 100,000."""
    lag: float
    """Seconds for which the oldest due message has been due; 0 when none is due."""
    audience_clients: int
    """Clients of the mailings whose audience is being enqueued."""
    audience_enqueued_clients: int
    """Those of `audience_clients` for whom a message exists already."""
    is_held: bool = False
    """Whether the database was restored and sending waits for a user's approval."""
    webhook_deliveries: int = 0
    """Events that wait for an attempt to deliver them to a webhook."""
    webhooks_disabled: int = 0
    """Webhooks that mailer has disabled because they fail."""


# `live` are the started mailings that are not closed. Messages of the running ones are read by
# route, because the index has the scheduled messages of a route in the order of their due times.
# `due` are the due messages, up to a limit, so that the cost does not grow with large mailings.
# `oldest` is the earliest due time of the scheduled messages. The result has the columns of
# `Backlog`.
SELECT_BACKLOG = text(f"""
    WITH live AS MATERIALIZED (
        SELECT id, status, clients_count, {add_up(OPEN)} AS waiting,
            {add_up(MESSAGE_STATUSES)} AS created,
            audience_cursor < audience_until AS is_enqueuing
        FROM mailing JOIN mailing_counts ON mailing_id = id
        WHERE {OPEN_MAILING} AND audience_until IS NOT NULL
    ), due AS MATERIALIZED (
        SELECT message.due_at FROM live CROSS JOIN route CROSS JOIN LATERAL (
            SELECT due_at FROM message
            WHERE mailing_id = live.id AND route = route.id AND message.status = 'scheduled'
                AND due_at <= (SELECT clock_timestamp())
            LIMIT :limit) AS message
        WHERE live.status = 'running' LIMIT :limit
    ), oldest AS (
        SELECT min(message.due_at) AS due_at FROM live CROSS JOIN route CROSS JOIN LATERAL (
            SELECT due_at FROM message
            WHERE mailing_id = live.id AND route = route.id AND message.status = 'scheduled'
            ORDER BY due_at LIMIT 1) AS message
        WHERE live.status = 'running'
    )
    SELECT coalesce((SELECT sum(waiting) FROM live WHERE status = 'running'), 0)::bigint,
        (SELECT count(*) FROM due),
        coalesce(greatest(0, extract(epoch FROM clock_timestamp() - (SELECT due_at FROM oldest))),
            0)::float8,
        coalesce((SELECT sum(clients_count) FROM live WHERE is_enqueuing), 0)::bigint,
        coalesce((SELECT sum(created) FROM live WHERE is_enqueuing), 0)::bigint,
        EXISTS (SELECT FROM origin WHERE held_since IS NOT NULL)""")  # noqa: S608  # no user input


async def get_backlog(connection: AsyncConnection) -> Backlog:
    """Return the current backlog."""
    row = (await connection.execute(SELECT_BACKLOG, {"limit": MAX_COUNTED_DUE})).one()
    waiting, disabled = await count_waiting(connection)
    return replace(Backlog(*row), webhook_deliveries=waiting, webhooks_disabled=disabled)
