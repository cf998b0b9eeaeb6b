"""Import and export of clients as CSV, with a real PostgreSQL."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing
from typing import Any
from zoneinfo import available_timezones

import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine
from tests.event_timeout import EVENT_TIMEOUT

from mailer.access.model import COMMAND_LINE
from mailer.client import store
from mailer.client.exporting import export_clients
from mailer.client.importing import STAGE_BATCH, ImportReport, import_clients
from mailer.client.model import UNKNOWN_ZONE_MESSAGE, NewClient
from mailer.client.phone import ROUNDED_MESSAGE
from mailer.db.csv_export import CHUNK_ROWS
from mailer.db.engine import pool_usage
from mailer.errors import InvalidError

ALL = text("""
    SELECT phone, operator_code, coalesce(tag_written, tag), time_zone FROM client
    WHERE deleted_at IS NULL ORDER BY id""")
STAGING = text("SELECT count(*) FROM pg_class WHERE relname = 'client_import'")
WAITING = text("SELECT count(*) FROM pg_locks WHERE NOT granted")

ANNA = "79160000001"
BORIS = "79030000002"


async def chunks_of(content: str | bytes, size: int = 1 << 16) -> AsyncIterator[bytes]:
    content = content.encode() if isinstance(content, str) else content
    for start in range(0, len(content), size):
        yield content[start : start + size]


async def import_lines(engine: AsyncEngine, *lines: str) -> ImportReport:
    return await import_clients(engine, chunks_of("\n".join(lines)), COMMAND_LINE)


async def read_clients(engine: AsyncEngine) -> list[tuple[str, str, str | None, str]]:
    async with engine.connect() as connection:
        return [(row[0], row[1], row[2], row[3]) for row in await connection.execute(ALL)]


async def count_rows(engine: AsyncEngine, query: Any) -> int:
    async with engine.connect() as connection:
        return int((await connection.execute(query)).scalar_one())


async def create_client(engine: AsyncEngine, phone: str, **fields: str) -> int:
    async with engine.begin() as connection:
        return (await store.create(connection, NewClient(phone=phone, **fields))).id


async def export_all(engine: AsyncEngine) -> bytes:
    return b"".join([chunk.content async for chunk in export_clients(engine, COMMAND_LINE)])


def counts(report: ImportReport) -> tuple[int, int, int, int]:
    return report.created, report.updated, report.unchanged, report.rejected


def wrong_fields(report: ImportReport) -> Sequence[tuple[int, str]]:
    return [(error.line, error.field) for error in report.errors]


async def test_new_clients_are_created_in_the_order_of_the_file(engine: AsyncEngine) -> None:
    report = await import_lines(
        engine,
        "phone,operator_code,tag,time_zone",
        f"{ANNA},999,vip,Europe/Moscow",
        f"{BORIS},,,",
    )
    assert counts(report) == (2, 0, 0, 0)
    assert await read_clients(engine) == [
        (ANNA, "999", "vip", "Europe/Moscow"),
        (BORIS, "903", None, "UTC"),
    ]


async def test_columns_in_the_file_are_set_and_others_stay(engine: AsyncEngine) -> None:
    await create_client(engine, ANNA, operator_code="999", tag="vip", time_zone="Europe/Moscow")
    assert counts(await import_lines(engine, "tag;phone", f"new;{ANNA}")) == (0, 1, 0, 0)
    assert await read_clients(engine) == [(ANNA, "999", "new", "Europe/Moscow")]
    assert counts(await import_lines(engine, "phone,operator_code", f"{ANNA},921")) == (0, 1, 0, 0)
    assert counts(await import_lines(engine, "phone,time_zone", f"{ANNA},Asia/Tomsk")) == (
        0,
        1,
        0,
        0,
    )
    assert await read_clients(engine) == [(ANNA, "921", "new", "Asia/Tomsk")]


async def test_empty_tag_is_null_and_empty_code_and_zone_stay(engine: AsyncEngine) -> None:
    await create_client(engine, ANNA, operator_code="999", tag="vip", time_zone="Europe/Moscow")
    report = await import_lines(engine, "phone,operator_code,tag,time_zone", f"{ANNA},,,")
    assert counts(report) == (0, 1, 0, 0)
    assert await read_clients(engine) == [(ANNA, "999", None, "Europe/Moscow")]


async def test_an_unchanged_client_is_not_updated(engine: AsyncEngine) -> None:
    client_id = await create_client(engine, ANNA, tag="vip")
    async with engine.connect() as connection:
        before = await store.get(connection, client_id)
    for file in (["phone", ANNA], ["phone,tag", f"{ANNA},vip"], ["time_zone,phone", f"UTC,{ANNA}"]):
        assert counts(await import_lines(engine, *file)) == (0, 0, 1, 0)
    async with engine.connect() as connection:
        assert await store.get(connection, client_id) == before


async def test_the_last_line_of_a_phone_wins_and_the_counts_add_up(engine: AsyncEngine) -> None:
    await create_client(engine, BORIS, tag="old")
    report = await import_lines(
        engine,
        "phone,tag",
        *(f"{ANNA},{tag}" for tag in ("first", "second", "third")),
        f"{BORIS},new",
        f"{BORIS},old",
        f"{BORIS},bad,line",
    )
    assert counts(report) == (1, 0, 4, 1)
    assert await read_clients(engine) == [
        (BORIS, "903", "old", "UTC"),
        (ANNA, "916", "third", "UTC"),
    ]


async def test_phones_in_a_file_may_have_every_usual_notation(engine: AsyncEngine) -> None:
    report = await import_lines(
        engine,
        "phone;tag",
        "+7 (916) 000-00-01;one",
        "8 916 000 00 02;two",
        "9160000003;three",
        "+7\u00a0916\u00a0000\u201300\u201304;four",
        '"79160000005.0";five',
        "7,91612E+10;six",
        "8(916)0000001;seven",
    )
    assert counts(report) == (5, 0, 1, 1)
    assert [(phone, tag) for phone, _, tag, _ in await read_clients(engine)] == [
        ("79160000002", "two"),
        ("79160000003", "three"),
        ("79160000004", "four"),
        ("79160000005", "five"),
        (ANNA, "seven"),
    ]
    assert wrong_fields(report) == [(7, "phone")]
    assert report.errors[0].message == ROUNDED_MESSAGE


async def test_invisible_characters_of_tags_in_a_file_are_removed(engine: AsyncEngine) -> None:
    tags = [
        " vip",
        "vip ",
        "\u00a0vip\u200b",
        "v\u200bip",
        "vip\ufeff",
        "\u200dvip\u2060",
        "\u200b",
    ]
    report = await import_lines(
        engine, "phone, Tag", *(f"7916{n:07}, {tag}" for n, tag in enumerate(tags))
    )
    assert report.created == len(tags)
    assert [tag for _, _, tag, _ in await read_clients(engine)] == ["vip"] * 6 + [None]


async def test_a_changed_case_of_a_tag_is_a_change(
    engine: AsyncEngine,
) -> None:
    await import_lines(engine, "phone,tag", f"{ANNA},vip")
    assert counts(await import_lines(engine, "phone,tag", f"{ANNA},VIP")) == (0, 1, 0, 0)
    assert counts(await import_lines(engine, "phone,tag", f"{ANNA},VIP")) == (0, 0, 1, 0)
    assert counts(await import_lines(engine, "phone", ANNA)) == (0, 0, 1, 0)
    assert (await read_clients(engine))[0][2] == "VIP"
    assert counts(await import_lines(engine, "phone,tag", f"{ANNA},vip")) == (0, 1, 0, 0)
    assert (await read_clients(engine))[0][2] == "vip"


async def test_importing_the_phone_of_an_erased_client_creates_a_new_one(
    engine: AsyncEngine,
) -> None:
    client_id = await create_client(engine, ANNA, tag="vip")
    async with engine.begin() as connection:
        await store.erase(connection, client_id)
    assert counts(await import_lines(engine, "phone", ANNA)) == (1, 0, 0, 0)
    assert await read_clients(engine) == [(ANNA, "916", None, "UTC")]
    async with engine.connect() as connection:
        [row] = await connection.execute(text("SELECT id FROM client WHERE phone IS NOT NULL"))
    assert row.id != client_id


async def test_invalid_lines_are_reported_and_valid_ones_imported(engine: AsyncEngine) -> None:
    content = b"\n".join(
        [
            "phone,operator_code,tag,time_zone".encode("utf-8-sig"),
            f"{ANNA},916,vip,UTC".encode(),
            b"",
            b"69160000003,91,,Nowhere",  # 4
            b"79160000004,,\xff,UTC",
            b"79160000005,,a\0b,UTC",
            b"79160000006,,,UTC,x",  # 7
            b'79160000007,,"unclosed,UTC',
            b"79160000008,," + b"x" * 65 + b",UTC",
            b"79160000009,," + b"x" * 5000 + b",UTC",  # 10
            b",,,,",
            f'{BORIS},,"two\r\nlines",'.encode(),
            b"79160000010,\xd9\xa1\xd9\xa2\xd9\xa3,,europe/moscow",  # 14
        ]
    )
    for size in (1 << 16, 5):
        report = await import_clients(engine, chunks_of(content, size), COMMAND_LINE)
        assert report.rejected == 8
        assert wrong_fields(report) == [
            *((4, field) for field in ("phone", "operator_code", "time_zone")),
            *((5, "tag"), (6, "tag"), (7, ""), (8, ""), (9, "tag"), (10, "")),
            *((14, "operator_code"), (14, "time_zone")),
        ]
        assert report.errors[0].message == "must be 7 and ten more digits, such as 79161234567"
        assert report.errors[3].message == "is not UTF-8"
        assert await read_clients(engine) == [
            (ANNA, "916", "vip", "UTC"),
            (BORIS, "903", "two lines", "UTC"),
        ]


async def test_the_first_hundred_invalid_lines_are_reported_in_full(engine: AsyncEngine) -> None:
    report = await import_lines(engine, "phone,time_zone", *["1,Nowhere"] * 150, f"{ANNA},UTC")
    assert counts(report) == (1, 0, 0, 150)
    assert len(report.errors) == 200
    assert wrong_fields(report)[-1] == (101, "time_zone")


async def test_a_time_zone_unknown_to_postgresql_rejects_its_line_alone(
    engine: AsyncEngine,
) -> None:
    names = text("SELECT name FROM pg_timezone_names")
    async with engine.connect() as connection:
        known = {row.name for row in await connection.execute(names)}
    if not (unknown := available_timezones() - known):
        pytest.skip("this PostgreSQL knows every zone of this Python")
    report = await import_lines(engine, "phone,time_zone", f"{ANNA},{min(unknown)}", f"{BORIS},UTC")
    assert counts(report) == (1, 0, 0, 1)
    assert report.errors[0].message == UNKNOWN_ZONE_MESSAGE


async def test_an_invalid_header_stores_nothing(engine: AsyncEngine) -> None:
    with pytest.raises(InvalidError) as refused:
        await import_lines(engine, "phone,name,phone", f"{ANNA},Anna,{ANNA}")
    assert [error.field for error in refused.value.errors] == ["name", "phone"]
    assert await read_clients(engine) == []


async def test_an_aborted_file_stores_nothing_and_leaves_no_staging_table(
    engine: AsyncEngine,
) -> None:
    async def broken() -> AsyncIterator[bytes]:
        yield b"phone\n"
        for start in range(0, 3 * STAGE_BATCH, STAGE_BATCH):
            yield b"".join(b"7916%07d\n" % n for n in range(start, start + STAGE_BATCH))
        raise ConnectionResetError

    with pytest.raises(ConnectionResetError):
        await import_clients(engine, broken(), COMMAND_LINE)
    assert await read_clients(engine) == []
    assert await count_rows(engine, STAGING) == 0
    assert counts(await import_lines(engine, "phone", ANNA)) == (1, 0, 0, 0)
    assert await count_rows(engine, STAGING) == 0


async def test_concurrent_imports_of_the_same_clients_are_serialized(engine: AsyncEngine) -> None:
    phones = [f"7916{n:07}" for n in range(5000)]
    await import_lines(engine, "phone", *phones)
    await asyncio.gather(
        import_lines(engine, "phone,tag", *(f"{phone},one" for phone in phones)),
        import_lines(engine, "phone,tag", *(f"{phone},two" for phone in reversed(phones))),
    )
    assert len({tag for _, _, tag, _ in await read_clients(engine)}) == 1


async def test_a_client_created_during_the_import_is_updated(engine: AsyncEngine) -> None:
    async with engine.begin() as connection:
        await store.create(connection, NewClient(phone=ANNA, tag="hers"))
        importing = asyncio.create_task(import_lines(engine, "phone,tag", f"{ANNA},ours"))
        await wait_until_blocked(engine)
    assert counts(await importing) == (0, 1, 0, 0)
    assert await read_clients(engine) == [(ANNA, "916", "ours", "UTC")]


async def test_a_client_erased_during_the_import_stays_erased(engine: AsyncEngine) -> None:
    client_id = await create_client(engine, ANNA)
    async with engine.begin() as connection:
        await store.erase(connection, client_id)
        importing = asyncio.create_task(import_lines(engine, "phone,tag", f"{ANNA},ours"))
        await wait_until_blocked(engine)
    assert counts(await importing) == (0, 0, 1, 0)
    assert await read_clients(engine) == []


async def wait_until_blocked(engine: AsyncEngine) -> None:
    """Wait until a statement waits for a lock."""
    async with asyncio.timeout(EVENT_TIMEOUT):
        while not await count_rows(engine, WAITING):
            await asyncio.sleep(0.01)


async def test_importing_an_export_changes_nothing(engine: AsyncEngine) -> None:
    tags = ["vip", "=1+1", "@x", '"quoted"', "a,b;c", "VIP", "Vip Club", "я", "Я", "İ", "ς", "ß"]
    tags += ["\\.", "\\N", "NULL", "'", '"', "x\u200dy", "😀" * 64, "\u1e9e" * 64]
    for n, tag in enumerate(tags):
        await create_client(
            engine, f"7916{n:07}", tag=tag, operator_code="999", time_zone="Asia/Tomsk"
        )
    await create_client(engine, BORIS)
    exported = await export_all(engine)
    assert counts(await import_clients(engine, chunks_of(exported), COMMAND_LINE)) == (
        0,
        0,
        len(tags) + 1,
        0,
    )

    before = await read_clients(engine)
    async with engine.begin() as connection:
        await connection.execute(text("TRUNCATE client"))
    await import_clients(engine, chunks_of(exported, 3), COMMAND_LINE)
    assert await read_clients(engine) == before
    assert await export_all(engine) == exported


async def test_an_export_has_no_erased_clients(engine: AsyncEngine) -> None:
    client_id = await create_client(engine, ANNA, tag="vip")
    await create_client(engine, BORIS)
    async with engine.begin() as connection:
        await store.erase(connection, client_id)
    assert (
        await export_all(engine)
        == b"phone,operator_code,tag,time_zone\n" + f"{BORIS},903,,UTC\n".encode()
    )


async def test_an_export_in_chunks_has_every_client_once_and_in_order(
    engine: AsyncEngine,
) -> None:
    await import_lines(engine, "phone", *(f"7916{n:07}" for n in range(2 * CHUNK_ROWS + 1)))
    chunks = [chunk async for chunk in export_clients(engine, COMMAND_LINE)]
    assert [chunk.rows for chunk in chunks] == [CHUNK_ROWS, CHUNK_ROWS, 1]
    lines = b"".join(chunk.content for chunk in chunks).splitlines()
    assert lines[0] == b"phone,operator_code,tag,time_zone"
    assert [line[:11] for line in lines[1:]] == [b"7916%07d" % n for n in range(2 * CHUNK_ROWS + 1)]


async def test_an_export_holds_no_connection_between_chunks(engine: AsyncEngine) -> None:
    await import_lines(engine, "phone", *(f"7916{n:07}" for n in range(CHUNK_ROWS + 1)))
    for _ in range(20):
        async with aclosing(export_clients(engine, COMMAND_LINE)) as chunks:
            await anext(chunks)
            assert pool_usage(engine)[0] == 0
