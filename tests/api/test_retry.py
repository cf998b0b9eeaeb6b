"""Sending again what was given up: which messages, from when on, and until what stops it."""

from datetime import UTC, datetime, time, timedelta
from typing import Any

import httpx
from sqlalchemy.ext.asyncio import AsyncEngine
from tests.api.calls import DUE, LEDGER, NEW, create, mark, messages_of
from tests.sample import (
    add_clients,
    advance,
    begin,
    claim,
    do,
    execute,
    finish,
    resend,
    running,
    value,
)

from mailer.mailing import moving
from mailer.message.model import FinishedMessage
from mailer.report.verify import differences

HOUR = timedelta(hours=1)
GIVE_UP = """
    UPDATE message SET status = 'undelivered', reason = 'attempts_exhausted', attempts = 8,
        last_failure = 'http_503', updated_at = now()"""
WAITING = {"status": "scheduled", "reason": None, "last_failure": None, "attempts": 0}


async def given_up(api: httpx.AsyncClient, engine: AsyncEngine, count: int) -> int:
    """A mailing that is finished before its end, of which no message was delivered."""
    await add_clients(engine, count)
    mailing_id: int = (await create(api, DUE))["id"]
    await begin(engine)
    await execute(engine, GIVE_UP)
    await advance(engine)
    assert await status(api, mailing_id) == "finished"
    return mailing_id


async def status(api: httpx.AsyncClient, mailing_id: int) -> str:
    return str((await api.get(f"/mailings/{mailing_id}")).json()["status"])


async def counts(api: httpx.AsyncClient, mailing_id: int) -> dict[str, int]:
    """Return a mailing's ledger without its zeros."""
    shown = (await api.get(f"/mailings/{mailing_id}")).json()
    assert sum(shown[name] for name in LEDGER) == shown["clients_count"]
    return {name.removesuffix("_messages"): shown[name] for name in LEDGER if shown[name]}


async def retry(api: httpx.AsyncClient, mailing_id: int) -> dict[str, Any]:
    answer = await api.post(f"/mailings/{mailing_id}/retry")
    assert answer.status_code == 200
    retried: dict[str, Any] = answer.json()
    return retried


# ---- which ----------------------------------------------------------------------------------


async def test_undelivered_and_unknown_messages_start_afresh_and_the_others_stay(
    api: httpx.AsyncClient, engine: AsyncEngine, clients: dict[str, int]
) -> None:
    mailing_id = (await create(api, DUE))["id"]
    joined = (await api.post("/clients", json={"phone": "79160000009"})).json()["id"]
    await begin(engine)
    sent_at = datetime(2025, 6, 7, 8, 9, tzinfo=UTC)
    failed: dict[str, Any] = {"attempts": 8, "last_failure": "timeout"}
    again = {
        clients["vip"]: {"status": "undelivered", "reason": "attempts_exhausted"} | failed,
        clients["moscow"]: {"status": "unknown", "reason": "timeout", "sent_at": sent_at} | failed,
    }
    others = {
        clients["tagged 912"]: {"status": "delivered", "sent_at": sent_at} | failed,
        clients["blank"]: {"status": "cancelled", "reason": "expired"} | failed,
        joined: {"reason": "timeout"} | failed,
    }
    for client_id, columns in (again | others).items():
        await mark(engine, client_id, **columns)
    before = await messages_of(api, mailing_id)

    retried = await retry(api, mailing_id)

    assert retried["status"] == "running"
    await advance(engine)
    found = await messages_of(api, mailing_id)
    for client_id in again:
        row = found[client_id]
        assert row == before[client_id] | WAITING | {
            "datetime_send": DUE["datetime_start"],  # it is due, and was not sent
            "updated_at": row["updated_at"],
        }
        assert row["updated_at"] > before[client_id]["updated_at"]
    assert {client_id: found[client_id] for client_id in others} == {
        client_id: before[client_id] for client_id in others
    }
    assert await differences(engine) == []


async def test_messages_of_deleted_clients_are_not_sent_again(
    api: httpx.AsyncClient, engine: AsyncEngine
) -> None:
    mailing_id = await given_up(api, engine, 3)
    erased = (await api.get("/clients")).json()["results"][0]["id"]
    await api.delete(f"/clients/{erased}")
    before = (await messages_of(api, mailing_id))[erased]

    await retry(api, mailing_id)
    await advance(engine)

    assert await counts(api, mailing_id) == {"scheduled": 2, "undelivered": 1}
    assert (await messages_of(api, mailing_id))[erased] == before
    await execute(engine, "UPDATE message SET status = 'delivered' WHERE status = 'scheduled'")
    await advance(engine)
    assert await status(api, mailing_id) == "finished"


async def test_what_is_given_up_after_the_call_is_not_touched_by_it(
    api: httpx.AsyncClient, engine: AsyncEngine
) -> None:
    mailing_id = await given_up(api, engine, 3)
    await retry(api, mailing_id)
    assert await resend(engine, 2)
    (claimed,) = await claim(engine, mailing_id)
    await finish(engine, FinishedMessage(claimed, "undelivered", 1, "rejected_400"))

    await advance(engine)

    assert await counts(api, mailing_id) == {"scheduled": 2, "undelivered": 1}
    found = {row["id"]: row for row in (await messages_of(api, mailing_id)).values()}
    assert found[claimed.id]["reason"] == "rejected_400"
    await retry(api, mailing_id)
    await advance(engine)
    assert await counts(api, mailing_id) == {"scheduled": 3}


async def test_retry_of_one_mailing_touches_no_other(
    api: httpx.AsyncClient, engine: AsyncEngine
) -> None:
    other = await given_up(api, engine, 2)
    mailing_id = (await create(api, DUE))["id"]
    await begin(engine)
    await execute(engine, GIVE_UP)
    await retry(api, mailing_id)
    await advance(engine)
    assert await counts(api, mailing_id) == {"scheduled": 2}
    assert await counts(api, other) == {"undelivered": 2}
    assert await status(api, other) == "finished"


# ---- when -----------------------------------------------------------------------------------


async def test_finished_mailing_runs_again_and_finishes_again(
    api: httpx.AsyncClient, engine: AsyncEngine
) -> None:
    mailing_id = await given_up(api, engine, 3)
    assert await running(engine) == []

    assert (await retry(api, mailing_id))["status"] == "running"

    assert await do(engine, moving.finish) == []  # nothing waits yet, and yet it is not through
    assert [mailing.id for mailing in await running(engine)] == [mailing_id]
    await advance(engine)
    claimed = await claim(engine, mailing_id, 9)
    assert [one.attempts for one in claimed] == [1, 1, 1]
    sent_at = datetime.now(UTC)
    await finish(engine, *(FinishedMessage(c, "delivered", 1, sent_at=sent_at) for c in claimed))
    await advance(engine)
    assert await status(api, mailing_id) == "finished"
    assert await counts(api, mailing_id) == {"delivered": 3}
    assert await differences(engine) == []


async def test_more_than_a_chunk_is_sent_again_chunk_by_chunk(
    api: httpx.AsyncClient, engine: AsyncEngine
) -> None:
    mailing_id = await given_up(api, engine, 10)
    await retry(api, mailing_id)
    for waiting in (5, 10):
        assert await resend(engine, 5)
        assert (await counts(api, mailing_id))["scheduled"] == waiting
        assert await do(engine, moving.finish) == []
    await execute(engine, "UPDATE message SET status = 'delivered'")
    assert await do(engine, moving.finish) == []  # nobody knows yet that there is no more
    assert await resend(engine, 5)
    assert not await resend(engine, 5)
    assert await do(engine, moving.finish) == [(mailing_id, "finished")]


async def test_retry_under_way_takes_up_what_is_given_up_before_another_call(
    api: httpx.AsyncClient, engine: AsyncEngine
) -> None:
    mailing_id = await given_up(api, engine, 3)
    await retry(api, mailing_id)
    await resend(engine, 2)
    (claimed,) = await claim(engine, mailing_id)
    await finish(engine, FinishedMessage(claimed, "undelivered", 1, "rejected_400"))
    await retry(api, mailing_id)
    await advance(engine)
    assert await counts(api, mailing_id) == {"scheduled": 3}


async def test_paused_mailing_stays_paused_with_what_is_to_be_sent_again(
    api: httpx.AsyncClient, engine: AsyncEngine, clients: dict[str, int]
) -> None:
    mailing_id = (await create(api, DUE))["id"]
    await begin(engine)
    await mark(engine, clients["vip"], status="undelivered", reason="rejected_400")
    await api.post(f"/mailings/{mailing_id}/pause")
    assert (await retry(api, mailing_id))["status"] == "paused"
    await advance(engine)
    assert await counts(api, mailing_id) == {"scheduled": 4}
    assert await claim(engine, mailing_id, 9) == []


async def test_outside_the_window_what_is_sent_again_waits_for_the_opening(
    api: httpx.AsyncClient, engine: AsyncEngine
) -> None:
    await add_clients(engine, 1)
    (tokyo,) = await add_clients(engine, 1, time_zone="Asia/Tokyo")
    now = datetime.now(UTC)
    opens = (now + 2 * HOUR).time().replace(second=0, microsecond=0)
    closes = (now + 3 * HOUR).time().replace(second=0, microsecond=0)
    window = {
        "send_interval_time_start": f"{opens:%H:%M}",
        "send_interval_time_end": f"{closes:%H:%M}",
    }
    mailing_id = (await create(api, DUE | window))["id"]
    await begin(engine)
    await execute(engine, GIVE_UP)

    await retry(api, mailing_id)
    await advance(engine)

    found = await messages_of(api, mailing_id)
    for client_id, row in found.items():
        due_at = datetime.fromisoformat(row["datetime_send"])
        offset = 9 * HOUR if client_id == tokyo else 0 * HOUR
        assert (due_at + offset).time() == time(opens.hour, opens.minute)
        assert now < due_at < now + 25 * HOUR
        assert row["status"] == "scheduled"
    assert await claim(engine, mailing_id, 9) == []


async def test_what_has_no_opening_before_the_end_stays_given_up(
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
    mailing_id = (await create(api, DUE | window | {"datetime_end": end}))["id"]
    await begin(engine)
    await execute(engine, GIVE_UP)
    await retry(api, mailing_id)
    await advance(engine)
    [row] = (await messages_of(api, mailing_id)).values()
    assert (row["status"], row["reason"]) == ("undelivered", "attempts_exhausted")
    assert await status(api, mailing_id) == "finished"


async def test_retry_of_one_does_not_wait_for_another_that_is_far(
    api: httpx.AsyncClient, engine: AsyncEngine
) -> None:
    large, small = await given_up(api, engine, 5), await given_up(api, engine, 0)
    await retry(api, large)
    assert await resend(engine, 2)
    await retry(api, small)
    assert await resend(engine, 2)
    assert await counts(api, large) == {"scheduled": 2, "undelivered": 3}
    assert await counts(api, small) == {"scheduled": 2, "undelivered": 3}
    while await resend(engine, 2):
        pass
    assert await counts(api, large) == await counts(api, small) == {"scheduled": 5}


# ---- what stops it --------------------------------------------------------------------------


async def half_retried(api: httpx.AsyncClient, engine: AsyncEngine) -> int:
    """A mailing of five messages to be sent again, of which two wait already."""
    mailing_id = await given_up(api, engine, 5)
    await retry(api, mailing_id)
    assert await resend(engine, 2)
    assert await counts(api, mailing_id) == {"scheduled": 2, "undelivered": 3}
    return mailing_id


async def test_retry_under_way_goes_no_further_when_the_mailing_is_cancelled(
    api: httpx.AsyncClient, engine: AsyncEngine
) -> None:
    mailing_id = await half_retried(api, engine)
    await api.post(f"/mailings/{mailing_id}/cancel")
    assert not await resend(engine, 2)
    await advance(engine)
    assert await counts(api, mailing_id) == {"cancelled": 2, "undelivered": 3}
    reasons = "SELECT array_agg(DISTINCT reason ORDER BY reason) FROM message"
    assert await value(engine, reasons) == ["attempts_exhausted", "mailing_cancelled"]
    assert await status(api, mailing_id) == "cancelled"
    assert await differences(engine) == []


async def test_retry_under_way_goes_no_further_when_the_mailing_is_deleted(
    api: httpx.AsyncClient, engine: AsyncEngine
) -> None:
    mailing_id = await half_retried(api, engine)
    await api.delete(f"/mailings/{mailing_id}")
    assert not await resend(engine, 2)
    assert await do(engine, lambda db: moving.purge(db, 100)) == 5
    assert await value(engine, "SELECT count(*) FROM mailing") == 0


async def test_retry_under_way_leaves_nothing_waiting_when_the_mailing_ends(
    api: httpx.AsyncClient, engine: AsyncEngine
) -> None:
    mailing_id = await half_retried(api, engine)
    await execute(engine, "UPDATE mailing SET datetime_end = now()")
    await advance(engine, chunk=2)
    assert (await counts(api, mailing_id)).keys() <= {"cancelled", "undelivered"}
    assert await status(api, mailing_id) == "finished"
    assert await value(engine, "SELECT retry_before FROM mailing") is None
    assert await differences(engine) == []


async def test_retry_under_way_goes_on_while_the_mailing_is_paused_and_planned_anew(
    api: httpx.AsyncClient, engine: AsyncEngine
) -> None:
    mailing_id = await half_retried(api, engine)
    await api.post(f"/mailings/{mailing_id}/pause")
    later = {"datetime_end": "2050-01-01T00:00:00Z"}
    await api.patch(f"/mailings/{mailing_id}", json=later)
    await advance(engine, chunk=2)
    assert await counts(api, mailing_id) == {"scheduled": 5}
    assert await status(api, mailing_id) == "paused"


async def test_who_matches_no_more_since_the_filter_changed_is_not_sent_to_again(
    api: httpx.AsyncClient, engine: AsyncEngine, clients: dict[str, int]
) -> None:
    mailing_id = (await create(api, DUE))["id"]
    await begin(engine)
    await mark(engine, clients["moscow"], status="undelivered", reason="rejected_400")
    await mark(engine, clients["vip"], status="undelivered", reason="rejected_400")
    await api.patch(f"/mailings/{mailing_id}", json={"client_filter": "vip"})
    await advance(engine)
    await retry(api, mailing_id)
    await advance(engine)
    found = await messages_of(api, mailing_id)
    assert found[clients["vip"]]["status"] == "scheduled"
    assert found[clients["moscow"]]["status"] != "scheduled"


async def test_retry_before_the_start_has_nothing_to_do(api: httpx.AsyncClient) -> None:
    mailing_id = (await create(api, NEW))["id"]
    assert (await api.post(f"/mailings/{mailing_id}/retry")).status_code == 409
