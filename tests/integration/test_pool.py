"""The pool of connections, whose server may be restarted at any moment."""

import asyncio
import time
from types import SimpleNamespace

import pytest
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError
from tests.patience import PATIENCE

from mailer.db.engine import connect, create_engine, raw

END_ALL = """
    SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity
    WHERE datname = current_database() AND pid <> pg_backend_pid()"""


async def test_connections_that_the_server_has_ended_cost_no_request(database_url: str) -> None:
    engine = create_engine(database_url, pool_size=3)
    opened = [await engine.connect() for _ in range(3)]
    drivers = [await raw(connection) for connection in opened]
    for connection in opened:
        await connection.close()  # into the pool
    other = await connect(database_url)
    assert await other.fetchval(END_ALL) == 3
    await other.close()
    async with asyncio.timeout(PATIENCE):
        while not all(driver.is_closed() for driver in drivers):  # the word of it is on its way
            await asyncio.sleep(0.01)
    again = [await engine.connect() for _ in range(3)]
    for connection in again:
        assert (await connection.execute(text("SELECT 1"))).scalar_one() == 1
        await connection.close()
    await engine.dispose()


async def test_a_wall_clock_that_is_set_back_after_a_loss_has_no_connection_opened_anew(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    ahead = SimpleNamespace(time=lambda: time.time() + 3_600)
    engine = create_engine(database_url, pool_size=1)
    with monkeypatch.context() as patch:
        patch.setattr("sqlalchemy.pool.base.time", ahead)
        with pytest.raises(DBAPIError):
            async with engine.connect() as connection:
                await connection.execute(text("SELECT pg_terminate_backend(pg_backend_pid())"))
    backends = set()
    for _ in range(3):
        async with engine.connect() as connection:
            backends.add((await connection.execute(text("SELECT pg_backend_pid()"))).scalar_one())
    assert len(backends) == 1
    await engine.dispose()
