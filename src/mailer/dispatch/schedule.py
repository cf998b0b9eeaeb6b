"""The periodic jobs of a worker. A job may run in several workers at the same time."""

import asyncio
from collections.abc import Awaitable, Callable
from datetime import timedelta
from functools import partial
from typing import Self

import msgspec
import structlog
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from mailer import metrics
from mailer.client import field_names, segment_counts
from mailer.client.lists import store as lists
from mailer.clock import elapsed, sample_wall_clock
from mailer.dispatch import expiry
from mailer.dispatch.loop_failures import log_task_error
from mailer.dispatch.route_update import RouteUpdate
from mailer.gateway.channel import Channels
from mailer.mailing import downsampling, moved_clients, purging
from mailer.mailing.restore import OriginCheck
from mailer.message import contacts, counters, recovery
from mailer.notice.watch import NoticeWatch
from mailer.opt_out import linking
from mailer.opt_out import store as opt_outs
from mailer.receipt import store as receipt_store
from mailer.receipt.inbox import Inbox
from mailer.receipt.polling import Polling
from mailer.reply import outbox
from mailer.reply import store as replies
from mailer.reply.rules import ReplyRules
from mailer.settings import Settings
from mailer.webhook import queue
from mailer.webhook.outages import OutageWatch

log = structlog.get_logger()

JOB_BATCH = 5_000
"""Most rows that one run of a job changes or deletes."""
RETENTION_BATCH = 1_000
"""Most messages past their retention that one run deletes. Few, because it is not urgent."""
EVENT_BATCH = 1_000
"""Most events of webhooks past their retention that one run deletes: an event may be large."""
REPLY_BATCH = 200
"""Most replies that one run joins from their parts."""
DELTA_BATCH = 50_000
"""Most deltas of counters that one run merges: more than a worker writes between two runs."""


class Job(msgspec.Struct, frozen=True):
    """Work that is repeated every `interval` seconds."""

    name: str
    """The name in metrics and logs."""
    interval: float
    run: Callable[[], Awaitable[object]]


class JobLimits(msgspec.Struct, frozen=True, kw_only=True):
    """Limits that the periodic jobs enforce, and that decide how often they run."""

    lease: float
    """Duration of a lease, in seconds."""
    max_attempts: int
    """Most attempts of a message."""
    retention_days: int
    """Days for which the messages of ended mailings are kept, and replies; 0 for no limit."""
    reply_rules: ReplyRules
    """What replies do whose parts are joined."""
    receipt_wait: float
    """Seconds for which a receipt is awaited."""
    has_contact_cap: bool = False

    @classmethod
    def of(cls, settings: Settings) -> Self:
        """Return the limits that the settings define."""
        return cls(
            lease=settings.lease,
            max_attempts=settings.retry_attempts,
            retention_days=settings.retention_days,
            receipt_wait=settings.receipt_wait,
            reply_rules=ReplyRules.of(settings),
            has_contact_cap=settings.contact_cap is not None,
        )


def jobs(  # noqa: PLR0913, PLR0917  # the parts that jobs run
    engine: AsyncEngine,
    channels: Channels,
    limits: JobLimits,
    report: Callable[[], Awaitable[object]] | None,
    inbox: Inbox | None = None,
    notices: Callable[[], Awaitable[object]] | None = None,
) -> list[Job]:
    """Return the table of periodic jobs.

    `report` sends the daily report if it is due; None when no report is sent. `inbox` stores
    receipts for which gateways are asked; None if none is asked. `notices` sends the mails with
    notices that are due; None without a mail server.
    """
    table = [
        Job("update_routes", 1, RouteUpdate(engine, channels).run),
        Job("sample_clock", 1, sample_wall_clock),
        Job("check_origin", 1, OriginCheck(engine).run),
        Job(
            "rescue_messages",
            min(5, limits.lease / 4),  # soon after a lease has expired, also when leases are short
            partial(_rescue, engine, limits.max_attempts),
        ),
        Job("link_opt_outs", 1, partial(linking.link_all, engine)),
        Job("replan_mailings", 1, lambda: moved_clients.replan_all_moved(engine)),
        Job(
            "purge_mailings",
            2,
            _in_transaction(engine, lambda database: purging.purge(database, JOB_BATCH)),
        ),
        Job(
            "purge_lists",
            2,
            _in_transaction(engine, lambda database: lists.purge(database, JOB_BATCH)),
        ),
        Job("apply_early_receipts", 1, _EarlyReceipts(engine).run),
        Job(
            "give_up_waiting",
            min(10, limits.receipt_wait / 4),
            _in_transaction(
                engine,
                lambda database: receipt_store.give_up_waiting(
                    database, timedelta(seconds=limits.receipt_wait), JOB_BATCH
                ),
            ),
        ),
        Job(
            "join_replies",
            5,
            _in_transaction(
                engine,
                lambda database: replies.join_parts(database, limits.reply_rules, REPLY_BATCH),
            ),
        ),
        Job(
            "end_answers",
            5,
            _in_transaction(engine, lambda database: outbox.end_overdue(database, JOB_BATCH)),
        ),
        Job("merge_counters", 2, _in_transaction(engine, _merge_deltas)),
        Job("downsample_counters", 60, _in_transaction(engine, downsampling.downsample)),
        Job(
            "delete_expired",
            5,
            _in_transaction(engine, lambda database: expiry.delete_expired(database, JOB_BATCH)),
        ),
    ]
    if inbox is not None:
        table.append(Job("poll_receipts", 2, Polling(engine, channels, inbox).run))
    table += [
        Job("watch_outages", 1, OutageWatch(engine, channels).run),
        Job("watch_notices", 10, NoticeWatch(engine, channels).run),
        Job("bound_webhook_deliveries", 5, partial(_bound_webhook_deliveries, engine)),
        Job(
            "purge_webhook_events",
            10,
            _in_transaction(engine, lambda database: queue.purge(database, EVENT_BATCH)),
        ),
    ]
    if limits.retention_days:
        delete = partial(_delete_expired_messages, engine, limits.retention_days)
        table.append(Job("purge_messages", 1, delete))
        delete_replies = partial(
            replies.delete_expired, days=limits.retention_days, limit=RETENTION_BATCH
        )
        table.append(Job("purge_replies", 10, _in_transaction(engine, delete_replies)))
    if not limits.has_contact_cap:
        forget = partial(contacts.forget, limit=JOB_BATCH)
        table.append(Job("forget_contacts", 5, _in_transaction(engine, forget)))
    if report is not None:
        table.append(Job("send_report", 20, report))
    if notices is not None:
        table.append(Job("send_notices", 5, notices))
    return table


class _EarlyReceipts:
    """Tries again the receipts that came before their message had a result."""

    def __init__(self, engine: AsyncEngine) -> None:
        self._engine = engine
        self._runs = 0

    async def run(self) -> None:
        """Apply the receipts whose messages have a result now."""
        self._runs += 1
        async with self._engine.begin() as connection:
            result = await receipt_store.apply_early_receipts(connection, self._runs)
        metrics.receipts_stored(result.applied, 0, result.ignored)


async def _rescue(engine: AsyncEngine, max_attempts: int) -> None:
    """Rescue messages whose lease has expired."""
    async with engine.begin() as connection:
        rescued = await recovery.rescue(connection, max_attempts, JOB_BATCH)
    if rescued:
        log.warning("leases_expired", messages=rescued)


async def _bound_webhook_deliveries(engine: AsyncEngine) -> None:
    """End deliveries to webhooks that are too old, or more than may wait."""
    async with engine.begin() as connection:
        expired = await queue.expire(connection, JOB_BATCH)
    if expired:
        metrics.webhook_attempted("failed", expired)
        log.warning("webhook_deliveries_expired", deliveries=expired)
    async with engine.begin() as connection:
        dropped = await queue.drop_beyond_limit(connection, JOB_BATCH)
    for webhook_id, deliveries in dropped.items():
        metrics.webhook_attempted("dropped", deliveries)
        log.warning("webhook_deliveries_dropped", webhook_id=webhook_id, deliveries=deliveries)


async def _merge_deltas(connection: AsyncConnection) -> None:
    """Add the stored changes of counters to the counters."""
    await counters.merge_deltas(connection, DELTA_BATCH)
    await segment_counts.merge_deltas(connection, DELTA_BATCH)
    await field_names.merge_deltas(connection, DELTA_BATCH)
    await opt_outs.merge_counts(connection)


async def _delete_expired_messages(engine: AsyncEngine, retention_days: int) -> None:
    """Delete messages that have been kept for `retention_days`."""
    async with engine.begin() as connection:
        deleted = await purging.delete_expired_messages(connection, retention_days, RETENTION_BATCH)
    if deleted:
        log.info("expired_messages_deleted", messages=deleted)


def _in_transaction(
    engine: AsyncEngine, step: Callable[[AsyncConnection], Awaitable[object]]
) -> Callable[[], Awaitable[object]]:
    """Return a function that runs `step` in a transaction of its own."""

    async def run() -> None:
        async with engine.begin() as connection:
            await step(connection)

    return run


async def run_jobs(table: list[Job]) -> None:
    """Run each job of `table` periodically until cancelled, one run of a job at a time.

    The first runs are spread over time, so that the jobs do not all need a connection at once.
    """
    async with asyncio.TaskGroup() as tasks:
        for number, job in enumerate(table, 1):
            tasks.create_task(_repeat(job, first_pause=job.interval * number / len(table)))


async def _repeat(job: Job, first_pause: float) -> None:
    """Run a job after `first_pause` seconds, and then at its interval. An error ends only that run.

    The event loop waits by a monotonic clock, so a step of the wall clock delays no run.
    """
    succeeded_at = elapsed()
    metrics.watch_job(job.name, lambda: elapsed() - succeeded_at)
    pause = first_pause
    while True:
        await asyncio.sleep(pause)
        started = elapsed()
        try:
            await job.run()
        except Exception as error:  # the next run must follow any error
            metrics.job_failed(job.name)
            log_task_error(error, at=job.name)
        else:
            succeeded_at = elapsed()
        # until the next multiple of the interval, so that long runs do not shift the later ones
        pause = job.interval - (elapsed() - started) % job.interval
