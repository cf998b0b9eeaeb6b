"""The connection pool, when the database server may restart at any time."""

import asyncio
import time
from types import SimpleNamespace

import pytest
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError
from tests.event_timeout import EVENT_TIMEOUT
from tests.servers import CLOSE_CONNECTIONS

from mailer.db.engine import asyncpg_connection, connect, create_engine


async def test_connections_ended_by_the_server_fail_no_request(database_url: str) -> None:
    engine = create_engine(database_url, pool_size=3)
    opened = [await engine.connect() for _ in range(3)]
    driver_connections = [await asyncpg_connection(connection) for connection in opened]
    for connection in opened:
        await connection.close()  # returned to the pool

    administrator = await connect(database_url)
    assert await administrator.fetchval(CLOSE_CONNECTIONS) == 3
    await administrator.close()
    async with asyncio.timeout(EVENT_TIMEOUT):
        while not all(connection.is_closed() for connection in driver_connections):
            await asyncio.sleep(0.01)  # the end is not received yet

    reopened = [await engine.connect() for _ in range(3)]
    for connection in reopened:
        assert (await connection.execute(text("SELECT 1"))).scalar_one() == 1
        await connection.close()
    await engine.dispose()


async def test_setting_the_wall_clock_back_after_a_lost_connection_closes_no_other(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # By default, SQLAlchemy's pool notes the time at which it loses a connection, and then replaces
    # each connection that was opened before that time. Here the pool's clock is an hour ahead when
    # the connection is lost, so that connections which are opened later seem older than the loss.
    clock_an_hour_ahead = SimpleNamespace(time=lambda: time.time() + 3_600)
    engine = create_engine(database_url, pool_size=1)
    with monkeypatch.context() as patch:
        patch.setattr("sqlalchemy.pool.base.time", clock_an_hour_ahead)
        with pytest.raises(DBAPIError):
            async with engine.connect() as connection:
                await connection.execute(text("SELECT pg_terminate_backend(pg_backend_pid())"))
    # for the pool, the clock was now set back by an hour
    backends = set()
    for _ in range(3):
        async with engine.connect() as connection:
            backends.add((await connection.execute(text("SELECT pg_backend_pid()"))).scalar_one())
    assert len(backends) == 1
    await engine.dispose()
