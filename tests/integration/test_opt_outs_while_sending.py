"""Opt-outs while a worker sends: what is claimed and not written yet is not sent."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import asyncpg
import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine
from tests.event_timeout import EVENT_TIMEOUT
from tests.factories import (
    LEASE,
    OWNER,
    FakeGateway,
    add_clients,
    add_due_messages,
    add_mailing,
    add_messages,
    channel_of,
    claim,
    do,
    execute,
    rows,
    state,
    value,
)
from tests.integration.opted_out import OPTED_OUT, make_service, opt_out_client, phone_of
from tests.integration.test_recorder import recording

from mailer.access.model import COMMAND_LINE
from mailer.db import origin
from mailer.db.engine import connect, create_engine
from mailer.dispatch.claims import WorkerClaims
from mailer.dispatch.dispatcher import Dispatcher, DispatcherLimits
from mailer.gateway.channel import Channels
from mailer.gateway.protocol import Accepted, Outcome, Rejected, Request, Unknown
from mailer.message.model import MessageResult
from mailer.opt_out import store
from mailer.opt_out.importing import import_opt_outs
from mailer.settings import Settings
from mailer.statistics.verify import find_differences

FIRST_CLIENT = "SELECT min(client_id) FROM message"


class SlowGateway(FakeGateway):
    """A gateway whose requests are not written before `may_write`."""

    def __init__(self, answer: Callable[[Request], Outcome] = lambda _: Accepted()) -> None:
        self.answer = answer
        self.connecting: list[Request] = []
        self.written: list[int] = []
        """The ids of the messages whose requests were written."""
        self.may_write = asyncio.Event()

    async def send(self, request: Request) -> Outcome:
        request.attach_task()
        self.connecting.append(request)
        try:
            await self.may_write.wait()
        except asyncio.CancelledError:
            outcome = request.outcome_of_abort()
            if outcome is None:
                raise
            return outcome
        if not request.mark_written():
            return request.outcome_of_abort() or Unknown("timeout")
        self.written.append(request.message.id)
        return self.answer(request)


@asynccontextmanager
async def listening(database_url: str, has_heard: asyncio.Event) -> AsyncIterator[None]:
    """Set an event when workers are notified of opt-outs."""
    connection = await connect(database_url)
    await connection.add_listener(store.CLIENTS_OPTED_OUT, lambda *_: has_heard.set())
    try:
        yield
    finally:
        await connection.close()


@pytest.fixture
async def engine(database_url: str) -> AsyncIterator[AsyncEngine]:
    engine = create_engine(database_url)
    await do(engine, origin.update)  # as at startup, while no message exists
    yield engine
    assert await find_differences(engine) == []
    await engine.dispose()


@asynccontextmanager
async def dispatching(
    engine: AsyncEngine, url: str, gateway: SlowGateway, concurrency: int = 4
) -> AsyncIterator[None]:
    """Run a dispatcher that sends through `gateway`."""
    settings = Settings(gateway_concurrency=concurrency)
    channels = Channels([channel_of(gateway, settings)])
    dispatcher = Dispatcher(url, engine, channels, DispatcherLimits.of(settings))
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(dispatcher.run())
        try:
            yield
        finally:
            gateway.may_write.set()
            dispatcher.stop()


async def until_equal(engine: AsyncEngine, query: str, expected: object) -> None:
    """Wait until a query with one value returns `expected`."""
    async with asyncio.timeout(EVENT_TIMEOUT):
        while await value(engine, query) != expected:
            await asyncio.sleep(0.02)


async def until_connecting(gateway: SlowGateway, requests: int) -> None:
    async with asyncio.timeout(EVENT_TIMEOUT):
        while len(gateway.connecting) < requests:
            await asyncio.sleep(0.01)


WITH_REASON = "SELECT count(*) FROM message WHERE status = 'cancelled' AND reason = 'opted_out'"
OPEN = "SELECT count(*) FROM message WHERE status IN ('scheduled', 'sending')"


async def test_a_request_that_is_not_written_is_aborted(
    engine: AsyncEngine, database_url: str
) -> None:
    await add_due_messages(engine, 2)
    gateway = SlowGateway()
    async with dispatching(engine, database_url, gateway):
        await until_connecting(gateway, 2)
        await opt_out_client(engine, await value(engine, FIRST_CLIENT))
        await until_equal(engine, WITH_REASON, 1)
        gateway.may_write.set()
        await until_equal(engine, OPEN, 0)
    assert len(gateway.written) == 1
    [cancelled] = await rows(engine, "SELECT * FROM message WHERE status = 'cancelled'")
    assert (cancelled["attempts"], cancelled["gateway"]) == (0, None)
    assert cancelled["id"] not in gateway.written


async def test_a_message_in_the_prefetch_queue_is_not_sent(
    engine: AsyncEngine, database_url: str
) -> None:
    await add_due_messages(engine, 5)
    gateway = SlowGateway()
    async with dispatching(engine, database_url, gateway, concurrency=1):
        await until_connecting(gateway, 1)
        await until_equal(engine, "SELECT count(*) FROM message WHERE status = 'sending'", 5)
        last = await value(engine, "SELECT client_id FROM message ORDER BY id DESC LIMIT 1")
        await opt_out_client(engine, last)
        await asyncio.sleep(0.3)
        gateway.may_write.set()
        await until_equal(engine, OPEN, 0)
    assert len(gateway.written) == 4
    assert await value(engine, WITH_REASON) == 1


async def test_a_message_that_is_sent_already_is_recorded_as_such(
    engine: AsyncEngine, database_url: str
) -> None:
    await add_due_messages(engine, 1)
    accepting = asyncio.Event()

    class WritingGateway(SlowGateway):
        async def send(self, request: Request) -> Outcome:
            request.attach_task()
            assert request.mark_written()
            self.connecting.append(request)
            await accepting.wait()
            return Accepted()

    gateway = WritingGateway()
    async with dispatching(engine, database_url, gateway):
        await until_connecting(gateway, 1)
        await opt_out_client(engine, await value(engine, FIRST_CLIENT))
        await asyncio.sleep(0.2)
        accepting.set()
        await until_equal(engine, OPEN, 0)
    assert await value(engine, "SELECT status FROM message") == "delivered"


async def test_service_messages_are_not_aborted(engine: AsyncEngine, database_url: str) -> None:
    await make_service(engine, await add_due_messages(engine, 1))
    gateway = SlowGateway()
    async with dispatching(engine, database_url, gateway):
        await until_connecting(gateway, 1)
        await opt_out_client(engine, await value(engine, FIRST_CLIENT))
        await asyncio.sleep(0.2)
        gateway.may_write.set()
        await until_equal(engine, OPEN, 0)
    assert len(gateway.written) == 1


async def test_an_imported_file_stops_claimed_messages(
    engine: AsyncEngine, database_url: str
) -> None:
    await add_due_messages(engine, 20)
    gateway = SlowGateway()
    phones = [row["phone"] for row in await rows(engine, "SELECT phone FROM client")]

    async def file() -> AsyncIterator[bytes]:
        yield "\n".join(["phone", *phones[:15]]).encode()

    async with dispatching(engine, database_url, gateway):
        await until_connecting(gateway, 4)
        report = await import_opt_outs(engine, file(), COMMAND_LINE)
        assert report.created == 15
        await until_equal(engine, WITH_REASON, 15)
        gateway.may_write.set()
        await until_equal(engine, OPEN, 0)
    assert len(gateway.written) == 5


async def test_workers_hear_of_imported_opt_outs_before_scheduled_messages_are_cancelled(
    engine: AsyncEngine, database_url: str
) -> None:
    """Cancelling may wait for other transactions, and takes long for many clients."""
    await add_due_messages(engine, 1)
    phone = await phone_of(engine, await value(engine, FIRST_CLIENT))

    async def file() -> AsyncIterator[bytes]:
        yield f"phone\n{phone}".encode()

    has_heard = asyncio.Event()
    async with listening(database_url, has_heard), engine.begin() as other:
        await other.execute(text("SELECT FROM message FOR UPDATE"))
        importing = asyncio.create_task(import_opt_outs(engine, file(), COMMAND_LINE))
        async with asyncio.timeout(EVENT_TIMEOUT):
            await has_heard.wait()
        assert not importing.done()
    await importing
    assert await value(engine, WITH_REASON) == 1


async def test_an_opt_out_while_the_worker_had_no_connection_stops_its_messages(
    engine: AsyncEngine, database_url: str
) -> None:
    await add_due_messages(engine, 8)
    gateway = SlowGateway()
    async with dispatching(engine, database_url, gateway, concurrency=1):
        await until_connecting(gateway, 1)
        last = await value(engine, "SELECT client_id FROM message ORDER BY id DESC LIMIT 1")
        phone = await phone_of(engine, last)
        # without a notification
        await do(engine, lambda db: store.add(db, [phone], "api", None))
        await execute(
            engine,
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
            " WHERE application_name LIKE 'mailer%' AND pid <> pg_backend_pid()"
            " AND datname = current_database()",
        )
        await asyncio.sleep(1)
        gateway.may_write.set()
        await until_equal(engine, OPEN, 0)
    assert await value(engine, WITH_REASON) == 1
    assert len(gateway.written) == 7


async def test_the_answer_of_a_gateway_opts_the_client_out(
    engine: AsyncEngine, database_url: str
) -> None:
    [client_id] = await add_clients(engine, 1)
    mailing_ids = []
    for status in ("running", "paused"):
        mailing_id = await add_mailing(
            engine, clients=1, start=await value(engine, "SELECT now()"), status=status
        )
        await add_messages(engine, mailing_id, [client_id], "scheduled")
        mailing_ids.append(mailing_id)
    gateway = SlowGateway(lambda _: Rejected("opted_out", is_opt_out=True))
    gateway.may_write.set()
    async with dispatching(engine, database_url, gateway):
        await until_equal(engine, OPEN, 0)
    states = [
        (row["status"], row["reason"], row["attempts"])
        for row in await rows(engine, "SELECT * FROM message ORDER BY id")
    ]
    assert states == [("undelivered", "opted_out", 1), OPTED_OUT]
    [opt_out] = await rows(engine, "SELECT * FROM opt_out")
    assert (opt_out["client_id"], opt_out["source"]) == (client_id, "gateway")
    assert opt_out["gateway"] == "default"


async def test_results_are_recorded_even_if_the_opt_out_is_refused(
    engine: AsyncEngine, database_url: str
) -> None:
    mailing_id = await add_due_messages(engine, 1)
    [claimed] = await claim(engine, mailing_id)
    worker = WorkerClaims(LEASE)
    worker.owner = OWNER
    worker.add([claimed])
    await execute(engine, "ALTER TABLE opt_out ADD CHECK (source <> 'gateway')")
    result = MessageResult(claimed, "undelivered", 1, reason="opted_out", is_opt_out=True)
    async with recording(database_url, worker) as recorder:
        await recorder.put(result)
    assert await state(engine, claimed.id) == ("undelivered", "opted_out", 1)


async def test_a_claim_that_began_before_the_opt_out_is_stopped(
    engine: AsyncEngine, database_url: str
) -> None:
    """The claim does not see the opt-out, and is known to the worker only after it."""
    mailing_id = await add_due_messages(engine, 1)
    blocker = await asyncpg.connect(database_url)
    transaction = blocker.transaction()
    await transaction.start()
    # a claim locks the counts of its mailing at its end
    await blocker.execute("SELECT FROM mailing_counts FOR UPDATE")
    gateway = SlowGateway()
    async with dispatching(engine, database_url, gateway):
        await until_equal(engine, "SELECT count(*) FROM pg_locks WHERE NOT granted", 1)
        phone = await phone_of(engine, await value(engine, FIRST_CLIENT))
        await do(engine, lambda db: store.add(db, [phone], "api", None))
        await execute(engine, store.NOTIFY_OPT_OUTS)
        await asyncio.sleep(0.2)
        await transaction.rollback()
        await blocker.close()
        await until_equal(engine, OPEN, 0)
    assert gateway.written == []
    message_id = await value(engine, f"SELECT id FROM message WHERE mailing_id = {mailing_id}")  # noqa: S608  # a number
    assert await state(engine, message_id) == OPTED_OUT
