"""Importing and exporting fields of clients as columns of files, with a real PostgreSQL."""

import csv
import io
from typing import Any

import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine
from tests.factories import value
from tests.integration.client_files import (
    LineCounts,
    delete_all_clients,
    export_all,
    import_content,
    import_lines,
    line_counts,
    split_into_chunks,
)
from tests.workbooks import by_openpyxl, by_xlsxwriter

from mailer.access.model import COMMAND_LINE
from mailer.client import store
from mailer.client.fields import TOO_MANY_FIELDS, WRONG_FIELD_NAME, WRONG_FIELD_VALUE
from mailer.client.importing import ImportReport, import_clients
from mailer.client.layout import LayoutError
from mailer.client.model import NewClient
from mailer.client.reading import ImportOptions
from mailer.client.rejected import RejectedLines
from mailer.client.rows import RejectedField

ANNA, BORIS, VERA = "79160000001", "79030000002", "79030000003"
ROWS: list[list[Any]] = [
    ["name", "Телефон", "bonus", "Город"],
    ["Анна", 79160000001, 250, "Москва"],
    ["Борис, «младший»", "8 (903) 000-00-02", None, "Томск"],
]


async def create_client(engine: AsyncEngine, phone: str, fields: dict[str, str]) -> None:
    async with engine.begin() as connection:
        await store.create(connection, NewClient(phone=phone, fields=fields))


async def stored_fields(engine: AsyncEngine) -> dict[str, dict[str, str]]:
    """Return the fields of all clients by phone."""
    async with engine.connect() as connection:
        rows = await connection.execute(text("SELECT phone, fields FROM client ORDER BY id"))
        return {row.phone: row.fields for row in rows}


async def import_with(
    engine: AsyncEngine, content: str, columns: str | None, rejected: RejectedLines | None = None
) -> ImportReport:
    """Import a file with chosen columns, separated by commas."""
    options = ImportOptions(None if columns is None else columns.split(","), rejected)
    parts = split_into_chunks(content.encode(), 65_536)
    return await import_clients(engine, parts, COMMAND_LINE, options=options)


def written_csv(delimiter: str, encoding: str) -> bytes:
    """Return `ROWS` as Excel writes them."""
    file = io.StringIO()
    csv.writer(file, dialect="excel", delimiter=delimiter).writerows(ROWS)
    return file.getvalue().encode(encoding)


@pytest.mark.parametrize(
    "content",
    [
        by_openpyxl(ROWS),
        by_xlsxwriter(ROWS),
        written_csv(",", "utf-8"),
        written_csv(";", "cp1251"),
        written_csv("\t", "utf-16"),
    ],
    ids=["openpyxl", "xlsxwriter", "CSV", "semicolons in windows-1251", "tabs in UTF-16"],
)
@pytest.mark.parametrize("chunk_size", [3, 65_536])
async def test_columns_with_a_name_of_a_field_are_imported_as_fields(
    engine: AsyncEngine, content: bytes, chunk_size: int
) -> None:
    report = await import_content(engine, content, chunk_size)
    assert line_counts(report) == LineCounts(created=2)
    assert report.ignored_columns == ["Город"]
    assert await stored_fields(engine) == {
        ANNA: {"name": "Анна", "bonus": "250"},
        BORIS: {"name": "Борис, «младший»"},
    }


async def test_an_import_changes_only_the_fields_it_has_columns_for(engine: AsyncEngine) -> None:
    await create_client(engine, ANNA, {"name": "Anna", "bonus": "1", "city": "Omsk"})
    await create_client(engine, BORIS, {"name": "Boris"})
    lines = ("phone,bonus,name", f"{ANNA},2,", f"{BORIS},,Boris", f"{VERA},,")
    report = await import_lines(engine, *lines)
    assert line_counts(report) == LineCounts(created=1, updated=1, unchanged=1)
    expected = {ANNA: {"bonus": "2", "city": "Omsk"}, BORIS: {"name": "Boris"}, VERA: {}}
    assert await stored_fields(engine) == expected
    assert line_counts(await import_lines(engine, *lines)) == LineCounts(unchanged=3)


async def test_an_import_without_fields_keeps_them(engine: AsyncEngine) -> None:
    await create_client(engine, ANNA, {"name": "Anna"})
    report = await import_lines(engine, "phone,tag", f"{ANNA},vip")
    assert line_counts(report) == LineCounts(updated=1)
    assert await stored_fields(engine) == {ANNA: {"name": "Anna"}}


async def test_columns_are_chosen_by_their_order(engine: AsyncEngine) -> None:
    content = f"Имя,phone,city,tag\nЮлия,{ANNA},Omsk,vip\n"
    report = await import_with(engine, content, "fields.name,phone,,label")
    assert report.ignored_columns == ["city"]
    assert await stored_fields(engine) == {ANNA: {"name": "Юлия", "label": "vip"}}
    assert await value(engine, "SELECT tag FROM client") is None


@pytest.mark.parametrize(
    ("columns", "field", "message"),
    [
        ("phone,fields.Имя", "fields.Имя", WRONG_FIELD_NAME),
        ("phone,Имя", "columns", "must name a field for each column"),
        ("fields.a,fields.a", "fields.a", "appears more than once"),
    ],
)
async def test_a_wrong_choice_of_columns_is_refused(
    engine: AsyncEngine, columns: str, field: str, message: str
) -> None:
    with pytest.raises(LayoutError) as refused:
        await import_with(engine, f"phone,Имя\n{ANNA},Анна\n", columns)
    assert {error.field: error.message for error in refused.value.errors}[field] == message


async def test_a_header_with_the_name_of_a_field_twice_is_refused(engine: AsyncEngine) -> None:
    with pytest.raises(LayoutError) as refused:
        await import_lines(engine, "phone,city,city", f"{ANNA},Omsk,Omsk")
    assert [error.field for error in refused.value.errors] == ["fields.city"]


async def test_a_header_that_may_be_a_phone_is_no_field(engine: AsyncEngine) -> None:
    report = await import_lines(engine, "phone,x79161234567", f"{ANNA},y")
    assert report.ignored_columns == ["column 2"]
    await import_lines(engine, "phone,fields.x79161234567", f"{ANNA},y")
    assert await stored_fields(engine) == {ANNA: {"x79161234567": "y"}}


async def test_wrong_values_are_reported_with_line_field_and_value(engine: AsyncEngine) -> None:
    long = "x" * 201
    content = b"\n".join(
        [
            "phone,name,city".encode("utf-8-sig"),
            f"{ANNA},{long},{long}".encode(),
            f"{BORIS},\xff,a\0b".encode("latin-1"),
        ]
    )
    report = await import_content(engine, content)
    shown = "x" * 63 + "…"
    assert report.errors == [
        RejectedField(2, "fields.name", shown, WRONG_FIELD_VALUE),
        RejectedField(2, "fields.city", shown, WRONG_FIELD_VALUE),
        RejectedField(3, "fields.name", "�", "is not UTF-8"),
        RejectedField(3, "fields.city", "a�b", WRONG_FIELD_VALUE),
    ]
    assert line_counts(report) == LineCounts(rejected=2)


async def test_a_line_with_more_than_32_fields_is_rejected(engine: AsyncEngine) -> None:
    names, values = ([f"{start}{n}" for n in range(33)] for start in "fx")
    header, line = ",".join(names), ",".join(values)
    few = ",".join(["", *values[1:]])
    report = await import_lines(engine, f"phone,{header}", f"{ANNA},{line}", f"{BORIS},{few}")
    assert report.errors == [RejectedField(2, "fields", "", TOO_MANY_FIELDS)]
    assert len((await stored_fields(engine))[BORIS]) == 32


async def test_an_import_that_would_give_a_client_more_than_32_fields_rejects_the_line(
    engine: AsyncEngine,
) -> None:
    await create_client(engine, ANNA, {f"f{n}": "x" for n in range(32)})
    lines = ("phone,tag,f0,name", f"{BORIS},,x,Boris", f"{ANNA},vip,y,Anna", f"{VERA},,,Vera")
    report = await import_lines(engine, *lines)
    assert line_counts(report) == LineCounts(created=2, rejected=1)
    assert report.errors == [RejectedField(3, "fields", "", TOO_MANY_FIELDS)]
    fields = await stored_fields(engine)
    assert fields[ANNA]["f0"] == "x"
    assert fields[VERA] == {"name": "Vera"}

    report = await import_lines(engine, "phone,f0,name", f"{ANNA},,Anna")
    assert line_counts(report) == LineCounts(updated=1)


async def test_rejected_lines_keep_all_columns_and_can_be_imported_again(
    engine: AsyncEngine,
) -> None:
    content = f"phone,Имя,city,Дата,operator_code\n{ANNA},Анна,Omsk,2030,9\n"
    with RejectedLines() as rejected:
        columns = "phone,fields.mobile,fields.city,,operator_code"
        await import_with(engine, content, columns, rejected)
        rows = b"".join([part.content async for part in rejected.parts()]).decode("utf-8-sig")
    header, line = csv.reader(io.StringIO(rows))
    assert header == [
        *("phone", "fields.mobile", "city", "Дата", "operator_code", "rejected_reason")
    ]
    assert line[:-1] == [ANNA, "Анна", "Omsk", "2030", "9"]
    await import_lines(engine, *rows.replace(",9,", ",916,").splitlines())
    assert await stored_fields(engine) == {ANNA: {"mobile": "Анна", "city": "Omsk"}}


async def test_importing_an_export_changes_nothing(engine: AsyncEngine) -> None:
    stored = {
        ANNA: {
            "name": "Анна",
            "mobile": "=1+1",
            "tag": "'=2",
            "rejected_reason": "x",
            "phone": "y",
        },
        BORIS: {"name": 'quote " comma , semicolon ;', "x1234567": "-1", "phone": "y"},
        VERA: {},
        "79030000004": {f"long_{n}": '",' * 100 for n in range(32)},
    }
    for phone, fields in stored.items():
        await create_client(engine, phone, fields)
    exported = await export_all(engine)
    assert line_counts(await import_content(engine, exported)) == LineCounts(unchanged=4)
    await delete_all_clients(engine)
    assert line_counts(await import_content(engine, exported)) == LineCounts(created=4)
    assert await stored_fields(engine) == stored


async def test_an_export_has_a_column_for_each_field_by_name(engine: AsyncEngine) -> None:
    await create_client(engine, ANNA, {"name": "Anna", "phone": "x"})
    await create_client(engine, BORIS, {"city": "Omsk", "name": "Boris"})
    assert (await export_all(engine)).decode().splitlines() == [
        "phone,operator_code,tag,time_zone,city,name,fields.phone",
        f"{ANNA},916,,UTC,,Anna,x",
        f"{BORIS},903,,UTC,Omsk,Boris,",
    ]
