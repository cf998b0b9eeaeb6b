"""Replan the open messages of clients who have moved: whose time zone has changed.

A trigger writes the ids of such clients into the table `client_to_replan`, which is the queue of
this work. A periodic job takes a few of them at a time.
"""

from collections.abc import Sequence
from typing import Any

import structlog
from sqlalchemy import ARRAY, BigInteger, Row, bindparam, text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from mailer.db.sql import add_up
from mailer.db.tables.mailing import FINISHED_IN_WINDOW, OPEN_MAILING
from mailer.gateway.routes import keep_routes
from mailer.mailing.planning import plan_by_zone
from mailer.mailing.replanning import HAS_OPTED_OUT, REPLAN_BATCH, replan_messages
from mailer.mailing.store import notify_mailings_changed
from mailer.statuses import OPEN

log = structlog.get_logger()

MAX_LOOKUPS = 20_000
"""Pairs of a client and a mailing for which one transaction searches a message, at most."""

# ---- the queue of clients -------------------------------------------------------------------

HAS_MOVED_CLIENTS = text("SELECT EXISTS (SELECT FROM client_to_replan)")
TAKE_MOVED_CLIENTS = text("""
    DELETE FROM client_to_replan WHERE ctid = ANY (ARRAY(
        SELECT ctid FROM client_to_replan LIMIT :limit FOR UPDATE SKIP LOCKED))
    RETURNING client_id""")
PUT_BACK_MOVED_CLIENTS = text(
    "INSERT INTO client_to_replan SELECT DISTINCT unnest(:clients)"
).bindparams(bindparam("clients", type_=ARRAY(BigInteger)))

# ---- the mailings whose messages depend on a time zone --------------------------------------

# Started mailings with a sending window that have not ended. Without a window the time zone does
# not matter.
IS_RUNNING_IN_WINDOW = f"""
    {OPEN_MAILING} AND audience_until IS NOT NULL AND status IN ('running', 'paused')
    AND send_interval_time_start IS NOT NULL AND datetime_end > clock_timestamp()"""
FINISHED_BEFORE_END = f"{FINISHED_IN_WINDOW} AND datetime_end > clock_timestamp()"
# Finished mailings of which some messages were cancelled only because of a time zone.
IS_REOPENABLE = f"""
    {FINISHED_BEFORE_END} AND EXISTS (SELECT FROM message
        WHERE mailing_id = mailing.id AND status = 'cancelled' AND reason = 'no_window')"""
# Each mailing costs one lookup per client, so mailings whose messages are all sent are left out.
HAS_REPLANNABLE_MESSAGES = f"""
    EXISTS (SELECT FROM mailing_counts
        WHERE mailing_id = mailing.id AND {add_up((*OPEN, "cancelled"))} > 0)"""
# The columns that `plan_by_zone` needs.
PLAN_COLUMNS = """
    id, datetime_start, datetime_end, send_interval_time_start, send_interval_time_end,
    status, route, clock_timestamp() AS now"""
MAILINGS_IN_WINDOW = text(f"""
    SELECT {PLAN_COLUMNS} FROM mailing WHERE {IS_RUNNING_IN_WINDOW} AND {HAS_REPLANNABLE_MESSAGES}
    UNION ALL
    SELECT {PLAN_COLUMNS} FROM mailing WHERE {IS_REOPENABLE} AND {HAS_REPLANNABLE_MESSAGES}""")  # noqa: S608  # no user input
# Transactions that write messages by the time zones of clients lock the row of the mailing. Waiting
# for that lock makes messages visible that were planned by an old time zone.
WAIT_FOR_WRITERS = text(f"""
    SELECT id FROM mailing WHERE {IS_RUNNING_IN_WINDOW}
        AND (audience_cursor < audience_until OR is_replanning OR retry_before IS NOT NULL)
    ORDER BY id FOR SHARE""")  # noqa: S608  # no user input
# Runs before messages are scheduled, because a trigger subtracts the mailing's current counts from
# the totals of settled mailings.
REOPEN_MAILING = text(f"""
    UPDATE mailing SET status = 'running', is_closed = false, is_settled = false, updated_at = now()
    WHERE id = :id AND {FINISHED_BEFORE_END} RETURNING id""")  # noqa: S608  # no user input

# ---- their messages -------------------------------------------------------------------------

# Locks and returns the messages of moved clients that are open, or were cancelled because the
# window did not open before the mailing's end. Of clients who have opted out, only open ones.
FIND_MESSAGES = text(f"""
    SELECT message.id, message.mailing_id, message.client_id, message.status, client.time_zone
    FROM unnest(:clients) AS moved (id) JOIN client ON client.id = moved.id
        CROSS JOIN unnest(:mailings) AS mailing (id)
        JOIN message ON message.mailing_id = mailing.id AND message.client_id = client.id
    WHERE client.deleted_at IS NULL AND (message.status IN ('scheduled', 'sending')
        OR message.status = 'cancelled' AND message.reason = 'no_window'
            AND NOT {HAS_OPTED_OUT.format(message="message")})
    ORDER BY message.id FOR UPDATE OF message""").bindparams(  # noqa: S608  # no user input
    *(bindparam(name, type_=ARRAY(BigInteger)) for name in ("clients", "mailings"))
)


async def replan_moved(connection: AsyncConnection, max_lookups: int = MAX_LOOKUPS) -> int:
    """Replan the open messages of some clients whose time zone has changed.

    A finished mailing runs again when a message of it can be sent after all. Return for how many
    clients this is done. 0 means that no client is left, or that all clients of this call had to be
    put back into the queue, for example because they have messages in flight.
    """
    if not (await connection.execute(HAS_MOVED_CLIENTS)).scalar_one():
        return 0
    await keep_routes(connection)
    mailings = await _read_mailings(connection)
    # each client costs one lookup in each mailing
    limit = max(1, min(REPLAN_BATCH, max_lookups // max(1, len(mailings))))
    clients = list(await connection.scalars(TAKE_MOVED_CLIENTS, {"limit": limit}))
    await connection.execute(WAIT_FOR_WRITERS)
    mailings = await _read_mailings(connection)  # again, because the wait may have been long
    # `set`, because a client who has moved twice is in the queue twice
    parameters = {"clients": sorted(set(clients)), "mailings": list(mailings)}
    messages = (await connection.execute(FIND_MESSAGES, parameters)).all()
    # messages in flight may be scheduled again by the time zone that they were claimed with
    clients_to_put_back = {row.client_id for row in messages if row.status == "sending"}
    # finished mailings last: reopening one locks the row of settled totals, which delays others
    is_finished = {row.id: row.status == "finished" for row in mailings.values()}
    mailing_ids = {row.mailing_id for row in messages}
    for mailing_id in sorted(mailing_ids, key=lambda id_: (is_finished[id_], id_)):
        mailing = mailings[mailing_id]
        to_replan = [
            row for row in messages if row.mailing_id == mailing_id and row.status != "sending"
        ]
        if is_finished[mailing_id]:
            clients_to_put_back |= await _reopen(connection, mailing, to_replan)
        else:
            await replan_messages(connection, mailing, to_replan)
    if clients_to_put_back:
        parameters = {"clients": sorted(clients_to_put_back)}
        await connection.execute(PUT_BACK_MOVED_CLIENTS, parameters)
    if messages:
        await notify_mailings_changed(connection)
    return len(clients) - len(clients_to_put_back)


async def _read_mailings(connection: AsyncConnection) -> dict[int, Row[Any]]:
    """Return the mailings whose messages depend on a time zone, by id."""
    return {row.id: row for row in await connection.execute(MAILINGS_IN_WINDOW)}


async def _reopen(
    connection: AsyncConnection, mailing: Row[Any], messages: Sequence[Row[Any]]
) -> set[int]:
    """Reopen a finished mailing and replan those of its messages that can be sent after all.

    Return the clients to put back into the queue: those of these messages when the mailing was
    retried or deleted meanwhile, otherwise none.
    """
    plans = plan_by_zone(mailing, {row.time_zone for row in messages})
    sendable = [row for row in messages if plans[row.time_zone].status == "scheduled"]
    if not sendable:
        return set()
    if (await connection.execute(REOPEN_MAILING, {"id": mailing.id})).one_or_none() is None:
        return {row.client_id for row in sendable}
    await replan_messages(connection, mailing, sendable)
    log.info("mailing_reopened", mailing_id=mailing.id, messages=len(sendable))
    return set()


async def replan_all_moved(engine: AsyncEngine) -> None:
    """Replan the open messages of all clients whose time zone has changed, in chunks."""
    has_more = True
    while has_more:
        async with engine.begin() as connection:
            has_more = bool(await replan_moved(connection))
