"""One database for a file, never emptied: what is refused may leave no trace in it."""

from collections.abc import AsyncIterator

import httpx
import pytest
from sqlalchemy.ext.asyncio import AsyncEngine
from tests.api.hostile.surface import MAILING
from tests.api.hostile.trace import Contents, contents

from mailer.access import accounts, keys
from mailer.access.model import COMMAND_LINE

CLIENT = {"phone": "79161234567", "tag": "vip"}


@pytest.fixture(scope="module")
def engine(shared_engine: AsyncEngine) -> AsyncEngine:
    return shared_engine


@pytest.fixture(scope="module")
def api(application: httpx.AsyncClient) -> httpx.AsyncClient:
    return application


@pytest.fixture(scope="module")
async def ids(api: httpx.AsyncClient, engine: AsyncEngine) -> dict[str, int]:
    """One of each to aim at."""
    return await one_of_each(engine, api)


async def one_of_each(engine: AsyncEngine, api: httpx.AsyncClient) -> dict[str, int]:
    """Make one of each thing and return their ids, by what they are called in paths."""
    async with engine.begin() as connection:
        key, _ = await keys.add(connection, keys.NewKey(name="k", scope="read"), COMMAND_LINE)
        account = await accounts.add(connection, "ann", "viewer", "no hash", COMMAND_LINE)
    return {
        "key_id": key.id,
        "account_id": account.id,
        "client_id": (await api.post("/clients", json=CLIENT)).json()["id"],
        "mailing_id": (await api.post("/mailings", json=MAILING)).json()["id"],
    }


@pytest.fixture(scope="module")
async def before(engine: AsyncEngine, ids: dict[str, int]) -> Contents:
    """Every row of every table, before the file's first test."""
    assert ids
    return await contents(engine)


@pytest.fixture
async def stored(engine: AsyncEngine, before: Contents) -> AsyncIterator[None]:
    """Every row of every table is after the test what it was before it."""
    yield
    assert await contents(engine) == before
