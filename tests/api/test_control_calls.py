"""Pause, resume, cancel and retry over the API: their response in every state of a mailing."""

import asyncio
from collections import Counter
from typing import Any

import httpx
import pytest
from sqlalchemy.ext.asyncio import AsyncEngine
from tests.api.calls import DUE, MAILING_FIELDS, NEW, create_mailing, messages_by_client
from tests.event_timeout import EVENT_TIMEOUT
from tests.factories import (
    advance,
    begin,
    behind_all_stops,
    claim,
    do,
    enqueue_and_replan,
    execute,
    finish,
    running,
)

from mailer.db.engine import asyncpg_connection
from mailer.mailing import purging
from mailer.mailing.store import MAILINGS_CHANGED
from mailer.message.model import MessageResult
from mailer.statistics.verify import find_differences

pytestmark = pytest.mark.usefixtures("clients")

CALLS = ("pause", "resume", "cancel", "retry")
JSON = {"Content-Type": "application/json"}
ENDED = "A mailing that has ended cannot be changed."
PAUSED = "The mailing is paused already."
NOT_PAUSED = "Only a mailing that is paused can be resumed."
NOTHING = "No message of the mailing is undelivered or unknown, so that there is nothing to retry."
UNKNOWN = "There is no such mailing."
# A state of a mailing: payload, steps that lead to it, and the new status or error of each call.
STATES: dict[str, tuple[dict[str, Any], list[str], tuple[str, str, str, str]]] = {
    "scheduled": (NEW, [], ("paused", NOT_PAUSED, "cancelled", NOTHING)),
    "due": (DUE, [], ("paused", NOT_PAUSED, "cancelled", NOTHING)),
    "paused before its start": (NEW, ["pause"], (PAUSED, "scheduled", "cancelled", NOTHING)),
    "running": (DUE, ["start"], ("paused", NOT_PAUSED, "cancelled", NOTHING)),
    "running, one failed": (
        *(DUE, ["start", "fail"]),
        ("paused", NOT_PAUSED, "cancelled", "running"),
    ),
    "paused": (DUE, ["start", "pause"], (PAUSED, "running", "cancelled", NOTHING)),
    "paused, one failed": (
        *(DUE, ["start", "fail", "pause"]),
        (PAUSED, "running", "cancelled", "paused"),
    ),
    "finished before its end": (
        *(DUE, ["start", "fail", "deliver", "advance"]),
        (ENDED, ENDED, ENDED, "running"),
    ),
    "finished before its end, all delivered": (
        *(DUE, ["start", "deliver", "advance"]),
        (ENDED, ENDED, ENDED, NOTHING),
    ),
    "past its end": (DUE, ["start", "fail", "end"], (ENDED, ENDED, ENDED, ENDED)),
    "paused past its end": (DUE, ["start", "fail", "pause", "end"], (ENDED, ENDED, ENDED, ENDED)),
    "finished by its end": (
        *(DUE, ["start", "fail", "end", "advance"]),
        (ENDED, ENDED, ENDED, ENDED),
    ),
    "cancelled before its start": (NEW, ["cancel"], (ENDED, ENDED, ENDED, ENDED)),
    "cancelled": (DUE, ["start", "fail", "cancel"], (ENDED, ENDED, ENDED, ENDED)),
    "cancelled, messages too": (
        *(DUE, ["start", "fail", "cancel", "advance"]),
        (ENDED, ENDED, ENDED, ENDED),
    ),
    "deleted": (DUE, ["start", "fail", "delete"], (UNKNOWN, UNKNOWN, UNKNOWN, UNKNOWN)),
    "deleted and purged": (
        *(DUE, ["start", "fail", "delete", "purge"]),
        (UNKNOWN, UNKNOWN, UNKNOWN, UNKNOWN),
    ),
}
ANSWERS = [
    pytest.param(payload, steps, call, answer, id=f"{call} when {state}")
    for state, (payload, steps, answers) in STATES.items()
    for call, answer in zip(CALLS, answers, strict=True)
]
FAIL = """
    UPDATE message SET status = 'undelivered', reason = 'rejected_400'
    WHERE id = (SELECT min(id) FROM message)"""
DELIVER = "UPDATE message SET status = 'delivered', sent_at = now() WHERE status = 'scheduled'"


async def take_step(
    api: httpx.AsyncClient, engine: AsyncEngine, mailing_id: int, step: str
) -> None:
    """Bring a mailing one step further."""
    match step:
        case "start":
            await begin(engine)
        case "fail":
            await execute(engine, FAIL)
        case "deliver":
            await execute(engine, DELIVER)
        case "advance":
            await advance(engine)
        case "end":
            await execute(engine, "UPDATE mailing SET datetime_end = now()")
        case "delete":
            assert (await api.delete(f"/mailings/{mailing_id}")).status_code == 204
        case "purge":
            await do(engine, lambda db: purging.purge(db, 100))
        case _:
            assert (await api.post(f"/mailings/{mailing_id}/{step}")).status_code == 200


# ---- every call in every state --------------------------------------------------------------


@pytest.mark.parametrize(("payload", "steps", "call", "expected"), ANSWERS)
async def test_a_call_returns_the_mailing_or_the_reason_why_it_is_refused(  # noqa: PLR0913, PLR0917  # parameters of the test
    api: httpx.AsyncClient,
    engine: AsyncEngine,
    payload: dict[str, Any],
    steps: list[str],
    call: str,
    expected: str,
) -> None:
    created = await create_mailing(api, payload)
    address = f"/mailings/{created['id']}"
    for step in steps:
        await take_step(api, engine, created["id"], step)
    before = (await api.get(address)).json()

    answer = await api.post(f"{address}/{call}")

    mailing = (await api.get(address)).json()
    if expected.endswith("."):
        problem = answer.json()
        assert answer.headers["content-type"] == "application/problem+json"
        assert answer.status_code == problem["status"] == (404 if expected == UNKNOWN else 409)
        assert problem["detail"] == expected
        assert mailing == before
    else:
        assert answer.status_code == 200
        assert answer.json().keys() == MAILING_FIELDS
        assert answer.json()["status"] == expected
        assert answer.json()["updated_at"] > before["updated_at"]
        assert mailing | answer.json() == mailing
    assert await find_differences(engine) == []
    await advance(engine)
    assert await find_differences(engine) == []


@pytest.mark.parametrize("call", CALLS)
async def test_a_call_for_an_unknown_mailing_is_404(api: httpx.AsyncClient, call: str) -> None:
    unknown = (await create_mailing(api, NEW))["id"] + 1
    answer = await api.post(f"/mailings/{unknown}/{call}")
    assert answer.status_code == 404
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.json()["detail"] == UNKNOWN


@pytest.mark.parametrize(
    ("content", "status", "fields"),
    [
        ({"json": {"until": 1, "status": "finished"}}, 400, {"until", "status"}),
        ({"json": {"datetime_end": "2050-01-01T00:00:00Z"}}, 400, {"datetime_end"}),
        ({"json": []}, 400, {""}),
        ({"content": b"null", "headers": JSON}, 400, {""}),
        ({"content": b"\xff{", "headers": JSON}, 400, set()),
        ({"files": {"file": b"x"}}, 415, set()),
        ({"data": {"until": "1"}}, 415, set()),
    ],
    ids=["fields", "a field", "list", "null", "no JSON", "file", "form"],
)
async def test_a_call_with_an_unexpected_body_is_refused_and_changes_nothing(
    api: httpx.AsyncClient, content: dict[str, Any], status: int, fields: set[str]
) -> None:
    created = await create_mailing(api, NEW)
    for call in CALLS:
        answer = await api.post(f"/mailings/{created['id']}/{call}", **content)
        assert answer.status_code == status
        assert {error["field"] for error in answer.json().get("errors", [])} == fields
    assert (await api.get(f"/mailings/{created['id']}")).json()["status"] == "scheduled"


async def test_an_empty_object_is_the_same_as_no_body(api: httpx.AsyncClient) -> None:
    created = await create_mailing(api, NEW)
    for call, status in (("pause", "paused"), ("resume", "scheduled"), ("cancel", "cancelled")):
        answer = await api.post(f"/mailings/{created['id']}/{call}", json={})
        assert (answer.status_code, answer.json()["status"]) == (200, status)


async def test_a_trailing_slash_changes_nothing(
    api: httpx.AsyncClient, engine: AsyncEngine
) -> None:
    address = f"/mailings/{(await create_mailing(api, DUE))['id']}"
    await begin(engine)
    await execute(engine, FAIL)
    for call, status in (
        *(("pause", "paused"), ("resume", "running")),
        *(("retry", "running"), ("cancel", "cancelled")),
    ):
        assert (await api.post(f"{address}/{call}/")).json()["status"] == status


@pytest.mark.parametrize("call", ["pause", "resume", "cancel"])
async def test_one_of_concurrent_equal_calls_succeeds(api: httpx.AsyncClient, call: str) -> None:
    address = f"/mailings/{(await create_mailing(api, NEW))['id']}"
    if call == "resume":
        await api.post(f"{address}/pause")
    answers = await asyncio.gather(*(api.post(f"{address}/{call}") for _ in range(8)))
    assert Counter(answer.status_code for answer in answers) == {200: 1, 409: 7}


async def test_concurrent_calls_leave_a_consistent_mailing(
    api: httpx.AsyncClient, engine: AsyncEngine
) -> None:
    address = f"/mailings/{(await create_mailing(api, DUE))['id']}"
    await begin(engine)
    await execute(engine, FAIL)
    calls = [*CALLS] * 4
    answers = await asyncio.gather(*(api.post(f"{address}/{call}") for call in calls))
    assert {answer.status_code for answer in answers} <= {200, 409}
    await advance(engine)
    mailing = (await api.get(address)).json()
    assert (mailing["status"], mailing["cancelled_messages"]) == ("cancelled", 3)
    assert mailing["cancelled_messages"] + mailing["undelivered_messages"] == 4
    assert await find_differences(engine) == []


# ---- messages in flight ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "path"), [("POST", "/pause"), ("POST", "/cancel"), ("DELETE", "")]
)
async def test_the_response_waits_until_no_worker_sends_for_the_mailing(
    api: httpx.AsyncClient, engine: AsyncEngine, method: str, path: str
) -> None:
    address = f"/mailings/{(await create_mailing(api, DUE))['id']}"
    await begin(engine)
    async with behind_all_stops(engine):
        call = asyncio.create_task(api.request(method, f"{address}{path}"))
        await asyncio.wait({call}, timeout=0.3)
        assert not call.done()
        assert await running(engine) == []  # every worker can see it at once
    assert (await call).status_code in {200, 204}


async def test_a_pause_stops_waiting_when_the_mailing_is_resumed(
    api: httpx.AsyncClient, engine: AsyncEngine
) -> None:
    address = f"/mailings/{(await create_mailing(api, DUE))['id']}"
    await begin(engine)
    async with behind_all_stops(engine):
        pausing = asyncio.create_task(api.post(f"{address}/pause"))
        await asyncio.wait({pausing}, timeout=0.3)
        assert (await api.post(f"{address}/resume")).status_code == 200
        async with asyncio.timeout(EVENT_TIMEOUT):
            answer = await pausing
    assert (answer.status_code, answer.json()["status"]) == (200, "running")


# ---- pause and resume -----------------------------------------------------------------------


async def test_a_mailing_paused_during_its_start_enqueues_its_audience_and_sends_nothing(
    api: httpx.AsyncClient, engine: AsyncEngine
) -> None:
    created = await create_mailing(api, NEW)
    address = f"/mailings/{created['id']}"
    await api.post(f"{address}/pause")
    await api.patch(address, json={"datetime_start": DUE["datetime_start"]})
    await advance(engine)

    mailing = (await api.get(address)).json()
    assert mailing["status"] == "paused"
    assert (
        mailing["created_messages"]
        == mailing["scheduled_messages"]
        == mailing["clients_count"]
        == 4
    )
    assert await running(engine) == []
    assert await claim(engine, created["id"], 9) == []

    assert (await api.post(f"{address}/resume")).json()["status"] == "running"
    assert [mailing.id for mailing in await running(engine)] == [created["id"]]
    assert len(await claim(engine, created["id"], 9)) == 4


async def test_a_mailing_paused_and_resumed_before_its_start_is_scheduled_again(
    api: httpx.AsyncClient, engine: AsyncEngine
) -> None:
    created = await create_mailing(api, NEW)
    address = f"/mailings/{created['id']}"
    paused = (await api.post(f"{address}/pause")).json()
    assert (paused["scheduled_messages"], paused["created_messages"]) == (4, 0)
    resumed = (await api.post(f"{address}/resume")).json()
    assert resumed == created | {"updated_at": resumed["updated_at"]}

    await api.patch(address, json={"datetime_start": DUE["datetime_start"]})
    await advance(engine)
    assert (await api.get(address)).json()["status"] == "running"


async def test_results_of_messages_in_flight_are_counted_while_the_mailing_is_paused(
    api: httpx.AsyncClient, engine: AsyncEngine
) -> None:
    created = await create_mailing(api, DUE)
    await begin(engine)
    claimed = await claim(engine, created["id"], 9)
    await api.post(f"/mailings/{created['id']}/pause")
    await finish(engine, *(MessageResult(message, "delivered", 1) for message in claimed[:-1]))
    await advance(engine)
    mailing = (await api.get(f"/mailings/{created['id']}")).json()
    assert (mailing["status"], mailing["delivered_messages"]) == ("paused", 3)

    await finish(engine, MessageResult(claimed[-1], "delivered", 1))
    await advance(engine)
    assert (await api.get(f"/mailings/{created['id']}")).json()["status"] == "finished"


async def test_waiting_messages_of_a_mailing_paused_at_its_end_expire(
    api: httpx.AsyncClient, engine: AsyncEngine
) -> None:
    created = await create_mailing(api, DUE)
    for step in ("start", "pause", "end", "advance"):
        await take_step(api, engine, created["id"], step)
    mailing = (await api.get(f"/mailings/{created['id']}")).json()
    assert (mailing["status"], mailing["cancelled_messages"]) == ("finished", 4)
    assert {row["reason"] for row in mailing["mailing_messages"]} == {"expired"}


async def test_changing_a_paused_mailing_replans_it_and_keeps_it_paused(
    api: httpx.AsyncClient, engine: AsyncEngine, clients: dict[str, int]
) -> None:
    created = await create_mailing(api, DUE | {"client_filter": "912"})
    address = f"/mailings/{created['id']}"
    await begin(engine)
    await api.post(f"{address}/pause")
    change = {"client_filter": "vip, two words", "text": "Changed"}
    assert (await api.patch(address, json=change)).json()["status"] == "paused"
    await enqueue_and_replan(engine)

    messages = await messages_by_client(api, created["id"])
    assert {
        name: (messages[n]["status"], messages[n]["reason"]) for name, n in clients.items()
    } == {
        "vip": ("scheduled", None),
        "moscow": ("cancelled", "filter_changed"),
        "tagged 912": ("cancelled", "filter_changed"),
        "blank": ("scheduled", None),
    }
    assert await running(engine) == []
    await api.post(f"{address}/resume")
    assert [mailing.text for mailing in await running(engine)] == ["Changed"]
    assert len(await claim(engine, created["id"], 9)) == 2


async def test_a_mailing_resumed_while_replanning_sends_after_replanning(
    api: httpx.AsyncClient, engine: AsyncEngine
) -> None:
    created = await create_mailing(api, DUE)
    address = f"/mailings/{created['id']}"
    await begin(engine)
    await api.post(f"{address}/pause")
    await api.patch(address, json={"client_filter": "vip"})
    assert (await api.post(f"{address}/resume")).json()["status"] == "running"
    assert await running(engine) == []
    await enqueue_and_replan(engine)
    assert len(await running(engine)) == 1


async def test_every_call_notifies_the_workers(api: httpx.AsyncClient, engine: AsyncEngine) -> None:
    address = f"/mailings/{(await create_mailing(api, DUE))['id']}"
    await begin(engine)
    await execute(engine, FAIL)
    notifications = asyncio.Queue[object]()
    async with engine.connect() as pooled:
        listener = await asyncpg_connection(pooled)
        await listener.add_listener(
            MAILINGS_CHANGED, lambda *notification: notifications.put_nowait(notification)
        )
        for call in ("pause", "retry", "resume", "cancel"):
            await api.post(f"{address}/{call}")
            await asyncio.wait_for(notifications.get(), EVENT_TIMEOUT)
        await listener.reset()
