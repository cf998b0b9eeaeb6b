"""What opt-outs do to messages: when they are enqueued, wait, are retried or are replanned."""

from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta

import pytest
from msgspec.structs import replace
from sqlalchemy.ext.asyncio import AsyncEngine
from tests.factories import (
    add_clients,
    add_due_messages,
    add_mailing,
    add_messages,
    advance,
    claim,
    do,
    execute,
    finish,
    mailing_counts,
    running,
    schedule_retried,
    start_and_enqueue,
    state,
    value,
)
from tests.integration.opted_out import (
    OPTED_OUT,
    make_service,
    opt_in,
    opt_out_client,
    phone_of,
)

from mailer.access.model import COMMAND_LINE
from mailer.client import service as clients
from mailer.client.model import ClientChange
from mailer.dispatch.send_policy import decide_before_send
from mailer.mailing import moved_clients, service
from mailer.mailing.errors import PurposeFixedError
from mailer.mailing.model import MailingChange, NewMailing
from mailer.message.model import MessageResult
from mailer.opt_out import store
from mailer.statistics.verify import find_differences

FIRST_MESSAGE = "SELECT min(id) FROM message"
FIRST_CLIENT = "SELECT min(client_id) FROM message"


@pytest.fixture
async def engine(engine: AsyncEngine) -> AsyncIterator[AsyncEngine]:
    yield engine
    assert await find_differences(engine) == []


async def create_mailing(engine: AsyncEngine, **fields: object) -> int:
    """Create a mailing to all clients that is due now; return its id."""
    now = datetime.now(UTC)
    values = {
        "datetime_start": now - timedelta(minutes=1),
        "datetime_end": now + timedelta(hours=1),
        "text": "Hello",
    }
    new = NewMailing(**values | fields)  # type: ignore[arg-type]  # fields of a mailing
    return (await service.create(engine, new, COMMAND_LINE)).id


# ---- enqueueing ------------------------------------------------------------------------------


@pytest.mark.parametrize("step", [start_and_enqueue, advance], ids=["in chunks", "small"])
async def test_messages_to_opted_out_clients_are_enqueued_as_cancelled(
    engine: AsyncEngine, step: object
) -> None:
    ids = await add_clients(engine, 3)
    await opt_out_client(engine, ids[0])
    mailing_id = await create_mailing(engine)
    await step(engine)  # type: ignore[operator]  # a function of the parameters
    assert await mailing_counts(engine, mailing_id) == {"scheduled": 2, "cancelled": 1}
    assert await state(engine, await value(engine, FIRST_MESSAGE)) == OPTED_OUT
    mailing = await service.pause(engine, mailing_id, COMMAND_LINE)
    assert mailing.clients_count == mailing.created_messages == 3


@pytest.mark.parametrize("step", [start_and_enqueue, advance], ids=["in chunks", "small"])
async def test_service_mailings_ignore_opt_outs(engine: AsyncEngine, step: object) -> None:
    ids = await add_clients(engine, 2)
    await opt_out_client(engine, ids[0])
    mailing_id = await create_mailing(engine, purpose="service")
    await step(engine)  # type: ignore[operator]  # a function of the parameters
    await opt_out_client(engine, ids[1])
    assert await mailing_counts(engine, mailing_id) == {"scheduled": 2}
    for claimed in await claim(engine, mailing_id, 2):
        assert claimed.is_opted_out
        [mailing] = await running(engine)
        decision = decide_before_send(claimed, mailing, datetime.now(UTC), timeout=1)
        assert not isinstance(decision, MessageResult)


async def test_the_purpose_can_be_changed_before_the_start_only(engine: AsyncEngine) -> None:
    later = datetime.now(UTC) + timedelta(minutes=10)
    to_service = MailingChange(purpose="service")
    scheduled_id = await create_mailing(engine, datetime_start=later)
    changed = await service.change(engine, scheduled_id, to_service, COMMAND_LINE)
    assert changed.purpose == "service"
    started_id = await create_mailing(engine)
    with pytest.raises(PurposeFixedError):
        await service.change(engine, started_id, to_service, COMMAND_LINE)
    unchanged = MailingChange(purpose="marketing", text="New")
    assert (await service.change(engine, started_id, unchanged, COMMAND_LINE)).text == "New"


# ---- messages that wait -----------------------------------------------------------------------


async def test_an_opt_out_cancels_scheduled_messages_of_all_open_marketing_mailings(
    engine: AsyncEngine,
) -> None:
    [client_id, other_id] = await add_clients(engine, 2)
    start = datetime.now(UTC) - timedelta(hours=1)
    ids = []
    for status in ("running", "paused", "running", "running"):
        mailing_id = await add_mailing(engine, clients=2, start=start, status=status)
        await add_messages(engine, mailing_id, [client_id, other_id], "scheduled")
        ids.append(mailing_id)
    *marketing_ids, service_id = ids
    await make_service(engine, service_id)
    await opt_out_client(engine, client_id)
    for mailing_id in marketing_ids:
        assert await mailing_counts(engine, mailing_id) == {"scheduled": 1, "cancelled": 1}
    assert await mailing_counts(engine, service_id) == {"scheduled": 2}


async def test_a_message_that_may_have_been_accepted_ends_as_unknown(engine: AsyncEngine) -> None:
    mailing_id = await add_due_messages(engine, 1)
    [claimed] = await claim(engine, mailing_id)
    unknown = MessageResult(claimed, "scheduled", 1, reason="timeout", unknown_reason="timeout")
    await finish(engine, unknown)
    await opt_out_client(engine, await value(engine, FIRST_CLIENT))
    assert await state(engine, claimed.id) == ("unknown", "timeout", 1)


async def test_a_claim_shows_an_opt_out_that_did_not_cancel_the_message(
    engine: AsyncEngine,
) -> None:
    """The message is enqueued or scheduled again at the moment of the opt-out."""
    mailing_id = await add_due_messages(engine, 1)
    client_id = await value(engine, FIRST_CLIENT)
    phone = await phone_of(engine, client_id)
    await do(engine, lambda db: store.add(db, [phone], "api", None))  # cancels no messages
    [claimed] = await claim(engine, mailing_id)
    [mailing] = await running(engine)
    result = decide_before_send(claimed, mailing, datetime.now(UTC), timeout=1)
    assert isinstance(result, MessageResult)
    await finish(engine, result)
    assert await state(engine, claimed.id) == OPTED_OUT


async def test_messages_that_are_cancelled_stay_so_after_an_opt_in(engine: AsyncEngine) -> None:
    mailing_id = await add_due_messages(engine, 1)
    client_id = await value(engine, FIRST_CLIENT)
    await opt_out_client(engine, client_id)
    await opt_in(engine, await phone_of(engine, client_id))
    await advance(engine)
    assert await mailing_counts(engine, mailing_id) == {"cancelled": 1}


async def test_the_change_of_a_phone_to_an_opted_out_one_is_found_by_the_next_claim(
    engine: AsyncEngine,
) -> None:
    mailing_id = await add_due_messages(engine, 1)
    await do(engine, lambda db: store.add(db, ["79037654321"], "api", None))
    client_id = await value(engine, FIRST_CLIENT)
    change = ClientChange(phone="79037654321")
    changed = await clients.change(engine, client_id, change, COMMAND_LINE)
    assert changed.opted_out_at is not None
    [claimed] = await claim(engine, mailing_id)
    assert claimed.is_opted_out


# ---- retry, replan, changes of the filter -----------------------------------------------------


async def test_a_retry_does_not_send_to_clients_who_have_opted_out(engine: AsyncEngine) -> None:
    client_ids = await add_clients(engine, 3)
    start = datetime.now(UTC) - timedelta(hours=1)
    mailing_id = await add_mailing(engine, clients=3, start=start)
    await add_messages(engine, mailing_id, client_ids, "undelivered", "rejected_400")
    await opt_out_client(engine, client_ids[0])
    await service.retry(engine, mailing_id, COMMAND_LINE)
    await schedule_retried(engine)
    assert await mailing_counts(engine, mailing_id) == {"scheduled": 2, "undelivered": 1}


@pytest.mark.parametrize("reason", ["expired", "no_window"])
async def test_a_later_end_does_not_schedule_messages_to_clients_who_have_opted_out(
    engine: AsyncEngine, reason: str
) -> None:
    client_ids = await add_clients(engine, 2)
    start = datetime.now(UTC) - timedelta(hours=1)
    mailing_id = await add_mailing(engine, clients=2, start=start)
    await add_messages(engine, mailing_id, client_ids, "cancelled", reason)
    await opt_out_client(engine, client_ids[0])
    later = MailingChange(datetime_end=datetime.now(UTC) + timedelta(days=2))
    await service.change(engine, mailing_id, later, COMMAND_LINE)
    await advance(engine)
    assert await mailing_counts(engine, mailing_id) == {"scheduled": 1, "cancelled": 1}


async def test_a_change_of_time_zone_does_not_reopen_a_mailing_for_a_client_who_has_opted_out(
    engine: AsyncEngine,
) -> None:
    [client_id] = await add_clients(engine, 1)
    start = datetime.now(UTC) - timedelta(hours=1)
    mailing_id = await add_mailing(engine, clients=1, start=start, lasts=timedelta(days=2))
    await execute(
        engine,
        "UPDATE mailing SET send_interval_time_start = '00:00', send_interval_time_end = '23:59'",
    )
    await add_messages(engine, mailing_id, [client_id], "cancelled", "no_window")
    await execute(
        engine, "UPDATE mailing SET status = 'finished', is_closed = true, is_settled = true"
    )
    await opt_out_client(engine, client_id)
    await clients.change(engine, client_id, ClientChange(time_zone="Asia/Omsk"), COMMAND_LINE)
    await moved_clients.replan_all_moved(engine)
    assert await value(engine, "SELECT status FROM mailing") == "finished"
    assert await mailing_counts(engine, mailing_id) == {"cancelled": 1}


async def test_a_new_filter_neither_excludes_nor_schedules_clients_who_have_opted_out(
    engine: AsyncEngine,
) -> None:
    [first, second] = await add_clients(engine, 2)
    await execute(engine, f"UPDATE client SET tag = 'vip' WHERE id = {second}")  # noqa: S608  # a number
    mailing_id = await create_mailing(engine)
    await advance(engine)
    await opt_out_client(engine, first)
    for new_filter in ("vip", None):
        changes = MailingChange(client_filter=new_filter)
        await service.change(engine, mailing_id, changes, COMMAND_LINE)
        await advance(engine)
        assert await mailing_counts(engine, mailing_id) == {"scheduled": 1, "cancelled": 1}
        assert await state(engine, await value(engine, FIRST_MESSAGE)) == OPTED_OUT


async def test_a_client_outside_a_filter_who_opts_out_is_cancelled_when_it_matches_again(
    engine: AsyncEngine,
) -> None:
    [first, second] = await add_clients(engine, 2)
    await execute(engine, f"UPDATE client SET tag = 'vip' WHERE id = {second}")  # noqa: S608  # a number
    mailing_id = await create_mailing(engine)
    await advance(engine)
    for new_filter in ("vip", None):
        changes = MailingChange(client_filter=new_filter)
        await service.change(engine, mailing_id, changes, COMMAND_LINE)
        await advance(engine)
        if new_filter is not None:
            await opt_out_client(engine, first)
    assert await state(engine, await value(engine, FIRST_MESSAGE)) == OPTED_OUT
    assert await mailing_counts(engine, mailing_id) == {"scheduled": 1, "cancelled": 1}


async def test_a_mailing_with_nobody_left_is_finished(engine: AsyncEngine) -> None:
    [client_id] = await add_clients(engine, 1)
    mailing_id = await create_mailing(engine)
    await advance(engine)
    await opt_out_client(engine, client_id)
    await advance(engine)
    assert await value(engine, f"SELECT status FROM mailing WHERE id = {mailing_id}") == "finished"  # noqa: S608  # a number


async def test_an_opted_out_message_costs_no_attempt(engine: AsyncEngine) -> None:
    mailing_id = await add_due_messages(engine, 1)
    [claimed] = await claim(engine, mailing_id)
    [mailing] = await running(engine)
    result = decide_before_send(
        replace(claimed, is_opted_out=True), mailing, datetime.now(UTC), timeout=1
    )
    assert isinstance(result, MessageResult)
    assert (result.status, result.reason, result.attempts) == OPTED_OUT
