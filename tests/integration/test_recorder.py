"""Results of claimed messages, and a database that refuses some of them."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from sqlalchemy.ext.asyncio import AsyncEngine
from tests.sample import OWNER, add_due_messages, claim, execute, ledger, state

from mailer.dispatch.loop_failures import LoopFailures
from mailer.dispatch.recorder import Recorder
from mailer.message.model import ClaimedMessage, FinishedMessage


@asynccontextmanager
async def recording(url: str, late: list[ClaimedMessage]) -> AsyncIterator[Recorder]:
    """Give a recorder; what was put is written, or dropped, in the end."""
    recorder = Recorder(url, OWNER, LoopFailures(), late.extend, lambda _: None)
    running = asyncio.create_task(recorder.run())
    yield recorder
    await recorder.close()
    await running


async def test_result_that_cannot_be_written_costs_no_other_mailing_its_results(
    engine: AsyncEngine, shared_database_url: str
) -> None:
    first, spoilt, last = [await add_due_messages(engine, 2) for _ in range(3)]
    claims = [one for each in (first, spoilt, last) for one in await claim(engine, each, 2)]
    await execute(engine, f"UPDATE ledger SET sending = 0 WHERE mailing_id = {spoilt}")  # noqa: S608  # of a test
    late: list[ClaimedMessage] = []

    async with recording(shared_database_url, late) as recorder:
        recorder.held.update((each.id, each) for each in claims)
        for each in claims:
            await recorder.put(FinishedMessage(each, "delivered", 1))

    for mailing_id in (first, last):
        assert await ledger(engine, mailing_id) == {"delivered": 2}
    dropped = [each for each in claims if each.mailing_id == spoilt]
    for each in dropped:
        assert await state(engine, each.id) == ("sending", None, 1)  # its lease expires
    assert late == dropped
    # what is held is not released as if it had not been sent
    assert recorder.held.keys() == {each.id for each in dropped}
