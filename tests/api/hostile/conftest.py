"""One database for a file, never emptied: what is refused may leave no trace in it."""

from collections.abc import AsyncIterator

import httpx
import pytest
from sqlalchemy.ext.asyncio import AsyncEngine
from tests.api.hostile.surface import MAILING
from tests.api.hostile.trace import contents

CLIENT = {"phone": "79161234567", "tag": "vip"}


@pytest.fixture(scope="module")
def engine(shared_engine: AsyncEngine) -> AsyncEngine:
    return shared_engine


@pytest.fixture(scope="module")
def api(application: httpx.AsyncClient) -> httpx.AsyncClient:
    return application


@pytest.fixture(scope="module")
async def ids(api: httpx.AsyncClient) -> dict[str, int]:
    """A client and a mailing to aim at."""
    return {
        "client_id": (await api.post("/clients", json=CLIENT)).json()["id"],
        "mailing_id": (await api.post("/mailings", json=MAILING)).json()["id"],
    }


@pytest.fixture
async def stored(engine: AsyncEngine, ids: dict[str, int]) -> AsyncIterator[None]:
    """Every row of every table is after the test what it was before it."""
    assert ids
    before = await contents(engine)
    yield
    assert await contents(engine) == before
