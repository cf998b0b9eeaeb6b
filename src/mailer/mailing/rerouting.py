"""Determine the routes of messages again, after gateways or the gateway of a mailing have changed.

This is done in chunks, while sending goes on. The table `rerouting` is the queue of mailings for
this work; a row's `cursor` is the id of the mailing's last message that is done.
"""

from sqlalchemy import ARRAY, BigInteger, TextClause, bindparam, text
from sqlalchemy.ext.asyncio import AsyncConnection

from mailer.db.tables.mailing import OPEN_MAILING
from mailer.gateway.routes import JOIN_OPERATOR_ROUTE, ROUTE
from mailer.mailing.mailing_batches import MAILINGS_PER_BATCH

REROUTE_BATCH = 5_000
"""Messages that one transaction considers."""
CLOSED_BATCH = 1_000
"""Closed or deleted mailings that one transaction removes from the queue."""

REQUEST = text("""
    INSERT INTO rerouting (mailing_id, cursor) VALUES (:mailing_id, 0)
    ON CONFLICT (mailing_id) DO UPDATE SET cursor = 0""")

# Locks the rows of the queue, so that a request to start again waits for this transaction; and the
# mailings, so that no other step changes their messages. A mailing of which another worker has
# locked either is skipped.
LOCK_NEXT_MAILINGS = text(f"""
    SELECT mailing_id, cursor FROM rerouting JOIN mailing ON mailing.id = mailing_id
    WHERE {OPEN_MAILING}
    ORDER BY mailing_id LIMIT :limit FOR UPDATE SKIP LOCKED""")  # noqa: S608  # no user input
# One index scan per mailing and status returns messages in order, so that all chunks cost the same.
# A message that is being sent is included, because it may be scheduled again afterwards.
FIND_UNSENT = text("""
    SELECT mailing_id, unsent.id
    FROM unnest(:mailing_ids, :cursors) AS next (mailing_id, cursor) CROSS JOIN LATERAL (
        (SELECT id FROM message WHERE mailing_id = next.mailing_id AND status = 'scheduled'
            AND id > next.cursor ORDER BY id LIMIT :chunk)
        UNION ALL
        (SELECT id FROM message WHERE mailing_id = next.mailing_id AND status = 'sending'
            AND id > next.cursor ORDER BY id LIMIT :chunk)
        ORDER BY id LIMIT :chunk) AS unsent
    ORDER BY unsent.id""").bindparams(
    *(bindparam(name, type_=ARRAY(BigInteger)) for name in ("mailing_ids", "cursors"))
)


def reroute_messages(condition: str) -> TextClause:
    """Return SQL that gives the messages `ids` that meet `condition` the route of new messages.

    The subselect locks the messages in the order of their ids, as other bulk changes do, to avoid
    deadlocks.
    """
    return text(f"""
        UPDATE message SET route = routed.route
        FROM (
            SELECT existing.id, {ROUTE.format(mailing_route="mailing.route")} AS route
            FROM (
                SELECT id, mailing_id, operator_code FROM message
                WHERE id = ANY (:ids) AND {condition}
                ORDER BY id FOR UPDATE
            ) AS existing
            JOIN mailing ON mailing.id = existing.mailing_id
            {JOIN_OPERATOR_ROUTE.format(operator_code="existing.operator_code")}
        ) AS routed
        WHERE message.id = routed.id AND message.route <> routed.route""").bindparams(  # noqa: S608  # no user input
        bindparam("ids", type_=ARRAY(BigInteger))
    )


# A message with delivery unknown stays with its gateway, unless a user has released it from there:
# then its route is not that of its gateway alone.
REROUTE = reroute_messages("""status IN ('scheduled', 'sending')
    AND (unknown_reason IS NULL OR route <> find_route(ARRAY[coalesce(gateway, 'default')]))""")
MOVE_CURSORS = text("""
    UPDATE rerouting SET cursor = next.cursor
    FROM unnest(:mailing_ids, :cursors) AS next (mailing_id, cursor)
    WHERE rerouting.mailing_id = next.mailing_id""").bindparams(
    *(bindparam(name, type_=ARRAY(BigInteger)) for name in ("mailing_ids", "cursors"))
)
REMOVE = text("DELETE FROM rerouting WHERE mailing_id = ANY (:mailing_ids)").bindparams(
    bindparam("mailing_ids", type_=ARRAY(BigInteger))
)

IS_CLOSED = f"NOT EXISTS (SELECT FROM mailing WHERE mailing.id = mailing_id AND {OPEN_MAILING})"
LOCK_CLOSED = text(f"""
    SELECT mailing_id FROM rerouting WHERE {IS_CLOSED}
    LIMIT {CLOSED_BATCH} FOR UPDATE SKIP LOCKED""")  # noqa: S608  # no user input
# Checks the condition again: a mailing may have been opened again before its row was locked.
REMOVE_CLOSED = text(
    f"DELETE FROM rerouting WHERE mailing_id = ANY (:mailing_ids) AND {IS_CLOSED}"  # noqa: S608  # no user input
).bindparams(bindparam("mailing_ids", type_=ARRAY(BigInteger)))

MESSAGES_REROUTED = "messages_rerouted"
"""Name of the PostgreSQL notification that messages have other routes. It contains the ids of their
mailings: at most 25 of 19 digits, and PostgreSQL's limit is 8,000 bytes."""
NOTIFY_REROUTED = text("SELECT pg_notify(:name, :ids)")


async def request(connection: AsyncConnection, mailing_id: int) -> None:
    """Make workers determine the routes of a mailing's unsent messages again."""
    await connection.execute(REQUEST, {"mailing_id": mailing_id})


def read_ids(payload: str) -> list[int]:
    """Return the ids of mailings that a notification contains."""
    return [int(id_) for id_ in payload.split()]


async def reroute_chunk(connection: AsyncConnection) -> bool:
    """Determine the routes of the next messages of some mailings; False when none was free."""
    rows = await connection.execute(LOCK_NEXT_MAILINGS, {"limit": MAILINGS_PER_BATCH})
    cursors = {row.mailing_id: row.cursor for row in rows}
    if not cursors:
        return await _remove_closed(connection)
    # by statements of their own, which see all that was committed before the rows were locked
    chunk = REROUTE_BATCH // len(cursors)
    parameters = {"mailing_ids": list(cursors), "cursors": list(cursors.values()), "chunk": chunk}
    unsent = (await connection.execute(FIND_UNSENT, parameters)).all()
    await connection.execute(REROUTE, {"ids": [row.id for row in unsent]})
    done: dict[int, list[int]] = {mailing_id: [] for mailing_id in cursors}
    for row in unsent:
        done[row.mailing_id].append(row.id)
    await _move_cursors(connection, done, chunk)
    names = {"name": MESSAGES_REROUTED, "ids": " ".join(map(str, cursors))}
    await connection.execute(NOTIFY_REROUTED, names)
    return True


async def _move_cursors(
    connection: AsyncConnection, done: dict[int, list[int]], chunk: int
) -> None:
    """Move the cursors of mailings; remove those of which fewer than `chunk` messages were left."""
    last_ids = {id_: ids[-1] for id_, ids in done.items() if len(ids) == chunk}
    parameters = {"mailing_ids": list(last_ids), "cursors": list(last_ids.values())}
    await connection.execute(MOVE_CURSORS, parameters)
    await connection.execute(REMOVE, {"mailing_ids": list(done.keys() - last_ids.keys())})


async def _remove_closed(connection: AsyncConnection) -> bool:
    """Remove closed and deleted mailings from the queue. Return whether there were any."""
    ids = list(await connection.scalars(LOCK_CLOSED))
    if not ids:
        return False
    return (await connection.execute(REMOVE_CLOSED, {"mailing_ids": ids})).rowcount > 0
