"""Fixtures for tests with hostile requests, which must be refused and leave no trace.

All tests of a file share one database, which is never emptied: so a test can compare all of it.
"""

from collections.abc import AsyncIterator
from datetime import UTC, datetime

import httpx
import pytest
from sqlalchemy.ext.asyncio import AsyncEngine
from tests.asgi_client import inside
from tests.factories import GATEWAY, OPEN, add_mailing, add_messages, create_channels, value
from tests.hostile.surface import MAILING, WEBHOOK
from tests.hostile.trace import Contents, contents

from mailer.access import keys, users
from mailer.access.model import COMMAND_LINE
from mailer.app import create_app
from mailer.gateway.callback import Reply
from mailer.reply.rules import ReplyRules
from mailer.reply.store import add_replies

CLIENT = {"phone": "79161234567", "tag": "vip"}


@pytest.fixture(scope="module", autouse=True)
def _cheap_passwords(cheap_passwords: None) -> None:
    """Hash passwords cheaply in every test of this folder."""


@pytest.fixture(scope="module")
def engine(shared_engine: AsyncEngine) -> AsyncEngine:
    """The database of all tests of the file."""
    return shared_engine


@pytest.fixture(scope="module")
async def api(engine: AsyncEngine) -> AsyncIterator[httpx.AsyncClient]:
    """A client of an application on that database, with a gateway and nothing that sends."""
    transport = inside(create_app(engine, create_channels(), settings=OPEN))
    async with httpx.AsyncClient(transport=transport, base_url="http://mailer/api/v1") as client:
        yield client


@pytest.fixture(scope="module")
async def ids(api: httpx.AsyncClient, engine: AsyncEngine) -> dict[str, int | str]:
    """The ids of one object of each type, and the name of the gateway."""
    return await create_objects(engine, api)


async def create_objects(engine: AsyncEngine, api: httpx.AsyncClient) -> dict[str, int | str]:
    """Create one object of each type; return their ids by the name of the path parameter.

    The path parameter `name` is the name of the gateway.
    """
    async with engine.begin() as connection:
        new_key = keys.NewKey(name="shop", scope="read")
        key, _ = await keys.create(connection, new_key, COMMAND_LINE)
        user = await users.create(connection, "ann", "viewer", "no hash", COMMAND_LINE)
        await add_replies(
            connection,
            GATEWAY,
            [Reply("79990000002", "Hello")],
            datetime.now(UTC),
            ReplyRules.of(OPEN),
        )
    webhook_id = (await api.post("/webhooks", json=WEBHOOK)).json()["id"]
    client_id = (await api.post("/clients", json=CLIENT)).json()["id"]
    await add_messages(engine, await add_mailing(engine, clients=1), [client_id], "delivered")
    return {
        "webhook_id": webhook_id,
        "delivery_id": (await api.post(f"/webhooks/{webhook_id}/test")).json()["id"],
        "name": GATEWAY,
        "key_id": key.id,
        "user_id": user.id,
        "client_id": client_id,
        "message_id": await value(engine, "SELECT id FROM message"),
        "opt_out_id": (await api.post("/opt-outs", json={"phone": "79990000001"})).json()["id"],
        "list_id": (await api.post("/lists", json={"name": "Spring"})).json()["id"],
        "reply_id": 1,  # the first of this database
        "mailing_id": (await api.post("/mailings", json=MAILING)).json()["id"],
    }


@pytest.fixture(scope="module")
async def before(engine: AsyncEngine, ids: dict[str, int | str]) -> Contents:
    """Every row of every table before the first test of the file."""
    assert ids  # the objects exist
    return await contents(engine)


@pytest.fixture
async def unchanged(engine: AsyncEngine, before: Contents) -> AsyncIterator[None]:
    """Assert that every row of every table is the same after the test."""
    yield
    assert await contents(engine) == before
