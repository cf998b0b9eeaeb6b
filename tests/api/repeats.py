"""What tests of Idempotency-Key share: requests under a key, and what becomes of their rows."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine
from tests.api.calls import NEW
from tests.asked import inside
from tests.patience import PATIENCE
from tests.sample import execute, value

from mailer.app import create_app
from mailer.settings import Settings

ANNA = {"phone": "79160000001", "tag": "vip"}
CSV = {"Content-Type": "text/csv"}
MAILINGS = "SELECT count(*) FROM mailing"
CRASH = """
    UPDATE idempotency SET status = NULL, media_type = NULL, body = NULL,
        taken_until = now() - interval '1 s'"""
"""As it stands when a process dies before it answers, and its lease has run out."""
CRASH_EARLY = "UPDATE idempotency SET effect = NULL, digest = NULL, client_id = NULL"
"""As it stands besides when it died before it did anything."""
IN_WORK = "UPDATE idempotency SET taken_until = now() + interval '1 h'"

Call = tuple[str, dict[str, Any]]
"""A path, and what httpx sends there."""
NEW_MAILING: Call = ("/mailings", {"json": NEW})
NEW_CLIENT: Call = ("/clients", {"json": ANNA})


async def post(api: httpx.AsyncClient, call: Call, key: str = "a") -> httpx.Response:
    """Call under a key."""
    path, sent = call
    headers = sent.get("headers", {}) | {"Idempotency-Key": key}
    return await api.post(path, **{**sent, "headers": headers})


def is_replay(answer: httpx.Response) -> bool:
    found: str | None = answer.headers.get("Idempotency-Replayed")
    return found == "true"


def is_same(first: httpx.Response, again: httpx.Response) -> bool:
    """Whether an answer is the first one again."""
    return is_replay(again) and _seen(first) == _seen(again)


def _seen(answer: httpx.Response) -> tuple[int, bytes, str]:
    return answer.status_code, answer.content, answer.headers["Content-Type"]


@asynccontextmanager
async def impatient(engine: AsyncEngine, lease: float) -> AsyncIterator[httpx.AsyncClient]:
    """Give the application's API with claims of so many seconds."""
    app = create_app(engine, settings=Settings(auth="none", lease=lease))
    transport = inside(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://mailer/api/v1") as client:
        yield client


HOLD = {
    "create": "mailing BEFORE INSERT ON mailing",
    "import": "client BEFORE INSERT ON client",
    "record": "idempotency BEFORE UPDATE OF effect ON idempotency",
    "answer": "idempotency BEFORE UPDATE OF body ON idempotency",
}
"""Steps of a request: a table, and when a trigger of it runs. It runs before any row is locked."""
WAITING = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted"
HOLD_UP = """
    CREATE OR REPLACE FUNCTION hold_up() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
        IF current_query() NOT LIKE '%SET status = 409%' THEN  -- who erases is not held up
            PERFORM pg_advisory_lock_shared(77);
            PERFORM pg_advisory_unlock_shared(77);
        END IF;
        RETURN NULL;
    END $$"""


@asynccontextmanager
async def held(engine: AsyncEngine, step: str) -> AsyncIterator[None]:
    """Hold up who comes to a step of a request, until the end of the block."""
    table, when = HOLD[step].split(maxsplit=1)
    await execute(
        engine,
        HOLD_UP,
        f"CREATE TRIGGER held {when} FOR EACH STATEMENT EXECUTE FUNCTION hold_up()",
    )
    alone = engine.execution_options(isolation_level="AUTOCOMMIT")
    try:
        async with alone.connect() as connection:
            await connection.execute(text("SELECT pg_advisory_lock(77)"))
            try:
                yield
            finally:
                await connection.execute(text("SELECT pg_advisory_unlock(77)"))
    finally:
        await execute(engine, f"DROP TRIGGER held ON {table}")


async def until_held(engine: AsyncEngine, count: int = 1) -> None:
    """Wait until so many requests are held up."""
    async with asyncio.timeout(PATIENCE):
        while await value(engine, WAITING) < count:
            await asyncio.sleep(0.01)
