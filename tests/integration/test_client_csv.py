"""Import and export of clients as CSV, with a real PostgreSQL."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any
from zoneinfo import available_timezones

import pytest
from sqlalchemy.ext.asyncio import AsyncEngine
from tests.event_timeout import EVENT_TIMEOUT
from tests.factories import value
from tests.integration.client_files import (
    LineCounts,
    StoredClient,
    delete_all_clients,
    export_all,
    import_content,
    import_lines,
    line_counts,
    stored_clients,
    stored_tags,
)

from mailer.access.model import COMMAND_LINE
from mailer.client import store
from mailer.client.exporting import export_clients
from mailer.client.importing import ImportReport, import_clients
from mailer.client.model import UNKNOWN_ZONE_MESSAGE, Client, NewClient
from mailer.client.phone import ROUNDED_MESSAGE
from mailer.client.reading import BATCH_SIZE
from mailer.db.csv_export import CHUNK_ROWS
from mailer.db.engine import pool_usage
from mailer.errors import InvalidError

COUNT_STAGING_TABLES = "SELECT count(*) FROM pg_class WHERE relname = 'client_import'"
COUNT_WAITING_LOCKS = "SELECT count(*) FROM pg_locks WHERE NOT granted"
POSTGRESQL_ZONES = "SELECT array_agg(name) FROM pg_timezone_names"

ANNA = "79160000001"
BORIS = "79030000002"


def numbered_phone(number: int) -> str:
    """Return the phone with this number; phones of higher numbers are higher."""
    return f"7916{number:07}"


async def create_client(engine: AsyncEngine, phone: str, **fields: Any) -> int:
    async with engine.begin() as connection:
        return (await store.create(connection, NewClient(phone=phone, **fields))).id


async def get_client(engine: AsyncEngine, client_id: int) -> Client:
    async with engine.connect() as connection:
        return await store.get(connection, client_id)


async def erase_client(engine: AsyncEngine, client_id: int) -> None:
    async with engine.begin() as connection:
        await store.erase(connection, client_id)


def rejected_fields(report: ImportReport) -> list[tuple[int, str]]:
    """Return line and column of each rejected field; "" is the column of a whole line."""
    return [(error.line, error.field) for error in report.errors]


# ---- importing ------------------------------------------------------------------------------


async def test_new_clients_are_created_in_the_order_of_the_file(engine: AsyncEngine) -> None:
    report = await import_lines(
        engine,
        "phone,operator_code,tag,time_zone",
        f"{ANNA},999,vip,Europe/Moscow",
        f"{BORIS},,,",
    )
    assert line_counts(report) == LineCounts(created=2)
    assert await stored_clients(engine) == [
        StoredClient(ANNA, "999", "vip", "Europe/Moscow"),
        StoredClient(BORIS, "903", None, "UTC"),
    ]


@pytest.mark.parametrize(
    ("lines", "stored"),
    [
        (["tag;phone", f"new;{ANNA}"], StoredClient(ANNA, "999", "new", "Europe/Moscow")),
        (["phone,operator_code", f"{ANNA},921"], StoredClient(ANNA, "921", "vip", "Europe/Moscow")),
        (["phone,time_zone", f"{ANNA},Asia/Tomsk"], StoredClient(ANNA, "999", "vip", "Asia/Tomsk")),
    ],
    ids=["tag", "operator code", "time zone"],
)
async def test_columns_in_the_file_are_set_and_others_stay(
    engine: AsyncEngine, lines: list[str], stored: StoredClient
) -> None:
    await create_client(engine, ANNA, operator_code="999", tag="vip", time_zone="Europe/Moscow")
    assert line_counts(await import_lines(engine, *lines)) == LineCounts(updated=1)
    assert await stored_clients(engine) == [stored]


async def test_empty_tag_is_null_and_empty_code_and_zone_stay(engine: AsyncEngine) -> None:
    await create_client(engine, ANNA, operator_code="999", tag="vip", time_zone="Europe/Moscow")
    report = await import_lines(engine, "phone,operator_code,tag,time_zone", f"{ANNA},,,")
    assert line_counts(report) == LineCounts(updated=1)
    assert await stored_clients(engine) == [StoredClient(ANNA, "999", None, "Europe/Moscow")]


@pytest.mark.parametrize(
    "lines", [["phone", ANNA], ["phone,tag", f"{ANNA},vip"], ["time_zone,phone", f"UTC,{ANNA}"]]
)
async def test_an_unchanged_client_is_not_updated(engine: AsyncEngine, lines: list[str]) -> None:
    client_id = await create_client(engine, ANNA, tag="vip")
    before = await get_client(engine, client_id)
    assert line_counts(await import_lines(engine, *lines)) == LineCounts(unchanged=1)
    assert await get_client(engine, client_id) == before  # also its `updated_at`


async def test_the_last_valid_line_of_a_phone_wins_and_earlier_ones_count_as_unchanged(
    engine: AsyncEngine,
) -> None:
    await create_client(engine, BORIS, tag="old")
    report = await import_lines(
        engine,
        "phone,tag",
        f"{ANNA},first",
        f"{ANNA},second",
        f"{ANNA},third",
        f"{BORIS},new",
        f"{BORIS},old",
        f"{BORIS},too,many fields",
    )
    # unchanged: two lines of Anna, and both valid ones of Boris, who has the tag "old" already
    assert line_counts(report) == LineCounts(created=1, unchanged=4, rejected=1)
    assert await stored_clients(engine) == [
        StoredClient(BORIS, "903", "old"),
        StoredClient(ANNA, "916", "third"),
    ]


async def test_phones_in_a_file_may_have_every_usual_notation(engine: AsyncEngine) -> None:
    report = await import_lines(
        engine,
        "phone;tag",
        "+7 (916) 000-00-01;one",
        "8 916 000 00 02;two",
        "9160000003;three",
        "+7\u00a0916\u00a0000\u201300\u201304;four",  # no-break spaces and en dashes
        '"79160000005.0";five',
        "8(916)0000006;six",
    )
    assert line_counts(report) == LineCounts(created=6)
    assert await stored_clients(engine) == [
        StoredClient(numbered_phone(number), "916", tag)
        for number, tag in enumerate(("one", "two", "three", "four", "five", "six"), 1)
    ]


async def test_two_notations_of_one_phone_are_the_same_client(engine: AsyncEngine) -> None:
    report = await import_lines(engine, "phone;tag", "+7 916 0000001;old", "8(916)0000001;new")
    assert line_counts(report) == LineCounts(created=1, unchanged=1)
    assert await stored_clients(engine) == [StoredClient(ANNA, "916", "new")]


async def test_a_phone_rounded_by_a_spreadsheet_is_rejected_with_the_reason(
    engine: AsyncEngine,
) -> None:
    report = await import_lines(engine, "phone;tag", "7,91612E+10;vip")
    assert line_counts(report) == LineCounts(rejected=1)
    assert rejected_fields(report) == [(2, "phone")]
    assert report.errors[0].message == ROUNDED_MESSAGE


@pytest.mark.parametrize(
    ("tag", "stored"),
    [
        (" vip", "vip"),
        ("vip ", "vip"),
        ("\u00a0vip\u200b", "vip"),
        ("v\u200bip", "vip"),
        ("vip\ufeff", "vip"),
        ("\u200dvip\u2060", "vip"),
        ("\u200b", None),
    ],
)
async def test_invisible_characters_of_tags_in_a_file_are_removed(
    engine: AsyncEngine, tag: str, stored: str | None
) -> None:
    report = await import_lines(engine, "phone, Tag", f"{ANNA}, {tag}")
    assert line_counts(report) == LineCounts(created=1)
    assert await stored_tags(engine) == [stored]


async def test_a_changed_case_of_a_tag_is_a_change(engine: AsyncEngine) -> None:
    await import_lines(engine, "phone,tag", f"{ANNA},vip")
    for tag in ("VIP", "vip"):
        report = await import_lines(engine, "phone,tag", f"{ANNA},{tag}")
        assert line_counts(report) == LineCounts(updated=1)
        assert await stored_tags(engine) == [tag]


@pytest.mark.parametrize("lines", [["phone,tag", f"{ANNA},VIP"], ["phone", ANNA]])
async def test_a_tag_with_capitals_stays_as_written_when_it_does_not_change(
    engine: AsyncEngine, lines: list[str]
) -> None:
    await import_lines(engine, "phone,tag", f"{ANNA},VIP")
    assert line_counts(await import_lines(engine, *lines)) == LineCounts(unchanged=1)
    assert await stored_tags(engine) == ["VIP"]


async def test_importing_the_phone_of_an_erased_client_creates_a_new_one(
    engine: AsyncEngine,
) -> None:
    erased_id = await create_client(engine, ANNA, tag="vip")
    await erase_client(engine, erased_id)
    report = await import_lines(engine, "phone", ANNA)
    assert line_counts(report) == LineCounts(created=1)
    assert await stored_clients(engine) == [StoredClient(ANNA, "916")]
    new_id = await value(engine, "SELECT id FROM client WHERE phone IS NOT NULL")
    assert new_id != erased_id


FILE_WITH_INVALID_LINES = b"\n".join(
    [
        "phone,operator_code,tag,time_zone".encode("utf-8-sig"),
        f"{ANNA},916,vip,UTC".encode(),
        b"",
        b"69160000003,91,,Nowhere",  # line 4
        b"79160000004,,\xff,UTC",
        b"79160000005,,a\0b,UTC",
        b"79160000006,,,UTC,fifth field",  # line 7
        b'79160000007,,"unclosed,UTC',
        b"79160000008,," + b"x" * 65 + b",UTC",
        b"79160000009,," + b"x" * 20_000 + b",UTC",  # line 10
        b",,,,",
        f'{BORIS},,"two\r\nlines",'.encode(),
        b"79160000010,\xd9\xa1\xd9\xa2\xd9\xa3,,europe/moscow",  # line 14; Arabic digits
    ]
)


@pytest.mark.parametrize("chunk_size", [5, 65_536])
async def test_invalid_lines_are_reported_and_valid_ones_imported(
    engine: AsyncEngine, chunk_size: int
) -> None:
    report = await import_content(engine, FILE_WITH_INVALID_LINES, chunk_size)
    assert line_counts(report) == LineCounts(created=2, rejected=8)
    assert rejected_fields(report) == [
        *((4, field) for field in ("phone", "operator_code", "time_zone")),
        *((5, "tag"), (6, "tag"), (7, ""), (8, ""), (9, "tag"), (10, "")),
        *((14, "operator_code"), (14, "time_zone")),
    ]
    assert report.errors[0].message == "must be 7 and ten more digits, such as 79161234567"
    assert report.errors[3].message == "is not UTF-8"
    assert await stored_clients(engine) == [
        StoredClient(ANNA, "916", "vip"),
        StoredClient(BORIS, "903", "two lines"),
    ]


async def test_every_wrong_field_of_the_first_hundred_invalid_lines_is_reported(
    engine: AsyncEngine,
) -> None:
    line_with_two_wrong_fields = "1,Nowhere"
    report = await import_lines(
        engine, "phone,time_zone", *[line_with_two_wrong_fields] * 150, f"{ANNA},UTC"
    )
    assert line_counts(report) == LineCounts(created=1, rejected=150)
    assert len(report.errors) == 100 * 2
    assert rejected_fields(report)[-1] == (101, "time_zone")  # the header is line 1


async def test_a_time_zone_unknown_to_postgresql_rejects_its_line_alone(
    engine: AsyncEngine,
) -> None:
    zones_of_python_only = available_timezones().difference(await value(engine, POSTGRESQL_ZONES))
    if not zones_of_python_only:
        pytest.skip("this PostgreSQL knows every zone of this Python")
    unknown_zone = min(zones_of_python_only)
    report = await import_lines(engine, "phone,time_zone", f"{ANNA},{unknown_zone}", f"{BORIS},UTC")
    assert line_counts(report) == LineCounts(created=1, rejected=1)
    assert report.errors[0].message == UNKNOWN_ZONE_MESSAGE


async def test_an_invalid_header_stores_nothing(engine: AsyncEngine) -> None:
    with pytest.raises(InvalidError) as refused:
        await import_lines(engine, "phone,name,phone", f"{ANNA},Anna,{ANNA}")
    assert [error.field for error in refused.value.errors] == ["phone"]
    assert await stored_clients(engine) == []


async def aborted_file() -> AsyncIterator[bytes]:
    """Yield a header and the lines of three batches of staging, then fail."""
    yield b"phone\n"
    for first in range(0, 3 * BATCH_SIZE, BATCH_SIZE):
        yield "".join(f"{numbered_phone(n)}\n" for n in range(first, first + BATCH_SIZE)).encode()
    raise ConnectionResetError


async def test_an_aborted_file_stores_nothing_and_leaves_no_staging_table(
    engine: AsyncEngine,
) -> None:
    with pytest.raises(ConnectionResetError):
        await import_clients(engine, aborted_file(), COMMAND_LINE)
    assert await stored_clients(engine) == []
    assert await value(engine, COUNT_STAGING_TABLES) == 0


async def test_a_complete_import_leaves_no_staging_table(engine: AsyncEngine) -> None:
    await import_lines(engine, "phone", ANNA)
    assert await value(engine, COUNT_STAGING_TABLES) == 0


# ---- concurrent changes ---------------------------------------------------------------------


async def test_concurrent_imports_of_the_same_clients_are_serialized(engine: AsyncEngine) -> None:
    phones = [numbered_phone(number) for number in range(5000)]
    await import_lines(engine, "phone", *phones)
    await asyncio.gather(  # in opposite orders, which would deadlock without a lock
        import_lines(engine, "phone,tag", *(f"{each},one" for each in phones)),
        import_lines(engine, "phone,tag", *(f"{each},two" for each in reversed(phones))),
    )
    assert len(set(await stored_tags(engine))) == 1


async def test_a_client_created_during_the_import_is_updated(engine: AsyncEngine) -> None:
    async with engine.begin() as connection:
        await store.create(connection, NewClient(phone=ANNA, tag="of the request"))
        importing = asyncio.create_task(import_lines(engine, "phone,tag", f"{ANNA},of the file"))
        await wait_until_a_statement_is_blocked(engine)
    assert line_counts(await importing) == LineCounts(updated=1)
    assert await stored_clients(engine) == [StoredClient(ANNA, "916", "of the file")]


async def test_a_client_erased_during_the_import_stays_erased(engine: AsyncEngine) -> None:
    client_id = await create_client(engine, ANNA)
    async with engine.begin() as connection:
        await store.erase(connection, client_id)
        importing = asyncio.create_task(import_lines(engine, "phone,tag", f"{ANNA},vip"))
        await wait_until_a_statement_is_blocked(engine)
    assert line_counts(await importing) == LineCounts(unchanged=1)
    assert await stored_clients(engine) == []


async def wait_until_a_statement_is_blocked(engine: AsyncEngine) -> None:
    """Wait until a statement of the import waits for the lock of an open transaction."""
    async with asyncio.timeout(EVENT_TIMEOUT):
        while not await value(engine, COUNT_WAITING_LOCKS):
            await asyncio.sleep(0.01)


# ---- exporting ------------------------------------------------------------------------------


UNUSUAL_TAGS = [
    *("vip", "=1+1", "@x", '"quoted"', "a,b;c", "VIP", "Vip Club", "я", "Я", "İ", "ς", "ß"),
    *("\\.", "\\N", "NULL", "'", '"', "x\u200dy", "😀" * 64, "\u1e9e" * 64),
]


async def create_clients_with_unusual_tags(engine: AsyncEngine) -> int:
    """Create a client with each tag of `UNUSUAL_TAGS`, and one without; return their number."""
    for number, tag in enumerate(UNUSUAL_TAGS):
        await create_client(
            engine, numbered_phone(number), tag=tag, operator_code="999", time_zone="Asia/Tomsk"
        )
    await create_client(engine, BORIS)
    return len(UNUSUAL_TAGS) + 1


async def test_importing_an_export_changes_nothing(engine: AsyncEngine) -> None:
    count = await create_clients_with_unusual_tags(engine)
    report = await import_content(engine, await export_all(engine))
    assert line_counts(report) == LineCounts(unchanged=count)


async def test_importing_an_export_restores_deleted_clients(engine: AsyncEngine) -> None:
    await create_clients_with_unusual_tags(engine)
    before, exported = await stored_clients(engine), await export_all(engine)
    await delete_all_clients(engine)
    await import_content(engine, exported, chunk_size=3)
    assert await stored_clients(engine) == before
    assert await export_all(engine) == exported


async def test_an_export_has_no_erased_clients(engine: AsyncEngine) -> None:
    erased_id = await create_client(engine, ANNA, tag="vip")
    await create_client(engine, BORIS)
    await erase_client(engine, erased_id)
    assert (await export_all(engine)).decode().splitlines() == [
        "phone,operator_code,tag,time_zone",
        f"{BORIS},903,,UTC",
    ]


async def test_an_export_in_chunks_has_every_client_once_and_in_order(
    engine: AsyncEngine,
) -> None:
    phones = [numbered_phone(number) for number in range(2 * CHUNK_ROWS + 1)]
    await import_lines(engine, "phone", *phones)
    chunks = [chunk async for chunk in export_clients(engine, COMMAND_LINE)]
    assert [chunk.rows for chunk in chunks] == [CHUNK_ROWS, CHUNK_ROWS, 1]
    header, *lines = b"".join(chunk.content for chunk in chunks).decode().splitlines()
    assert header == "phone,operator_code,tag,time_zone"
    assert [line.partition(",")[0] for line in lines] == phones


async def test_an_export_holds_no_connection_between_chunks(engine: AsyncEngine) -> None:
    phones = [numbered_phone(number) for number in range(CHUNK_ROWS + 1)]
    await import_lines(engine, "phone", *phones)
    for _ in range(20):  # also after an export that was aborted after its first chunk
        async with aclosing(export_clients(engine, COMMAND_LINE)) as chunks:
            await anext(chunks)
            used_connections, *_ = pool_usage(engine)
            assert used_connections == 0
