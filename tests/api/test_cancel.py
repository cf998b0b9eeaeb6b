"""A mailing that is cancelled: whatever it is doing, what was not sent will not be."""

from collections import Counter
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import pytest
from sqlalchemy.ext.asyncio import AsyncEngine
from tests.api.calls import DUE, LEDGER, NEW, create, mark, messages_of
from tests.sample import (
    add_clients,
    advance,
    begin,
    claim,
    clear,
    do,
    execute,
    finish,
    running,
    take_audience,
    value,
)

from mailer.mailing import audience, moving
from mailer.mailing.audience import FIRST_CHUNK
from mailer.message.model import FinishedMessage
from mailer.report.verify import differences

MANY = 1_200
assert FIRST_CHUNK < MANY
SENT_AT = datetime(2025, 6, 7, 8, 9, tzinfo=UTC)


async def cancel(api: httpx.AsyncClient, mailing_id: int) -> dict[str, Any]:
    answer = await api.post(f"/mailings/{mailing_id}/cancel")
    assert answer.status_code == 200
    cancelled: dict[str, Any] = answer.json()
    assert cancelled["status"] == "cancelled"
    return cancelled


async def cancelled_in_full(
    api: httpx.AsyncClient, engine: AsyncEngine, mailing_id: int
) -> dict[str, Any]:
    """Return a mailing of which, cancelled, nothing waits and every ledger adds up."""
    shown: dict[str, Any] = (await api.get(f"/mailings/{mailing_id}")).json()
    assert shown["status"] == "cancelled"
    assert shown["scheduled_messages"] == shown["sending_messages"] == 0
    assert sum(shown[name] for name in LEDGER) == shown["clients_count"]
    assert await value(engine, "SELECT is_settled FROM mailing")
    assert await differences(engine) == []
    assert not (await do(engine, moving.look)).is_any
    return shown


async def becomes(api: httpx.AsyncClient, mailing_id: int) -> Counter[tuple[str, str | None]]:
    """Count a mailing's messages by status and reason."""
    found = await messages_of(api, mailing_id)
    return Counter((row["status"], row["reason"]) for row in found.values())


# ---- before the start -----------------------------------------------------------------------


@pytest.mark.parametrize("given", [NEW, DUE], ids=["scheduled", "due"])
@pytest.mark.parametrize("is_paused", [False, True])
@pytest.mark.usefixtures("clients")
async def test_cancelled_before_its_start_it_will_send_to_nobody(
    api: httpx.AsyncClient,
    engine: AsyncEngine,
    given: dict[str, Any],
    is_paused: bool,  # noqa: FBT001  # given by the table
) -> None:
    created = await create(api, given)
    if is_paused:
        await api.post(f"/mailings/{created['id']}/pause")

    cancelled = await cancel(api, created["id"])

    assert cancelled["clients_count"] == cancelled["cancelled_messages"] == 4
    assert [cancelled[name] for name in LEDGER] == [0, 0, 0, 0, 0, 4]
    assert cancelled["created_messages"] == 0
    page = (await api.get(f"/mailings/{created['id']}/messages")).json()
    assert (page["count"], page["results"]) == (0, [])
    page = (await api.get(f"/mailings/{created['id']}/messages?status=cancelled")).json()
    assert (page["count"], page["results"]) == (0, [])
    counted = (await api.get("/statistics")).json()
    assert (counted["mailings"]["cancelled"], counted["messages"]["cancelled"]) == (1, 4)
    of_it = (await api.get(f"/mailings/{created['id']}/statistics")).json()
    assert of_it["messages"] == counted["messages"]
    await cancelled_in_full(api, engine, created["id"])


@pytest.mark.usefixtures("clients")
async def test_cancelled_before_its_start_it_never_begins(
    api: httpx.AsyncClient, engine: AsyncEngine
) -> None:
    created = await create(api, NEW)
    cancelled = await cancel(api, created["id"])
    await execute(engine, "UPDATE mailing SET datetime_start = now()")

    await advance(engine)

    shown = await cancelled_in_full(api, engine, created["id"])
    assert shown["created_messages"] == 0
    assert shown["updated_at"] == cancelled["updated_at"]


# ---- while its audience is taken ------------------------------------------------------------


@pytest.mark.parametrize("first", ["take", "clear"])
async def test_cancelled_in_the_middle_of_its_audience_it_still_counts_everybody(
    api: httpx.AsyncClient, engine: AsyncEngine, first: str
) -> None:
    await add_clients(engine, MANY)
    mailing_id = (await create(api, DUE))["id"]
    await do(engine, moving.begin_due)
    await do(engine, audience.take_chunk)

    cancelled = await cancel(api, mailing_id)

    assert cancelled["created_messages"] == FIRST_CHUNK
    assert cancelled["clients_count"] == MANY
    steps = [lambda: take_audience(engine), lambda: clear(engine)]
    for step in steps if first == "take" else reversed(steps):
        assert await do(engine, moving.finish) == []
        await step()
    assert await do(engine, moving.finish) == [(mailing_id, "cancelled")]
    shown = await cancelled_in_full(api, engine, mailing_id)
    assert shown["clients_count"] == shown["created_messages"] == MANY
    reasons = "SELECT array_agg(DISTINCT status || ' ' || reason) FROM message"
    assert await value(engine, reasons) == ["cancelled mailing_cancelled"]


async def test_what_is_taken_after_the_cancel_waits_for_nothing_even_before_it_is_cleared(
    api: httpx.AsyncClient, engine: AsyncEngine
) -> None:
    await add_clients(engine, MANY)
    mailing_id = (await create(api, DUE))["id"]
    await do(engine, moving.begin_due)
    await cancel(api, mailing_id)
    await take_audience(engine)
    shown = (await api.get(f"/mailings/{mailing_id}")).json()
    assert (shown["scheduled_messages"], shown["cancelled_messages"]) == (0, MANY)


# ---- while it is planned anew ---------------------------------------------------------------


@pytest.mark.parametrize("steps", ["as told", "take first", "clear first"])
async def test_cancelled_while_it_is_planned_anew_it_keeps_what_was_sent_and_cancels_the_rest(
    api: httpx.AsyncClient, engine: AsyncEngine, clients: dict[str, int], steps: str
) -> None:
    mailing_id = (await create(api, DUE | {"client_filter": "916, 912"}))["id"]
    await begin(engine)
    await mark(engine, clients["moscow"], status="delivered", sent_at=SENT_AT)
    await api.patch(f"/mailings/{mailing_id}", json={"client_filter": "two words"})

    await cancel(api, mailing_id)

    if steps == "take first":
        await take_audience(engine)
    if steps == "clear first":
        await clear(engine)
    await advance(engine)
    shown = await cancelled_in_full(api, engine, mailing_id)
    assert (shown["delivered_messages"], shown["cancelled_messages"]) == (1, 3)
    found = {(row["status"], row["reason"]) for row in shown["mailing_messages"]}
    why = {("cancelled", "mailing_cancelled"), ("cancelled", "filter_changed")}
    assert found - why == {("delivered", None)}
    assert await running(engine) == []


async def test_cancelled_while_it_waits_to_be_planned_anew_it_ends_when_the_last_request_does(
    api: httpx.AsyncClient, engine: AsyncEngine, clients: dict[str, int]
) -> None:
    mailing_id = (await create(api, DUE))["id"]
    await begin(engine)
    (claimed,) = await claim(engine, mailing_id)
    await api.patch(f"/mailings/{mailing_id}", json={"client_filter": "nobody"})
    await cancel(api, mailing_id)
    await clear(engine)
    assert await do(engine, audience.take_chunk) is None
    assert await do(engine, moving.finish) == []

    await finish(engine, FinishedMessage(claimed, "delivered", 1, sent_at=SENT_AT))
    await advance(engine)

    shown = await cancelled_in_full(api, engine, mailing_id)
    assert (shown["delivered_messages"], shown["cancelled_messages"]) == (1, len(clients) - 1)


# ---- while it sends -------------------------------------------------------------------------


async def test_cancelled_while_messages_are_sent_it_counts_what_comes_of_them(
    api: httpx.AsyncClient, engine: AsyncEngine
) -> None:
    await add_clients(engine, 8)
    mailing_id = (await create(api, DUE))["id"]
    await begin(engine)
    sent, refused, unknown, failed, *handed_back = await claim(engine, mailing_id, 6)

    cancelled = await cancel(api, mailing_id)

    assert cancelled["sending_messages"] == 6
    await advance(engine)
    assert await becomes(api, mailing_id) == {
        ("sending", None): 6,
        ("cancelled", "mailing_cancelled"): 2,
    }
    in_a_minute = datetime.now(UTC) + timedelta(minutes=1)
    outcomes = [
        FinishedMessage(sent, "delivered", 1, sent_at=SENT_AT),
        FinishedMessage(refused, "undelivered", 1, "rejected_400"),
        FinishedMessage(unknown, "unknown", 1, "timeout", sent_at=SENT_AT),
        FinishedMessage(failed, "scheduled", 1, "http_503", in_a_minute, last_failure="http_503"),
        *(FinishedMessage(claimed, "scheduled", 0) for claimed in handed_back),
    ]
    assert await finish(engine, *outcomes) == 6
    await advance(engine)
    assert await becomes(api, mailing_id) == {
        ("delivered", None): 1,
        ("undelivered", "rejected_400"): 1,
        ("unknown", "timeout"): 1,
        ("cancelled", "mailing_cancelled"): 5,
    }
    await cancelled_in_full(api, engine, mailing_id)
    last_failure = f"SELECT last_failure FROM message WHERE id = {failed.id}"  # noqa: S608  # of a test
    assert await value(engine, last_failure) == "http_503"


@pytest.mark.usefixtures("clients")
async def test_nothing_is_claimed_of_a_cancelled_mailing(
    api: httpx.AsyncClient, engine: AsyncEngine
) -> None:
    mailing_id = (await create(api, DUE))["id"]
    await begin(engine)
    await cancel(api, mailing_id)
    assert await claim(engine, mailing_id, 9) == []
    assert await running(engine) == []


async def test_cancel_keeps_what_was_cancelled_before_for_its_own_reason(
    api: httpx.AsyncClient, engine: AsyncEngine, clients: dict[str, int]
) -> None:
    mailing_id = (await create(api, DUE))["id"]
    await begin(engine)
    await api.delete(f"/clients/{clients['vip']}")
    await cancel(api, mailing_id)
    await advance(engine)
    assert await becomes(api, mailing_id) == {
        ("cancelled", "client_deleted"): 1,
        ("cancelled", "mailing_cancelled"): 3,
    }


@pytest.mark.usefixtures("clients")
async def test_cancelled_mailing_can_be_deleted_and_is_purged(
    api: httpx.AsyncClient, engine: AsyncEngine
) -> None:
    mailing_id = (await create(api, DUE))["id"]
    await begin(engine)
    await cancel(api, mailing_id)
    assert (await api.delete(f"/mailings/{mailing_id}")).status_code == 204
    await do(engine, lambda db: moving.purge(db, 100))
    assert await value(engine, "SELECT count(*) FROM mailing") == 0
    assert await value(engine, "SELECT count(*) FROM message") == 0
