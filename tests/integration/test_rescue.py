"""Rescue of messages whose worker died, and results that arrive after the lease expired.

`state` returns the status, the reason and the number of attempts of a message.
"""

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy.ext.asyncio import AsyncEngine
from tests.factories import (
    LEASE,
    add_due_messages,
    claim,
    do,
    execute,
    finish,
    mailing_counts,
    schedule_retried,
    state,
    value,
)

from mailer.access.model import COMMAND_LINE
from mailer.db.engine import create_engine
from mailer.db.migrate import migrate
from mailer.embedded_postgres.cluster import embedded_postgres
from mailer.mailing import service
from mailer.message import recovery
from mailer.message.model import ClaimedMessage, MessageResult


async def rescue(engine: AsyncEngine, max_attempts: int = 8, chunk: int = 1_000) -> int:
    """Rescue messages with expired leases; return their number."""
    return await do(engine, lambda db: recovery.rescue(db, max_attempts, chunk))


async def claim_with_expired_lease(
    engine: AsyncEngine, on_unknown: str = "retry"
) -> ClaimedMessage:
    """Return a claim whose lease has expired, of the only message of a mailing."""
    mailing_id = await add_due_messages(engine, 1)
    await execute(engine, f"UPDATE mailing SET on_unknown = '{on_unknown}'")  # noqa: S608  # a value of the test
    (claimed,) = await claim(engine, mailing_id, lease=-LEASE)
    return claimed


@pytest.mark.parametrize(
    ("on_unknown", "max_attempts", "status"),
    [
        ("retry", 2, "scheduled"),
        ("retry", 1, "unknown"),
        ("hold", 2, "unknown"),
        ("hold", 1, "unknown"),
    ],
)
async def test_delivery_of_a_rescued_message_is_unknown(
    engine: AsyncEngine, on_unknown: str, max_attempts: int, status: str
) -> None:
    """It is sent again only if `on_unknown` is `retry` and an attempt is left. One is made."""
    claimed = await claim_with_expired_lease(engine, on_unknown)

    assert await rescue(engine, max_attempts) == 1

    assert await state(engine, claimed.id) == (status, "lease_expired", 1)
    assert await value(engine, "SELECT last_failure FROM message") == "lease_expired"
    assert await mailing_counts(engine, claimed.mailing_id) == {status: 1}


async def test_a_result_after_the_rescue_is_discarded(engine: AsyncEngine) -> None:
    claimed = await claim_with_expired_lease(engine)
    await rescue(engine)
    assert await finish(engine, MessageResult(claimed, "delivered", attempts=1)) == 0


async def test_sent_at_of_a_rescued_message_that_ends_as_unknown_is_its_claim_time(
    engine: AsyncEngine,
) -> None:
    await claim_with_expired_lease(engine, "hold")
    claimed_at = await value(engine, "SELECT updated_at FROM message")

    await rescue(engine)

    assert await value(engine, "SELECT sent_at FROM message") == claimed_at
    assert await value(engine, "SELECT updated_at FROM message") > claimed_at


async def test_a_rescued_message_that_is_scheduled_again_has_no_sent_at(
    engine: AsyncEngine,
) -> None:
    await claim_with_expired_lease(engine, "retry")

    await rescue(engine, max_attempts=2)

    assert await value(engine, "SELECT sent_at FROM message") is None


async def test_messages_with_a_valid_lease_are_not_rescued(engine: AsyncEngine) -> None:
    expired = await claim_with_expired_lease(engine)
    (leased,) = await claim(engine, await add_due_messages(engine, 1))

    assert await rescue(engine) == 1
    assert await state(engine, expired.id) == ("scheduled", "lease_expired", 1)
    assert await state(engine, leased.id) == ("sending", None, 1)


async def test_rescue_works_in_chunks(engine: AsyncEngine) -> None:
    mailing_id = await add_due_messages(engine, 3)
    await claim(engine, mailing_id, count=3, lease=-LEASE)

    assert await rescue(engine, chunk=2) == 2
    assert await mailing_counts(engine, mailing_id) == {"scheduled": 2, "sending": 1}


async def test_a_result_of_an_earlier_attempt_is_discarded(engine: AsyncEngine) -> None:
    claimed = await claim_with_expired_lease(engine)
    assert await rescue(engine) == 1
    (claimed_again,) = await claim(engine, claimed.mailing_id)
    assert (claimed_again.id, claimed_again.attempts) == (claimed.id, 2)

    assert await finish(engine, MessageResult(claimed, "delivered", attempts=1)) == 0
    assert await state(engine, claimed.id) == ("sending", None, 2)


async def test_a_result_of_a_claim_before_a_retry_is_discarded_at_any_time(
    engine: AsyncEngine,
) -> None:
    claimed = await claim_with_expired_lease(engine, "hold")
    result_before_retry = MessageResult(claimed, "delivered", attempts=1)
    await rescue(engine)

    await service.retry(engine, claimed.mailing_id, COMMAND_LINE)
    assert await finish(engine, result_before_retry) == 0

    assert await schedule_retried(engine)
    assert await finish(engine, result_before_retry) == 0
    assert await state(engine, claimed.id) == ("scheduled", None, 0)

    (claimed_again,) = await claim(engine, claimed.mailing_id)
    # owner and attempt are the same as before, but the lease is different
    assert (claimed_again.id, claimed_again.attempts) == (claimed.id, claimed.attempts)
    assert await finish(engine, result_before_retry) == 0
    assert await state(engine, claimed.id) == ("sending", None, 1)
    assert await finish(engine, MessageResult(claimed_again, "delivered", attempts=1)) == 1


SET_ORIGIN = """
    UPDATE origin SET timeline = timeline + {timelines}, moved_at = now() + interval '{moved_in}',
        written_by = pg_current_xact_id()::xid::text::bigint"""
"""Change the record of where the database runs. The record is valid only if `written_by` is the
transaction that wrote it."""


async def test_after_a_promotion_owners_have_five_seconds_before_the_rescue(
    engine: AsyncEngine,
) -> None:
    """A standby server that is promoted starts another timeline than the one that is recorded."""
    await claim_with_expired_lease(engine)

    promotion_not_recorded = SET_ORIGIN.format(timelines=1, moved_in="-1 hour")
    await execute(engine, promotion_not_recorded)
    assert await rescue(engine) == 0

    # one minute ahead, so that five seconds are not over on a slow machine
    promotion_just_recorded = SET_ORIGIN.format(timelines=-1, moved_in="1 minute")
    await execute(engine, promotion_just_recorded)
    assert await rescue(engine) == 0

    recorded_six_seconds_ago = SET_ORIGIN.format(timelines=0, moved_in="-6 seconds")
    await execute(engine, recorded_six_seconds_ago)
    assert await rescue(engine) == 1


@pytest.fixture
def folder() -> Iterator[Path]:
    path = Path(tempfile.mkdtemp(prefix="mailer-tests-"))
    path.chmod(0o755)  # PostgreSQL's own user must enter it when the tests run as root
    yield path
    shutil.rmtree(path)


async def test_after_a_restart_of_the_server_owners_have_time_before_the_rescue(
    folder: Path,
) -> None:
    async with embedded_postgres(folder) as url:
        engine = create_engine(url)
        await migrate(engine)
        claimed = await claim_with_expired_lease(engine)
        await engine.dispose()
    async with embedded_postgres(folder) as url:
        engine = create_engine(url)

        assert await rescue(engine) == 0

        assert await state(engine, claimed.id) == ("sending", None, 1)
        assert await finish(engine, MessageResult(claimed, "delivered", attempts=1)) == 1
        await engine.dispose()
