"""The recorder of results, when the database refuses some of them."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from sqlalchemy.ext.asyncio import AsyncEngine
from tests.factories import LEASE, OWNER, add_due_messages, claim, execute, mailing_counts, state

from mailer.dispatch.claims import WorkerClaims
from mailer.dispatch.loop_failures import LoopFailures
from mailer.dispatch.recorder import Recorder
from mailer.message.model import MessageResult


@asynccontextmanager
async def recording(url: str, claims: WorkerClaims) -> AsyncIterator[Recorder]:
    """Yield a running recorder. At the end, wait until all results are written or dropped."""
    recorder = Recorder(url, claims, LoopFailures(), lambda _: None)
    running = asyncio.create_task(recorder.run())
    yield recorder
    await recorder.close()
    await running


async def refuse_results(engine: AsyncEngine, mailing_id: int) -> None:
    """Make the database refuse results of a mailing: its count of `sending` would be below 0."""
    await execute(engine, f"UPDATE mailing_counts SET sending = 0 WHERE mailing_id = {mailing_id}")  # noqa: S608  # a number


async def test_a_result_that_cannot_be_written_does_not_affect_other_mailings(
    engine: AsyncEngine, shared_database_url: str
) -> None:
    first, broken, last = [await add_due_messages(engine, 2) for _ in range(3)]
    claims = [
        claimed
        for mailing_id in (first, broken, last)
        for claimed in await claim(engine, mailing_id, count=2)
    ]
    await refuse_results(engine, broken)
    worker = WorkerClaims(LEASE)
    worker.owner = OWNER
    worker.add(claims)
    results = [MessageResult(claimed, "delivered", attempts=1) for claimed in claims]

    async with recording(shared_database_url, worker) as recorder:
        for result in results:
            worker.refunds.record_failure("channel", result.claim, failed_at=1)
            await recorder.put(result)

    for mailing_id in (first, last):
        assert await mailing_counts(engine, mailing_id) == {"delivered": 2}
    dropped = [claimed for claimed in claims if claimed.mailing_id == broken]
    for claimed in dropped:
        assert await state(engine, claimed.id) == ("sending", None, 1)  # until its lease expires
    # they stay unrecorded, so that they are not released as orphans and sent twice
    assert worker.unrecorded == {claimed.id for claimed in dropped}

    worker.forget(results)  # as the recorder does later, when the messages are rescued
    worker.refunds.confirm_outage("channel")
    written = [claimed for claimed in claims if claimed not in dropped]
    assert worker.refunds.take_refundable(worker.unrecorded) == written
