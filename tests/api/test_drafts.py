"""Drafts: saved by all rules but that of the end, changed freely, and sent once launched."""

from typing import Any

import httpx
import pytest
from sqlalchemy.ext.asyncio import AsyncEngine
from tests.api.calls import COUNT_FIELDS, DUE, MAILING_FIELDS, NEW, create_mailing, field_errors
from tests.factories import add_clients, advance, do, execute, rows, start_and_enqueue, value

from mailer.mailing import finishing, pending_work, purging, starting
from mailer.mailing.errors import MailingDraftError, MailingNotDraftError
from mailer.mailing.model import NewMailing
from mailer.statistics.verify import find_differences

DRAFT = NEW | {"draft": True}
PAST_DRAFT = DUE | {"draft": True, "datetime_end": "2020-01-02T09:00:00Z"}
"""A draft of which the start and the end have passed."""


async def launch(api: httpx.AsyncClient, mailing_id: int) -> httpx.Response:
    """Launch a draft."""
    return await api.post(f"/mailings/{mailing_id}/launch")


async def test_a_draft_is_a_mailing_that_is_not_scheduled(
    api: httpx.AsyncClient, clients: dict[str, int]
) -> None:
    draft = await create_mailing(api, DRAFT)

    assert draft.keys() == MAILING_FIELDS
    assert (draft["status"], draft["clients_count"]) == ("draft", len(clients))
    assert draft["created_messages"] == 0
    assert sum(draft[name] for name in COUNT_FIELDS) == draft["clients_count"]
    listed = (await api.get("/mailings", params={"status": "draft"})).json()
    assert [mailing["id"] for mailing in listed["results"]] == [draft["id"]]
    assert listed["count"] == 1
    assert (await api.get("/mailings", params={"status": "scheduled"})).json()["count"] == 0


async def test_statistics_count_drafts_but_not_their_clients_as_messages(
    api: httpx.AsyncClient, clients: dict[str, int]
) -> None:
    await create_mailing(api, DRAFT)
    await create_mailing(api, NEW)

    statistics = (await api.get("/statistics")).json()

    assert (statistics["mailings"]["draft"], statistics["mailings"]["scheduled"]) == (1, 1)
    assert statistics["messages"]["scheduled"] == len(clients)


@pytest.mark.parametrize("payload", [DUE | {"draft": True}, PAST_DRAFT], ids=["due", "ended"])
async def test_nothing_of_a_draft_is_ever_enqueued_or_finished(
    api: httpx.AsyncClient, engine: AsyncEngine, payload: dict[str, Any]
) -> None:
    await add_clients(engine, 3)
    draft = await create_mailing(api, payload)
    before = await rows(engine, "SELECT * FROM mailing")

    pending = await do(engine, pending_work.find_pending_work)
    assert not pending.has_work
    assert pending.seconds_until_next is None
    for _ in range(3):
        assert await do(engine, starting.start_due) == []
        assert await do(engine, finishing.finish) == []
        await advance(engine)

    assert await rows(engine, "SELECT * FROM mailing") == before
    assert await value(engine, "SELECT count(*) FROM message") == 0
    assert await find_differences(engine) == []
    assert (await api.get(f"/mailings/{draft['id']}")).json()["status"] == "draft"


async def test_a_worker_of_the_version_before_cannot_finish_a_draft(
    api: httpx.AsyncClient, engine: AsyncEngine
) -> None:
    draft = await create_mailing(api, DRAFT)
    # its statement did not exclude drafts
    await execute(engine, "UPDATE mailing SET status = 'finished', is_settled = true")
    assert (await api.get(f"/mailings/{draft['id']}")).json()["status"] == "draft"


async def test_a_launched_draft_is_scheduled_and_sent_like_any_mailing(
    api: httpx.AsyncClient, engine: AsyncEngine
) -> None:
    draft = await create_mailing(api, DUE | {"draft": True})
    await add_clients(engine, 3)  # after the draft was saved

    launched = await launch(api, draft["id"])

    assert launched.status_code == 200
    assert (launched.json()["status"], launched.json()["clients_count"]) == ("scheduled", 3)
    assert await start_and_enqueue(engine) == draft["id"]
    running = (await api.get(f"/mailings/{draft['id']}")).json()
    assert (running["status"], running["created_messages"]) == ("running", 3)
    assert await find_differences(engine) == []


async def test_a_launch_is_refused_after_the_end_and_names_the_field(
    api: httpx.AsyncClient,
) -> None:
    draft = await create_mailing(api, PAST_DRAFT)

    refused = await launch(api, draft["id"])

    assert refused.status_code == 400
    assert field_errors(refused) == {"datetime_end": "must be in the future"}
    changed = await api.patch(
        f"/mailings/{draft['id']}", json={"datetime_end": NEW["datetime_end"]}
    )
    assert changed.status_code == 200
    assert (await launch(api, draft["id"])).status_code == 200


async def test_a_launch_is_refused_when_its_gateway_is_gone(
    api: httpx.AsyncClient, engine: AsyncEngine
) -> None:
    draft = await create_mailing(api, DRAFT)
    await execute(engine, "UPDATE mailing SET gateway = 'gone'")

    refused = await launch(api, draft["id"])

    assert refused.status_code == 400
    assert field_errors(refused).keys() == {"gateway"}


async def test_everything_of_a_draft_may_be_changed_even_after_its_start(
    api: httpx.AsyncClient,
) -> None:
    draft = await create_mailing(api, PAST_DRAFT)
    changes = {
        "datetime_start": "2021-01-01T09:00:00Z",
        "datetime_end": "2021-01-02T09:00:00Z",
        "text": "Other.",
        "client_filter": "vip",
        "purpose": "service",
        "send_interval_time_start": "09:00",
        "send_interval_time_end": "21:00",
    }

    changed = await api.patch(f"/mailings/{draft['id']}", json=changes)

    assert changed.status_code == 200
    assert {name: changed.json()[name] for name in changes} == changes
    assert changed.json()["status"] == "draft"


@pytest.mark.parametrize(
    ("wrong", "expected"),
    [
        ({"datetime_end": None}, {"datetime_end"}),
        ({"text": " ", "client_filter": ""}, {"text", "client_filter"}),
        ({"datetime_end": NEW["datetime_start"]}, {"datetime_end"}),
        ({"draft": "yes"}, {"draft"}),
    ],
)
async def test_a_draft_obeys_all_other_rules(
    api: httpx.AsyncClient, wrong: dict[str, Any], expected: set[str]
) -> None:
    refused = await api.post("/mailings", json=DRAFT | wrong)
    assert refused.status_code == 400
    assert field_errors(refused).keys() == expected


@pytest.mark.parametrize("action", ["pause", "resume", "cancel", "retry"])
async def test_a_draft_cannot_be_stopped_because_it_does_not_run(
    api: httpx.AsyncClient, action: str
) -> None:
    draft = await create_mailing(api, DRAFT)
    refused = await api.post(f"/mailings/{draft['id']}/{action}")
    assert refused.status_code == 409
    assert refused.json()["detail"] == (MailingDraftError.__doc__ or "").splitlines()[0]


async def test_only_a_draft_is_launched(api: httpx.AsyncClient) -> None:
    mailing = await create_mailing(api, NEW)
    refused = await launch(api, mailing["id"])
    assert refused.status_code == 409
    assert refused.json()["detail"] == (MailingNotDraftError.__doc__ or "").splitlines()[0]
    assert (await launch(api, 77)).status_code == 404


async def test_a_repeated_launch_with_the_same_key_is_no_error(api: httpx.AsyncClient) -> None:
    draft = await create_mailing(api, DRAFT)
    key = {"Idempotency-Key": "launch-1"}
    path = f"/mailings/{draft['id']}/launch"
    first, again = [await api.post(path, headers=key) for _ in range(2)]
    assert (first.status_code, again.status_code) == (200, 200)
    assert again.json() == first.json()


async def test_a_draft_is_deleted(api: httpx.AsyncClient, engine: AsyncEngine) -> None:
    draft = await create_mailing(api, DRAFT)
    assert (await api.delete(f"/mailings/{draft['id']}")).status_code == 204
    await do(engine, lambda connection: purging.purge(connection, 10))
    assert await value(engine, "SELECT count(*) FROM mailing") == 0
    assert (await api.get("/statistics")).json()["mailings"]["draft"] == 0


async def test_a_start_now_by_the_api_is_a_change_of_the_start_and_a_launch(
    api: httpx.AsyncClient, engine: AsyncEngine
) -> None:
    await add_clients(engine, 1)
    draft = await create_mailing(api, DRAFT)
    path = f"/mailings/{draft['id']}"
    await api.patch(path, json={"datetime_start": "2020-01-01T00:00:00Z"})
    await api.post(f"{path}/launch")
    assert await start_and_enqueue(engine) == draft["id"]


async def test_the_audit_log_has_the_draft_and_its_launch(api: httpx.AsyncClient) -> None:
    draft = await create_mailing(api, DRAFT)
    await launch(api, draft["id"])
    launched, created = (await api.get("/audit")).json()["results"]
    assert (created["action"], created["after"]["status"]) == ("mailing_created", "draft")
    assert launched["action"] == "mailing_launched"
    assert (launched["before"], launched["after"]) == (
        {"status": "draft"},
        {"status": "scheduled"},
    )


async def test_the_example_in_the_documentation_is_a_draft_for_nobody(
    api: httpx.AsyncClient, clients: dict[str, int]
) -> None:
    created = await create_mailing(api, NewMailing.EXAMPLE)
    assert (created["status"], created["clients_count"]) == ("draft", 0)
    assert clients
