"""Requests under an Idempotency-Key, and the state of their database rows."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine
from tests.api.calls import NEW
from tests.asgi_client import inside
from tests.event_timeout import EVENT_TIMEOUT
from tests.factories import execute, value

from mailer.app import create_app
from mailer.settings import Settings

ANNA = {"phone": "79160000001", "tag": "vip"}
CSV = {"Content-Type": "text/csv"}
MAILINGS = "SELECT count(*) FROM mailing"
CRASHED = """
    UPDATE idempotency SET status = NULL, media_type = NULL, body = NULL,
        leased_until = now() - interval '1 s'"""
"""State after a worker died before it answered, and the lease expired."""
CRASHED_EARLY = "UPDATE idempotency SET result = NULL, digest = NULL, client_id = NULL"
"""In addition to `CRASHED`: the worker died before it did anything."""
IN_PROGRESS = "UPDATE idempotency SET leased_until = now() + interval '1 h'"

Call = tuple[str, dict[str, Any]]
"""A path, and the arguments for httpx."""
NEW_MAILING: Call = ("/mailings", {"json": NEW})
NEW_CLIENT: Call = ("/clients", {"json": ANNA})


async def post(api: httpx.AsyncClient, call: Call, key: str = "a") -> httpx.Response:
    """Send a call under a key."""
    path, arguments = call
    headers = arguments.get("headers", {}) | {"Idempotency-Key": key}
    return await api.post(path, **{**arguments, "headers": headers})


def is_replay(answer: httpx.Response) -> bool:
    header: str | None = answer.headers.get("Idempotency-Replayed")
    return header == "true"


def is_same(first: httpx.Response, repeat: httpx.Response) -> bool:
    """Return whether a response repeats the first one."""
    return is_replay(repeat) and _essentials(first) == _essentials(repeat)


def _essentials(answer: httpx.Response) -> tuple[int, bytes, str]:
    return answer.status_code, answer.content, answer.headers["Content-Type"]


@asynccontextmanager
async def api_with_lease(engine: AsyncEngine, lease: float) -> AsyncIterator[httpx.AsyncClient]:
    """Yield the application's API with a lease of `lease` seconds for idempotent requests."""
    app = create_app(engine, settings=Settings(auth="none", lease=lease))
    transport = inside(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://mailer/api/v1") as client:
        yield client


STEPS = {
    "create": "mailing BEFORE INSERT ON mailing",
    "import": "client BEFORE INSERT ON client",
    "record": "idempotency BEFORE UPDATE OF result ON idempotency",
    "answer": "idempotency BEFORE UPDATE OF body ON idempotency",
}
"""Steps of a request: table and event of a trigger that runs before any row is locked."""
BLOCKED_COUNT = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted"
BLOCK_FUNCTION = """
    CREATE OR REPLACE FUNCTION block_step() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
        IF current_query() NOT LIKE '%SET status = 409%' THEN  -- erasing is not blocked
            PERFORM pg_advisory_lock_shared(77);
            PERFORM pg_advisory_unlock_shared(77);
        END IF;
        RETURN NULL;
    END $$"""


@asynccontextmanager
async def blocked_at(engine: AsyncEngine, step: str) -> AsyncIterator[None]:
    """Block requests that reach a step, until the end of the block."""
    table, timing = STEPS[step].split(maxsplit=1)
    await execute(
        engine,
        BLOCK_FUNCTION,
        f"CREATE TRIGGER block_step {timing} FOR EACH STATEMENT EXECUTE FUNCTION block_step()",
    )
    autocommit_engine = engine.execution_options(isolation_level="AUTOCOMMIT")
    try:
        async with autocommit_engine.connect() as connection:
            await connection.execute(text("SELECT pg_advisory_lock(77)"))
            try:
                yield
            finally:
                await connection.execute(text("SELECT pg_advisory_unlock(77)"))
    finally:
        await execute(engine, f"DROP TRIGGER block_step ON {table}")


async def wait_until_blocked(engine: AsyncEngine, count: int = 1) -> None:
    """Wait until `count` requests are blocked."""
    async with asyncio.timeout(EVENT_TIMEOUT):
        while await value(engine, BLOCKED_COUNT) < count:
            await asyncio.sleep(0.01)
