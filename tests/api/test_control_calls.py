"""Pause, resume, cancel and retry over HTTP: what each answers in every state of a mailing."""

import asyncio
from collections import Counter
from typing import Any

import httpx
import pytest
from sqlalchemy.ext.asyncio import AsyncEngine
from tests.api.calls import DUE, FIELDS, NEW, create, messages_of
from tests.patience import PATIENCE
from tests.sample import (
    advance,
    begin,
    behind_all_stops,
    claim,
    do,
    execute,
    finish,
    running,
    take_audience,
)

from mailer.db.engine import raw
from mailer.mailing import moving
from mailer.mailing.telling import CHANNEL
from mailer.message.model import FinishedMessage
from mailer.report.verify import differences

pytestmark = pytest.mark.usefixtures("clients")

CALLS = ("pause", "resume", "cancel", "retry")
JSON = {"Content-Type": "application/json"}
ENDED = "A mailing that has ended cannot be changed."
PAUSED = "The mailing is paused already."
NOT_PAUSED = "Only a mailing that is paused can be resumed."
NOTHING = "No message of the mailing is undelivered or unknown, so that there is nothing to retry."
UNKNOWN = "There is no such mailing."
# How a mailing comes to a state, and what then becomes of it by each call, or why nothing does.
STATES: dict[str, tuple[dict[str, Any], list[str], tuple[str, str, str, str]]] = {
    "scheduled": (NEW, [], ("paused", NOT_PAUSED, "cancelled", NOTHING)),
    "due": (DUE, [], ("paused", NOT_PAUSED, "cancelled", NOTHING)),
    "paused before its start": (NEW, ["pause"], (PAUSED, "scheduled", "cancelled", NOTHING)),
    "running": (DUE, ["begin"], ("paused", NOT_PAUSED, "cancelled", NOTHING)),
    "running, one given up": (
        *(DUE, ["begin", "fail"]),
        ("paused", NOT_PAUSED, "cancelled", "running"),
    ),
    "paused": (DUE, ["begin", "pause"], (PAUSED, "running", "cancelled", NOTHING)),
    "paused, one given up": (
        *(DUE, ["begin", "fail", "pause"]),
        (PAUSED, "running", "cancelled", "paused"),
    ),
    "finished before its end": (
        *(DUE, ["begin", "fail", "deliver", "advance"]),
        (ENDED, ENDED, ENDED, "running"),
    ),
    "finished before its end, all delivered": (
        *(DUE, ["begin", "deliver", "advance"]),
        (ENDED, ENDED, ENDED, NOTHING),
    ),
    "past its end": (DUE, ["begin", "fail", "end"], (ENDED, ENDED, ENDED, ENDED)),
    "paused past its end": (DUE, ["begin", "fail", "pause", "end"], (ENDED, ENDED, ENDED, ENDED)),
    "finished by its end": (
        *(DUE, ["begin", "fail", "end", "advance"]),
        (ENDED, ENDED, ENDED, ENDED),
    ),
    "cancelled before its start": (NEW, ["cancel"], (ENDED, ENDED, ENDED, ENDED)),
    "cancelled": (DUE, ["begin", "fail", "cancel"], (ENDED, ENDED, ENDED, ENDED)),
    "cancelled and cleared": (
        *(DUE, ["begin", "fail", "cancel", "advance"]),
        (ENDED, ENDED, ENDED, ENDED),
    ),
    "deleted": (DUE, ["begin", "fail", "delete"], (UNKNOWN, UNKNOWN, UNKNOWN, UNKNOWN)),
    "deleted and purged": (
        *(DUE, ["begin", "fail", "delete", "purge"]),
        (UNKNOWN, UNKNOWN, UNKNOWN, UNKNOWN),
    ),
}
ANSWERS = [
    pytest.param(given, steps, call, answer, id=f"{call} when {state}")
    for state, (given, steps, answers) in STATES.items()
    for call, answer in zip(CALLS, answers, strict=True)
]
FAIL = """
    UPDATE message SET status = 'undelivered', reason = 'rejected_400'
    WHERE id = (SELECT min(id) FROM message)"""
DELIVER = "UPDATE message SET status = 'delivered', sent_at = now() WHERE status = 'scheduled'"


async def take(api: httpx.AsyncClient, engine: AsyncEngine, mailing_id: int, step: str) -> None:
    """Lead a mailing one step on."""
    match step:
        case "begin":
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
            await do(engine, lambda db: moving.purge(db, 100))
        case _:
            assert (await api.post(f"/mailings/{mailing_id}/{step}")).status_code == 200


# ---- every call in every state --------------------------------------------------------------


@pytest.mark.parametrize(("given", "steps", "call", "expected"), ANSWERS)
async def test_call_answers_with_the_mailing_or_says_why_it_makes_no_sense(  # noqa: PLR0913, PLR0917  # given by the table
    api: httpx.AsyncClient,
    engine: AsyncEngine,
    given: dict[str, Any],
    steps: list[str],
    call: str,
    expected: str,
) -> None:
    created = await create(api, given)
    address = f"/mailings/{created['id']}"
    for step in steps:
        await take(api, engine, created["id"], step)
    before = (await api.get(address)).json()

    answer = await api.post(f"{address}/{call}")

    shown = (await api.get(address)).json()
    if expected.endswith("."):
        problem = answer.json()
        assert answer.headers["content-type"] == "application/problem+json"
        assert answer.status_code == problem["status"] == (404 if expected == UNKNOWN else 409)
        assert problem["detail"] == expected
        assert shown == before
    else:
        assert answer.status_code == 200
        assert answer.json().keys() == FIELDS
        assert answer.json()["status"] == expected
        assert answer.json()["updated_at"] > before["updated_at"]
        assert shown | answer.json() == shown
    assert await differences(engine) == []
    await advance(engine)
    assert await differences(engine) == []


@pytest.mark.parametrize("call", CALLS)
async def test_call_for_a_mailing_that_never_was_is_404(api: httpx.AsyncClient, call: str) -> None:
    unknown = (await create(api, NEW))["id"] + 1
    answer = await api.post(f"/mailings/{unknown}/{call}")
    assert answer.status_code == 404
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.json()["detail"] == UNKNOWN


@pytest.mark.parametrize(
    ("sent", "status", "fields"),
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
async def test_what_a_call_does_not_take_is_refused_and_changes_nothing(
    api: httpx.AsyncClient, sent: dict[str, Any], status: int, fields: set[str]
) -> None:
    created = await create(api, NEW)
    for call in CALLS:
        answer = await api.post(f"/mailings/{created['id']}/{call}", **sent)
        assert answer.status_code == status
        assert {error["field"] for error in answer.json().get("errors", [])} == fields
    assert (await api.get(f"/mailings/{created['id']}")).json()["status"] == "scheduled"


async def test_an_empty_object_is_no_more_than_no_body(api: httpx.AsyncClient) -> None:
    created = await create(api, NEW)
    for call, status in (("pause", "paused"), ("resume", "scheduled"), ("cancel", "cancelled")):
        answer = await api.post(f"/mailings/{created['id']}/{call}", json={})
        assert (answer.status_code, answer.json()["status"]) == (200, status)


async def test_a_trailing_slash_changes_nothing(
    api: httpx.AsyncClient, engine: AsyncEngine
) -> None:
    address = f"/mailings/{(await create(api, DUE))['id']}"
    await begin(engine)
    await execute(engine, FAIL)
    for call, status in (
        *(("pause", "paused"), ("resume", "running")),
        *(("retry", "running"), ("cancel", "cancelled")),
    ):
        assert (await api.post(f"{address}/{call}/")).json()["status"] == status


@pytest.mark.parametrize("call", ["pause", "resume", "cancel"])
async def test_of_many_same_calls_at_once_one_is_done(api: httpx.AsyncClient, call: str) -> None:
    address = f"/mailings/{(await create(api, NEW))['id']}"
    if call == "resume":
        await api.post(f"{address}/pause")
    answers = await asyncio.gather(*(api.post(f"{address}/{call}") for _ in range(8)))
    assert Counter(answer.status_code for answer in answers) == {200: 1, 409: 7}


async def test_calls_at_once_leave_a_mailing_in_one_state(
    api: httpx.AsyncClient, engine: AsyncEngine
) -> None:
    address = f"/mailings/{(await create(api, DUE))['id']}"
    await begin(engine)
    await execute(engine, FAIL)
    calls = [*CALLS] * 4
    answers = await asyncio.gather(*(api.post(f"{address}/{call}") for call in calls))
    assert {answer.status_code for answer in answers} <= {200, 409}
    await advance(engine)
    shown = (await api.get(address)).json()
    assert (shown["status"], shown["cancelled_messages"]) == ("cancelled", 3)
    assert shown["cancelled_messages"] + shown["undelivered_messages"] == 4
    assert await differences(engine) == []


# ---- what is being sent ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "path"), [("POST", "/pause"), ("POST", "/cancel"), ("DELETE", "")]
)
async def test_answer_comes_when_no_process_sends_for_the_mailing_any_more(
    api: httpx.AsyncClient, engine: AsyncEngine, method: str, path: str
) -> None:
    address = f"/mailings/{(await create(api, DUE))['id']}"
    await begin(engine)
    async with behind_all_stops(engine):
        asked = asyncio.create_task(api.request(method, f"{address}{path}"))
        await asyncio.wait({asked}, timeout=0.3)
        assert not asked.done()
        assert await running(engine) == []  # every process can see it at once
    assert (await asked).status_code in {200, 204}


async def test_who_pauses_does_not_wait_any_longer_when_somebody_resumes(
    api: httpx.AsyncClient, engine: AsyncEngine
) -> None:
    address = f"/mailings/{(await create(api, DUE))['id']}"
    await begin(engine)
    async with behind_all_stops(engine):
        pausing = asyncio.create_task(api.post(f"{address}/pause"))
        await asyncio.wait({pausing}, timeout=0.3)
        assert (await api.post(f"{address}/resume")).status_code == 200
        async with asyncio.timeout(PATIENCE):
            answer = await pausing
    assert (answer.status_code, answer.json()["status"]) == (200, "running")


# ---- pause and resume -----------------------------------------------------------------------


async def test_mailing_paused_through_its_start_takes_its_audience_and_sends_nothing(
    api: httpx.AsyncClient, engine: AsyncEngine
) -> None:
    created = await create(api, NEW)
    address = f"/mailings/{created['id']}"
    await api.post(f"{address}/pause")
    await api.patch(address, json={"datetime_start": DUE["datetime_start"]})
    await advance(engine)

    shown = (await api.get(address)).json()
    assert shown["status"] == "paused"
    assert shown["created_messages"] == shown["scheduled_messages"] == shown["clients_count"] == 4
    assert await running(engine) == []
    assert await claim(engine, created["id"], 9) == []

    assert (await api.post(f"{address}/resume")).json()["status"] == "running"
    assert [mailing.id for mailing in await running(engine)] == [created["id"]]
    assert len(await claim(engine, created["id"], 9)) == 4


async def test_mailing_paused_and_resumed_before_its_start_is_scheduled_again(
    api: httpx.AsyncClient, engine: AsyncEngine
) -> None:
    created = await create(api, NEW)
    address = f"/mailings/{created['id']}"
    paused = (await api.post(f"{address}/pause")).json()
    assert (paused["scheduled_messages"], paused["created_messages"]) == (4, 0)
    resumed = (await api.post(f"{address}/resume")).json()
    assert resumed == created | {"updated_at": resumed["updated_at"]}

    await api.patch(address, json={"datetime_start": DUE["datetime_start"]})
    await advance(engine)
    assert (await api.get(address)).json()["status"] == "running"


async def test_what_was_on_its_way_counts_while_the_mailing_is_paused(
    api: httpx.AsyncClient, engine: AsyncEngine
) -> None:
    created = await create(api, DUE)
    await begin(engine)
    claimed = await claim(engine, created["id"], 9)
    await api.post(f"/mailings/{created['id']}/pause")
    await finish(engine, *(FinishedMessage(one, "delivered", 1) for one in claimed[:-1]))
    await advance(engine)
    shown = (await api.get(f"/mailings/{created['id']}")).json()
    assert (shown["status"], shown["delivered_messages"]) == ("paused", 3)

    await finish(engine, FinishedMessage(claimed[-1], "delivered", 1))
    await advance(engine)
    assert (await api.get(f"/mailings/{created['id']}")).json()["status"] == "finished"


async def test_what_waits_for_a_mailing_that_is_paused_at_its_end_expires(
    api: httpx.AsyncClient, engine: AsyncEngine
) -> None:
    created = await create(api, DUE)
    for step in ("begin", "pause", "end", "advance"):
        await take(api, engine, created["id"], step)
    shown = (await api.get(f"/mailings/{created['id']}")).json()
    assert (shown["status"], shown["cancelled_messages"]) == ("finished", 4)
    assert {row["reason"] for row in shown["mailing_messages"]} == {"expired"}


async def test_change_of_a_paused_mailing_plans_it_anew_and_keeps_it_paused(
    api: httpx.AsyncClient, engine: AsyncEngine, clients: dict[str, int]
) -> None:
    created = await create(api, DUE | {"client_filter": "912"})
    address = f"/mailings/{created['id']}"
    await begin(engine)
    await api.post(f"{address}/pause")
    change = {"client_filter": "vip, two words", "text": "Changed"}
    assert (await api.patch(address, json=change)).json()["status"] == "paused"
    await take_audience(engine)

    found = await messages_of(api, created["id"])
    assert {name: (found[n]["status"], found[n]["reason"]) for name, n in clients.items()} == {
        "vip": ("scheduled", None),
        "moscow": ("cancelled", "filter_changed"),
        "tagged 912": ("cancelled", "filter_changed"),
        "blank": ("scheduled", None),
    }
    assert await running(engine) == []
    await api.post(f"{address}/resume")
    assert [mailing.text for mailing in await running(engine)] == ["Changed"]
    assert len(await claim(engine, created["id"], 9)) == 2


async def test_mailing_resumed_while_it_is_planned_anew_sends_when_that_is_done(
    api: httpx.AsyncClient, engine: AsyncEngine
) -> None:
    created = await create(api, DUE)
    address = f"/mailings/{created['id']}"
    await begin(engine)
    await api.post(f"{address}/pause")
    await api.patch(address, json={"client_filter": "vip"})
    assert (await api.post(f"{address}/resume")).json()["status"] == "running"
    assert await running(engine) == []
    await take_audience(engine)
    assert len(await running(engine)) == 1


async def test_every_process_is_told_of_a_call(api: httpx.AsyncClient, engine: AsyncEngine) -> None:
    address = f"/mailings/{(await create(api, DUE))['id']}"
    await begin(engine)
    await execute(engine, FAIL)
    told = asyncio.Queue[object]()
    async with engine.connect() as pooled:
        process = await raw(pooled)
        await process.add_listener(CHANNEL, lambda *notice: told.put_nowait(notice))
        for call in ("pause", "retry", "resume", "cancel"):
            await api.post(f"{address}/{call}")
            await asyncio.wait_for(told.get(), PATIENCE)
        await process.reset()
