"""Rescue of messages whose worker died, and results that arrive after the lease expired."""

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
    resend,
    state,
    value,
)

from mailer.access.model import COMMAND_LINE
from mailer.db.engine import create_engine
from mailer.db.migrate import migrate
from mailer.embedded_postgres.cluster import embedded_postgres
from mailer.mailing import service
from mailer.message import store
from mailer.message.model import ClaimedMessage, MessageResult


async def rescue(engine: AsyncEngine, max_attempts: int = 8, chunk: int = 1_000) -> int:
    return await do(engine, lambda db: store.rescue(db, max_attempts, chunk))


async def claim_with_expired_lease(
    engine: AsyncEngine, on_unknown: str = "retry"
) -> ClaimedMessage:
    """Claim a message with a lease that has expired."""
    mailing_id = await add_due_messages(engine, 1)
    await execute(engine, f"UPDATE mailing SET on_unknown = '{on_unknown}'")  # noqa: S608  # a value of the test
    (claimed,) = await claim(engine, mailing_id, lease=-LEASE)
    return claimed


@pytest.mark.parametrize(
    ("on_unknown", "max_attempts", "expected"),
    [
        ("retry", 2, ("scheduled", "lease_expired")),
        ("retry", 1, ("unknown", "lease_expired")),
        ("hold", 2, ("unknown", "lease_expired")),
        ("hold", 1, ("unknown", "lease_expired")),
    ],
)
async def test_a_rescued_message_counts_as_unknown(
    engine: AsyncEngine, on_unknown: str, max_attempts: int, expected: tuple[str, str]
) -> None:
    claimed = await claim_with_expired_lease(engine, on_unknown)

    assert await rescue(engine, max_attempts) == 1

    assert await state(engine, claimed.id) == (*expected, 1)
    assert await value(engine, "SELECT last_failure FROM message") == "lease_expired"
    assert await mailing_counts(engine, claimed.mailing_id) == {expected[0]: 1}
    assert await finish(engine, MessageResult(claimed, "delivered", 1)) == 0


async def test_sent_at_of_a_held_rescued_message_is_its_claim_time(
    engine: AsyncEngine,
) -> None:
    await claim_with_expired_lease(engine, "hold")
    claimed_at = await value(engine, "SELECT updated_at FROM message")

    await rescue(engine)

    assert await value(engine, "SELECT sent_at FROM message") == claimed_at
    assert await value(engine, "SELECT updated_at FROM message") > claimed_at


async def test_a_rescheduled_rescued_message_has_no_sent_at(engine: AsyncEngine) -> None:
    await claim_with_expired_lease(engine, "retry")

    await rescue(engine, 2)

    assert await value(engine, "SELECT sent_at FROM message") is None


async def test_messages_with_a_valid_lease_are_not_rescued(engine: AsyncEngine) -> None:
    expired = await claim_with_expired_lease(engine)
    (leased,) = await claim(engine, await add_due_messages(engine, 1))

    assert await rescue(engine) == 1
    assert await state(engine, expired.id) == ("scheduled", "lease_expired", 1)
    assert await state(engine, leased.id) == ("sending", None, 1)


async def test_rescue_works_in_chunks(engine: AsyncEngine) -> None:
    mailing_id = await add_due_messages(engine, 3)
    await claim(engine, mailing_id, 3, lease=-LEASE)

    assert await rescue(engine, chunk=2) == 2
    assert await mailing_counts(engine, mailing_id) == {"scheduled": 2, "sending": 1}


async def test_a_result_of_an_earlier_attempt_changes_nothing(engine: AsyncEngine) -> None:
    claimed = await claim_with_expired_lease(engine)
    assert await rescue(engine) == 1
    (claimed_again,) = await claim(engine, claimed.mailing_id)
    assert (claimed_again.id, claimed_again.attempts) == (claimed.id, 2)

    assert await finish(engine, MessageResult(claimed, "delivered", 1)) == 0
    assert await state(engine, claimed.id) == ("sending", None, 2)


async def test_a_result_of_a_claim_before_a_retry_changes_nothing(engine: AsyncEngine) -> None:
    claimed = await claim_with_expired_lease(engine, "hold")
    late = MessageResult(claimed, "delivered", 1)
    await rescue(engine)
    await service.retry(engine, claimed.mailing_id, COMMAND_LINE)
    assert await finish(engine, late) == 0
    assert await resend(engine)
    assert await finish(engine, late) == 0
    assert await state(engine, claimed.id) == ("scheduled", None, 0)

    (claimed_again,) = await claim(engine, claimed.mailing_id)

    # owner and attempt are the same, but the lease is different
    assert (claimed_again.id, claimed_again.attempts) == (claimed.id, claimed.attempts)
    assert await finish(engine, late) == 0
    assert await state(engine, claimed.id) == ("sending", None, 1)
    assert await finish(engine, MessageResult(claimed_again, "delivered", 1)) == 1


MOVE = """
    UPDATE origin SET timeline = timeline + {}, moved_at = now() + interval '{} seconds',
        written_by = pg_current_xact_id()::xid::text::bigint"""


async def test_after_a_promotion_owners_have_time_before_the_rescue(engine: AsyncEngine) -> None:
    await claim_with_expired_lease(engine)

    await execute(engine, MOVE.format(1, -3_600))  # a promotion that is not recorded yet
    assert await rescue(engine) == 0
    await execute(engine, MOVE.format(-1, 60))  # recorded just now
    assert await rescue(engine) == 0
    await execute(engine, MOVE.format(0, -6))
    assert await rescue(engine) == 1


@pytest.fixture
def folder() -> Iterator[Path]:
    path = Path(tempfile.mkdtemp(prefix="mailer-tests-"))
    path.chmod(0o755)  # PostgreSQL's user passes through when the tests run as root
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
        assert await finish(engine, MessageResult(claimed, "delivered", 1)) == 1
        await engine.dispose()
