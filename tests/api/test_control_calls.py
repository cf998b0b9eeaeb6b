"""Pause, resume, cancel and retry over the API: their response in every state of a mailing.

Every mailing here is for the four clients of the fixture `clients`, unless it has a filter.
"""

import asyncio
from collections import Counter
from typing import Any, NamedTuple

import httpx
import pytest
from sqlalchemy.ext.asyncio import AsyncEngine
from tests.api.calls import DUE, MAILING_FIELDS, NEW, create_mailing, messages_by_client
from tests.event_timeout import EVENT_TIMEOUT
from tests.factories import (
    advance,
    behind_all_stops,
    claim,
    do,
    enqueue_and_replan,
    execute,
    finish,
    running,
    start_and_enqueue,
)

from mailer.db.engine import asyncpg_connection
from mailer.mailing import purging
from mailer.mailing.store import MAILINGS_CHANGED
from mailer.message.model import MessageResult
from mailer.statistics.verify import find_differences

pytestmark = pytest.mark.usefixtures("clients")

CALLS = ("pause", "resume", "cancel", "retry")
JSON = {"Content-Type": "application/json"}
# the sentences of errors
ENDED = "A mailing that has ended cannot be changed."
PAUSED = "The mailing is paused already."
NOT_PAUSED = "Only a mailing that is paused can be resumed."
NOTHING = "No message of the mailing is undelivered or unknown, so that there is nothing to retry."
UNKNOWN = "There is no such mailing."


class Expected(NamedTuple):
    """What each call leads to: the new status of the mailing, or the sentence of an error."""

    pause: str
    resume: str
    cancel: str
    retry: str


# each call is refused, with the same sentence
ALL_ENDED = Expected(ENDED, ENDED, ENDED, ENDED)
ALL_UNKNOWN = Expected(UNKNOWN, UNKNOWN, UNKNOWN, UNKNOWN)


class State(NamedTuple):
    """A state of a mailing: how it is created, the steps that lead to the state, and the calls.

    The steps are those of `take_step`; for example `fail` makes one message undelivered.
    """

    payload: dict[str, Any]
    steps: list[str]
    expected: Expected


STATES = {
    "scheduled": State(NEW, [], Expected("paused", NOT_PAUSED, "cancelled", NOTHING)),
    "due": State(DUE, [], Expected("paused", NOT_PAUSED, "cancelled", NOTHING)),
    "paused before its start": State(
        NEW, ["pause"], Expected(PAUSED, "scheduled", "cancelled", NOTHING)
    ),
    "running": State(DUE, ["start"], Expected("paused", NOT_PAUSED, "cancelled", NOTHING)),
    "running, one failed": State(
        DUE, ["start", "fail"], Expected("paused", NOT_PAUSED, "cancelled", "running")
    ),
    "paused": State(DUE, ["start", "pause"], Expected(PAUSED, "running", "cancelled", NOTHING)),
    "paused, one failed": State(
        DUE, ["start", "fail", "pause"], Expected(PAUSED, "running", "cancelled", "paused")
    ),
    "finished before its end": State(
        DUE,
        ["start", "fail", "deliver", "advance"],
        Expected(ENDED, ENDED, ENDED, "running"),
    ),
    "finished before its end, all delivered": State(
        DUE, ["start", "deliver", "advance"], Expected(ENDED, ENDED, ENDED, NOTHING)
    ),
    "past its end": State(DUE, ["start", "fail", "end"], ALL_ENDED),
    "paused past its end": State(DUE, ["start", "fail", "pause", "end"], ALL_ENDED),
    "finished by its end": State(DUE, ["start", "fail", "end", "advance"], ALL_ENDED),
    "cancelled before its start": State(NEW, ["cancel"], ALL_ENDED),
    "cancelled": State(DUE, ["start", "fail", "cancel"], ALL_ENDED),
    "cancelled, messages too": State(DUE, ["start", "fail", "cancel", "advance"], ALL_ENDED),
    "deleted": State(DUE, ["start", "fail", "delete"], ALL_UNKNOWN),
    "deleted and purged": State(DUE, ["start", "fail", "delete", "purge"], ALL_UNKNOWN),
}
CALLS_IN_STATES = [
    pytest.param(state.payload, state.steps, call, expected, id=f"{call} when {name}")
    for name, state in STATES.items()
    for call, expected in state.expected._asdict().items()
]
FAIL = """
    UPDATE message SET status = 'undelivered', reason = 'rejected_400'
    WHERE id = (SELECT min(id) FROM message)"""
"""Makes one message undelivered."""
DELIVER = "UPDATE message SET status = 'delivered', sent_at = now() WHERE status = 'scheduled'"


async def take_step(
    api: httpx.AsyncClient, engine: AsyncEngine, mailing_id: int, step: str
) -> None:
    """Bring a mailing one step further. A step without a case of its own is a call."""
    match step:
        case "start":
            await start_and_enqueue(engine)
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
            await do(engine, lambda db: purging.purge(db, chunk=100))
        case _:
            assert (await api.post(f"/mailings/{mailing_id}/{step}")).status_code == 200


# ---- every call in every state --------------------------------------------------------------


@pytest.mark.parametrize(("payload", "steps", "call", "expected"), CALLS_IN_STATES)
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
    is_refused = expected.endswith(".")  # it is a sentence, not a status
    if is_refused:
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
        assert mailing | answer.json() == mailing  # GET has more fields, and the same values
    assert await find_differences(engine) == []
    await advance(engine)
    assert await find_differences(engine) == []


@pytest.mark.parametrize("call", CALLS)
async def test_a_call_for_an_unknown_mailing_is_404(api: httpx.AsyncClient, call: str) -> None:
    unknown_id = (await create_mailing(api, NEW))["id"] + 1
    answer = await api.post(f"/mailings/{unknown_id}/{call}")
    assert answer.status_code == 404
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.json()["detail"] == UNKNOWN


@pytest.mark.parametrize(
    # `body` has arguments of httpx; `fields` are those with an error
    ("body", "status", "fields"),
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
    api: httpx.AsyncClient, body: dict[str, Any], status: int, fields: set[str]
) -> None:
    created = await create_mailing(api, NEW)
    for call in CALLS:
        answer = await api.post(f"/mailings/{created['id']}/{call}", **body)
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
    await start_and_enqueue(engine)
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
    await start_and_enqueue(engine)
    await execute(engine, FAIL)
    four_of_each_call = [*CALLS] * 4
    answers = await asyncio.gather(*(api.post(f"{address}/{call}") for call in four_of_each_call))
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
    await start_and_enqueue(engine)
    async with behind_all_stops(engine):  # as a worker that has not applied the stop yet
        call = asyncio.create_task(api.request(method, f"{address}{path}"))
        await asyncio.wait({call}, timeout=0.3)
        assert not call.done()
        assert await running(engine) == []  # for workers the mailing is stopped already
    assert (await call).status_code in {200, 204}


@pytest.mark.parametrize("call", ["pause", "cancel"])
async def test_a_repeat_is_refused_only_when_no_worker_sends_for_the_mailing(
    api: httpx.AsyncClient, engine: AsyncEngine, call: str
) -> None:
    address = f"/mailings/{(await create_mailing(api, DUE))['id']}"
    await start_and_enqueue(engine)
    assert (await api.post(f"{address}/{call}")).status_code == 200
    async with behind_all_stops(engine):
        repeat = asyncio.create_task(api.post(f"{address}/{call}"))
        await asyncio.wait({repeat}, timeout=0.3)
        assert not repeat.done()
    assert (await repeat).status_code == 409


async def test_a_pause_stops_waiting_when_the_mailing_is_resumed(
    api: httpx.AsyncClient, engine: AsyncEngine
) -> None:
    address = f"/mailings/{(await create_mailing(api, DUE))['id']}"
    await start_and_enqueue(engine)
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
    assert await claim(engine, created["id"], count=9) == []

    assert (await api.post(f"{address}/resume")).json()["status"] == "running"
    assert [mailing.id for mailing in await running(engine)] == [created["id"]]
    assert len(await claim(engine, created["id"], count=9)) == 4


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
    await start_and_enqueue(engine)
    claimed = await claim(engine, created["id"], count=9)
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
    await start_and_enqueue(engine)
    await api.post(f"{address}/pause")
    change = {"client_filter": "vip, two words", "text": "Changed"}
    assert (await api.patch(address, json=change)).json()["status"] == "paused"
    await enqueue_and_replan(engine)

    messages = await messages_by_client(api, created["id"])
    assert {
        name: (messages[client_id]["status"], messages[client_id]["reason"])
        for name, client_id in clients.items()
    } == {
        "vip": ("scheduled", None),
        "moscow": ("cancelled", "filter_changed"),
        "tagged 912": ("cancelled", "filter_changed"),
        "blank": ("scheduled", None),
    }
    assert await running(engine) == []
    await api.post(f"{address}/resume")
    assert [mailing.text for mailing in await running(engine)] == ["Changed"]
    assert len(await claim(engine, created["id"], count=9)) == 2


async def test_a_mailing_resumed_while_replanning_sends_after_replanning(
    api: httpx.AsyncClient, engine: AsyncEngine
) -> None:
    created = await create_mailing(api, DUE)
    address = f"/mailings/{created['id']}"
    await start_and_enqueue(engine)
    await api.post(f"{address}/pause")
    await api.patch(address, json={"client_filter": "vip"})
    assert (await api.post(f"{address}/resume")).json()["status"] == "running"
    assert await running(engine) == []
    await enqueue_and_replan(engine)
    assert len(await running(engine)) == 1


async def test_every_call_notifies_the_workers(api: httpx.AsyncClient, engine: AsyncEngine) -> None:
    address = f"/mailings/{(await create_mailing(api, DUE))['id']}"
    await start_and_enqueue(engine)
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
