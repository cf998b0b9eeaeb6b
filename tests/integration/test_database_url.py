"""Database URLs, on a real PostgreSQL."""

import asyncio
import socket
from urllib.parse import urlsplit

import pytest

from mailer.db.engine import connect


def on(database_url: str, hosts: str, query: str = "") -> str:
    """The test's database, by other hosts: they and their ports go into the query."""
    parts = urlsplit(database_url)
    return f"postgresql://mailer@{parts.path}?{hosts}{query}"


def socket_folder(database_url: str) -> str:
    return dict(pair.split("=") for pair in urlsplit(database_url).query.split("&"))["host"]


@pytest.mark.parametrize(
    "query",
    [
        *("connect_timeout=10", "channel_binding=prefer", "keepalives=1", "gssencmode=disable"),
        *("sslmode=prefer", "target_session_attrs=read-write", "options=-csearch_path%3Dpublic"),
        *("application_name=ours", "client_encoding=UTF8", "load_balance_hosts=random"),
    ],
)
async def test_url_that_psql_takes_works(shared_database_url: str, query: str) -> None:
    connection = await connect(f"{shared_database_url}&{query}")
    assert await connection.fetchval("SELECT 1") == 1
    await connection.close()


async def test_first_host_that_is_down_is_passed_over(shared_database_url: str) -> None:
    folder = socket_folder(shared_database_url)
    url = on(shared_database_url, f"host=127.0.0.1,::1,/nonexistent,{folder}&port=1,1,5432,5432")
    connection = await connect(url)
    assert await connection.fetchval("SELECT 1") == 1
    await connection.close()


async def test_first_host_that_says_nothing_is_passed_over(shared_database_url: str) -> None:
    """It takes the connection and never answers, for longer than the time limit of a host."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        folder = socket_folder(shared_database_url)
        hosts = f"host=127.0.0.1,{folder}&port={port},5432"
        connection = await connect(on(shared_database_url, hosts, "&connect_timeout=1"))
    assert await connection.fetchval("SELECT 1") == 1
    await connection.close()


async def test_standby_is_passed_over_where_it_can_be_written_elsewhere(
    shared_database_url: str,
) -> None:
    """A host of the list without write access counts as a standby, whatever makes it so."""
    folder = socket_folder(shared_database_url)
    url = on(shared_database_url, f"host={folder},{folder}", "&target_session_attrs=standby")
    with pytest.raises(Exception, match="target attribute"):
        await connect(url)
    for wanted in ("primary", "read-write", "prefer-standby"):
        connection = await connect(url.replace("=standby", f"={wanted}"))
        await connection.close()


async def test_no_host_that_answers_is_the_database_being_away() -> None:
    with pytest.raises(OSError, match="onnect"):
        await asyncio.wait_for(connect("postgresql://me@127.0.0.1:1,[::1]:1/x"), 30)
