"""Wait until no worker sends for a mailing that was paused, cancelled or deleted."""

import asyncio

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from mailer.mailing import stop_number
from mailer.mailing.errors import StopTimeoutError

STOP_TIMEOUT = 30.0
"""Seconds to wait until every worker has stopped sending for a mailing."""
STOP_POLL_INTERVAL = 0.02
"""Seconds between checks whether workers have stopped; no connection is held in between."""

# Three cases need no wait. A mailing that has not started has no messages. A mailing that is
# running was resumed by somebody else during the wait. Nothing of a finished mailing is sent.
NEEDS_NO_WAIT = text("""
    SELECT NOT EXISTS (SELECT FROM mailing WHERE id = :mailing_id AND audience_until IS NOT NULL)
        OR EXISTS (
            SELECT FROM mailing
            WHERE id = :mailing_id AND status IN ('running', 'finished')
                AND deleted_at IS NULL)""")


async def wait_until_stopped(engine: AsyncEngine, mailing_id: int) -> None:
    """Wait until every worker has read the committed change that stops a mailing.

    Raises `StopTimeoutError` after `STOP_TIMEOUT`. The change stays committed.
    """
    async with engine.begin() as connection:
        if await _needs_no_wait(connection, mailing_id):
            return
        number = await stop_number.next_number(connection)
    try:
        async with asyncio.timeout(STOP_TIMEOUT):
            while not await _is_stopped(engine, mailing_id, number):  # noqa: ASYNC110  # other processes cannot set an event
                await asyncio.sleep(STOP_POLL_INTERVAL)
    except TimeoutError as error:
        raise StopTimeoutError from error


async def _is_stopped(engine: AsyncEngine, mailing_id: int, number: int) -> bool:
    """Return whether every worker has applied the stop `number`, or the wait is not needed now."""
    async with engine.connect() as connection:
        return await stop_number.is_applied(connection, number) or await _needs_no_wait(
            connection, mailing_id
        )


async def _needs_no_wait(connection: AsyncConnection, mailing_id: int) -> bool:
    """Return whether a mailing has not started, or runs again."""
    return bool((await connection.execute(NEEDS_NO_WAIT, {"mailing_id": mailing_id})).scalar_one())
