"""Retrying failed messages: which messages, when they are sent, and what ends a retry.

A user requests a retry by a call of the API. The dispatcher then schedules the messages in chunks:
`schedule_retried` does one chunk, and `advance` does all work. The fixture `clients` creates four
clients: see `CLIENTS`.
"""

from datetime import UTC, datetime, time
from typing import Any

import httpx
from sqlalchemy.ext.asyncio import AsyncEngine
from tests.api.calls import (
    COUNT_FIELDS,
    DUE,
    NEW,
    create_mailing,
    messages_by_client,
    update_messages,
)
from tests.factories import (
    HOUR,
    add_clients,
    advance,
    claim,
    do,
    execute,
    finish,
    running,
    schedule_retried,
    start_and_enqueue,
    value,
)

from mailer.mailing import finishing, purging
from mailer.message.model import MessageResult
from mailer.statistics.verify import find_differences

FAIL_PERMANENTLY = """
    UPDATE message SET status = 'undelivered', reason = 'attempts_exhausted', attempts = 8,
        last_failure = 'http_503', updated_at = now()"""
NEVER_TRIED = {"status": "scheduled", "reason": None, "last_failure": None, "attempts": 0}
"""Fields of a message that was retried and is not claimed yet, as of a new one."""


async def create_failed_mailing(api: httpx.AsyncClient, engine: AsyncEngine, count: int) -> int:
    """Create a mailing to all clients, `count` of them new, whose messages failed permanently.

    The mailing has finished before its end. Return its id.
    """
    await add_clients(engine, count)
    mailing_id: int = (await create_mailing(api, DUE))["id"]
    await start_and_enqueue(engine)
    await execute(engine, FAIL_PERMANENTLY)
    await advance(engine)
    assert await get_status(api, mailing_id) == "finished"
    return mailing_id


async def get_status(api: httpx.AsyncClient, mailing_id: int) -> str:
    return str((await api.get(f"/mailings/{mailing_id}")).json()["status"])


async def get_counts(api: httpx.AsyncClient, mailing_id: int) -> dict[str, int]:
    """Return the counts of a mailing by status, without zeros."""
    mailing = (await api.get(f"/mailings/{mailing_id}")).json()
    assert sum(mailing[name] for name in COUNT_FIELDS) == mailing["clients_count"]
    return {name.removesuffix("_messages"): mailing[name] for name in COUNT_FIELDS if mailing[name]}


async def retry_mailing(api: httpx.AsyncClient, mailing_id: int) -> dict[str, Any]:
    answer = await api.post(f"/mailings/{mailing_id}/retry")
    assert answer.status_code == 200
    retried: dict[str, Any] = answer.json()
    return retried


# ---- which messages -------------------------------------------------------------------------


async def test_undelivered_and_unknown_messages_are_reset_and_the_others_stay(
    api: httpx.AsyncClient, engine: AsyncEngine, clients: dict[str, int]
) -> None:
    mailing_id = (await create_mailing(api, DUE))["id"]
    created_later = (await api.post("/clients", json={"phone": "79160000009"})).json()["id"]
    await start_and_enqueue(engine)
    sent_at = datetime(2025, 6, 7, 8, 9, tzinfo=UTC)
    failed: dict[str, Any] = {"attempts": 8, "last_failure": "timeout"}
    to_retry = {
        clients["vip"]: {"status": "undelivered", "reason": "attempts_exhausted"} | failed,
        clients["moscow"]: {"status": "unknown", "reason": "timeout", "sent_at": sent_at} | failed,
    }
    others = {
        clients["tagged 912"]: {"status": "delivered", "sent_at": sent_at} | failed,
        clients["blank"]: {"status": "cancelled", "reason": "expired"} | failed,
        created_later: {"reason": "timeout"} | failed,
    }
    for client_id, columns in (to_retry | others).items():
        await update_messages(engine, client_id, **columns)
    before = await messages_by_client(api, mailing_id)

    retried = await retry_mailing(api, mailing_id)

    assert retried["status"] == "running"
    await advance(engine)
    after = await messages_by_client(api, mailing_id)
    for client_id in to_retry:
        row = after[client_id]
        assert row == before[client_id] | NEVER_TRIED | {
            "datetime_send": DUE["datetime_start"],  # due, not sent
            "updated_at": row["updated_at"],
        }
        assert row["updated_at"] > before[client_id]["updated_at"]
    assert {client_id: after[client_id] for client_id in others} == {
        client_id: before[client_id] for client_id in others
    }
    assert await find_differences(engine) == []


async def test_messages_of_deleted_clients_are_not_retried(
    api: httpx.AsyncClient, engine: AsyncEngine
) -> None:
    mailing_id = await create_failed_mailing(api, engine, 3)
    erased = (await api.get("/clients")).json()["results"][0]["id"]
    await api.delete(f"/clients/{erased}")
    before = (await messages_by_client(api, mailing_id))[erased]

    await retry_mailing(api, mailing_id)
    await advance(engine)

    assert await get_counts(api, mailing_id) == {"scheduled": 2, "undelivered": 1}
    assert (await messages_by_client(api, mailing_id))[erased] == before
    await execute(engine, "UPDATE message SET status = 'delivered' WHERE status = 'scheduled'")
    await advance(engine)
    assert await get_status(api, mailing_id) == "finished"


async def test_messages_that_fail_after_the_call_are_not_retried_by_it(
    api: httpx.AsyncClient, engine: AsyncEngine
) -> None:
    mailing_id = await create_failed_mailing(api, engine, 3)
    await retry_mailing(api, mailing_id)
    assert await schedule_retried(engine, chunk=2)
    (claimed,) = await claim(engine, mailing_id)
    await finish(engine, MessageResult(claimed, "undelivered", attempts=1, reason="rejected_400"))

    await advance(engine)

    assert await get_counts(api, mailing_id) == {"scheduled": 2, "undelivered": 1}
    messages = {row["id"]: row for row in (await messages_by_client(api, mailing_id)).values()}
    assert messages[claimed.id]["reason"] == "rejected_400"

    await retry_mailing(api, mailing_id)
    await advance(engine)
    assert await get_counts(api, mailing_id) == {"scheduled": 3}


async def test_retrying_one_mailing_changes_no_other(
    api: httpx.AsyncClient, engine: AsyncEngine
) -> None:
    other = await create_failed_mailing(api, engine, 2)
    mailing_id = (await create_mailing(api, DUE))["id"]
    await start_and_enqueue(engine)
    await execute(engine, FAIL_PERMANENTLY)

    await retry_mailing(api, mailing_id)
    await advance(engine)

    assert await get_counts(api, mailing_id) == {"scheduled": 2}
    assert await get_counts(api, other) == {"undelivered": 2}
    assert await get_status(api, other) == "finished"


# ---- when -----------------------------------------------------------------------------------


async def test_a_retried_mailing_runs_again_and_finishes_again(
    api: httpx.AsyncClient, engine: AsyncEngine
) -> None:
    mailing_id = await create_failed_mailing(api, engine, 3)
    assert await running(engine) == []

    assert (await retry_mailing(api, mailing_id))["status"] == "running"

    # no message is scheduled yet, but the retry is not complete
    assert await do(engine, finishing.finish) == []
    assert [mailing.id for mailing in await running(engine)] == [mailing_id]
    await advance(engine)
    claimed = await claim(engine, mailing_id, count=9)
    assert [message.attempts for message in claimed] == [1, 1, 1]
    sent_at = datetime.now(UTC)
    await finish(
        engine, *(MessageResult(c, "delivered", attempts=1, sent_at=sent_at) for c in claimed)
    )
    await advance(engine)
    assert await get_status(api, mailing_id) == "finished"
    assert await get_counts(api, mailing_id) == {"delivered": 3}
    assert await find_differences(engine) == []


async def test_messages_are_retried_in_chunks(api: httpx.AsyncClient, engine: AsyncEngine) -> None:
    mailing_id = await create_failed_mailing(api, engine, 10)
    await retry_mailing(api, mailing_id)
    for scheduled in (5, 10):
        assert await schedule_retried(engine, chunk=5)
        assert (await get_counts(api, mailing_id))["scheduled"] == scheduled
        assert await do(engine, finishing.finish) == []
    await execute(engine, "UPDATE message SET status = 'delivered'")
    assert await do(engine, finishing.finish) == []  # it is not known yet that none is left
    assert await schedule_retried(engine, chunk=5)  # finds no message, and ends the retry
    assert not await schedule_retried(engine, chunk=5)
    assert await do(engine, finishing.finish) == [(mailing_id, "finished")]


async def test_a_second_call_extends_a_running_retry_to_messages_failed_since(
    api: httpx.AsyncClient, engine: AsyncEngine
) -> None:
    mailing_id = await create_failed_mailing(api, engine, 3)
    await retry_mailing(api, mailing_id)
    await schedule_retried(engine, chunk=2)
    (claimed,) = await claim(engine, mailing_id)
    await finish(engine, MessageResult(claimed, "undelivered", attempts=1, reason="rejected_400"))
    await retry_mailing(api, mailing_id)
    await advance(engine)
    assert await get_counts(api, mailing_id) == {"scheduled": 3}


async def test_a_retried_paused_mailing_stays_paused(
    api: httpx.AsyncClient, engine: AsyncEngine, clients: dict[str, int]
) -> None:
    mailing_id = (await create_mailing(api, DUE))["id"]
    await start_and_enqueue(engine)
    await update_messages(engine, clients["vip"], status="undelivered", reason="rejected_400")
    await api.post(f"/mailings/{mailing_id}/pause")
    assert (await retry_mailing(api, mailing_id))["status"] == "paused"
    await advance(engine)
    assert await get_counts(api, mailing_id) == {"scheduled": 4}
    assert await claim(engine, mailing_id, count=9) == []


async def test_retried_messages_wait_for_the_sending_window(
    api: httpx.AsyncClient, engine: AsyncEngine
) -> None:
    await add_clients(engine, 1)
    (tokyo,) = await add_clients(engine, 1, time_zone="Asia/Tokyo")
    now = datetime.now(UTC)
    opens, closes = (now + 2 * HOUR).time(), (now + 3 * HOUR).time()
    window = {
        "send_interval_time_start": f"{opens:%H:%M}",
        "send_interval_time_end": f"{closes:%H:%M}",
    }
    mailing_id = (await create_mailing(api, DUE | window))["id"]
    await start_and_enqueue(engine)
    await execute(engine, FAIL_PERMANENTLY)

    await retry_mailing(api, mailing_id)
    await advance(engine)

    messages = await messages_by_client(api, mailing_id)
    for client_id, row in messages.items():
        due_at = datetime.fromisoformat(row["datetime_send"])
        offset = 9 * HOUR if client_id == tokyo else 0 * HOUR
        assert (due_at + offset).time() == time(opens.hour, opens.minute)
        assert now < due_at < now + 25 * HOUR  # within a day, and the time that the test takes
        assert row["status"] == "scheduled"
    assert await claim(engine, mailing_id, count=9) == []


async def test_messages_without_a_sending_window_before_the_end_are_not_retried(
    api: httpx.AsyncClient, engine: AsyncEngine
) -> None:
    await add_clients(engine, 1)
    now = datetime.now(UTC)
    opens, closes = now + 3 * HOUR, now + 4 * HOUR
    window = {
        "send_interval_time_start": f"{opens:%H:%M}",
        "send_interval_time_end": f"{closes:%H:%M}",
    }
    end = (now + HOUR).isoformat()
    mailing_id = (await create_mailing(api, DUE | window | {"datetime_end": end}))["id"]
    await start_and_enqueue(engine)
    await execute(engine, FAIL_PERMANENTLY)

    await retry_mailing(api, mailing_id)
    await advance(engine)

    [row] = (await messages_by_client(api, mailing_id)).values()
    assert (row["status"], row["reason"]) == ("undelivered", "attempts_exhausted")
    assert await get_status(api, mailing_id) == "finished"


async def test_a_retry_does_not_wait_until_an_earlier_one_is_complete(
    api: httpx.AsyncClient, engine: AsyncEngine
) -> None:
    first = await create_failed_mailing(api, engine, 5)
    second = await create_failed_mailing(api, engine, 0)  # to the same clients
    await retry_mailing(api, first)
    assert await schedule_retried(engine, chunk=2)

    await retry_mailing(api, second)

    # of the second one, of which no message is scheduled yet
    assert await schedule_retried(engine, chunk=2)
    for mailing_id in (first, second):
        assert await get_counts(api, mailing_id) == {"scheduled": 2, "undelivered": 3}
    while await schedule_retried(engine, chunk=2):
        pass
    for mailing_id in (first, second):
        assert await get_counts(api, mailing_id) == {"scheduled": 5}


# ---- what ends a retry ----------------------------------------------------------------------


async def create_half_retried_mailing(api: httpx.AsyncClient, engine: AsyncEngine) -> int:
    """Create a mailing with five messages to retry, two of which are scheduled already."""
    mailing_id = await create_failed_mailing(api, engine, 5)
    await retry_mailing(api, mailing_id)
    assert await schedule_retried(engine, chunk=2)
    assert await get_counts(api, mailing_id) == {"scheduled": 2, "undelivered": 3}
    return mailing_id


async def test_cancelling_the_mailing_ends_a_running_retry(
    api: httpx.AsyncClient, engine: AsyncEngine
) -> None:
    mailing_id = await create_half_retried_mailing(api, engine)
    await api.post(f"/mailings/{mailing_id}/cancel")

    assert not await schedule_retried(engine, chunk=2)
    await advance(engine)
    assert await get_counts(api, mailing_id) == {"cancelled": 2, "undelivered": 3}
    reasons = "SELECT array_agg(DISTINCT reason ORDER BY reason) FROM message"
    assert await value(engine, reasons) == ["attempts_exhausted", "mailing_cancelled"]
    assert await get_status(api, mailing_id) == "cancelled"
    assert await find_differences(engine) == []


async def test_deleting_the_mailing_ends_a_running_retry(
    api: httpx.AsyncClient, engine: AsyncEngine
) -> None:
    mailing_id = await create_half_retried_mailing(api, engine)
    await api.delete(f"/mailings/{mailing_id}")
    assert not await schedule_retried(engine, chunk=2)
    assert await do(engine, lambda db: purging.purge(db, chunk=100)) == 5
    assert await value(engine, "SELECT count(*) FROM mailing") == 0


async def test_a_running_retry_leaves_no_message_scheduled_at_the_mailings_end(
    api: httpx.AsyncClient, engine: AsyncEngine
) -> None:
    mailing_id = await create_half_retried_mailing(api, engine)
    await execute(engine, "UPDATE mailing SET datetime_end = now()")
    await advance(engine, chunk=2)
    assert (await get_counts(api, mailing_id)).keys() <= {"cancelled", "undelivered"}
    assert await get_status(api, mailing_id) == "finished"
    assert await value(engine, "SELECT retry_before FROM mailing") is None
    assert await find_differences(engine) == []


async def test_a_running_retry_continues_while_the_mailing_is_paused_and_replanned(
    api: httpx.AsyncClient, engine: AsyncEngine
) -> None:
    mailing_id = await create_half_retried_mailing(api, engine)
    await api.post(f"/mailings/{mailing_id}/pause")
    later = {"datetime_end": "2050-01-01T00:00:00Z"}
    await api.patch(f"/mailings/{mailing_id}", json=later)
    await advance(engine, chunk=2)
    assert await get_counts(api, mailing_id) == {"scheduled": 5}
    assert await get_status(api, mailing_id) == "paused"


async def test_messages_of_clients_that_no_longer_match_the_filter_are_not_retried(
    api: httpx.AsyncClient, engine: AsyncEngine, clients: dict[str, int]
) -> None:
    mailing_id = (await create_mailing(api, DUE))["id"]
    await start_and_enqueue(engine)
    await update_messages(engine, clients["moscow"], status="undelivered", reason="rejected_400")
    await update_messages(engine, clients["vip"], status="undelivered", reason="rejected_400")
    await api.patch(f"/mailings/{mailing_id}", json={"client_filter": "vip"})
    await advance(engine)

    await retry_mailing(api, mailing_id)
    await advance(engine)

    messages = await messages_by_client(api, mailing_id)
    assert messages[clients["vip"]]["status"] == "scheduled"
    assert messages[clients["moscow"]]["status"] != "scheduled"


async def test_retrying_before_the_start_is_409(api: httpx.AsyncClient) -> None:
    mailing_id = (await create_mailing(api, NEW))["id"]
    assert (await api.post(f"/mailings/{mailing_id}/retry")).status_code == 409
