"""Messages whose owner is gone, and owners who come late."""

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy.ext.asyncio import AsyncEngine
from tests.sample import (
    LEASE,
    add_due_messages,
    claim,
    do,
    execute,
    finish,
    ledger,
    resend,
    state,
    value,
)

from mailer.access.model import COMMAND_LINE
from mailer.db.embedded import embedded_postgres
from mailer.db.engine import create_engine
from mailer.db.migrate import migrate
from mailer.mailing import service
from mailer.message import store
from mailer.message.model import ClaimedMessage, FinishedMessage


async def rescue(engine: AsyncEngine, max_attempts: int = 8, chunk: int = 1_000) -> int:
    return await do(engine, lambda db: store.rescue(db, max_attempts, chunk))


async def lost(engine: AsyncEngine, on_unknown: str = "retry") -> ClaimedMessage:
    """A claim whose lease has expired."""
    mailing_id = await add_due_messages(engine, 1)
    await execute(engine, f"UPDATE mailing SET on_unknown = '{on_unknown}'")  # noqa: S608  # of a test
    (claimed,) = await claim(engine, mailing_id, lease=-LEASE)
    return claimed


@pytest.mark.parametrize(
    ("on_unknown", "max_attempts", "becomes"),
    [
        ("retry", 2, ("scheduled", "lease_expired")),
        ("retry", 1, ("unknown", "lease_expired")),
        ("hold", 2, ("unknown", "lease_expired")),
        ("hold", 1, ("unknown", "lease_expired")),
    ],
)
async def test_rescued_message_counts_as_unknown(
    engine: AsyncEngine, on_unknown: str, max_attempts: int, becomes: tuple[str, str]
) -> None:
    claimed = await lost(engine, on_unknown)

    assert await rescue(engine, max_attempts) == 1

    assert await state(engine, claimed.id) == (*becomes, 1)
    assert await value(engine, "SELECT last_failure FROM message") == "lease_expired"
    assert await ledger(engine, claimed.mailing_id) == {becomes[0]: 1}
    assert await finish(engine, FinishedMessage(claimed, "delivered", 1)) == 0


async def test_rescued_message_that_is_held_was_sent_when_it_was_claimed(
    engine: AsyncEngine,
) -> None:
    await lost(engine, "hold")
    claimed_at = await value(engine, "SELECT updated_at FROM message")

    await rescue(engine)

    assert await value(engine, "SELECT sent_at FROM message") == claimed_at
    assert await value(engine, "SELECT updated_at FROM message") > claimed_at


async def test_rescued_message_that_waits_again_was_not_sent(engine: AsyncEngine) -> None:
    await lost(engine, "retry")

    await rescue(engine, 2)

    assert await value(engine, "SELECT sent_at FROM message") is None


async def test_rescue_leaves_leases_that_hold_alone(engine: AsyncEngine) -> None:
    expired = await lost(engine)
    (held,) = await claim(engine, await add_due_messages(engine, 1))

    assert await rescue(engine) == 1
    assert await state(engine, expired.id) == ("scheduled", "lease_expired", 1)
    assert await state(engine, held.id) == ("sending", None, 1)


async def test_rescue_takes_no_more_than_a_chunk(engine: AsyncEngine) -> None:
    mailing_id = await add_due_messages(engine, 3)
    await claim(engine, mailing_id, 3, lease=-LEASE)

    assert await rescue(engine, chunk=2) == 2
    assert await ledger(engine, mailing_id) == {"scheduled": 2, "sending": 1}


async def test_finish_of_an_earlier_attempt_changes_nothing(engine: AsyncEngine) -> None:
    claimed = await lost(engine)
    assert await rescue(engine) == 1
    (again,) = await claim(engine, claimed.mailing_id)
    assert (again.id, again.attempts) == (claimed.id, 2)

    assert await finish(engine, FinishedMessage(claimed, "delivered", 1)) == 0
    assert await state(engine, claimed.id) == ("sending", None, 2)


async def test_finish_of_a_claim_from_before_a_retry_changes_nothing(engine: AsyncEngine) -> None:
    claimed = await lost(engine, "hold")
    late = FinishedMessage(claimed, "delivered", 1)
    await rescue(engine)
    await service.retry(engine, claimed.mailing_id, COMMAND_LINE)
    assert await finish(engine, late) == 0
    assert await resend(engine)
    assert await finish(engine, late) == 0
    assert await state(engine, claimed.id) == ("scheduled", None, 0)

    (again,) = await claim(engine, claimed.mailing_id)

    # the owner and the attempt are the same, the lease is not
    assert (again.id, again.attempts) == (claimed.id, claimed.attempts)
    assert await finish(engine, late) == 0
    assert await state(engine, claimed.id) == ("sending", None, 1)
    assert await finish(engine, FinishedMessage(again, "delivered", 1)) == 1


MOVED = """
    UPDATE origin SET timeline = timeline + {}, moved_at = now() + interval '{} seconds',
        written_by = pg_current_xact_id()::xid::text::bigint"""


async def test_after_a_promotion_of_the_server_the_owners_come_first(engine: AsyncEngine) -> None:
    await lost(engine)

    await execute(engine, MOVED.format(1, -3_600))  # a promotion that nobody has noted yet
    assert await rescue(engine) == 0
    await execute(engine, MOVED.format(-1, 60))  # noted right now
    assert await rescue(engine) == 0
    await execute(engine, MOVED.format(0, -6))
    assert await rescue(engine) == 1


@pytest.fixture
def folder() -> Iterator[Path]:
    path = Path(tempfile.mkdtemp(prefix="mailer-tests-"))
    path.chmod(0o755)  # PostgreSQL's user passes through when the tests run as root
    yield path
    shutil.rmtree(path)


async def test_right_after_a_restart_of_the_server_the_owners_come_first(folder: Path) -> None:
    async with embedded_postgres(folder) as url:
        engine = create_engine(url)
        await migrate(engine)
        claimed = await lost(engine)
        await engine.dispose()
    async with embedded_postgres(folder) as url:
        engine = create_engine(url)

        assert await rescue(engine) == 0

        assert await state(engine, claimed.id) == ("sending", None, 1)
        assert await finish(engine, FinishedMessage(claimed, "delivered", 1)) == 1
        await engine.dispose()
