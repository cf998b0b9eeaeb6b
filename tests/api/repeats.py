"""Requests with an Idempotency-Key, and the states of their rows in the database.

A test sends a request, and then sets its row to a state that a crash or another worker would leave.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Literal, NamedTuple

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
COUNT_MAILINGS = "SELECT count(*) FROM mailing"
CRASHED = """
    UPDATE idempotency SET status = NULL, media_type = NULL, body = NULL,
        leased_until = now() - interval '1 s'"""
"""Sets the state after a worker did the work, died before it responded, and its lease expired."""
CRASHED_EARLY = "UPDATE idempotency SET result = NULL, digest = NULL, client_id = NULL"
"""Sets, after `CRASHED`, the state if the worker died before it did the work."""
IN_PROGRESS = "UPDATE idempotency SET leased_until = now() + interval '1 h'"
"""Sets, after `CRASHED`, the state if the lease has not expired: the worker may be alive."""


Call = tuple[str, dict[str, Any]]
"""A POST request to the API: its path, and the other arguments for httpx."""


def call_to(path: str, **arguments: Any) -> Call:
    return path, arguments


NEW_MAILING = call_to("/mailings", json=NEW)
NEW_CLIENT = call_to("/clients", json=ANNA)


async def post(api: httpx.AsyncClient, call: Call, key: str = "a") -> httpx.Response:
    """Send a call with an Idempotency-Key."""
    path, arguments = call
    headers = arguments.get("headers", {}) | {"Idempotency-Key": key}
    return await api.post(path, **{**arguments, "headers": headers})


def is_replay(response: httpx.Response) -> bool:
    """Return whether a response was stored earlier, by its header."""
    header: str | None = response.headers.get("Idempotency-Replayed")
    return header == "true"


def is_same(first: httpx.Response, repeat: httpx.Response) -> bool:
    """Return whether the response `repeat` is the stored response `first`."""
    return is_replay(repeat) and _essentials(first) == _essentials(repeat)


def _essentials(response: httpx.Response) -> tuple[int, bytes, str]:
    return response.status_code, response.content, response.headers["Content-Type"]


@asynccontextmanager
async def api_with_lease(engine: AsyncEngine, lease: float) -> AsyncIterator[httpx.AsyncClient]:
    """Yield the application's API with a lease of `lease` seconds for idempotent requests."""
    app = create_app(engine, settings=Settings(auth="none", lease=lease))
    transport = inside(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://mailer/api/v1") as client:
        yield client


Step = Literal["create mailing", "create client", "store result", "store response"]
"""A step of a request at which a test can block it."""


class StepTrigger(NamedTuple):
    """The trigger that runs at a step: its table, and its event before any row is locked."""

    table: str
    event: str


STEP_TRIGGERS: dict[Step, StepTrigger] = {
    "create mailing": StepTrigger("mailing", "INSERT"),
    "create client": StepTrigger("client", "INSERT"),
    "store result": StepTrigger("idempotency", "UPDATE OF result"),
    "store response": StepTrigger("idempotency", "UPDATE OF body"),
}
COUNT_BLOCKED = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted"
BLOCKING_LOCK = 77
"""Key of the advisory lock for which blocked requests wait."""
BLOCK_FUNCTION = f"""
    CREATE OR REPLACE FUNCTION block_step() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
        IF current_query() NOT LIKE '%SET status = 409%' THEN  -- erasing is not blocked
            PERFORM pg_advisory_lock_shared({BLOCKING_LOCK});
            PERFORM pg_advisory_unlock_shared({BLOCKING_LOCK});
        END IF;
        RETURN NULL;
    END $$"""


@asynccontextmanager
async def blocked_at(engine: AsyncEngine, step: Step) -> AsyncIterator[None]:
    """Block requests that reach a step, until the end of the block."""
    trigger = STEP_TRIGGERS[step]
    await execute(
        engine,
        BLOCK_FUNCTION,
        f"""CREATE TRIGGER block_step BEFORE {trigger.event} ON {trigger.table}
            FOR EACH STATEMENT EXECUTE FUNCTION block_step()""",
    )
    autocommit_engine = engine.execution_options(isolation_level="AUTOCOMMIT")
    try:
        async with autocommit_engine.connect() as connection:
            await connection.execute(text(f"SELECT pg_advisory_lock({BLOCKING_LOCK})"))
            try:
                yield
            finally:
                await connection.execute(text(f"SELECT pg_advisory_unlock({BLOCKING_LOCK})"))
    finally:
        await execute(engine, f"DROP TRIGGER block_step ON {trigger.table}")


async def wait_until_blocked(engine: AsyncEngine, count: int = 1) -> None:
    """Wait until `count` requests are blocked."""
    async with asyncio.timeout(EVENT_TIMEOUT):
        while await value(engine, COUNT_BLOCKED) < count:
            await asyncio.sleep(0.01)
