"""Idempotency-Key: a request is executed once, and its repeats get the first response."""

import asyncio
from datetime import UTC, datetime, timedelta

import httpx
import pytest
from sqlalchemy.ext.asyncio import AsyncEngine
from structlog.testing import capture_logs
from tests.api.calls import NEW, create_mailing
from tests.api.repeats import (
    ANNA,
    COUNT_MAILINGS,
    CRASHED,
    CRASHED_EARLY,
    CSV,
    IN_PROGRESS,
    NEW_CLIENT,
    NEW_MAILING,
    Call,
    blocked_at,
    call_to,
    is_replay,
    is_same,
    post,
    wait_until_blocked,
)
from tests.factories import (
    add_clients,
    add_mailing,
    add_messages,
    behind_all_stops,
    do,
    execute,
    value,
)

from mailer.dispatch.schedule import JobLimits, jobs
from mailer.gateway.channel import NO_CHANNELS
from mailer.idempotency import responses
from mailer.idempotency import store as claims
from mailer.settings import Settings

FILE = b"phone\n79160000005\n79160000006\n8916\n"
"""Two valid lines and an invalid one."""
COUNT_CLIENTS = "SELECT count(*) FROM client"
COUNT_AUDIT_ENTRIES = "SELECT count(*) FROM audit"
COUNT_KEYS = "SELECT count(*) FROM idempotency"
REUSED = "The Idempotency-Key was used for another request before; each request needs its own."
ERASED = "The object that was created with this Idempotency-Key has been deleted since."
EXPIRE_KEYS = """
    UPDATE idempotency SET created_at = now() - interval '24 h 1 s',
        leased_until = now() - interval '24 h'"""
CREATE_FAILING_FUNCTION = """
    CREATE FUNCTION fail() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN RAISE EXCEPTION 'no' USING ERRCODE = 'query_canceled'; END $$"""
FAIL_TO_CREATE_MAILINGS = (
    CREATE_FAILING_FUNCTION,
    "CREATE TRIGGER failing BEFORE INSERT ON mailing EXECUTE FUNCTION fail()",
)
FAIL_TO_STORE_RESPONSES = (
    CREATE_FAILING_FUNCTION,
    "CREATE TRIGGER failing BEFORE UPDATE OF body ON idempotency EXECUTE FUNCTION fail()",
)
FAIL_NO_MORE = "DROP FUNCTION fail CASCADE"


async def prepare(engine: AsyncEngine, api: httpx.AsyncClient, name: str) -> Call:
    """Create the objects that a call of `CALLS` needs; return the call."""
    match name:
        case "client":
            return NEW_CLIENT
        case "import":
            return call_to("/clients/import", content=FILE, headers=CSV)
        case "mailing":
            return NEW_MAILING
        case "retry":
            start = datetime.now(UTC)
            mailing_id = await add_mailing(engine, clients=1, start=start)
            clients = await add_clients(engine, 1)
            await add_messages(engine, mailing_id, clients, "undelivered", "rejected_400")
            return call_to(f"/mailings/{mailing_id}/retry")
        case _:  # an action on a mailing
            mailing = await create_mailing(api, NEW)
            if name == "resume":
                await api.post(f"/mailings/{mailing['id']}/pause")
            return call_to(f"/mailings/{mailing['id']}/{name}")


CALLS = ["client", "import", "mailing", "pause", "resume", "cancel", "retry"]
"""Calls that create an object, and actions on a mailing."""


@pytest.mark.parametrize("name", CALLS)
async def test_a_repeat_gets_the_first_response_and_is_not_executed_again(
    engine: AsyncEngine, api: httpx.AsyncClient, name: str
) -> None:
    call = await prepare(engine, api, name)
    first = await post(api, call)
    assert first.is_success
    assert not is_replay(first)
    audit_entries = await value(engine, COUNT_AUDIT_ENTRIES)
    assert is_same(first, await post(api, call))
    assert is_same(first, await post(api, call))
    assert await value(engine, COUNT_AUDIT_ENTRIES) == audit_entries


@pytest.mark.parametrize("name", CALLS)
async def test_a_request_that_a_dead_worker_executed_is_not_executed_again(
    engine: AsyncEngine, api: httpx.AsyncClient, name: str
) -> None:
    call = await prepare(engine, api, name)
    first = await post(api, call)
    audit_entries = await value(engine, COUNT_AUDIT_ENTRIES)
    await execute(engine, CRASHED)
    with capture_logs() as logs:
        response = await post(api, call)
    assert (response.status_code, response.content) == (first.status_code, first.content)
    assert not is_replay(response)  # the first response was never stored
    assert [line["event"] for line in logs if line["event"].startswith("mailing_")] == []
    assert await value(engine, COUNT_AUDIT_ENTRIES) == audit_entries
    assert is_same(first, await post(api, call))


@pytest.mark.parametrize("name", ["client", "import", "mailing"])
async def test_a_request_that_a_dead_worker_did_not_execute_is_executed(
    engine: AsyncEngine, api: httpx.AsyncClient, name: str
) -> None:
    call = await prepare(engine, api, name)
    first = await post(api, call)
    await execute(
        engine,
        CRASHED,
        CRASHED_EARLY,
        "TRUNCATE client, mailing, mailing_text, mailing_counts, mailing_pace RESTART IDENTITY",
    )
    response = await post(api, call)
    assert response.status_code == first.status_code
    assert not is_replay(response)
    assert await value(engine, COUNT_CLIENTS) + await value(engine, COUNT_MAILINGS) > 0
    assert is_same(response, await post(api, call))


OTHER_CALLS: dict[str, Call] = {
    "body": call_to("/mailings", json=NEW | {"text": "Another."}),
    "query": call_to("/mailings?draft=1", json=NEW),
    "path": call_to("/clients", json=NEW),
    "content type": call_to(
        "/mailings", json=NEW, headers={"Content-Type": "application/json; charset=utf-8"}
    ),
}
"""Calls that differ from `NEW_MAILING` in one thing, by that thing."""


@pytest.mark.parametrize("state", ["response stored", "worker dead", "in progress"])
@pytest.mark.parametrize("difference", OTHER_CALLS)
async def test_a_different_request_under_the_same_key_is_409(
    engine: AsyncEngine, api: httpx.AsyncClient, difference: str, state: str
) -> None:
    first = await post(api, NEW_MAILING)
    if state != "response stored":
        await execute(engine, CRASHED)
    if state == "in progress":
        await execute(engine, IN_PROGRESS)
    response = await post(api, OTHER_CALLS[difference])
    assert (response.status_code, response.json()["detail"]) == (409, REUSED)
    assert not is_replay(response)
    assert await value(engine, COUNT_MAILINGS) == 1
    if state != "in progress":
        repeat = await post(api, NEW_MAILING)
        assert repeat.content == first.content


async def test_a_key_whose_request_did_nothing_accepts_another_body(
    engine: AsyncEngine, api: httpx.AsyncClient
) -> None:
    await post(api, NEW_MAILING)
    await execute(engine, CRASHED, CRASHED_EARLY)
    response = await post(api, OTHER_CALLS["body"])
    assert (response.status_code, response.json()["text"]) == (201, "Another.")


async def test_keys_are_case_sensitive(engine: AsyncEngine, api: httpx.AsyncClient) -> None:
    first, second = await post(api, NEW_MAILING, "a"), await post(api, NEW_MAILING, "A")
    assert first.json()["id"] != second.json()["id"]
    assert await value(engine, COUNT_MAILINGS) == 2


async def test_the_key_is_ignored_for_other_methods(
    engine: AsyncEngine, api: httpx.AsyncClient
) -> None:
    client = (await api.post("/clients", json=ANNA)).json()
    path = f"/clients/{client['id']}"
    for tag in ("one", "two"):
        changed = await api.patch(path, json={"tag": tag}, headers={"Idempotency-Key": "a"})
        assert changed.json()["tag"] == tag
    assert (await api.get(path, headers={"Idempotency-Key": "not a key"})).json()["tag"] == "two"
    assert await value(engine, COUNT_KEYS) == 0


@pytest.mark.parametrize(
    ("call", "status"),
    [
        (call_to("/mailings", json={}), 400),
        (call_to("/mailings/77/pause"), 404),
        (NEW_CLIENT, 409),
    ],
)
async def test_a_repeat_of_a_refused_request_gets_the_same_refusal(
    api: httpx.AsyncClient, call: Call, status: int
) -> None:
    client_with_the_phone = (await api.post("/clients", json=ANNA)).json()
    first = await post(api, call)
    assert first.status_code == status
    await api.delete(f"/clients/{client_with_the_phone['id']}")  # now the 409 has no reason
    assert is_same(first, await post(api, call))


REFUSED_CALL = call_to("/clients", json={"phone": "1"})


async def test_a_large_refusal_is_not_stored_but_a_large_success_is(
    api: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(responses, "MAX_REFUSAL_BYTES", 100)
    refusal = await post(api, REFUSED_CALL, "refused")
    assert len(refusal.content) > 100
    assert not is_replay(await post(api, REFUSED_CALL, "refused"))

    first = await post(api, NEW_MAILING, "done")
    assert len(first.content) > 100
    assert is_same(first, await post(api, NEW_MAILING, "done"))


async def test_the_number_of_stored_refusals_of_an_owner_is_limited(
    engine: AsyncEngine, api: httpx.AsyncClient
) -> None:
    all_but_one = claims.MAX_STORED_REFUSALS - 1
    await execute(
        engine,
        f"""INSERT INTO idempotency (owner, key, attempt, leased_until, status, body)
            SELECT 'anonymous', 'stored ' || n, gen_random_uuid(), now(), 400, ''
            FROM generate_series(1, {all_but_one}) AS n""",  # noqa: S608  # a number
    )
    await post(api, REFUSED_CALL, "the-last-stored")
    assert is_replay(await post(api, REFUSED_CALL, "the-last-stored"))
    for _ in range(2):
        response = await post(api, REFUSED_CALL, "one-too-many")
        assert (response.status_code, is_replay(response)) == (400, False)
    assert await value(engine, COUNT_KEYS) == claims.MAX_STORED_REFUSALS

    success = await post(api, NEW_MAILING, "successful")
    assert is_same(success, await post(api, NEW_MAILING, "successful"))


async def test_a_request_refused_before_its_body_was_read_may_be_repeated(
    api: httpx.AsyncClient,
) -> None:
    refused = await post(api, call_to("/clients/import", content=FILE))
    assert refused.status_code == 415
    corrected = await post(api, call_to("/clients/import", content=FILE, headers=CSV))
    assert (corrected.status_code, corrected.json()["created"]) == (200, 2)


async def test_a_server_error_is_not_stored(engine: AsyncEngine, api: httpx.AsyncClient) -> None:
    await execute(engine, *FAIL_TO_CREATE_MAILINGS)
    assert (await post(api, NEW_MAILING)).status_code == 503
    assert (await post(api, NEW_MAILING)).status_code == 503
    await execute(engine, FAIL_NO_MORE)
    response = await post(api, NEW_MAILING)
    assert response.status_code == 201
    assert is_same(response, await post(api, NEW_MAILING))


async def test_a_response_that_cannot_be_stored_is_not_sent(
    engine: AsyncEngine, api: httpx.AsyncClient
) -> None:
    await execute(engine, *FAIL_TO_STORE_RESPONSES)
    assert (await post(api, NEW_MAILING)).status_code == 503
    await execute(engine, FAIL_NO_MORE)
    response = await post(api, NEW_MAILING)
    assert (response.status_code, is_replay(response)) == (201, False)
    assert await value(engine, COUNT_MAILINGS) == 1


@pytest.mark.parametrize("name", ["pause", "cancel"])
async def test_a_repeat_waits_until_no_worker_sends_for_the_mailing(
    engine: AsyncEngine, api: httpx.AsyncClient, name: str
) -> None:
    call = await prepare(engine, api, name)
    # the mailing runs, so that pausing or cancelling it waits for the workers
    await execute(engine, "UPDATE mailing SET audience_until = 0, status = 'running'")
    async with behind_all_stops(engine):  # as a worker that may still send
        first = asyncio.create_task(post(api, call))
        await asyncio.sleep(0.3)
        assert not first.done()
    await first
    await execute(engine, CRASHED)
    async with behind_all_stops(engine):
        repeat = asyncio.create_task(post(api, call))
        await asyncio.sleep(0.3)
        assert not repeat.done()
    assert (await repeat).status_code == 200


async def test_a_repeat_after_the_mailings_end_still_succeeds(
    engine: AsyncEngine, api: httpx.AsyncClient
) -> None:
    end = datetime.now(UTC) + timedelta(seconds=5)
    mailing = NEW | {"datetime_start": "2020-01-01T00:00:00Z", "datetime_end": end.isoformat()}
    first = await post(api, call_to("/mailings", json=mailing))
    assert first.status_code == 201
    await execute(engine, CRASHED)
    while datetime.now(UTC) <= end:
        await asyncio.sleep(0.1)
    repeat = await post(api, call_to("/mailings", json=mailing))
    assert (repeat.status_code, repeat.json()["id"]) == (201, first.json()["id"])
    without_key = await api.post("/mailings", json=mailing)
    assert without_key.status_code == 400  # the end has passed


async def test_a_key_can_be_reused_after_a_day(engine: AsyncEngine, api: httpx.AsyncClient) -> None:
    await post(api, NEW_MAILING)
    await execute(engine, EXPIRE_KEYS)
    response = await post(api, OTHER_CALLS["body"])
    assert (response.status_code, response.json()["text"]) == (201, "Another.")
    assert is_same(response, await post(api, OTHER_CALLS["body"]))


async def test_a_key_cannot_be_reused_within_a_day(
    engine: AsyncEngine, api: httpx.AsyncClient
) -> None:
    first = await post(api, NEW_MAILING)
    await execute(engine, "UPDATE idempotency SET created_at = now() - interval '23 h 59 min'")
    assert is_same(first, await post(api, NEW_MAILING))


async def test_responses_older_than_a_day_are_deleted_in_chunks(
    engine: AsyncEngine, api: httpx.AsyncClient
) -> None:
    for number in range(5):
        await post(api, REFUSED_CALL, f"old-{number}")
    await execute(engine, EXPIRE_KEYS)
    await post(api, REFUSED_CALL, "new")
    deleted_counts = [await do(engine, lambda db: claims.purge(db, chunk=2)) for _ in range(4)]
    assert deleted_counts == [2, 2, 1, 0]
    assert await value(engine, "SELECT key FROM idempotency") == "new"


async def test_the_periodic_job_deletes_old_responses(
    engine: AsyncEngine, api: httpx.AsyncClient
) -> None:
    await post(api, REFUSED_CALL)
    await execute(engine, EXPIRE_KEYS)
    limits = JobLimits.of(Settings())
    job = next(
        each for each in jobs(engine, NO_CHANNELS, limits, None) if each.name == "delete_expired"
    )
    await job.run()
    assert await value(engine, COUNT_KEYS) == 0


@pytest.mark.parametrize("state", ["response stored", "worker dead"])
async def test_erasing_a_client_erases_stored_responses_about_it(
    engine: AsyncEngine, api: httpx.AsyncClient, state: str
) -> None:
    client = (await post(api, NEW_CLIENT)).json()
    digest = await value(engine, "SELECT digest FROM idempotency")
    if state == "worker dead":
        await execute(engine, CRASHED)
    assert (await api.delete(f"/clients/{client['id']}")).status_code == 204
    for call in (NEW_CLIENT, NEW_MAILING):  # without a digest, another body is not recognized
        response = await post(api, call)
        assert (response.status_code, response.json()["detail"]) == (409, ERASED)
    assert await value(engine, "SELECT body FROM idempotency") is None
    assert await value(engine, "SELECT digest FROM idempotency") not in {digest, None}


async def test_no_response_is_stored_about_a_client_erased_before_the_response(
    engine: AsyncEngine, api: httpx.AsyncClient
) -> None:
    async with blocked_at(engine, "store response"):
        creating = asyncio.create_task(post(api, NEW_CLIENT))
        await wait_until_blocked(engine)
        client_id = await value(engine, "SELECT id FROM client")
        assert (await api.delete(f"/clients/{client_id}")).status_code == 204
    response = await creating
    assert (response.status_code, response.json()["detail"]) == (409, ERASED)
    assert await value(engine, "SELECT body FROM idempotency") is None
