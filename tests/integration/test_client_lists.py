"""Lists of clients: their members, exact counts, deletion, imports and exports."""

import asyncio
from collections.abc import AsyncIterator

import pytest
from sqlalchemy.ext.asyncio import AsyncEngine
from tests.event_timeout import let_run
from tests.factories import add_clients, do, put_on_list, value

from mailer.access.model import COMMAND_LINE
from mailer.client.exporting import export_clients
from mailer.client.importing import ImportReport, import_clients
from mailer.client.lists import membership, service, store
from mailer.client.lists.model import ListNotFoundError, NewList
from mailer.client.reading import ImportOptions
from mailer.db.engine import asyncpg_connection
from mailer.erasure import erase_client
from mailer.statistics.verify import find_differences

COUNT_MEMBERS = "SELECT count(*) FROM client_list_member"


async def imported(engine: AsyncEngine, content: str, list_name: str | None) -> ImportReport:
    """Import a CSV file, and put its clients on a list."""

    async def parts() -> AsyncIterator[bytes]:
        yield content.encode()

    return await import_clients(
        engine, parts(), COMMAND_LINE, options=ImportOptions(list_name=list_name)
    )


async def clients_count(engine: AsyncEngine, list_id: int) -> int:
    """Return the number of clients on a list, after it was compared with the members."""
    assert await find_differences(engine) == []
    async with engine.connect() as connection:
        return (await store.get(connection, list_id)).clients_count


async def test_new_updated_and_unchanged_clients_of_an_import_are_put_on_the_list(
    engine: AsyncEngine,
) -> None:
    await imported(engine, "phone,tag\n79160000001,a\n79160000002,b\n79160000009,z\n", None)
    report = await imported(
        engine,
        "phone,tag\n79160000001,a\n79160000002,new\n79160000003,c\nwrong,d\n79160000003,c\n",
        "Spring",
    )
    assert (report.created, report.updated, report.unchanged, report.rejected) == (1, 1, 2, 1)
    assert report.client_list
    assert (report.client_list.is_new, report.client_list.added) == (True, 3)
    assert await clients_count(engine, report.client_list.id) == 3
    last_digits = """
        SELECT string_agg(right(phone, 1), '' ORDER BY phone)
        FROM client_list_member JOIN client ON id = client_id"""
    assert await value(engine, last_digits) == "123"


async def test_an_import_for_an_existing_list_adds_to_it(engine: AsyncEngine) -> None:
    list_id = await put_on_list(engine, "Spring", await add_clients(engine, 2))
    report = await imported(engine, "phone\n79990000001\n", "sPRING")
    assert report.client_list
    assert report.client_list.id == list_id
    assert (report.client_list.name, report.client_list.is_new) == ("Spring", False)
    assert await clients_count(engine, list_id) == 3


async def test_an_import_of_wrong_lines_alone_creates_no_list(engine: AsyncEngine) -> None:
    report = await imported(engine, "phone\nwrong\n", "Spring")
    assert not report.client_list
    assert await value(engine, "SELECT count(*) FROM client_list") == 0


async def test_an_erased_client_is_on_no_list_and_returns_to_none(engine: AsyncEngine) -> None:
    report = await imported(engine, "phone\n79160000001\n79160000002\n", "A")
    await imported(engine, "phone\n79160000001\n", "B")
    client_id = await value(engine, "SELECT id FROM client WHERE phone = '79160000001'")
    await erase_client(engine, client_id, COMMAND_LINE)
    assert report.client_list
    assert await clients_count(engine, report.client_list.id) == 1
    await imported(engine, "phone\n79160000001\n", None)
    assert await clients_count(engine, report.client_list.id) == 1
    assert await value(engine, COUNT_MEMBERS) == 1


async def test_the_count_of_a_list_is_exact_when_clients_are_added_and_erased_at_once(
    engine: AsyncEngine,
) -> None:
    ids = await add_clients(engine, 20)
    list_id = await put_on_list(engine, "A", ids[:10])
    await asyncio.gather(
        *(erase_client(engine, id_, COMMAND_LINE) for id_ in ids[5:15:3]),
        *(do(engine, lambda db: membership.add(db, list_id, ids)) for _ in range(3)),
        *(do(engine, lambda db: membership.remove(db, list_id, ids[::4])) for _ in range(2)),
    )
    count = await clients_count(engine, list_id)
    assert count == await value(engine, COUNT_MEMBERS)


async def test_a_client_who_is_being_erased_is_not_put_on_a_list(engine: AsyncEngine) -> None:
    [client_id] = await add_clients(engine, 1)
    list_id = await put_on_list(engine, "A", [])
    async with engine.begin() as connection:
        await membership.remove_from_all(connection, client_id)
        database = await asyncpg_connection(connection)
        await database.execute("UPDATE client SET phone = NULL, deleted_at = now()")
        adding = asyncio.create_task(
            do(engine, lambda db: membership.add(db, list_id, [client_id]))
        )
        await let_run(adding)
        assert not adding.done()
    assert await adding == 0
    assert await clients_count(engine, list_id) == 0


async def test_a_deleted_list_is_purged_in_chunks_and_its_name_is_free(
    engine: AsyncEngine,
) -> None:
    list_id = await put_on_list(engine, "A", await add_clients(engine, 25))
    kept = await put_on_list(engine, "B", await add_clients(engine, 2))
    await service.delete(engine, list_id, COMMAND_LINE)
    with pytest.raises(ListNotFoundError):
        await service.delete(engine, list_id, COMMAND_LINE)
    again = await service.create(engine, NewList(name="A"), COMMAND_LINE)
    assert again.clients_count == 0
    purged = [await do(engine, lambda db: store.purge(db, 10)) for _ in range(3)]
    assert purged == [10, 10, 5]
    assert await value(engine, "SELECT array_agg(id ORDER BY id) FROM client_list") == [
        kept,
        again.id,
    ]
    assert await value(engine, COUNT_MEMBERS) == 2


async def test_a_list_can_be_exported(engine: AsyncEngine) -> None:
    report = await imported(engine, "phone\n79160000001\n79160000002\n", "A")
    await imported(engine, "phone\n79160000003\n", None)
    assert report.client_list
    parts = [part async for part in export_clients(engine, COMMAND_LINE, list="a")]
    lines = b"".join(part.content for part in parts).decode().splitlines()
    assert [line[:11] for line in lines[1:]] == ["79160000001", "79160000002"]


async def test_a_wrong_count_of_a_list_is_found(engine: AsyncEngine) -> None:
    await put_on_list(engine, "A", await add_clients(engine, 2))
    async with engine.begin() as connection:
        database = await asyncpg_connection(connection)
        await database.execute("UPDATE client_list SET clients_count = 5")
    [difference] = await find_differences(engine)
    assert (difference.found, difference.expected) == (5, 2)
