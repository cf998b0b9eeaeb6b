"""Functions that create clients, mailings and messages for tests, and read them again.

Also the steps of the dispatcher, the part of a worker that plans and sends, for tests in which no
mailer process runs.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import Any, Self, TypeVar
from uuid import UUID

from msgspec.structs import replace
from sqlalchemy import RowMapping, TextClause, event, text
from sqlalchemy.engine.interfaces import DBAPIConnection
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from mailer.client.lists import membership
from mailer.client.lists import store as lists
from mailer.contact_cap import ContactCap
from mailer.db.engine import FIRST_STOP_LOCK, asyncpg_connection, create_engine
from mailer.gateway.channel import Channel, ChannelLimits, Channels
from mailer.gateway.config import default_gateway
from mailer.gateway.protocol import Gateway, Outcome, Request
from mailer.mailing import (
    enqueuing,
    finishing,
    pending_work,
    replanning,
    rerouting,
    retrying,
    small_audiences,
    starting,
    tracking,
)
from mailer.mailing.model import ENDED, RunningMailing
from mailer.mailing.skipped import SkippedMailings
from mailer.message import store as messages
from mailer.message.model import ClaimedMessage, MessageResult
from mailer.sample_data import (
    SampleMailing,
    create_clients,
    create_mailings,
    create_messages,
    settle_mailings,
)
from mailer.settings import Settings
from mailer.statuses import MESSAGE_STATUSES
from tests.event_timeout import EVENT_TIMEOUT

Result = TypeVar("Result")

OPEN = Settings(auth="none")
"""Settings under which requests need no authentication."""
NOON = datetime(2020, 1, 15, 12, tzinfo=UTC)
HOUR = timedelta(hours=1)
DAY = timedelta(days=1)
OWNER = UUID(int=1)
"""The worker that claims messages in tests."""
LEASE = timedelta(seconds=60)
GATEWAY = "default"
"""Name of the gateway that is configured by the settings alone."""
ROUTE = 1
"""Id of the route with this one gateway."""
"""The time for which a claim is valid, unless a test gives another one."""
CHUNK = 5_000
"""Messages that a step of the dispatcher changes at most, unless a test gives another number."""
SETTLED = "status = 'finished', is_closed = true, is_settled = true"
"""SQL that sets the columns of a mailing to: finished, and all its messages are final."""
REOPENED = "status = 'running', is_closed = false, is_settled = false"
"""SQL that sets the columns of a mailing to: running again, after it had finished."""

HOLD_STOP_LOCK = text(f"SELECT pg_advisory_xact_lock_shared({FIRST_STOP_LOCK})")
SELECT_STATE = text("SELECT status, reason, attempts FROM message WHERE id = :id")
SELECT_COUNTS = text("SELECT * FROM mailing_counts WHERE mailing_id = :id")


async def add_clients(
    engine: AsyncEngine, count: int, operator_code: str = "916", time_zone: str = "UTC"
) -> list[int]:
    """Create clients and return their ids."""
    async with engine.connect() as pooled:
        return await create_clients(
            await asyncpg_connection(pooled),
            count,
            operator_codes=(operator_code,),
            time_zones=(time_zone,),
        )


async def put_on_list(engine: AsyncEngine, name: str, clients: Sequence[int]) -> int:
    """Put clients on the list with this name, which is created if needed; return its id."""
    async with engine.begin() as connection:
        list_id, _, _ = await lists.get_or_create(connection, name)
        await membership.add(connection, list_id, clients)
    return list_id


async def add_mailing(
    engine: AsyncEngine,
    *,
    clients: int = 0,
    start: datetime = NOON,
    status: str = "running",
    lasts: timedelta = timedelta(hours=6),
) -> int:
    """Create a mailing that lasts `lasts`, and return its id.

    `clients` is the size of its audience. If `status` is not `scheduled`, the audience counts as
    enqueued; its messages are created by `add_messages`.
    """
    mailing = SampleMailing(start=start, lasts=lasts, status=status, clients=clients)
    [mailing_id] = await add_mailings(engine, mailing)
    return mailing_id


async def add_mailings(engine: AsyncEngine, *mailings: SampleMailing) -> list[int]:
    """Create mailings and return their ids."""
    async with engine.connect() as pooled:
        database = await asyncpg_connection(pooled)
        ids = await create_mailings(database, *mailings)
        ended_ids = [
            mailing_id
            for mailing_id, mailing in zip(ids, mailings, strict=True)
            if mailing.status in ENDED
        ]
        await settle_mailings(database, ended_ids)
    return ids


async def add_messages(  # noqa: PLR0913, PLR0917  # so that a test needs one line for messages
    engine: AsyncEngine,
    mailing_id: int,
    clients: Sequence[int],
    status: str,
    reason: str | None = None,
    at: datetime = NOON,
) -> None:
    """Create a message for each client id, which reached `status` at the time `at`.

    Triggers in the database update the counts.
    """
    async with engine.connect() as pooled:
        database = await asyncpg_connection(pooled)
        await create_messages(database, mailing_id, clients, (status, reason), at=at)


async def add_due_messages(engine: AsyncEngine, count: int, status: str = "running") -> int:
    """Create a mailing that started an hour ago, with `count` due messages, and return its id."""
    start = datetime.now(UTC) - timedelta(hours=1)
    mailing_id = await add_mailing(engine, clients=count, start=start, status=status)
    await add_messages(engine, mailing_id, await add_clients(engine, count), "scheduled")
    return mailing_id


async def add_delivered_mailing(engine: AsyncEngine, status: str = "running") -> int:
    """Create a mailing of two messages that are both delivered, and return its id."""
    mailing_id = await add_due_messages(engine, 2)
    await execute(
        engine,
        f"UPDATE message SET status = 'delivered', sent_at = now() WHERE mailing_id = {mailing_id}",  # noqa: S608  # a number
        f"UPDATE mailing SET status = '{status}' WHERE id = {mailing_id}",  # noqa: S608  # values of the test
    )
    return mailing_id


async def state(engine: AsyncEngine, message_id: int) -> tuple[str, str | None, int]:
    """Return the status, reason and attempts of a message."""
    row = await _row(engine, SELECT_STATE, message_id)
    return row["status"], row["reason"], row["attempts"]


async def mailing_counts(engine: AsyncEngine, mailing_id: int) -> dict[str, int]:
    """Return the counts of a mailing by status, without zeros."""
    row = await _row(engine, SELECT_COUNTS, mailing_id)
    return {name: row[name] for name in MESSAGE_STATUSES if row[name]}


async def _row(engine: AsyncEngine, query: TextClause, id_: int) -> RowMapping:
    """Return the only row of a query with the parameter `id`."""
    async with engine.connect() as connection:
        return (await connection.execute(query, {"id": id_})).mappings().one()


async def execute(engine: AsyncEngine, *statements: str) -> None:
    """Execute SQL statements, without mailer's code."""
    async with engine.begin() as connection:
        for statement in statements:
            await connection.execute(text(statement))


async def value(engine: AsyncEngine, query: str) -> Any:
    """Return the value of a query with one row and one column."""
    async with engine.connect() as connection:
        return (await connection.execute(text(query))).scalar_one()


async def rows(engine: AsyncEngine, query: str) -> Sequence[RowMapping]:
    """Return the rows of a query."""
    async with engine.connect() as connection:
        return (await connection.execute(text(query))).mappings().all()


@asynccontextmanager
async def behind_all_stops(engine: AsyncEngine) -> AsyncIterator[None]:
    """Act as a worker that has not applied any stop of a mailing yet, such as a pause.

    It holds the lock of the first stop number, so a stop waits until the end of the block.
    """
    async with engine.begin() as connection:
        await connection.execute(HOLD_STOP_LOCK)
        yield


def create_patient_engine(url: str) -> AsyncEngine:
    """Return an engine whose transactions may be idle for any time, since tests may be slow."""
    engine = create_engine(url)
    event.listen(engine.sync_engine, "connect", _may_idle_in_transaction)
    return engine


def _may_idle_in_transaction(connection: DBAPIConnection, _: object) -> None:
    connection.cursor().execute("SET idle_in_transaction_session_timeout = 0")
    connection.commit()


# ---- steps of the dispatcher ----------------------------------------------------------------


async def do(engine: AsyncEngine, step: Callable[[AsyncConnection], Awaitable[Result]]) -> Result:
    """Call `step` with a connection, in a transaction of its own, and return its result."""
    async with engine.begin() as connection:
        return await step(connection)


async def enqueue_and_replan(engine: AsyncEngine) -> None:
    """Enqueue the audiences of all started mailings, and do all replanning that is pending."""
    has_more = True
    while has_more:
        replanned = await do(engine, replanning.replan_chunk)
        enqueued = await do(engine, enqueuing.enqueue_chunk)
        has_more = replanned is not None or enqueued is not None


async def start_and_enqueue(engine: AsyncEngine) -> int:
    """Start the mailing that is due, enqueue its audience and return its id."""
    [mailing_id] = await do(engine, starting.start_due)
    await enqueue_and_replan(engine)
    return mailing_id


async def schedule_retried(engine: AsyncEngine, chunk: int = CHUNK) -> bool:
    """Schedule a chunk of the messages that a user has retried; return whether there were any."""
    return await do(engine, lambda db: retrying.retry_chunk(db, chunk))


async def end_messages(engine: AsyncEngine, chunk: int = CHUNK) -> bool:
    """Cancel a chunk of the scheduled messages of mailings that have ended or are cancelled."""
    return await do(engine, lambda db: finishing.end_scheduled_messages(db, chunk))


async def advance(engine: AsyncEngine, chunk: int = CHUNK) -> None:
    """Do all steps of the dispatcher that are pending, until none is left; nothing is sent."""
    async with asyncio.timeout(EVENT_TIMEOUT):
        while (work := await do(engine, pending_work.find_pending_work)).has_work:
            if work.must_start:
                await do(engine, starting.start_due)
            if work.must_enqueue:
                await do(engine, lambda db: small_audiences.enqueue_small(db, SkippedMailings()))
                await do(engine, enqueuing.enqueue_chunk)
            if work.must_replan:
                await do(engine, lambda db: replanning.replan_chunk(db, chunk))
            if work.must_reroute:
                await do(engine, rerouting.reroute_chunk)
            if work.must_retry:
                await schedule_retried(engine, chunk)
            if work.must_end_messages:
                await end_messages(engine, chunk)
            if work.must_finish:
                await do(engine, finishing.finish)


async def active_mailings(engine: AsyncEngine) -> list[RunningMailing]:
    """Return the mailings that a worker watches: those that have requests or may start some."""
    async with engine.connect() as pooled:
        mailings = await tracking.read_active(await asyncpg_connection(pooled))
    return [mailing for mailing in mailings.values() if mailing is not None]


async def running(engine: AsyncEngine) -> list[RunningMailing]:
    """Return the mailings for which a worker may send."""
    return [mailing for mailing in await active_mailings(engine) if mailing.may_send]


async def claim(
    engine: AsyncEngine,
    mailing_id: int,
    count: int = 1,
    lease: timedelta = LEASE,
    contact_cap: ContactCap | None = None,
) -> list[ClaimedMessage]:
    """Claim up to `count` due messages of a mailing for the worker `OWNER`."""
    async with engine.connect() as pooled:
        return await messages.claim(
            await asyncpg_connection(pooled),
            messages.ClaimSource(ROUTE, {mailing_id: messages.FIRST_CURSOR}, {mailing_id: count}),
            messages.ClaimTarget(OWNER, lease, GATEWAY, contact_cap),
        )


async def finish(engine: AsyncEngine, *finished: MessageResult) -> int:
    """Record results of claimed messages; return how many of them still had their lease."""
    async with engine.connect() as pooled:
        return len(await messages.record_results(await asyncpg_connection(pooled), OWNER, finished))


class FakeGateway:
    """Base of fake gateways, which have nothing to open or close."""

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        pass


class UnusedGateway(FakeGateway):
    """A gateway for tests in which nothing is sent."""

    async def send(self, request: Request) -> Outcome:
        raise NotImplementedError


def create_channel(**settings: Any) -> Channel:
    """Return a channel with the limits of these settings. Its gateway cannot send."""
    return channel_of(UnusedGateway(), Settings(**settings))


def create_channels(**settings: Any) -> Channels:
    """Return the channels of a worker with one gateway; see `create_channel`."""
    return Channels([create_channel(**settings)])


def channel_of(gateway: Gateway, settings: Settings, **config: Any) -> Channel:
    """Return a channel to a fake gateway, with the limits of these settings.

    `config` replaces fields of the gateway's configuration, such as `name`.
    """
    default = default_gateway(settings)
    configured = replace(default, config=replace(default.config, **config))
    return Channel(gateway, configured, ChannelLimits.of(configured, settings))
