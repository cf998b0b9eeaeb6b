"""Connections by database URLs to a real PostgreSQL."""

import asyncio
import socket
from urllib.parse import urlsplit

import pytest

from mailer.db.engine import connect


def with_hosts(database_url: str, hosts: str, query: str = "") -> str:
    """Return the URL of the test's database with other hosts and parameters in its query."""
    parts = urlsplit(database_url)
    return f"postgresql://mailer@{parts.path}?{hosts}{query}"


def socket_folder(database_url: str) -> str:
    """Return the folder of the server's socket, which is the host in the query of a URL."""
    return dict(pair.split("=") for pair in urlsplit(database_url).query.split("&"))["host"]


@pytest.mark.parametrize(
    "query",
    [
        *("connect_timeout=10", "channel_binding=prefer", "keepalives=1", "gssencmode=disable"),
        *("sslmode=prefer", "target_session_attrs=read-write", "options=-csearch_path%3Dpublic"),
        *("application_name=ours", "client_encoding=UTF8", "load_balance_hosts=random"),
    ],
)
async def test_parameters_of_psql_are_accepted_in_a_url(
    shared_database_url: str, query: str
) -> None:
    connection = await connect(f"{shared_database_url}&{query}")
    assert await connection.fetchval("SELECT 1") == 1
    await connection.close()


async def test_unreachable_hosts_are_skipped(shared_database_url: str) -> None:
    folder = socket_folder(shared_database_url)
    hosts = f"host=127.0.0.1,::1,/nonexistent,{folder}&port=1,1,5432,5432"
    url = with_hosts(shared_database_url, hosts)
    connection = await connect(url)
    assert await connection.fetchval("SELECT 1") == 1
    await connection.close()


async def test_a_silent_host_is_skipped_after_its_timeout(shared_database_url: str) -> None:
    """The host accepts the connection and never responds."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        folder = socket_folder(shared_database_url)
        hosts = f"host=127.0.0.1,{folder}&port={port},5432"
        connection = await connect(with_hosts(shared_database_url, hosts, "&connect_timeout=1"))
    assert await connection.fetchval("SELECT 1") == 1
    await connection.close()


@pytest.fixture
def url_of_two_primaries(shared_database_url: str) -> str:
    """A URL with the test's server twice as a host, to which a parameter is to be added."""
    folder = socket_folder(shared_database_url)
    return with_hosts(shared_database_url, f"host={folder},{folder}", "&target_session_attrs=")


async def test_no_host_is_chosen_when_a_standby_is_required_and_there_is_none(
    url_of_two_primaries: str,
) -> None:
    with pytest.raises(Exception, match="target attribute"):
        await connect(url_of_two_primaries + "standby")


@pytest.mark.parametrize("wanted", ["primary", "read-write", "prefer-standby"])
async def test_a_primary_is_chosen_unless_a_standby_is_required(
    url_of_two_primaries: str, wanted: str
) -> None:
    connection = await connect(url_of_two_primaries + wanted)
    await connection.close()


async def test_unreachable_hosts_raise_a_connection_error() -> None:
    with pytest.raises(OSError, match=r"[Cc]onnect"):
        await asyncio.wait_for(connect("postgresql://me@127.0.0.1:1,[::1]:1/x"), 30)
