"""Texts with placeholders while workers send: what reaches the gateway, and what is erased."""

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime

import pytest
from sqlalchemy.ext.asyncio import AsyncEngine
from tests.event_timeout import EVENT_TIMEOUT
from tests.factories import (
    HOUR,
    LEASE,
    OWNER,
    ROUTE,
    FakeGateway,
    add_clients,
    channel_of,
    do,
    execute,
    rows,
    start_and_enqueue,
    value,
)

from mailer.access.model import COMMAND_LINE
from mailer.db import origin
from mailer.db.engine import asyncpg_connection, create_engine
from mailer.dispatch.dispatcher import Dispatcher, DispatcherLimits
from mailer.erasure import erase_client
from mailer.gateway.channel import Channels
from mailer.gateway.protocol import Accepted, Outcome, Request, TemporaryFailure
from mailer.mailing import service
from mailer.mailing.model import NewMailing
from mailer.message import store
from mailer.settings import Settings
from mailer.statistics.verify import find_differences

SETTINGS = Settings(gateway_concurrency=4, retry_base=0.01)
STATES = """SELECT client_id, status, reason, attempts, field_values, parts FROM message
    ORDER BY client_id"""
ALL_ENDED = (
    """SELECT count(*) = 6 AND bool_and(status IN ('delivered', 'cancelled')) FROM message"""
)
WAITING_FOR_LOCK = """SELECT count(*) > 0 FROM pg_stat_activity
    WHERE datname = current_database() AND wait_event_type = 'Lock'"""


@pytest.fixture
async def engine(database_url: str) -> AsyncIterator[AsyncEngine]:
    engine = create_engine(database_url)
    await do(engine, origin.update)  # as at startup, while no message exists
    yield engine
    assert await find_differences(engine) == []
    await engine.dispose()


class RecordingGateway(FakeGateway):
    """A gateway that records the text of each request, and fails the first one of a text."""

    def __init__(self, fails: str) -> None:
        self.texts: list[str] = []
        self._fails = fails

    async def send(self, request: Request) -> Outcome:
        request.mark_written()
        text = request.message.text
        is_first = text not in self.texts
        self.texts.append(text)
        return TemporaryFailure("timeout") if text == self._fails and is_first else Accepted()


async def create_running(engine: AsyncEngine, text: str) -> int:
    now = datetime.now(UTC)
    new = NewMailing(datetime_start=now - HOUR, datetime_end=now + HOUR, text=text)
    return (await service.create(engine, new, COMMAND_LINE)).id


async def until_true(engine: AsyncEngine, query: str) -> None:
    async with asyncio.timeout(EVENT_TIMEOUT):
        while not await value(engine, query):
            await asyncio.sleep(0.02)


async def test_two_workers_send_each_client_the_text_with_own_fields(
    engine: AsyncEngine, database_url: str
) -> None:
    anna, boris, nobody = await add_clients(engine, 3)
    await execute(
        engine,
        f"""UPDATE client SET fields = '{{"name": "Anna"}}' WHERE id = {anna}""",  # noqa: S608  # a number
        f"""UPDATE client SET fields = '{{"name": "Борис"}}' WHERE id = {boris}""",  # noqa: S608  # as above
    )
    mailing_id = await create_running(engine, "Dear {{ name }}{{ mark | ! }}")
    literal_id = await create_running(engine, "Literal { }")
    gateway = RecordingGateway(fails="Dear Anna!")
    channels = [Channels([channel_of(gateway, SETTINGS)]) for _ in range(2)]
    workers = [
        Dispatcher(database_url, engine, each, DispatcherLimits.of(SETTINGS)) for each in channels
    ]
    async with asyncio.TaskGroup() as tasks:
        for worker in workers:
            tasks.create_task(worker.run())
        await until_true(engine, ALL_ENDED)
        for worker in workers:
            worker.stop()

    assert sorted(gateway.texts) == sorted(
        [*["Dear Anna!"] * 2, "Dear Борис!", *["Literal { }"] * 3]
    )
    of_mailing = STATES.replace("ORDER", f"WHERE mailing_id = {mailing_id} ORDER")
    states: list[tuple[object, ...]] = [
        tuple(row.values()) for row in await rows(engine, of_mailing)
    ]
    assert states == [
        (anna, "delivered", None, 2, {"name": "Anna"}, 1),
        (boris, "delivered", None, 1, {"name": "Борис"}, 1),
        (nobody, "cancelled", "missing_field", 0, None, None),
    ]
    literal = f"SELECT count(field_values) FROM message WHERE mailing_id = {literal_id}"  # noqa: S608  # a number
    assert await value(engine, literal) == 0


async def test_client_who_is_deleted_during_a_claim_leaves_no_values(engine: AsyncEngine) -> None:
    [client_id] = await add_clients(engine, 1)
    await execute(engine, """UPDATE client SET fields = '{"name": "Anna"}'""")
    mailing_id = await create_running(engine, "{{ name }}")
    await start_and_enqueue(engine)
    async with engine.connect() as pooled, asyncio.TaskGroup() as tasks:
        connection = await asyncpg_connection(pooled)
        async with connection.transaction():
            [claimed] = await store.claim(
                connection,
                store.ClaimSource(ROUTE, {mailing_id: store.FIRST_CURSOR}, {mailing_id: 1}),
                store.ClaimTarget(OWNER, LEASE, "default"),
            )
            tasks.create_task(erase_client(engine, client_id, COMMAND_LINE))
            await until_true(engine, WAITING_FOR_LOCK)
    assert claimed.field_values == '{"name": "Anna"}'
    assert await value(engine, "SELECT field_values FROM message") is None
