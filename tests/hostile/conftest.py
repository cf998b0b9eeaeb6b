"""Fixtures for tests with hostile requests, which must be refused and leave no trace.

All tests of a file share one database, which is never emptied: so a test can compare all of it.
"""

from collections.abc import AsyncIterator

import httpx
import pytest
from sqlalchemy.ext.asyncio import AsyncEngine
from tests.hostile.surface import MAILING
from tests.hostile.trace import Contents, contents

from mailer.access import keys, users
from mailer.access.model import COMMAND_LINE

CLIENT = {"phone": "79161234567", "tag": "vip"}


@pytest.fixture(scope="module", autouse=True)
def _cheap_passwords(cheap_passwords: None) -> None:
    """Hash passwords cheaply in every test of this folder."""


@pytest.fixture(scope="module")
def engine(shared_engine: AsyncEngine) -> AsyncEngine:
    """The database of all tests of the file."""
    return shared_engine


@pytest.fixture(scope="module")
def api(application: httpx.AsyncClient) -> httpx.AsyncClient:
    """A client of the application on that database."""
    return application


@pytest.fixture(scope="module")
async def ids(api: httpx.AsyncClient, engine: AsyncEngine) -> dict[str, int]:
    """The ids of one object of each type."""
    return await create_objects(engine, api)


async def create_objects(engine: AsyncEngine, api: httpx.AsyncClient) -> dict[str, int]:
    """Create one object of each type; return their ids by the name of the path parameter."""
    async with engine.begin() as connection:
        new_key = keys.NewKey(name="shop", scope="read")
        key, _ = await keys.create(connection, new_key, COMMAND_LINE)
        user = await users.create(connection, "ann", "viewer", "no hash", COMMAND_LINE)
    return {
        "key_id": key.id,
        "user_id": user.id,
        "client_id": (await api.post("/clients", json=CLIENT)).json()["id"],
        "mailing_id": (await api.post("/mailings", json=MAILING)).json()["id"],
    }


@pytest.fixture(scope="module")
async def before(engine: AsyncEngine, ids: dict[str, int]) -> Contents:
    """Every row of every table before the first test of the file."""
    assert ids  # the objects exist
    return await contents(engine)


@pytest.fixture
async def unchanged(engine: AsyncEngine, before: Contents) -> AsyncIterator[None]:
    """Assert that every row of every table is the same after the test."""
    yield
    assert await contents(engine) == before
