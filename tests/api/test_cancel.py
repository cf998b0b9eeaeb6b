"""Cancelling a mailing in every state: messages that were not sent never will be.

The fixture `clients` creates four clients: see `CLIENTS`.
"""

from collections import Counter
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import pytest
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
    add_clients,
    advance,
    claim,
    do,
    end_messages,
    enqueue_and_replan,
    execute,
    finish,
    running,
    start_and_enqueue,
    value,
)

from mailer.mailing import enqueuing, finishing, pending_work, purging, starting
from mailer.mailing.enqueuing import FIRST_BATCH
from mailer.message.model import MessageResult
from mailer.statistics.verify import find_differences

MANY = 1_200
"""Clients of an audience that takes more than one chunk."""
assert FIRST_BATCH < MANY
SENT_AT = datetime(2025, 6, 7, 8, 9, tzinfo=UTC)


async def cancel(api: httpx.AsyncClient, mailing_id: int) -> dict[str, Any]:
    """Cancel a mailing by the API, and return it."""
    answer = await api.post(f"/mailings/{mailing_id}/cancel")
    assert answer.status_code == 200
    cancelled: dict[str, Any] = answer.json()
    assert cancelled["status"] == "cancelled"
    return cancelled


async def get_settled(
    api: httpx.AsyncClient, engine: AsyncEngine, mailing_id: int
) -> dict[str, Any]:
    """Return a cancelled mailing; assert that nothing is left to do and all counters add up."""
    mailing: dict[str, Any] = (await api.get(f"/mailings/{mailing_id}")).json()
    assert mailing["status"] == "cancelled"
    assert mailing["scheduled_messages"] == mailing["sending_messages"] == 0
    assert sum(mailing[name] for name in COUNT_FIELDS) == mailing["clients_count"]
    assert await value(engine, "SELECT is_settled FROM mailing")
    assert await find_differences(engine) == []
    assert not (await do(engine, pending_work.find_pending_work)).has_work
    return mailing


async def count_by_status_and_reason(
    api: httpx.AsyncClient, mailing_id: int
) -> Counter[tuple[str, str | None]]:
    """Count the messages of a mailing by status and reason."""
    messages = await messages_by_client(api, mailing_id)
    return Counter((row["status"], row["reason"]) for row in messages.values())


# ---- before the start -----------------------------------------------------------------------


@pytest.mark.parametrize("payload", [NEW, DUE], ids=["scheduled", "due"])
@pytest.mark.parametrize("is_paused", [False, True])
@pytest.mark.usefixtures("clients")
async def test_a_mailing_cancelled_before_its_start_counts_its_audience_as_cancelled(
    api: httpx.AsyncClient,
    engine: AsyncEngine,
    payload: dict[str, Any],
    is_paused: bool,  # noqa: FBT001  # a parameter of the test
) -> None:
    created = await create_mailing(api, payload)
    if is_paused:
        await api.post(f"/mailings/{created['id']}/pause")

    cancelled = await cancel(api, created["id"])

    assert cancelled["clients_count"] == cancelled["cancelled_messages"] == 4
    assert sum(cancelled[name] for name in COUNT_FIELDS) == 4
    assert cancelled["created_messages"] == 0
    for query in ("", "?status=cancelled"):
        page = (await api.get(f"/mailings/{created['id']}/messages{query}")).json()
        assert (page["count"], page["results"]) == (0, [])
    totals = (await api.get("/statistics")).json()
    assert (totals["mailings"]["cancelled"], totals["messages"]["cancelled"]) == (1, 4)
    statistics = (await api.get(f"/mailings/{created['id']}/statistics")).json()
    assert statistics["messages"] == totals["messages"]
    await get_settled(api, engine, created["id"])


@pytest.mark.usefixtures("clients")
async def test_a_mailing_cancelled_before_its_start_never_starts(
    api: httpx.AsyncClient, engine: AsyncEngine
) -> None:
    created = await create_mailing(api, NEW)
    cancelled = await cancel(api, created["id"])
    await execute(engine, "UPDATE mailing SET datetime_start = now()")

    await advance(engine)

    mailing = await get_settled(api, engine, created["id"])
    assert mailing["created_messages"] == 0
    assert mailing["updated_at"] == cancelled["updated_at"]


# ---- while its audience is enqueued ---------------------------------------------------------


@pytest.mark.parametrize("first_step", ["enqueue", "cancel messages"])
async def test_a_mailing_cancelled_while_enqueuing_still_counts_its_whole_audience(
    api: httpx.AsyncClient, engine: AsyncEngine, first_step: str
) -> None:
    await add_clients(engine, MANY)
    mailing_id = (await create_mailing(api, DUE))["id"]
    await do(engine, starting.start_due)
    await do(engine, enqueuing.enqueue_chunk)

    cancelled = await cancel(api, mailing_id)

    assert cancelled["created_messages"] == FIRST_BATCH
    assert cancelled["clients_count"] == MANY
    steps = [lambda: enqueue_and_replan(engine), lambda: end_messages(engine)]
    for step in steps if first_step == "enqueue" else reversed(steps):
        assert await do(engine, finishing.finish) == []  # something is left to do
        await step()
    assert await do(engine, finishing.finish) == [(mailing_id, "cancelled")]
    mailing = await get_settled(api, engine, mailing_id)
    assert mailing["clients_count"] == mailing["created_messages"] == MANY
    reasons = "SELECT array_agg(DISTINCT status || ' ' || reason) FROM message"
    assert await value(engine, reasons) == ["cancelled mailing_cancelled"]


async def test_messages_enqueued_after_the_cancellation_count_as_cancelled_at_once(
    api: httpx.AsyncClient, engine: AsyncEngine
) -> None:
    await add_clients(engine, MANY)
    mailing_id = (await create_mailing(api, DUE))["id"]
    await do(engine, starting.start_due)
    await cancel(api, mailing_id)

    await enqueue_and_replan(engine)

    mailing = (await api.get(f"/mailings/{mailing_id}")).json()
    assert (mailing["scheduled_messages"], mailing["cancelled_messages"]) == (0, MANY)


# ---- while it is replanned ------------------------------------------------------------------


@pytest.mark.parametrize("first_step", ["replan", "enqueue", "cancel messages"])
async def test_a_mailing_cancelled_while_replanning_keeps_sent_messages_and_cancels_the_rest(
    api: httpx.AsyncClient, engine: AsyncEngine, clients: dict[str, int], first_step: str
) -> None:
    mailing_id = (await create_mailing(api, DUE | {"client_filter": "916, 912"}))["id"]
    await start_and_enqueue(engine)
    await update_messages(engine, clients["moscow"], status="delivered", sent_at=SENT_AT)
    await api.patch(f"/mailings/{mailing_id}", json={"client_filter": "two words"})

    await cancel(api, mailing_id)

    if first_step == "enqueue":
        await enqueue_and_replan(engine)
    if first_step == "cancel messages":
        await end_messages(engine)
    await advance(engine)
    mailing = await get_settled(api, engine, mailing_id)
    assert (mailing["delivered_messages"], mailing["cancelled_messages"]) == (1, 3)
    results = {(row["status"], row["reason"]) for row in mailing["mailing_messages"]}
    cancellations = {("cancelled", "mailing_cancelled"), ("cancelled", "filter_changed")}
    assert results - cancellations == {("delivered", None)}
    assert await running(engine) == []


async def test_a_mailing_cancelled_before_replanning_is_settled_after_its_last_request(
    api: httpx.AsyncClient, engine: AsyncEngine, clients: dict[str, int]
) -> None:
    mailing_id = (await create_mailing(api, DUE))["id"]
    await start_and_enqueue(engine)
    (claimed,) = await claim(engine, mailing_id)
    await api.patch(f"/mailings/{mailing_id}", json={"client_filter": "nobody"})
    await cancel(api, mailing_id)
    await end_messages(engine)
    assert await do(engine, enqueuing.enqueue_chunk) is None  # it is not replanned yet
    assert await do(engine, finishing.finish) == []  # a request is in flight

    await finish(engine, MessageResult(claimed, "delivered", attempts=1, sent_at=SENT_AT))
    await advance(engine)

    mailing = await get_settled(api, engine, mailing_id)
    assert (mailing["delivered_messages"], mailing["cancelled_messages"]) == (1, len(clients) - 1)


# ---- while it sends -------------------------------------------------------------------------


async def test_results_of_messages_in_flight_at_the_cancellation_are_counted(
    api: httpx.AsyncClient, engine: AsyncEngine
) -> None:
    await add_clients(engine, 8)
    mailing_id = (await create_mailing(api, DUE))["id"]
    await start_and_enqueue(engine)
    accepted, rejected, unknown, failed, *released = await claim(engine, mailing_id, count=6)

    cancelled = await cancel(api, mailing_id)

    assert cancelled["sending_messages"] == 6
    await advance(engine)  # cancels the two messages that are not claimed
    assert await count_by_status_and_reason(api, mailing_id) == {
        ("sending", None): 6,
        ("cancelled", "mailing_cancelled"): 2,
    }
    in_a_minute = datetime.now(UTC) + timedelta(minutes=1)
    results = [
        MessageResult(accepted, "delivered", attempts=1, sent_at=SENT_AT),
        MessageResult(rejected, "undelivered", attempts=1, reason="rejected_400"),
        MessageResult(unknown, "unknown", attempts=1, reason="timeout", sent_at=SENT_AT),
        MessageResult(
            failed,
            "scheduled",
            attempts=1,
            reason="http_503",
            due_at=in_a_minute,
            last_failure="http_503",
        ),
        *(MessageResult(claimed, "scheduled", attempts=0) for claimed in released),
    ]

    assert await finish(engine, *results) == 6
    await advance(engine)

    assert await count_by_status_and_reason(api, mailing_id) == {
        ("delivered", None): 1,
        ("undelivered", "rejected_400"): 1,
        ("unknown", "timeout"): 1,
        ("cancelled", "mailing_cancelled"): 5,
    }
    await get_settled(api, engine, mailing_id)
    last_failure = f"SELECT last_failure FROM message WHERE id = {failed.id}"  # noqa: S608  # a number
    assert await value(engine, last_failure) == "http_503"


@pytest.mark.usefixtures("clients")
async def test_messages_of_a_cancelled_mailing_are_not_claimed(
    api: httpx.AsyncClient, engine: AsyncEngine
) -> None:
    mailing_id = (await create_mailing(api, DUE))["id"]
    await start_and_enqueue(engine)
    await cancel(api, mailing_id)
    assert await claim(engine, mailing_id, count=9) == []
    assert await running(engine) == []


async def test_messages_cancelled_earlier_keep_their_reason(
    api: httpx.AsyncClient, engine: AsyncEngine, clients: dict[str, int]
) -> None:
    mailing_id = (await create_mailing(api, DUE))["id"]
    await start_and_enqueue(engine)
    await api.delete(f"/clients/{clients['vip']}")
    await cancel(api, mailing_id)
    await advance(engine)
    assert await count_by_status_and_reason(api, mailing_id) == {
        ("cancelled", "client_deleted"): 1,
        ("cancelled", "mailing_cancelled"): 3,
    }


@pytest.mark.usefixtures("clients")
async def test_a_cancelled_mailing_can_be_deleted_and_is_purged(
    api: httpx.AsyncClient, engine: AsyncEngine
) -> None:
    mailing_id = (await create_mailing(api, DUE))["id"]
    await start_and_enqueue(engine)
    await cancel(api, mailing_id)
    assert (await api.delete(f"/mailings/{mailing_id}")).status_code == 204
    await do(engine, lambda db: purging.purge(db, chunk=100))
    assert await value(engine, "SELECT count(*) FROM mailing") == 0
    assert await value(engine, "SELECT count(*) FROM message") == 0
