from collections.abc import Sequence
from uuid import uuid4

from sqlalchemy.ext.asyncio import AsyncEngine
from tests.sample import add_clients, add_mailing, add_messages, execute

from mailer.access.model import COMMAND_LINE
from mailer.mailing import service
from mailer.report.verify import Difference, differences


async def sound_mailing(engine: AsyncEngine, clients: Sequence[int]) -> int:
    """A mailing whose audience is taken, half delivered."""
    mailing_id = await add_mailing(engine, clients=len(clients))
    half = len(clients) // 2
    await add_messages(engine, mailing_id, clients[:half], "delivered")
    await add_messages(engine, mailing_id, clients[half:], "scheduled")
    return mailing_id


async def test_sound_database_has_no_differences(engine: AsyncEngine) -> None:
    clients = await add_clients(engine, 6)
    await sound_mailing(engine, clients)
    await add_mailing(engine, status="scheduled", clients=6)

    assert await differences(engine) == []


async def test_ledger_follows_every_change_of_messages(engine: AsyncEngine) -> None:
    clients = await add_clients(engine, 6)
    await sound_mailing(engine, clients)
    lease = f"lease_owner = '{uuid4()}', lease_expires_at = now()"
    await execute(
        engine,
        f"UPDATE message SET status = 'sending', {lease} WHERE status = 'scheduled'",  # noqa: S608  # of a test
        "UPDATE message SET status = 'unknown', lease_owner = NULL, lease_expires_at = NULL"
        " WHERE status = 'sending' AND id % 2 = 0",
    )

    assert await differences(engine) == []


async def test_wrong_ledger_is_found_whichever_chunk_it_is_in(engine: AsyncEngine) -> None:
    clients = await add_clients(engine, 4)
    ids = [await sound_mailing(engine, clients) for _ in range(5)]
    await execute(
        engine,
        f"UPDATE ledger SET delivered = 3, scheduled = 0 WHERE mailing_id = {ids[0]}",  # noqa: S608  # ids of our own
        f"UPDATE ledger SET cancelled = 9 WHERE mailing_id = {ids[4]}",  # noqa: S608  # ids of our own
    )

    found = await differences(engine, chunk=2)

    assert found == [
        Difference(ids[0], "scheduled in the ledger", 0, 2),
        Difference(ids[0], "delivered in the ledger", 3, 2),
        Difference(ids[4], "cancelled in the ledger", 9, 0),
        Difference(None, "delivered on all days", 10, 11),
        Difference(None, "cancelled on all days", 0, 9),
    ]
    assert str(found[1]) == f"mailing {ids[0]}: delivered in the ledger: 3, expected 2"


async def test_audience_that_is_taken_is_the_messages_created(engine: AsyncEngine) -> None:
    mailing_id = await sound_mailing(engine, await add_clients(engine, 4))
    await execute(engine, "UPDATE mailing SET clients_count = 5")
    assert await differences(engine) == [Difference(mailing_id, "clients_count", 5, 4)]

    await execute(engine, "UPDATE mailing SET audience_cursor = 0")  # still being taken
    assert await differences(engine) == []


async def test_mailing_that_has_not_begun_has_no_messages(engine: AsyncEngine) -> None:
    mailing_id = await add_mailing(engine, status="scheduled")
    await add_messages(engine, mailing_id, await add_clients(engine, 2), "scheduled")

    assert await differences(engine) == [Difference(mailing_id, "messages before the start", 2, 0)]


async def test_deleted_mailing_may_be_half_gone(engine: AsyncEngine) -> None:
    mailing_id = await sound_mailing(engine, await add_clients(engine, 4))
    await service.delete(engine, mailing_id, COMMAND_LINE)
    await execute(engine, "DELETE FROM message WHERE id IN (SELECT id FROM message LIMIT 2)")
    assert await differences(engine) == []


async def test_messages_must_have_a_ledger_a_mailing_and_a_client(engine: AsyncEngine) -> None:
    clients = await add_clients(engine, 4)
    without_ledger = await sound_mailing(engine, clients)
    without_clients = await add_mailing(engine, clients=2)
    await add_messages(engine, without_clients, [998, 999], "delivered")
    await add_messages(engine, 77, clients, "delivered")
    await execute(engine, f"DELETE FROM ledger WHERE mailing_id = {without_ledger}")  # noqa: S608  # ids of our own

    assert await differences(engine) == [
        Difference(without_ledger, "ledgers", 0, 1),
        Difference(without_clients, "messages without their client", 2, 0),
        Difference(77, "messages without their mailing", 4, 0),
        Difference(None, "delivered on all days", 8, 2),
    ]
