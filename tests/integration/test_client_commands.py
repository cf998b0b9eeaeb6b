"""The commands `mailer clients import` and `mailer clients export`."""

import io
import os
import resource
import sys
import threading
from pathlib import Path

import pytest
from rich.console import Console
from sqlalchemy.ext.asyncio import AsyncEngine
from tests.integration.client_files import stored_clients
from tests.workbooks import by_openpyxl

from mailer.client.commands import FileError, export_file, import_file
from mailer.client.reading import BATCH_SIZE
from mailer.db.engine import create_engine
from mailer.errors import InvalidError

ANNA = "79160000001"
EXPORTED_ANNA = f"phone,operator_code,tag,time_zone\n{ANNA},916,vip,UTC\n"


def console_with_output(*, is_terminal: bool = False) -> tuple[Console, io.StringIO]:
    """Return a console, and the buffer in which its output can be read."""
    output = io.StringIO()
    return Console(file=output, force_terminal=is_terminal, width=80), output


async def import_text(
    engine: AsyncEngine, path: Path, content: str, columns: list[str] | None = None
) -> str:
    """Write a file and import it; return what the command prints."""
    path.write_text(content)
    console, output = console_with_output()
    await import_file(engine, str(path), console, columns=columns)
    return output.getvalue()


async def test_import_names_the_fields_and_takes_the_columns_as_told(
    engine: AsyncEngine, tmp_path: Path
) -> None:
    content = f"Имя,phone,city\nAnna,{ANNA},Omsk\n"
    printed = await import_text(engine, tmp_path / "clients.csv", content)
    assert printed.splitlines()[:2] == ["fields: city", "ignored columns: Имя"]

    columns = ["name", "phone", ""]
    printed = await import_text(engine, tmp_path / "clients.csv", content, columns)
    assert printed.splitlines()[:2] == ["fields: name", "ignored columns: city"]
    console, output = console_with_output()
    await export_file(engine, str(tmp_path / "exported.csv"), console)
    assert (tmp_path / "exported.csv").read_text().splitlines() == [
        "phone,operator_code,tag,time_zone,city,name",
        f"{ANNA},916,,UTC,Omsk,Anna",
    ]
    assert output.getvalue()


async def test_import_prints_the_rejected_lines_and_the_counts(
    engine: AsyncEngine, tmp_path: Path
) -> None:
    one_valid, two_invalid, hundred_invalid = [f"{ANNA},vip"], ["1,x", "79160000002"], ["2,"] * 100
    lines = ["phone,tag", *one_valid, *two_invalid, *hundred_invalid]
    printed = await import_text(engine, tmp_path / "clients.csv", "\n".join(lines))
    assert printed.splitlines()[:2] == [
        "line 3: phone must be 7 and ten more digits, such as 79161234567 (it has '1')",
        "line 4: has 1 fields, but the header has 2 (it has '79160000002')",
    ]
    assert printed.splitlines()[-3:] == [
        "and 2 more rejected lines",
        "imported, except for the rejected lines",
        "1 created, 0 updated, 0 unchanged, 102 rejected",
    ]


@pytest.mark.parametrize(
    "wrong_phone",
    ["phone:  1", "[red]1", "1" * 60 + " 1"],
    ids=["two blanks after a colon", "markup of rich", "longer than a line of the terminal"],
)
async def test_import_prints_a_rejected_value_as_it_is_in_the_file(
    engine: AsyncEngine, tmp_path: Path, wrong_phone: str
) -> None:
    printed = await import_text(engine, tmp_path / "clients.csv", f"phone\n{wrong_phone}\n")
    assert printed.splitlines()[0].endswith(f"(it has '{wrong_phone}')")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("phone\n1\n", "nothing was imported: every line was rejected"),
        ("phone\n", "nothing was imported: the file has no line after its header"),
        (f"phone\n{ANNA}\n", "all lines are imported"),
    ],
)
async def test_import_prints_whether_anything_was_imported(
    engine: AsyncEngine, tmp_path: Path, content: str, message: str
) -> None:
    printed = await import_text(engine, tmp_path / "clients.csv", content)
    assert printed.splitlines()[-2] == message


async def test_import_prints_the_detected_encoding(engine: AsyncEngine, tmp_path: Path) -> None:
    path = tmp_path / "clients.csv"
    path.write_bytes(f"phone,tag\n{ANNA},Лёд и пламя\n".encode("cp1251"))
    console, output = console_with_output()
    assert (await import_file(engine, str(path), console)).created == 1
    assert output.getvalue().splitlines()[0] == "the file was read as windows-1251"


async def test_import_puts_clients_on_a_list_and_prints_how_many(
    engine: AsyncEngine, tmp_path: Path
) -> None:
    path = tmp_path / "clients.csv"
    path.write_text(f"phone\n{ANNA}\nwrong\n")
    console, output = console_with_output()
    report = await import_file(engine, str(path), console, list_name=" Spring ")
    assert report.client_list
    assert report.client_list.name == "Spring"
    assert output.getvalue().splitlines()[-1] == "1 put on the list Spring"
    with pytest.raises(InvalidError, match="must be 1 to 100 characters"):
        await import_file(engine, str(path), console, list_name="")


async def test_a_terminal_shows_progress(engine: AsyncEngine, tmp_path: Path) -> None:
    path = tmp_path / "clients.csv"
    path.write_text("phone\n" + "".join(f"7916{n:07}\n" for n in range(2 * BATCH_SIZE)))

    console, output = console_with_output(is_terminal=True)
    report = await import_file(engine, str(path), console)
    assert report.created == 2 * BATCH_SIZE
    assert "reading" in output.getvalue()

    console, output = console_with_output(is_terminal=True)
    assert await export_file(engine, str(tmp_path / "out.csv"), console) == 2 * BATCH_SIZE
    assert "writing" in output.getvalue()


async def test_an_export_replaces_a_file_and_leaves_no_temporary_file(
    engine: AsyncEngine, tmp_path: Path
) -> None:
    await import_text(engine, tmp_path / "in.csv", f"phone,tag\n{ANNA},vip\n")
    target = tmp_path / "out.csv"
    target.write_text("old")
    console, output = console_with_output()
    assert await export_file(engine, str(target), console) == 1
    assert target.read_text() == EXPORTED_ANNA
    assert output.getvalue() == "1 clients exported\n"
    assert target.stat().st_mode & 0o077 == 0  # only the user may read the phones
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.csv", "out.csv"]


async def test_a_pipe_is_imported(engine: AsyncEngine, tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    console, _ = console_with_output()
    writer = threading.Thread(target=pipe.write_text, args=[f"phone,tag\n{ANNA},vip\n"])
    writer.start()
    assert (await import_file(engine, str(pipe), console)).created == 1
    writer.join()


async def test_a_path_of_a_hyphen_exports_to_standard_output(
    engine: AsyncEngine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await import_text(engine, tmp_path / "in.csv", f"phone,tag\n{ANNA},vip\n")
    console, _ = console_with_output()
    output = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(output))
    await export_file(engine, "-", console)
    assert output.getvalue() == EXPORTED_ANNA.encode()


async def test_errors_name_the_unusable_file(engine: AsyncEngine, tmp_path: Path) -> None:
    console, _ = console_with_output()
    missing = tmp_path / "missing" / "clients.csv"
    with pytest.raises(FileError, match=f"{missing}: No such file or directory"):
        await import_file(engine, str(missing), console)
    with pytest.raises(FileError, match=f"{missing}: No such file or directory"):
        await export_file(engine, str(missing), console)
    with pytest.raises(FileError, match=f"{tmp_path}: Is a directory"):
        await import_file(engine, str(tmp_path), console)
    with pytest.raises(FileError, match="/dev/full: No space left on device"):
        await export_file(engine, "/dev/full", console)


async def test_a_lost_database_is_not_blamed_on_the_file() -> None:
    engine = create_engine("postgresql://127.0.0.1:1/")  # there is no database
    console, _ = console_with_output()
    with pytest.raises(ConnectionRefusedError):
        await export_file(engine, "/dev/null", console)
    await engine.dispose()


async def test_a_file_that_cannot_be_written_is_named(engine: AsyncEngine, tmp_path: Path) -> None:
    target = tmp_path / "out.csv"
    console, _ = console_with_output()
    unlimited = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, unlimited[1]))  # no file may grow
    try:
        with pytest.raises(FileError, match=f"{target}: File too large"):
            await export_file(engine, str(target), console)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, unlimited)
    assert list(tmp_path.iterdir()) == []


async def test_an_invalid_header_is_refused(engine: AsyncEngine, tmp_path: Path) -> None:
    with pytest.raises(InvalidError, match="phone: appears more than once"):
        await import_text(engine, tmp_path / "clients.csv", "phone,телефон\n")


async def test_import_writes_the_rejected_lines_to_a_file_to_correct(
    engine: AsyncEngine, tmp_path: Path
) -> None:
    path, rejected = tmp_path / "clients.xlsx", tmp_path / "rejected.csv"
    path.write_bytes(by_openpyxl([["Телефон", "Имя"], [79160000001, "Анна"], [8916, "Борис"]]))
    rejected.write_text("of an earlier import")
    console, output = console_with_output()
    report = await import_file(engine, str(path), console, rejected_path=str(rejected))
    assert (report.created, report.rejected) == (1, 1)
    assert "ignored columns: Имя\n" in output.getvalue()
    header, line = rejected.read_text("utf-8-sig").splitlines()
    assert header == "phone,Имя,rejected_reason"
    assert line.startswith('8916,Борис,"phone: must be 7')
    assert (rejected.stat().st_mode & 0o077) == 0  # only for this user: it has phones


async def test_nothing_is_imported_when_the_rejected_lines_cannot_be_written(
    engine: AsyncEngine, tmp_path: Path
) -> None:
    path = tmp_path / "clients.csv"
    path.write_text(f"phone\n{ANNA}\n")
    console, _ = console_with_output()
    with pytest.raises(FileError):
        await import_file(
            engine, str(path), console, rejected_path=str(tmp_path / "missing" / "rejected.csv")
        )
    assert await stored_clients(engine) == []


async def test_a_refused_file_leaves_no_file_of_rejected_lines(
    engine: AsyncEngine, tmp_path: Path
) -> None:
    path = tmp_path / "clients.csv"
    path.write_text("tag\nvip\n")
    console, _ = console_with_output()
    with pytest.raises(InvalidError):
        await import_file(engine, str(path), console, rejected_path=str(tmp_path / "rejected.csv"))
    assert [file.name for file in tmp_path.iterdir()] == ["clients.csv"]
