"""Clients, mailings and messages as tests want them, straight into the database.

And the steps of the dispatcher, for tests in which no process runs.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import Any, TypeVar
from uuid import UUID

from sqlalchemy import RowMapping, TextClause, event, text
from sqlalchemy.engine.interfaces import DBAPIConnection
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from mailer.db import locks
from mailer.db.engine import create_engine, raw
from mailer.db.schema import MESSAGE_STATUSES
from mailer.mailing import audience, moving, replanning, resending, store, together
from mailer.mailing.model import ENDED, RunningMailing
from mailer.mailing.passing_over import PassedOver
from mailer.message import store as messages
from mailer.message.model import ClaimedMessage, FinishedMessage
from mailer.settings import Settings
from tests.patience import PATIENCE

Result = TypeVar("Result")

OPEN = Settings(auth="none")
"""Settings under which anybody may come in."""
NOON = datetime(2020, 1, 15, 12, tzinfo=UTC)
OWNER = UUID(int=1)
LEASE = timedelta(seconds=60)
CHUNK = 5_000
ADD_CLIENTS = text("""
    INSERT INTO client (phone, operator_code, time_zone)
    SELECT '7916' || lpad((present + n)::text, 7, '0'), :operator_code, :time_zone
    FROM (SELECT count(*) AS present FROM client) AS directory, generate_series(1, :count) AS n
    RETURNING id""")
ADD_MESSAGES = text("""
    INSERT INTO message (mailing_id, client_id, operator_code, time_zone, due_at, status, reason,
        sent_at, updated_at)
    SELECT :mailing_id, given.id, coalesce(operator_code, '916'), coalesce(time_zone, 'UTC'),
        :at, :status, :reason, :sent_at, :at
    FROM unnest((:clients)::bigint[]) WITH ORDINALITY AS given (id, place)
        LEFT JOIN client ON client.id = given.id
    ORDER BY place""")
BEGIN = text("""
    UPDATE mailing SET status = :status, audience_until = :until, audience_cursor = :until,
        is_settled = :is_settled
    WHERE id = :id""")

HOLD_LOCK = text(f"SELECT pg_advisory_xact_lock_shared({locks.STOP})")
STATE = text("SELECT status, reason, attempts FROM message WHERE id = :id")
LEDGER = text("SELECT * FROM ledger WHERE mailing_id = :id")


async def add_clients(
    engine: AsyncEngine, count: int, operator_code: str = "916", time_zone: str = "UTC"
) -> list[int]:
    """Add clients and return their ids."""
    values = {"operator_code": operator_code, "time_zone": time_zone, "count": count}
    async with engine.begin() as connection:
        return sorted((await connection.execute(ADD_CLIENTS, values)).scalars())


async def add_mailing(
    engine: AsyncEngine,
    *,
    clients: int = 0,
    start: datetime = NOON,
    status: str = "running",
    lasts: timedelta = timedelta(hours=6),
) -> int:
    """Add a mailing and return its id; its audience is taken unless it is scheduled."""
    values: dict[str, Any] = {
        "datetime_start": start,
        "datetime_end": start + lasts,
        "text": "Tonight only, at half price.",
    }
    async with engine.begin() as connection:
        mailing_id = await store.add(connection, values, clients)
        if status != "scheduled":
            begun = {"id": mailing_id, "status": status, "until": 1_000_000}
            await connection.execute(BEGIN, begun | {"is_settled": status in ENDED})
    return mailing_id


async def add_messages(  # noqa: PLR0913, PLR0917  # a message in one line of a test
    engine: AsyncEngine,
    mailing_id: int,
    clients: Sequence[int],
    status: str,
    reason: str | None = None,
    at: datetime = NOON,
) -> None:
    """Add messages that came to `status` at a moment; the ledger follows by itself."""
    values = {
        "mailing_id": mailing_id,
        "clients": list(clients),
        "at": at,
        "status": status,
        "reason": reason,
        "sent_at": at if status == "delivered" else None,
    }
    async with engine.begin() as connection:
        await connection.execute(ADD_MESSAGES, values)


async def add_due_messages(engine: AsyncEngine, count: int, status: str = "running") -> int:
    """Add a mailing under way, with messages that are due, and return its id."""
    start = datetime.now(UTC) - timedelta(hours=1)
    mailing_id = await add_mailing(engine, clients=count, start=start, status=status)
    await add_messages(engine, mailing_id, await add_clients(engine, count), "scheduled")
    return mailing_id


async def state(engine: AsyncEngine, message_id: int) -> tuple[str, str | None, int]:
    """Return a message's status, reason and attempts."""
    row = await _row(engine, STATE, message_id)
    return row["status"], row["reason"], row["attempts"]


async def ledger(engine: AsyncEngine, mailing_id: int) -> dict[str, int]:
    """Return the counts in a mailing's ledger that are not zero."""
    row = await _row(engine, LEDGER, mailing_id)
    return {name: row[name] for name in MESSAGE_STATUSES if row[name]}


async def _row(engine: AsyncEngine, query: TextClause, id_: int) -> RowMapping:
    async with engine.connect() as connection:
        return (await connection.execute(query, {"id": id_})).mappings().one()


async def execute(engine: AsyncEngine, *statements: str) -> None:
    """Change the database behind everybody's back."""
    async with engine.begin() as connection:
        for statement in statements:
            await connection.execute(text(statement))


async def value(engine: AsyncEngine, query: str) -> Any:
    """Return the one value that a query finds."""
    async with engine.connect() as connection:
        return (await connection.execute(text(query))).scalar_one()


@asynccontextmanager
async def behind_all_stops(engine: AsyncEngine) -> AsyncIterator[None]:
    """Be a worker that has applied no stop, and so may send for any mailing."""
    async with engine.begin() as connection:
        await connection.execute(HOLD_LOCK)
        yield


def create_patient_engine(url: str) -> AsyncEngine:
    """Return an engine whose transactions may wait: a slow test is no process that stands still."""
    engine = create_engine(url)
    event.listen(engine.sync_engine, "connect", _may_idle_in_transaction)
    return engine


def _may_idle_in_transaction(connection: DBAPIConnection, _: object) -> None:
    connection.cursor().execute("SET idle_in_transaction_session_timeout = 0")
    connection.commit()


# ---- what the dispatcher does ---------------------------------------------------------------


async def do(engine: AsyncEngine, step: Callable[[AsyncConnection], Awaitable[Result]]) -> Result:
    """Take one step, in a transaction of its own."""
    async with engine.begin() as connection:
        return await step(connection)


async def take_audience(engine: AsyncEngine) -> None:
    """Enqueue all of every audience, and plan anew what is to be, as far as can be done now."""
    has_more = True
    while has_more:
        replanned = await do(engine, replanning.replan_chunk)
        taken = await do(engine, audience.take_chunk)
        has_more = replanned is not None or taken is not None


async def begin(engine: AsyncEngine) -> int:
    """Begin the mailing that is due, take its audience and return its id."""
    [mailing_id] = await do(engine, moving.begin_due)
    await take_audience(engine)
    return mailing_id


async def resend(engine: AsyncEngine, chunk: int = CHUNK) -> bool:
    """Schedule a chunk of what is to be sent again."""
    return await do(engine, lambda db: resending.resend_chunk(db, chunk))


async def clear(engine: AsyncEngine, chunk: int = CHUNK) -> bool:
    """Cancel a chunk of what waits for mailings that have ended or are cancelled."""
    return await do(engine, lambda db: moving.clear(db, chunk))


async def advance(engine: AsyncEngine, chunk: int = CHUNK) -> None:
    """Do all that is to be done now, as the dispatcher finds it."""
    async with asyncio.timeout(PATIENCE):
        while (to_do := await do(engine, moving.look)).is_any:
            if to_do.begins:
                await do(engine, moving.begin_due)
            if to_do.takes:
                await do(engine, lambda db: together.take_small(db, PassedOver()))
                await do(engine, audience.take_chunk)
            if to_do.replans:
                await do(engine, lambda db: replanning.replan_chunk(db, chunk))
            if to_do.retries:
                await resend(engine, chunk)
            if to_do.clears:
                await clear(engine, chunk)
            if to_do.finishes:
                await do(engine, moving.finish)


async def under_way(engine: AsyncEngine) -> list[RunningMailing]:
    """Return what a worker knows of the mailings."""
    async with engine.connect() as pooled:
        known = await moving.under_way(await raw(pooled))
    return [mailing for mailing in known.values() if mailing is not None]


async def running(engine: AsyncEngine) -> list[RunningMailing]:
    """Return the mailings that a worker would begin to send for."""
    return [mailing for mailing in await under_way(engine) if mailing.may_send]


async def claim(
    engine: AsyncEngine, mailing_id: int, count: int = 1, lease: timedelta = LEASE
) -> list[ClaimedMessage]:
    """Claim messages that are due."""
    async with engine.connect() as pooled:
        return await messages.claim(
            await raw(pooled), {mailing_id: messages.START}, count, OWNER, lease
        )


async def finish(engine: AsyncEngine, *finished: FinishedMessage) -> int:
    """Write what became of claimed messages; return how many were still under the lease."""
    async with engine.connect() as pooled:
        return len(await messages.finish(await raw(pooled), OWNER, finished))
