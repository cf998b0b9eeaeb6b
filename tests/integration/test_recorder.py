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
    """Yield a running recorder; at the end all results are written or discarded."""
    recorder = Recorder(url, claims, LoopFailures(), lambda _: None)
    running = asyncio.create_task(recorder.run())
    yield recorder
    await recorder.close()
    await running


async def test_a_result_that_cannot_be_written_does_not_affect_other_mailings(
    engine: AsyncEngine, shared_database_url: str
) -> None:
    first, broken, last = [await add_due_messages(engine, 2) for _ in range(3)]
    claims = [claimed for id_ in (first, broken, last) for claimed in await claim(engine, id_, 2)]
    await execute(engine, f"UPDATE mailing_counts SET sending = 0 WHERE mailing_id = {broken}")  # noqa: S608  # a number
    worker = WorkerClaims(LEASE, prefetch_size=len(claims))
    worker.owner = OWNER
    worker.add(claims)
    results = [MessageResult(claimed, "delivered", 1) for claimed in claims]

    async with recording(shared_database_url, worker) as recorder:
        for result in results:
            worker.refunds.record_failure("gateway", result.claim, at=1)
            await recorder.put(result)

    for mailing_id in (first, last):
        assert await mailing_counts(engine, mailing_id) == {"delivered": 2}
    dropped = [claimed for claimed in claims if claimed.mailing_id == broken]
    for claimed in dropped:
        assert await state(engine, claimed.id) == ("sending", None, 1)  # until its lease expires
    # a claim with an unwritten result must not be released as untried
    assert worker.unrecorded == {claimed.id for claimed in dropped}
    worker.forget(results)
    worker.refunds.confirm_outage("gateway")
    assert worker.take_refundable() == [claimed for claimed in claims if claimed not in dropped]
