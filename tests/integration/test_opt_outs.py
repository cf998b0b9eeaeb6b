"""Opt-outs of phones whose clients are created, imported, changed and deleted."""

import asyncio
import hashlib
import hmac
from collections.abc import AsyncIterator

import pytest
from msgspec.structs import replace
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine
from tests.factories import add_clients, do, rows, value
from tests.integration.opted_out import is_opted_out, opt_in, opt_out, opt_out_client, phone_of

from mailer.access.model import COMMAND_LINE
from mailer.client import importing, segment_counts
from mailer.client import service as clients
from mailer.client.model import ClientChange, NewClient
from mailer.erasure import erase_client
from mailer.opt_out import linking, store
from mailer.opt_out.importing import import_opt_outs
from mailer.statistics.verify import find_differences

PHONE, OTHER_PHONE = "79161234567", "79037654321"


@pytest.fixture
async def engine(engine: AsyncEngine) -> AsyncIterator[AsyncEngine]:
    yield engine
    assert await find_differences(engine) == []


async def create_client(engine: AsyncEngine, phone: str = PHONE) -> int:
    """Create a client and return its id."""
    return (await clients.create(engine, NewClient(phone=phone), COMMAND_LINE)).id


async def import_phones(engine: AsyncEngine, *phones: str) -> None:
    """Import clients with these phones."""
    await importing.import_clients(engine, file_of("phone", *phones), COMMAND_LINE)


async def file_of(*lines: str) -> AsyncIterator[bytes]:
    yield "\n".join(lines).encode()


async def change_phone(engine: AsyncEngine, client_id: int, phone: str) -> None:
    await clients.change(engine, client_id, ClientChange(phone=phone), COMMAND_LINE)


async def link_all(engine: AsyncEngine) -> None:
    await linking.link_all(engine)


async def test_the_first_opt_out_of_a_phone_counts(engine: AsyncEngine) -> None:
    client_id = await create_client(engine)
    first = await opt_out(engine, PHONE)
    assert first is not None
    assert (first.client_id, first.phone) == (client_id, PHONE)
    assert (first.source, first.gateway) == ("reply", "main")
    assert await opt_out(engine, PHONE) is None
    assert await do(engine, lambda db: store.get(db, first.id)) == first
    since = await value(engine, f"SELECT opted_out_at FROM client WHERE id = {client_id}")  # noqa: S608  # a number
    assert since == first.opted_out_at


async def test_an_opt_in_undoes_an_opt_out(engine: AsyncEngine) -> None:
    await create_client(engine)
    opted_out = await opt_out(engine, PHONE)
    assert await opt_in(engine, PHONE) == opted_out
    assert not await is_opted_out(engine, PHONE)
    assert await opt_in(engine, PHONE) is None
    assert await opt_out(engine, PHONE) is not None


async def test_a_new_client_gets_the_opt_out_of_the_phone(engine: AsyncEngine) -> None:
    opted_out = await opt_out(engine, PHONE)
    assert opted_out is not None
    assert (opted_out.client_id, opted_out.phone) == (None, None)
    await create_client(engine)
    await create_client(engine, OTHER_PHONE)
    assert await is_opted_out(engine, PHONE)
    assert not await is_opted_out(engine, OTHER_PHONE)


async def test_an_opt_out_outlives_its_client_as_a_keyed_hash(engine: AsyncEngine) -> None:
    client_id = await create_client(engine)
    await opt_out(engine, PHONE)
    await link_all(engine)
    await erase_client(engine, client_id, COMMAND_LINE)
    [stored] = await rows(engine, "SELECT * FROM opt_out")
    assert stored["client_id"] is None
    assert PHONE not in str(dict(stored))
    assert await value(engine, "SELECT count(*) FROM opt_out_to_link") == 0
    inner_key = await value(engine, "SELECT inner_key FROM opt_out_key")
    key = bytes(byte ^ 0x36 for byte in inner_key)  # RFC 2104
    assert stored["phone_digest"] == hmac.digest(key, PHONE.encode(), hashlib.sha256)

    await import_phones(engine, PHONE, OTHER_PHONE)
    assert await is_opted_out(engine, PHONE)
    assert not await is_opted_out(engine, OTHER_PHONE)


async def test_the_key_of_the_hashes_is_random_and_differs_by_database(
    engine: AsyncEngine,
) -> None:
    keys = [
        bytes(byte ^ pad for byte in await value(engine, f"SELECT {name} FROM opt_out_key"))  # noqa: S608  # a column
        for name, pad in (("inner_key", 0x36), ("outer_key", 0x5C))
    ]
    assert keys[0] == keys[1]
    assert keys[0][32:] == bytes(32)
    assert len(set(keys[0][:32])) > 16


async def test_an_import_neither_opts_in_nor_out(engine: AsyncEngine) -> None:
    for phone in (PHONE, OTHER_PHONE):
        await create_client(engine, phone)
    await opt_out(engine, PHONE)
    await importing.import_clients(
        engine, file_of("phone,tag", f"{PHONE},vip", f"{OTHER_PHONE},vip"), COMMAND_LINE
    )
    assert await is_opted_out(engine, PHONE)
    assert not await is_opted_out(engine, OTHER_PHONE)


async def test_a_client_who_has_opted_out_stays_so_with_a_new_phone(engine: AsyncEngine) -> None:
    client_id = await create_client(engine)
    await opt_out(engine, PHONE)
    await change_phone(engine, client_id, OTHER_PHONE)
    assert await is_opted_out(engine, OTHER_PHONE)
    await create_client(engine, PHONE)  # somebody else, or the same person again
    assert await is_opted_out(engine, PHONE)
    assert await opt_in(engine, OTHER_PHONE) is not None
    assert not await is_opted_out(engine, OTHER_PHONE)


async def test_a_client_gets_the_opt_out_of_a_new_phone(engine: AsyncEngine) -> None:
    await opt_out(engine, OTHER_PHONE)
    client_id = await create_client(engine)
    await change_phone(engine, client_id, OTHER_PHONE)
    assert await is_opted_out(engine, OTHER_PHONE)


async def test_a_phone_back_from_another_client_keeps_its_opt_out(engine: AsyncEngine) -> None:
    first, second = await create_client(engine), await create_client(engine, OTHER_PHONE)
    await opt_out(engine, PHONE)
    await opt_out(engine, OTHER_PHONE)
    await erase_client(engine, second, COMMAND_LINE)
    await change_phone(engine, first, OTHER_PHONE)
    await change_phone(engine, first, PHONE)
    assert await is_opted_out(engine, PHONE)
    assert await value(engine, "SELECT count(*) FROM opt_out") == 2


async def test_a_change_of_other_fields_changes_no_opt_out(engine: AsyncEngine) -> None:
    client_id = await create_client(engine)
    await opt_out(engine, PHONE)
    before = await rows(engine, "SELECT * FROM opt_out")
    change = ClientChange(phone=PHONE, tag="vip", time_zone="Europe/Moscow")
    await clients.change(engine, client_id, change, COMMAND_LINE)
    assert await rows(engine, "SELECT * FROM opt_out") == before


async def test_an_opt_out_finds_a_client_who_is_created_at_the_same_moment(
    engine: AsyncEngine,
) -> None:
    async with engine.begin() as connection:
        insert = "INSERT INTO client (phone, operator_code) VALUES (:phone, '916')"
        await connection.execute(text(insert), {"phone": PHONE})
        assert await opt_out(engine, PHONE) is not None  # it does not see the client
        await link_all(engine)
        assert await value(engine, "SELECT count(*) FROM opt_out_to_link") == 1
    assert not await is_opted_out(engine, PHONE)
    await link_all(engine)
    assert await is_opted_out(engine, PHONE)
    assert await value(engine, "SELECT count(*) FROM opt_out_to_link") == 0


async def test_an_opt_in_finds_a_client_who_is_created_at_the_same_moment(
    engine: AsyncEngine,
) -> None:
    await opt_out(engine, PHONE)
    async with engine.begin() as connection:
        insert = "INSERT INTO client (phone, operator_code) VALUES (:phone, '916')"
        await connection.execute(text(insert), {"phone": PHONE})
        opting_in = asyncio.create_task(opt_in(engine, PHONE))
        waiting = "SELECT count(*) FROM pg_locks WHERE NOT granted"
        while not await value(engine, waiting):
            await asyncio.sleep(0.01)
    assert await opting_in is not None
    assert not await is_opted_out(engine, PHONE)


async def test_opt_outs_and_opt_ins_of_a_phone_at_once_end_in_one_state(
    engine: AsyncEngine,
) -> None:
    await create_client(engine)
    await asyncio.gather(*(change(engine, PHONE) for _ in range(5) for change in (opt_out, opt_in)))
    is_stored = bool(await value(engine, "SELECT count(*) FROM opt_out"))
    assert await is_opted_out(engine, PHONE) == is_stored


async def test_opted_out_clients_are_counted_by_segment(engine: AsyncEngine) -> None:
    ids = await add_clients(engine, 3)
    await opt_out_client(engine, ids[0])
    await opt_out_client(engine, ids[1])
    async with engine.connect() as connection:
        counts = [
            await segment_counts.count(connection, opted_out=opted_out)
            for opted_out in (None, True, False)
        ]
    assert counts == [3, 2, 1]
    await do(engine, lambda db: segment_counts.merge_deltas(db, 100))
    await opt_in(engine, await phone_of(engine, ids[0]))
    await erase_client(engine, ids[1], COMMAND_LINE)
    assert await do(engine, lambda db: segment_counts.count(db, opted_out=True)) == 0
    await do(engine, lambda db: segment_counts.merge_deltas(db, 100))
    assert await do(engine, lambda db: segment_counts.count(db, opted_out=False)) == 2


async def test_the_number_of_opt_outs_is_counted(engine: AsyncEngine) -> None:
    for phone in (PHONE, OTHER_PHONE):
        await opt_out(engine, phone)
    await do(engine, store.merge_counts)
    await opt_in(engine, PHONE)
    assert await do(engine, store.count) == 1
    await do(engine, store.merge_counts)
    assert await do(engine, store.count) == 1
    assert await value(engine, "SELECT count(*) FROM opt_out_count") == 1


async def test_a_file_opts_out_phones_with_and_without_a_client(engine: AsyncEngine) -> None:
    client_id = await create_client(engine)
    lines = file_of(
        "phone,opted_out_at",
        "+7 (916) 123-45-67,2024-05-01T10:00:00+03:00",
        f"{PHONE},2024-04-01T10:00:00Z",
        f"{OTHER_PHONE},",
        "916,",
        f"{OTHER_PHONE},3024-05-01T10:00:00Z",
        f"{OTHER_PHONE},yesterday",
        f"{OTHER_PHONE},01.05.2024 10:00",
    )
    report = await import_opt_outs(engine, lines, COMMAND_LINE)
    assert (report.created, report.unchanged, report.rejected) == (2, 1, 4)
    assert [(error.line, error.field) for error in report.errors] == [
        (5, "phone"),
        *((line, "opted_out_at") for line in (6, 7, 8)),
    ]
    since = f"SELECT opted_out_at::date::text FROM client WHERE id = {client_id}"  # noqa: S608  # a number
    assert await value(engine, since) == "2024-04-01"  # the earliest
    await create_client(engine, OTHER_PHONE)
    assert await is_opted_out(engine, OTHER_PHONE)

    again = await import_opt_outs(engine, file_of("phone", PHONE, OTHER_PHONE), COMMAND_LINE)
    assert again == replace(again, created=0, unchanged=2, rejected=0, errors=[])
    assert await value(engine, since) == "2024-04-01"
