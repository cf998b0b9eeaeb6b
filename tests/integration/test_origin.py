"""The origin of a database: what follows for sending and for message ids when it has changed.

The origin is the record of the server, database and timeline where the database last ran. A moved
database runs elsewhere. A restored one comes from a dump or a copy: it is held, which means that it
sends nothing until a user agrees.
"""

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from urllib.parse import urlsplit, urlunsplit

import pytest
from sqlalchemy.ext.asyncio import AsyncEngine
from tests.factories import (
    add_clients,
    add_due_messages,
    add_mailing,
    add_messages,
    claim,
    do,
    execute,
)
from tests.factories import value as value_of

from mailer.access.model import COMMAND_LINE
from mailer.db import origin
from mailer.db.engine import connect, create_engine
from mailer.db.migrate import migrate
from mailer.mailing import enqueuing, restore, starting
from mailer.mailing.restore import NotHeldError
from mailer.mailing.skipped import SkippedMailings
from mailer.validation import MAX_ID

LAST_MESSAGE_ID = "SELECT max(id) FROM message"
SENDING_IS_ALLOWED = "SELECT sending_is_allowed()"
GAP = 2**32
"""The least number of ids that are skipped when the origin changes."""


async def is_allowed(engine: AsyncEngine) -> bool:
    """Return whether messages may be sent."""
    return bool(await value_of(engine, SENDING_IS_ALLOWED))


# SQL that changes the recorded origin, so that the database seems to run elsewhere
NO_CHANGE = "moved_at = moved_at"
NEW_TIMELINE = "timeline = timeline + 1"
NEW_SERVER_START = "started_at = started_at - interval '1 hour'"
NEW_SERVER = "server = server + 1"
NEW_DATABASE = "database = database + 1"


async def restore_from_dump(engine: AsyncEngine, change: str = NO_CHANGE) -> None:
    """Make the database look restored from a dump, and apply a change of its recorded origin.

    A restore writes the row of the origin in another transaction than the one that the row names.
    """
    await execute(engine, f"UPDATE origin SET {change}")  # noqa: S608  # a change of the test


async def move(engine: AsyncEngine, change: str = NEW_TIMELINE) -> None:
    """Make the database look moved, but not restored: the row still names its transaction."""
    own_transaction = "written_by = pg_current_xact_id()::xid::text::bigint"
    await execute(engine, f"UPDATE origin SET {own_transaction}, {change}")  # noqa: S608  # a change of the test


@pytest.fixture
async def template_copy(server_url: str, engine: AsyncEngine) -> AsyncIterator[AsyncEngine]:
    """A copy of the database, with a running mailing, by `CREATE DATABASE ... TEMPLATE`."""
    await add_due_messages(engine, 3)
    name = str(await value_of(engine, "SELECT current_database()"))
    await engine.dispose()
    connection = await connect(server_url)
    await connection.execute(f"CREATE DATABASE {name}_twin TEMPLATE {name}")
    twin = create_engine(urlunsplit(urlsplit(server_url)._replace(path=f"/{name}_twin")))
    yield twin
    await twin.dispose()
    await connection.execute(f"DROP DATABASE {name}_twin")
    await connection.close()


async def test_ids_start_at_1_and_do_not_jump_while_the_origin_is_the_same(
    engine: AsyncEngine,
) -> None:
    await add_due_messages(engine, 3)
    assert await value_of(engine, LAST_MESSAGE_ID) == 3
    assert not await do(engine, origin.update)
    assert await is_allowed(engine)


async def test_a_new_timeline_or_server_start_makes_ids_jump_without_a_hold(
    engine: AsyncEngine,
) -> None:
    mailing_id = await add_due_messages(engine, 3)
    clients = await add_clients(engine, 2)
    last_id = 3
    for change, client in zip((NEW_TIMELINE, NEW_SERVER_START), clients, strict=True):
        await move(engine, change)
        assert not await is_allowed(engine)
        assert await claim(engine, mailing_id) == []  # the move is not recorded yet

        await add_messages(engine, mailing_id, [client], "scheduled")  # an insert records it

        new_id = int(await value_of(engine, LAST_MESSAGE_ID))
        assert last_id + GAP < new_id <= MAX_ID
        last_id = new_id
        assert await is_allowed(engine)
    assert len(await claim(engine, mailing_id, count=9)) == 3 + 2


async def test_an_audience_is_enqueued_although_a_server_restart_is_not_recorded_yet(
    engine: AsyncEngine,
) -> None:
    await add_clients(engine, 2)
    await add_mailing(engine, status="scheduled")
    await do(engine, starting.start_due)
    await move(engine, NEW_SERVER_START)
    skipped = SkippedMailings()

    chunk = await do(engine, lambda db: enqueuing.enqueue_chunk(db, "lowest_cursor", skipped))

    assert chunk is not None
    assert chunk.is_last
    assert not skipped
    assert await value_of(engine, "SELECT count(*) FROM message") == 2
    assert await is_allowed(engine)


@pytest.mark.parametrize("change", [NO_CHANGE, NEW_SERVER, NEW_DATABASE])
async def test_a_restored_database_is_held_until_a_user_agrees(
    engine: AsyncEngine, change: str
) -> None:
    mailing_id = await add_due_messages(engine, 3)
    await restore_from_dump(engine, change)

    assert await do(engine, origin.update)

    assert not await is_allowed(engine)
    assert await claim(engine, mailing_id, count=9) == []
    hold = await do(engine, origin.get_hold)
    assert hold is not None

    await restore.resume(engine, hold.since, COMMAND_LINE)

    assert await do(engine, origin.get_hold) is None
    assert not await do(engine, origin.update)  # nothing has changed since
    assert len(await claim(engine, mailing_id, count=9)) == 3


async def test_a_user_can_agree_only_to_the_present_hold_and_only_once(engine: AsyncEngine) -> None:
    await add_due_messages(engine, 3)
    await restore_from_dump(engine)
    await do(engine, origin.update)
    hold = await do(engine, origin.get_hold)
    assert hold is not None

    with pytest.raises(NotHeldError):
        await restore.resume(engine, datetime.now(UTC), COMMAND_LINE)  # to a hold of another time
    await restore.resume(engine, hold.since, COMMAND_LINE)
    with pytest.raises(NotHeldError):
        await restore.resume(engine, hold.since, COMMAND_LINE)


async def test_a_second_row_means_that_data_was_restored(engine: AsyncEngine) -> None:
    await add_due_messages(engine, 1)
    await execute(engine, "INSERT INTO origin SELECT * FROM origin")
    assert await do(engine, origin.update)
    assert await do(engine, origin.get_hold) is not None
    assert await value_of(engine, "SELECT count(*) FROM origin") == 1


async def test_vacuum_of_the_row_does_not_count_as_a_move_or_a_restore(engine: AsyncEngine) -> None:
    await add_due_messages(engine, 1)
    async with engine.connect() as connection:
        autocommit = await connection.execution_options(isolation_level="AUTOCOMMIT")
        for statement in ("VACUUM (FREEZE) origin", "VACUUM (FULL) origin"):
            await autocommit.exec_driver_sql(statement)
    assert await is_allowed(engine)


async def test_a_database_without_mailings_and_reports_is_never_held(engine: AsyncEngine) -> None:
    await restore_from_dump(engine)
    assert await do(engine, origin.update)
    assert await is_allowed(engine)


async def test_a_database_copied_as_a_template_is_held_and_its_original_is_not(
    engine: AsyncEngine, template_copy: AsyncEngine
) -> None:
    # several workers start at once; one of them records the move
    await asyncio.gather(*(migrate(template_copy) for _ in range(4)))
    assert await do(template_copy, origin.get_hold) is not None
    assert await value_of(template_copy, "SELECT count(*) FROM origin") == 1
    assert int(await value_of(template_copy, "SELECT last_value FROM message_id_seq")) > GAP
    assert await is_allowed(engine)
    assert await value_of(engine, "SELECT last_value FROM message_id_seq") == 3


async def test_a_held_database_that_moves_stays_held(engine: AsyncEngine) -> None:
    await add_due_messages(engine, 1)
    await restore_from_dump(engine)
    await do(engine, origin.update)
    before = await do(engine, origin.get_hold)
    await move(engine)
    assert await do(engine, origin.update)
    assert await do(engine, origin.get_hold) == before


async def test_ids_stay_within_2_to_the_53_however_often_they_jump(
    engine: AsyncEngine,
) -> None:
    mailing_id = await add_mailing(engine)
    await execute(engine, f"ALTER SEQUENCE message_id_seq RESTART {MAX_ID - 5_000}")
    clients = await add_clients(engine, 20)
    for client in clients:
        await add_messages(engine, mailing_id, [client], "scheduled")
        await move(engine)
    ids = await value_of(engine, "SELECT array_agg(id ORDER BY client_id) FROM message")
    assert ids == sorted(set(ids))
    assert ids[-1] <= MAX_ID


async def test_messages_that_would_be_sent_are_counted_by_mailing(engine: AsyncEngine) -> None:
    mailing_id = await add_due_messages(engine, 3)
    await claim(engine, mailing_id)  # one message was being sent at the time of the copy
    past_its_end = await add_mailing(engine)
    await add_messages(engine, past_its_end, await add_clients(engine, 1), "scheduled")
    await restore_from_dump(engine)
    await do(engine, origin.update)

    restored = await do(engine, restore.find_restored)

    assert restored is not None
    assert [(each.id, each.messages) for each in restored.mailings] == [(mailing_id, 3)]
    assert (restored.mailings_count, restored.messages_count) == (1, 3)
    assert restored.hold.data_until is not None
