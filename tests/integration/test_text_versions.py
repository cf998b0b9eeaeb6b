"""Each message keeps the version of the text that it was sent with."""

from datetime import UTC, datetime

import pytest
from sqlalchemy.ext.asyncio import AsyncEngine
from tests.factories import (
    LEASE,
    OWNER,
    add_due_messages,
    claim,
    do,
    execute,
    finish,
    value,
)

from mailer.access.model import COMMAND_LINE
from mailer.db.engine import asyncpg_connection
from mailer.dispatch.send_policy import Send, decide_before_send, release_untried
from mailer.mailing import service, texts, tracking
from mailer.mailing.errors import TooManyTextsError
from mailer.mailing.model import MAX_TEXT_VERSIONS, MailingChange, RunningMailing, TextVersion
from mailer.message import reading, recovery
from mailer.message.model import ClaimedMessage, MessageResult
from mailer.statistics.verify import find_differences

TIMEOUT = 10.0  # seconds


@pytest.fixture
async def mailing_id(engine: AsyncEngine) -> int:
    """A running mailing with two due messages and the text "Price is 100"."""
    mailing_id = await add_due_messages(engine, 2)
    await change_text(engine, mailing_id, "Price is 100")
    return mailing_id


async def change_text(engine: AsyncEngine, mailing_id: int, text: str) -> None:
    await service.change(engine, mailing_id, MailingChange(text=text), COMMAND_LINE)


async def claim_one(engine: AsyncEngine, mailing_id: int) -> ClaimedMessage:
    (claimed,) = await claim(engine, mailing_id)
    return claimed


async def deliver(engine: AsyncEngine, claimed: ClaimedMessage) -> None:
    now = datetime.now(UTC)
    await finish(engine, MessageResult(claimed, "delivered", claimed.attempts, sent_at=now))


async def requeue(engine: AsyncEngine, claimed: ClaimedMessage, reason: str) -> None:
    """Record that an attempt failed; with the reason `timeout`, delivery is unknown."""
    unknown_reason = reason if reason == "timeout" else None
    await finish(
        engine,
        MessageResult(
            claimed,
            "scheduled",
            claimed.attempts,
            reason=reason,
            last_failure=reason,
            unknown_reason=unknown_reason,
        ),
    )


async def running(engine: AsyncEngine, mailing_id: int) -> RunningMailing:
    """Return the mailing as the dispatcher reads it."""
    async with engine.connect() as pooled:
        mailings = await tracking.read_active(await asyncpg_connection(pooled))
    mailing = mailings[mailing_id]
    assert mailing is not None
    return mailing


async def sent_text(engine: AsyncEngine, claimed: ClaimedMessage) -> str | None:
    """Return the text that would be sent for a claim; None if the claim is released."""
    mailing = await running(engine, claimed.mailing_id)
    decision = decide_before_send(claimed, mailing, datetime.now(UTC), TIMEOUT)
    return decision.mailing.text if isinstance(decision, Send) else None


async def shown(engine: AsyncEngine, message_id: int) -> tuple[str, int | None]:
    """Return the text and its version that the page of a message shows."""
    mailing_id = await value(engine, f"SELECT mailing_id FROM message WHERE id = {message_id}")  # noqa: S608  # a number
    history = await do(engine, lambda db: reading.get_history(db, mailing_id, message_id))
    return history.text, history.text_version


async def versions(engine: AsyncEngine, mailing_id: int) -> list[TextVersion]:
    return await do(engine, lambda db: texts.list_versions(db, mailing_id))


async def test_message_shows_the_text_that_it_was_sent_with(
    engine: AsyncEngine, mailing_id: int
) -> None:
    first = await claim_one(engine, mailing_id)
    await deliver(engine, first)
    await change_text(engine, mailing_id, "Price is 999")
    second = await claim_one(engine, mailing_id)
    assert await sent_text(engine, second) == "Price is 999"
    await deliver(engine, second)

    assert await shown(engine, first.id) == ("Price is 100", 2)
    assert await shown(engine, second.id) == ("Price is 999", 3)
    newest, middle, oldest = await versions(engine, mailing_id)
    assert (newest.version, newest.text, newest.messages.delivered) == (3, "Price is 999", 1)
    assert (middle.version, middle.text, middle.messages.delivered) == (2, "Price is 100", 1)
    assert (oldest.version, oldest.messages.total) == (1, 0)
    assert await find_differences(engine) == []


async def test_message_that_was_not_sent_shows_the_newest_text(
    engine: AsyncEngine, mailing_id: int
) -> None:
    claimed = await claim_one(engine, mailing_id)
    await finish(engine, release_untried(claimed))
    await change_text(engine, mailing_id, "Price is 999")
    assert await shown(engine, claimed.id) == ("Price is 999", None)


async def test_retry_after_an_unknown_outcome_repeats_the_same_text(
    engine: AsyncEngine, mailing_id: int
) -> None:
    claimed = await claim_one(engine, mailing_id)
    await requeue(engine, claimed, "timeout")
    await change_text(engine, mailing_id, "Price is 999")
    assert await shown(engine, claimed.id) == ("Price is 100", 2)

    repeated = next(
        each for each in await claim(engine, mailing_id, count=2) if each.id == claimed.id
    )
    assert await sent_text(engine, repeated) == "Price is 100"
    await deliver(engine, repeated)
    assert await shown(engine, claimed.id) == ("Price is 100", 2)
    assert await find_differences(engine) == []


async def test_retry_after_a_failure_has_the_newest_text(
    engine: AsyncEngine, mailing_id: int
) -> None:
    claimed = await claim_one(engine, mailing_id)
    await requeue(engine, claimed, "http_503")
    await change_text(engine, mailing_id, "Price is 999")
    for each in await claim(engine, mailing_id, count=2):
        assert await sent_text(engine, each) == "Price is 999"


@pytest.mark.parametrize("is_repeat", [False, True])
async def test_text_that_changes_after_the_claim_releases_the_message(
    engine: AsyncEngine, mailing_id: int, *, is_repeat: bool
) -> None:
    claimed = await claim_one(engine, mailing_id)
    if is_repeat:
        await requeue(engine, claimed, "timeout")
        claimed = next(
            each for each in await claim(engine, mailing_id, count=2) if each.id == claimed.id
        )
    await change_text(engine, mailing_id, "Price is 999")

    assert await sent_text(engine, claimed) is None
    await finish(engine, release_untried(claimed))
    again = next(each for each in await claim(engine, mailing_id, count=2) if each.id == claimed.id)
    assert await sent_text(engine, again) == ("Price is 100" if is_repeat else "Price is 999")


async def test_message_of_a_dead_worker_keeps_the_text_of_its_attempt(
    engine: AsyncEngine, mailing_id: int
) -> None:
    await claim(engine, mailing_id, count=2, lease=-LEASE)  # the leases have expired already
    await do(engine, lambda db: recovery.rescue(db, max_attempts=8, chunk=10))
    await change_text(engine, mailing_id, "Price is 999")
    for each in await claim(engine, mailing_id, count=2):
        assert await sent_text(engine, each) == "Price is 100"


async def test_release_restores_the_version_of_the_attempt_before(
    engine: AsyncEngine, mailing_id: int
) -> None:
    claimed = await claim_one(engine, mailing_id)
    await requeue(engine, claimed, "http_503")
    await change_text(engine, mailing_id, "Price is 999")
    again = next(each for each in await claim(engine, mailing_id, count=2) if each.id == claimed.id)
    await finish(engine, release_untried(again))
    version = f"SELECT text_version FROM message WHERE id = {claimed.id}"  # noqa: S608  # a number
    assert await value(engine, version) == 2


async def test_unknown_message_from_before_text_versions_is_repeated_with_the_first_one(
    engine: AsyncEngine, mailing_id: int
) -> None:
    claimed = await claim_one(engine, mailing_id)
    await requeue(engine, claimed, "timeout")
    await execute(engine, "UPDATE message SET text_version = NULL")
    again = next(each for each in await claim(engine, mailing_id, count=2) if each.id == claimed.id)
    (*_, oldest) = await versions(engine, mailing_id)
    assert await sent_text(engine, again) == oldest.text


async def test_released_orphan_has_no_text_version(engine: AsyncEngine, mailing_id: int) -> None:
    claimed = await claim_one(engine, mailing_id)
    async with engine.connect() as pooled:
        await recovery.release_orphaned(await asyncpg_connection(pooled), OWNER, [])
    assert await shown(engine, claimed.id) == ("Price is 100", None)


async def test_message_from_before_text_versions_shows_the_first_one(
    engine: AsyncEngine, mailing_id: int
) -> None:
    claimed = await claim_one(engine, mailing_id)
    await deliver(engine, claimed)
    await execute(engine, "UPDATE message SET text_version = NULL")
    text, version = await shown(engine, claimed.id)
    (*_, oldest) = await versions(engine, mailing_id)
    assert (text, version) == (oldest.text, None)


async def test_texts_of_a_mailing_are_limited(engine: AsyncEngine, mailing_id: int) -> None:
    await execute(engine, f"UPDATE mailing SET text_version = {MAX_TEXT_VERSIONS}")  # noqa: S608  # a number
    with pytest.raises(TooManyTextsError):
        await change_text(engine, mailing_id, "Price is 999")


async def test_change_of_other_fields_adds_no_version(engine: AsyncEngine, mailing_id: int) -> None:
    await change_text(engine, mailing_id, "Price is 100")
    change = MailingChange(on_unknown="hold")
    await service.change(engine, mailing_id, change, COMMAND_LINE)
    assert len(await versions(engine, mailing_id)) == 2
