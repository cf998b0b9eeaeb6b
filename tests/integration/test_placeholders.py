"""Each client gets the text with own fields, and the message keeps it as it was sent."""

from datetime import UTC, datetime

import msgspec
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
    state,
    value,
)

from mailer.access.model import COMMAND_LINE
from mailer.db.engine import asyncpg_connection
from mailer.dispatch.send_policy import Send, decide_before_send, release_untried
from mailer.erasure import erase_client
from mailer.mailing import service, tracking
from mailer.mailing.model import MailingChange
from mailer.message import exporting, reading, recovery
from mailer.message.model import ClaimedMessage, MessageResult
from mailer.statistics.verify import find_differences

TIMEOUT = 10.0  # seconds
TEXT = "Dear {{ name | friend }}, your code is {{ code }}."
ANNA = {"name": "Anna", "code": "1", "secret": "x"}


@pytest.fixture
async def mailing_id(engine: AsyncEngine) -> int:
    """A running mailing with one due message, and a text with a default."""
    mailing_id = await add_due_messages(engine, 1)
    await change_text(engine, mailing_id, TEXT)
    await set_fields(engine, **ANNA)
    return mailing_id


async def change_text(engine: AsyncEngine, mailing_id: int, text: str) -> None:
    await service.change(engine, mailing_id, MailingChange(text=text), COMMAND_LINE)


async def set_fields(engine: AsyncEngine, **fields: str) -> None:
    """Replace the fields of all clients."""
    await execute(engine, f"UPDATE client SET fields = '{msgspec.json.encode(fields).decode()}'")  # noqa: S608  # our own values


async def claim_one(engine: AsyncEngine, mailing_id: int) -> ClaimedMessage:
    (claimed,) = await claim(engine, mailing_id)
    return claimed


async def deliver(engine: AsyncEngine, claimed: ClaimedMessage) -> None:
    now = datetime.now(UTC)
    await finish(engine, MessageResult(claimed, "delivered", claimed.attempts, sent_at=now))


async def requeue(engine: AsyncEngine, claimed: ClaimedMessage, reason: str) -> None:
    """Record that an attempt failed; with the reason `timeout`, delivery is unknown."""
    result = MessageResult(
        claimed,
        "scheduled",
        claimed.attempts,
        reason=reason,
        last_failure=reason,
        unknown_reason=reason if reason == "timeout" else None,
    )
    await finish(engine, result)


async def decide(engine: AsyncEngine, claimed: ClaimedMessage) -> Send | MessageResult:
    """Return what a worker does with a claim."""
    async with engine.connect() as pooled:
        mailings = await tracking.read_active(await asyncpg_connection(pooled))
    return decide_before_send(claimed, mailings[claimed.mailing_id], datetime.now(UTC), TIMEOUT)


async def sent_text(engine: AsyncEngine, claimed: ClaimedMessage) -> str:
    """Return the text that is sent for a claim."""
    decision = await decide(engine, claimed)
    assert isinstance(decision, Send)
    return decision.mailing.text


async def shown(engine: AsyncEngine, message_id: int) -> str:
    """Return the text that the page of a message, the lists and the files show."""
    history = await do(engine, lambda db: reading.get_history(db, None, message_id))
    texts = await do(engine, lambda db: reading.read_texts(db, [message_id]))
    parts = exporting.export_messages(engine, history.mailing_id, COMMAND_LINE, id=message_id)
    exported = b"".join([part.content async for part in parts]).decode()
    assert texts[message_id] == history.text
    assert history.text in exported.replace('""', '"')
    return history.text


async def kept_values(engine: AsyncEngine) -> tuple[object, object]:
    """Return the field values of the message and of its failed attempts."""
    return (
        await value(engine, "SELECT field_values FROM message"),
        await value(engine, "SELECT failures::text FROM message"),
    )


async def test_each_client_gets_the_text_with_own_fields(
    engine: AsyncEngine, mailing_id: int
) -> None:
    claimed = await claim_one(engine, mailing_id)
    assert await sent_text(engine, claimed) == "Dear Anna, your code is 1."
    assert claimed.field_values is not None
    assert msgspec.json.decode(claimed.field_values) == {"name": "Anna", "code": "1"}


async def test_parts_are_those_of_the_text_with_the_fields(
    engine: AsyncEngine, mailing_id: int
) -> None:
    await set_fields(engine, name="Я", code="1" * 60)
    decision = await decide(engine, await claim_one(engine, mailing_id))
    assert isinstance(decision, Send)
    assert decision.mailing.parts == 2


async def test_message_shows_the_values_that_it_was_sent_with(
    engine: AsyncEngine, mailing_id: int
) -> None:
    claimed = await claim_one(engine, mailing_id)
    await deliver(engine, claimed)
    await set_fields(engine, name="Bella", code="2")
    await change_text(engine, mailing_id, "Bye {{ name }}")
    assert await shown(engine, claimed.id) == "Dear Anna, your code is 1."
    assert await find_differences(engine) == []


async def test_message_that_was_not_sent_shows_the_newest_values(
    engine: AsyncEngine, mailing_id: int
) -> None:
    claimed = await claim_one(engine, mailing_id)
    await finish(engine, release_untried(claimed))
    assert (await kept_values(engine))[0] is None
    await set_fields(engine, code="2")
    assert await shown(engine, claimed.id) == "Dear friend, your code is 2."
    await set_fields(engine)
    assert await shown(engine, claimed.id) == "Dear friend, your code is {{ code }}."


async def test_braces_in_a_value_are_no_placeholders(engine: AsyncEngine, mailing_id: int) -> None:
    await set_fields(engine, name="{{ code }}", code='\\1 "')
    claimed = await claim_one(engine, mailing_id)
    text = 'Dear {{ code }}, your code is \\1 ".'
    assert await sent_text(engine, claimed) == text
    await deliver(engine, claimed)
    assert await shown(engine, claimed.id) == text


async def test_retry_after_an_unknown_outcome_repeats_the_same_values(
    engine: AsyncEngine, mailing_id: int
) -> None:
    await requeue(engine, await claim_one(engine, mailing_id), "timeout")
    await set_fields(engine, name="Bella", code="2")
    again = await claim_one(engine, mailing_id)
    assert await sent_text(engine, again) == "Dear Anna, your code is 1."
    await requeue(engine, again, "http_503")  # an earlier attempt is unknown still
    await change_text(engine, mailing_id, "Literal")
    again = await claim_one(engine, mailing_id)
    assert await sent_text(engine, again) == "Dear Anna, your code is 1."
    await finish(engine, release_untried(again))
    assert await shown(engine, again.id) == "Dear Anna, your code is 1."


async def test_unknown_literal_text_is_repeated_although_the_newest_one_has_placeholders(
    engine: AsyncEngine, mailing_id: int
) -> None:
    await change_text(engine, mailing_id, "Literal")
    await requeue(engine, await claim_one(engine, mailing_id), "timeout")
    await change_text(engine, mailing_id, TEXT)
    assert await sent_text(engine, await claim_one(engine, mailing_id)) == "Literal"


async def test_retry_after_a_failure_has_the_newest_values(
    engine: AsyncEngine, mailing_id: int
) -> None:
    await requeue(engine, await claim_one(engine, mailing_id), "http_503")
    await set_fields(engine, name="Bella", code="2")
    claimed = await claim_one(engine, mailing_id)
    assert await sent_text(engine, claimed) == "Dear Bella, your code is 2."


async def test_message_of_a_dead_worker_keeps_the_values_of_its_attempt(
    engine: AsyncEngine, mailing_id: int
) -> None:
    await claim(engine, mailing_id, lease=-LEASE)  # the lease has expired already
    await do(engine, lambda db: recovery.rescue(db, max_attempts=8, chunk=10))
    await set_fields(engine, name="Bella", code="2")
    claimed = await claim_one(engine, mailing_id)
    assert await sent_text(engine, claimed) == "Dear Anna, your code is 1."


async def test_release_restores_the_values_of_the_attempt_before(
    engine: AsyncEngine, mailing_id: int
) -> None:
    await requeue(engine, await claim_one(engine, mailing_id), "http_503")
    await set_fields(engine, name="Bella", code="2")
    await finish(engine, release_untried(await claim_one(engine, mailing_id)))
    assert (await kept_values(engine))[0] == {"name": "Anna", "code": "1"}

    claimed = await claim_one(engine, mailing_id)
    async with engine.connect() as pooled:
        await recovery.release_orphaned(await asyncpg_connection(pooled), OWNER, [])
    assert (await kept_values(engine))[0] == {"name": "Anna", "code": "1"}
    await execute(engine, "UPDATE message SET status = 'cancelled', reason = 'expired'")
    assert await shown(engine, claimed.id) == "Dear Anna, your code is 1."


async def test_client_without_a_field_gets_no_message_and_no_attempt_is_counted(
    engine: AsyncEngine, mailing_id: int
) -> None:
    await set_fields(engine, name="Anna")
    claimed = await claim_one(engine, mailing_id)
    result = await decide(engine, claimed)
    assert isinstance(result, MessageResult)
    await finish(engine, result)
    assert await state(engine, claimed.id) == ("cancelled", "missing_field", 0)
    assert await find_differences(engine) == []


async def test_text_that_becomes_too_long_is_not_sent(engine: AsyncEngine, mailing_id: int) -> None:
    await change_text(engine, mailing_id, "{{ name }}" * 8 + "x")
    await set_fields(engine, name="a" * 200)
    claimed = await claim_one(engine, mailing_id)
    result = await decide(engine, claimed)
    assert isinstance(result, MessageResult)
    await finish(engine, result)
    assert await state(engine, claimed.id) == ("undelivered", "text_too_long", 0)


async def test_text_from_before_placeholders_is_sent_as_it_is(
    engine: AsyncEngine, mailing_id: int
) -> None:
    await execute(engine, "UPDATE mailing SET text = 'Dear {{ name }}, }}', template = NULL")
    claimed = await claim_one(engine, mailing_id)
    assert claimed.field_values is None
    assert await sent_text(engine, claimed) == "Dear {{ name }}, }}"
    await service.change(engine, mailing_id, MailingChange(on_unknown="hold"), COMMAND_LINE)
    assert await sent_text(engine, claimed) == "Dear {{ name }}, }}"
    await deliver(engine, claimed)
    assert await shown(engine, claimed.id) == "Dear {{ name }}, }}"


@pytest.mark.parametrize("reason", ["timeout", "http_503", None])
async def test_deleting_a_client_erases_the_values_in_messages(
    engine: AsyncEngine, mailing_id: int, reason: str | None
) -> None:
    claimed = await claim_one(engine, mailing_id)
    if reason is None:
        await deliver(engine, claimed)
    else:
        await requeue(engine, claimed, reason)
        await requeue(engine, await claim_one(engine, mailing_id), reason)
    client_id = await value(engine, "SELECT id FROM client")
    await erase_client(engine, client_id, COMMAND_LINE)
    field_values, failures = await kept_values(engine)
    assert field_values is None
    assert "Anna" not in str(failures)
    assert await shown(engine, claimed.id) == TEXT
    assert await find_differences(engine) == []


async def test_values_of_a_message_being_sent_are_erased_and_stay_so(
    engine: AsyncEngine, mailing_id: int
) -> None:
    claimed = await claim_one(engine, mailing_id)
    client_id = await value(engine, "SELECT id FROM client")
    await erase_client(engine, client_id, COMMAND_LINE)
    await requeue(engine, claimed, "http_503")
    assert "Anna" not in str(await kept_values(engine))
    result = await decide(engine, await claim_one(engine, mailing_id))
    assert isinstance(result, MessageResult)
    assert (result.status, result.reason) == ("cancelled", "client_deleted")
