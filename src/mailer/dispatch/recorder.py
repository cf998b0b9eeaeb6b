"""The recorder: writes the results of claimed messages to the database, in batches."""

import asyncio
from collections import defaultdict
from collections.abc import Callable

import asyncpg
import structlog

from mailer import metrics
from mailer.clock import database_clock
from mailer.db.engine import DedicatedConnection, is_unavailable
from mailer.dispatch.claims import WorkerClaims
from mailer.dispatch.loop_failures import DB_RETRY_DELAY, LoopFailures, log_task_error
from mailer.dispatch.message_log import log_result
from mailer.message import store
from mailer.message.model import MessageResult
from mailer.opt_out import service as opt_outs

log = structlog.get_logger()

MAX_BATCH = 500
"""Most results in one statement. More would gain nothing and hold locks longer."""
FLUSH_INTERVAL = 0.02
"""Seconds for which results are collected before they are written."""
MAX_RESCUE_DELAY = 60.0
"""Most seconds from the end of a lease until the message is rescued. Workers rescue messages every
few seconds, so this leaves much time to spare."""


class Recorder:
    """A bounded queue of results, and the task that writes them.

    While the database is unavailable, results stay in the queue. When it is full, senders wait.
    `on_recorded` is called with the results that were written or discarded.
    """

    def __init__(
        self,
        url: str,
        claims: WorkerClaims,
        failures: LoopFailures,
        on_recorded: Callable[[list[MessageResult]], None],
    ) -> None:
        self._connection = DedicatedConnection(url)
        self._claims = claims
        self._failures = failures
        self._on_recorded = on_recorded
        self._results: asyncio.Queue[MessageResult | None] = asyncio.Queue(maxsize=4 * MAX_BATCH)

    async def put(self, result: MessageResult) -> None:
        """Queue a result to be written; wait while the queue is full."""
        log_result(result)
        await self._results.put(result)

    async def close(self) -> None:
        """Make `run` end when all queued results are written."""
        await self._results.put(None)

    async def run(self) -> None:
        """Write queued results until `close` is called."""
        try:
            await self._run()
        finally:
            self._connection.close()

    async def _run(self) -> None:
        is_closed = False
        while not is_closed:
            batch = [await self._results.get()]
            if self._results.qsize() < MAX_BATCH:
                await asyncio.sleep(FLUSH_INTERVAL)
            while len(batch) < MAX_BATCH and not self._results.empty():
                batch.append(self._results.get_nowait())
            is_closed = None in batch  # from `close`
            if results := [result for result in batch if result is not None]:
                await self._write_all(results)

    async def _write_all(self, results: list[MessageResult]) -> None:
        """Write results. If the database refuses them, write those of each mailing apart.

        In this way, invalid data of one mailing affects no other mailing. Results that still cannot
        be written are dropped, and their messages are rescued when the leases expire.
        """
        if await self._write(results):
            return
        by_mailing: dict[int, list[MessageResult]] = defaultdict(list)
        for result in results:
            by_mailing[result.claim.mailing_id].append(result)
        for mailing_results in by_mailing.values():
            # results of a single mailing were refused already, by the same statement
            if len(by_mailing) == 1 or not await self._write(mailing_results):
                self._drop(mailing_results)

    async def _write(self, results: list[MessageResult]) -> bool:
        """Write results; repeat it while the database is unavailable.

        Return False when the results cannot be written for another reason.

        If the connection is lost after a write, the results are written twice. This does no harm:
        the first write ends the lease, so the second one changes nothing. Only the metric then
        counts the results as discarded.
        """
        while True:
            try:
                connection = await self._connection.get()
                await self._record_opt_outs(connection, results)
                stored_ids = await store.record_results(connection, self._claims.owner, results)
            except Exception as error:  # any error ends this attempt only
                log_task_error(error, at="record")
                self._failures.record("record", has_failed=True)
                if not is_unavailable(error):
                    return False
                await asyncio.sleep(DB_RETRY_DELAY)
            else:
                self._failures.record("record", has_failed=False)
                discarded = self._claims.forget_written(results, stored_ids)
                self._on_recorded(results)
                metrics.results_recorded(
                    (
                        (result.claim.gateway, result.status, result.reason, result.attempts)
                        for result in results
                    ),
                    discarded=len(discarded),
                )
                log.debug("results_recorded", results=len(results), discarded=len(discarded))
                return True

    async def _record_opt_outs(
        self, connection: asyncpg.Connection, results: list[MessageResult]
    ) -> None:
        """Record the opt-outs that gateways have answered with.

        This comes before the results: if it is interrupted, the results are not recorded either, so
        that no opt-out is lost. An error other than an unavailable database costs no result.
        """
        phones: dict[str, list[str]] = defaultdict(list)  # by gateway
        for result in results:
            if result.is_opt_out and result.claim.phone is not None:
                phones[result.claim.gateway].append(result.claim.phone)
        for gateway, gateway_phones in phones.items():
            try:
                async with connection.transaction():
                    await opt_outs.opt_out_phones(connection, gateway_phones, "gateway", gateway)
            except Exception as error:
                if is_unavailable(error):
                    raise
                log_task_error(error, at="record_opt_outs")

    def _drop(self, results: list[MessageResult]) -> None:
        """Drop results that cannot be written. Their attempts are not refunded.

        The claims are kept until the messages are rescued. If this worker forgot them earlier, the
        messages would count as orphans, be released, and be sent twice.
        """
        claims = [result.claim for result in results]
        log.error("results_dropped", mailing_id=claims[0].mailing_id, messages=len(claims))
        self._claims.refunds.discard(claims)
        lease_left = max(claim.lease_expires_at for claim in claims) - database_clock.now()
        delay = max(0.0, lease_left.total_seconds()) + MAX_RESCUE_DELAY
        asyncio.get_running_loop().call_later(delay, self._claims.forget, results)
