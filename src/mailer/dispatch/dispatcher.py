"""The dispatcher: all background work of a worker.

It starts mailings, enqueues their audiences, sends their messages, finishes them, and runs the
periodic jobs. This module connects the parts; each part has a module of its own.
"""

import asyncio
from collections.abc import Awaitable, Callable, Collection, Iterable
from datetime import timedelta
from typing import Self

import asyncpg
import msgspec
from sqlalchemy.ext.asyncio import AsyncEngine

from mailer.clock import database_clock, elapsed
from mailer.contact_cap import ContactCap
from mailer.dispatch.answer_sender import AnswerSender
from mailer.dispatch.claimer import Claimer
from mailer.dispatch.claims import WorkerClaims
from mailer.dispatch.lifecycle import Lifecycle
from mailer.dispatch.loop_failures import LoopFailures
from mailer.dispatch.pipeline import SendingPipeline
from mailer.dispatch.recorder import Recorder
from mailer.dispatch.running_mailings import RunningMailings
from mailer.dispatch.schedule import JobLimits, jobs, run_jobs
from mailer.dispatch.send_policy import RetryPolicy
from mailer.dispatch.sender import Sender, SenderParts
from mailer.gateway.channel import Channel, Channels
from mailer.gateway.router import GatewayTables
from mailer.message.model import MessageResult
from mailer.opt_out import store as opt_outs
from mailer.receipt.inbox import Inbox
from mailer.settings import Settings

DRAIN_TIMEOUT = 15.0
"""Seconds after the shutdown grace after which a pipeline that has not stopped is cancelled: longer
than the statement of a last claim and the recording of the last results may take together."""


class DispatcherLimits(msgspec.Struct, frozen=True, kw_only=True):
    """Limits on sending, retries, stopping and periodic jobs in this worker."""

    retry: RetryPolicy
    shutdown_grace: float
    """Seconds after `stop` for which requests in flight may go on."""
    contact_cap: ContactCap | None = None
    jobs: JobLimits

    @classmethod
    def of(cls, settings: Settings) -> Self:
        """Return the limits that the settings define."""
        return cls(
            retry=RetryPolicy(
                attempts=settings.retry_attempts, base=settings.retry_base, cap=settings.retry_cap
            ),
            shutdown_grace=settings.shutdown_grace,
            contact_cap=settings.parsed_contact_cap,
            jobs=JobLimits.of(settings),
        )


class Dispatcher:
    """Runs and connects the pipeline, the lifecycle, the running mailings and the periodic jobs.

    Without any channel nothing is sent. `report` sends the daily report if it is due, and `notices`
    the mails with notices. `inbox`
    stores receipts; None if gateways are not asked for any.
    """

    def __init__(  # noqa: PLR0913  # the parts that it connects
        self,
        url: str,
        engine: AsyncEngine,
        channels: Channels,
        limits: DispatcherLimits,
        *,
        report: Callable[[], Awaitable[object]] | None = None,
        notices: Callable[[], Awaitable[object]] | None = None,
        inbox: Inbox | None = None,
    ) -> None:
        self._channels = channels
        self._failures = LoopFailures()
        self._claims = WorkerClaims(timedelta(seconds=limits.jobs.lease))
        self._running_mailings = RunningMailings(
            url,
            self._claims.in_flight,
            self._failures,
            on_change=self._on_mailings_changed,
            on_try_now=self._try_now,
            on_gateway_tables=self._on_gateway_tables,
            on_opt_outs=self._on_opt_outs,
        )
        self._pipeline = self._create_pipeline(url, limits)
        self._lifecycle = Lifecycle(
            engine,
            self._failures,
            on_messages=self._pipeline.claimer.add_mailings,
            is_sending=lambda: self._pipeline.has_prefetched,
        )
        self._jobs = jobs(engine, channels, limits.jobs, report, inbox, notices)
        self._answers = AnswerSender(
            engine, channels, self._claims.refunds, limits.retry, limits.shutdown_grace
        )
        self._stop_timeout = limits.shutdown_grace + DRAIN_TIMEOUT
        self._stopping = asyncio.Event()

    def _create_pipeline(self, url: str, limits: DispatcherLimits) -> SendingPipeline:
        claims, running_mailings, failures = self._claims, self._running_mailings, self._failures
        claimer = Claimer(
            url, self._channels, claims, running_mailings, failures, limits.contact_cap
        )
        recorder = Recorder(url, claims, failures, on_recorded=self._on_results)
        parts = SenderParts(
            claims,
            running_mailings,
            recorder,
            limits.retry,
            self._channels.has_other,
            claimer.wake,
        )
        pipeline = SendingPipeline(
            claims,
            claimer,
            recorder,
            lambda channel: Sender(channel, parts),
            limits.shutdown_grace,
        )
        pipeline.use(self._channels)
        return pipeline

    def use(self, channels: Iterable[Channel]) -> None:
        """Send through these channels from now on; see `SendingPipeline.use`."""
        self._channels.replace(channels)
        self._pipeline.use(self._channels)

    def why_not_ready(self) -> str | None:
        """Return which loop keeps failing, as a sentence for users; None when all loops work."""
        return self._failures.reason(elapsed())

    def stop(self) -> None:
        """Start no more requests. `run` ends when the requests in flight have ended."""
        self._stopping.set()

    async def run(self) -> None:
        """Dispatch until `stop` is called."""
        async with asyncio.TaskGroup() as tasks:
            background = [
                tasks.create_task(self._running_mailings.run()),
                tasks.create_task(self._lifecycle.run()),
            ]
            sending = tasks.create_task(self._pipeline.run(on_idle=self._lifecycle.wake))
            answering = tasks.create_task(self._answers.run())
            periodic = tasks.create_task(run_jobs(self._jobs))
            await self._stopping.wait()
            periodic.cancel()
            self._pipeline.stop()
            self._answers.stop()
            await asyncio.wait([sending, answering], timeout=self._stop_timeout)
            sending.cancel()  # no effect if it has ended
            answering.cancel()
            for task in background:
                task.cancel()

    def _try_now(self) -> None:
        """Probe all gateways now, and claim messages that a user has made due."""
        for channel in self._channels:
            channel.breaker.try_now(elapsed(), database_clock.now())
        self._pipeline.claimer.recheck(self._running_mailings.running)

    def _on_gateway_tables(self, tables: GatewayTables) -> None:
        """Apply new routes, and pauses of gateways."""
        if self._channels.update(tables):
            self._pipeline.claimer.watch_routes()

    async def _on_opt_outs(self, connection: asyncpg.Connection) -> None:
        """Stop claimed messages whose clients have opted out since the claim.

        A claim that is running may have begun before the opt-out, so its end is awaited.
        """
        async with self._running_mailings.claiming:
            claimed_ids = list(self._claims.unrecorded)
        self._claims.stop_opted_out(await opt_outs.find_opted_out(connection, claimed_ids))

    def _on_results(self, results: list[MessageResult]) -> None:
        """Plan the next claims after results were recorded, and check for finished mailings."""
        self._pipeline.claimer.record_results(results)
        self._lifecycle.check_finished({result.claim.mailing_id for result in results})

    def _on_mailings_changed(self, mailing_ids: Collection[int]) -> None:
        """Do what the changes of these mailings may require: finish them, start them, or claim."""
        self._lifecycle.check_finished(mailing_ids)
        self._lifecycle.wake()
        self._pipeline.claimer.recheck(mailing_ids)
