"""Every periodic job in one table. Each may run in several processes at once."""

import asyncio
from collections.abc import Awaitable, Callable

import msgspec
import structlog
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from mailer import metrics
from mailer.access import clearing
from mailer.client import directory
from mailer.clock import elapsed, sample_wall_clock
from mailer.dispatch.failure import log_failure
from mailer.mailing import moving, replanning
from mailer.mailing.restore import OriginCheck
from mailer.message import store as messages
from mailer.message import tally
from mailer.settings import Settings

log = structlog.get_logger()

CHUNK = 5_000
"""Rows that one run of a job works on."""
RETIRED = 1_000
"""Messages past their retention that one run deletes: few, since nothing is in a hurry."""
MOVES = 50_000
"""Moves of counts that one run folds: more than a process makes between two."""


class Job(msgspec.Struct, frozen=True):
    """Work that is repeated `every` seconds."""

    name: str
    every: float
    run: Callable[[], Awaitable[object]]


def jobs(
    engine: AsyncEngine, settings: Settings, report: Callable[[], Awaitable[object]] | None
) -> list[Job]:
    """Return every periodic job; `report` sends the report that is due, None where none is sent."""

    async def rescue() -> None:
        async with engine.begin() as connection:
            rescued = await messages.rescue(connection, settings.retry_attempts, CHUNK)
        if rescued:
            log.warning("leases_expired", messages=rescued)

    async def fold() -> None:
        async with engine.begin() as connection:
            await tally.fold(connection, MOVES)
            await directory.fold(connection, MOVES)

    async def retire() -> None:
        async with engine.begin() as connection:
            retired = await moving.retire(connection, settings.retention_days, RETIRED)
        if retired:
            log.info("messages_retired", messages=retired)

    table = [
        Job("clock", 1, sample_wall_clock),
        Job("origin", 1, OriginCheck(engine).run),
        Job("rescue", min(5, settings.lease / 4), rescue),
        Job("replan", 1, lambda: replanning.replan_all_moved(engine)),
        Job("purge", 2, _step(engine, lambda database: moving.purge(database, CHUNK))),
        Job("fold", 2, fold),
        Job("coarsen", 60, _step(engine, tally.coarsen)),
        Job("clear", 5, _step(engine, lambda database: clearing.clear(database, CHUNK))),
    ]
    if settings.retention_days:
        table.append(Job("retire", 1, retire))
    if report is not None:
        table.append(Job("report", 20, report))
    return table


def _step(
    engine: AsyncEngine, take: Callable[[AsyncConnection], Awaitable[object]]
) -> Callable[[], Awaitable[object]]:
    """Return what takes one step in a transaction of its own."""

    async def run() -> None:
        async with engine.begin() as connection:
            await take(connection)

    return run


async def run_jobs(table: list[Job]) -> None:
    """Run each job of `table` again and again until cancelled, one run of it at a time.

    They begin one after the other, so that they do not all want a connection at the same moment.
    """
    async with asyncio.TaskGroup() as tasks:
        for place, job in enumerate(table, 1):
            tasks.create_task(_repeat(job, job.every * place / len(table)))


async def _repeat(job: Job, pause: float) -> None:
    """Run a job after `pause` seconds and then at its interval; an error only costs its run.

    The event loop waits by a clock that nobody sets: a step of the wall clock delays no run.
    """
    succeeded_at = elapsed()
    metrics.watch_job(job.name, lambda: elapsed() - succeeded_at)
    while True:
        await asyncio.sleep(pause)
        began = elapsed()
        try:
            await job.run()
        except Exception as error:
            metrics.job_failed(job.name)
            log_failure(error, at=job.name)
        else:
            succeeded_at = elapsed()
        pause = job.every - (elapsed() - began) % job.every
