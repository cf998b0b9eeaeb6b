"""Idempotency-Key: the same request gets the first answer again, and is done once."""

import asyncio
from datetime import UTC, datetime, timedelta

import httpx
import pytest
from sqlalchemy.ext.asyncio import AsyncEngine
from tests.api.calls import NEW, create
from tests.api.repeats import (
    ANNA,
    CRASH,
    CRASH_EARLY,
    CSV,
    IN_WORK,
    MAILINGS,
    NEW_CLIENT,
    NEW_MAILING,
    Call,
    held,
    is_replay,
    is_same,
    post,
    until_held,
)
from tests.sample import (
    add_clients,
    add_mailing,
    add_messages,
    behind_all_stops,
    do,
    execute,
    value,
)

from mailer.access.idempotency import middleware
from mailer.access.idempotency import store as claims
from mailer.dispatch.schedule import jobs
from mailer.settings import Settings

FILE = b"phone\n79160000005\n79160000006\n8916\n"
CLIENTS = "SELECT count(*) FROM client"
AUDITED = "SELECT count(*) FROM audit"
KEYS = "SELECT count(*) FROM idempotency"
REUSED = "The Idempotency-Key came with another request before; each needs one of its own."
ERASED = "What this Idempotency-Key made was deleted since."
AGE = """
    UPDATE idempotency SET created_at = now() - interval '24 h 1 s',
        taken_until = now() - interval '24 h'"""
FAIL = """
    CREATE FUNCTION fail() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN RAISE EXCEPTION 'no' USING ERRCODE = 'query_canceled'; END $$"""


async def prepared(engine: AsyncEngine, api: httpx.AsyncClient, name: str) -> Call:
    """Make what a call needs; return the call."""
    match name:
        case "client":
            return NEW_CLIENT
        case "import":
            return "/clients/import", {"content": FILE, "headers": CSV}
        case "mailing":
            return NEW_MAILING
        case "retry":
            start = datetime.now(UTC)
            mailing_id = await add_mailing(engine, clients=1, start=start)
            clients = await add_clients(engine, 1)
            await add_messages(engine, mailing_id, clients, "undelivered", "rejected_400")
            return f"/mailings/{mailing_id}/retry", {}
        case _:
            mailing = await create(api, NEW)
            if name == "resume":
                await api.post(f"/mailings/{mailing['id']}/pause")
            return f"/mailings/{mailing['id']}/{name}", {}


CALLS = ["client", "import", "mailing", "pause", "resume", "cancel", "retry"]


@pytest.mark.parametrize("name", CALLS)
async def test_a_repeat_gets_the_first_answer_and_nothing_is_done_twice(
    engine: AsyncEngine, api: httpx.AsyncClient, name: str
) -> None:
    call = await prepared(engine, api, name)
    first = await post(api, call)
    assert first.is_success
    assert not is_replay(first)
    done = await value(engine, AUDITED)
    assert is_same(first, await post(api, call))
    assert is_same(first, await post(api, call))
    assert await value(engine, AUDITED) == done


@pytest.mark.parametrize("name", CALLS)
async def test_what_a_dead_process_has_done_is_not_done_again(
    engine: AsyncEngine, api: httpx.AsyncClient, name: str
) -> None:
    call = await prepared(engine, api, name)
    first = await post(api, call)
    done = await value(engine, AUDITED)
    await execute(engine, CRASH)
    answer = await post(api, call)
    assert (answer.status_code, answer.content) == (first.status_code, first.content)
    assert not is_replay(answer)
    assert await value(engine, AUDITED) == done
    assert is_same(first, await post(api, call))


@pytest.mark.parametrize("name", ["client", "import", "mailing"])
async def test_what_a_dead_process_has_not_done_is_done_now(
    engine: AsyncEngine, api: httpx.AsyncClient, name: str
) -> None:
    call = await prepared(engine, api, name)
    first = await post(api, call)
    await execute(engine, CRASH, CRASH_EARLY, "TRUNCATE client, mailing, ledger RESTART IDENTITY")
    answer = await post(api, call)
    assert answer.status_code == first.status_code
    assert not is_replay(answer)
    assert await value(engine, CLIENTS) + await value(engine, MAILINGS) > 0
    assert is_same(answer, await post(api, call))


ANOTHER: dict[str, Call] = {
    "body": ("/mailings", {"json": NEW | {"text": "Another."}}),
    "query": ("/mailings?draft=1", {"json": NEW}),
    "path": ("/clients", {"json": NEW}),
    "content type": (
        "/mailings",
        {"json": NEW, "headers": {"Content-Type": "application/json; charset=utf-8"}},
    ),
}


@pytest.mark.parametrize("state", ["answered", "dead", "in work"])
@pytest.mark.parametrize("what", ANOTHER)
async def test_another_request_under_a_key_is_409(
    engine: AsyncEngine, api: httpx.AsyncClient, what: str, state: str
) -> None:
    first = await post(api, NEW_MAILING)
    if state != "answered":
        await execute(engine, CRASH)
    if state == "in work":
        await execute(engine, IN_WORK)
    answer = await post(api, ANOTHER[what])
    assert (answer.status_code, answer.json()["detail"]) == (409, REUSED)
    assert not is_replay(answer)
    assert await value(engine, MAILINGS) == 1
    if state != "in work":
        again = await post(api, NEW_MAILING)
        assert again.content == first.content


async def test_a_key_that_did_nothing_yet_may_come_with_another_body(
    engine: AsyncEngine, api: httpx.AsyncClient
) -> None:
    await post(api, NEW_MAILING)
    await execute(engine, CRASH, CRASH_EARLY)
    answer = await post(api, ANOTHER["body"])
    assert (answer.status_code, answer.json()["text"]) == (201, "Another.")


async def test_each_key_stands_for_itself(engine: AsyncEngine, api: httpx.AsyncClient) -> None:
    call = NEW_MAILING
    first, second = await post(api, call, "a"), await post(api, call, "A")
    assert first.json()["id"] != second.json()["id"]
    assert await value(engine, MAILINGS) == 2


async def test_other_methods_know_no_key(engine: AsyncEngine, api: httpx.AsyncClient) -> None:
    client = (await api.post("/clients", json=ANNA)).json()
    path = f"/clients/{client['id']}"
    for tag in ("one", "two"):
        changed = await api.patch(path, json={"tag": tag}, headers={"Idempotency-Key": "a"})
        assert changed.json()["tag"] == tag
    assert (await api.get(path, headers={"Idempotency-Key": "not a key"})).json()["tag"] == "two"
    assert await value(engine, KEYS) == 0


@pytest.mark.parametrize(
    ("call", "status"),
    [
        (("/mailings", {"json": {}}), 400),
        (("/mailings/77/pause", {}), 404),
        (NEW_CLIENT, 409),
    ],
)
async def test_a_refusal_is_given_again(api: httpx.AsyncClient, call: Call, status: int) -> None:
    client = (await api.post("/clients", json=ANNA)).json()
    first = await post(api, call)
    assert first.status_code == status
    await api.delete(f"/clients/{client['id']}")
    assert is_same(first, await post(api, call))


async def test_a_large_refusal_is_not_kept_and_what_did_something_is(
    api: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(middleware, "LARGEST_REFUSAL", 100)
    await post(api, ("/clients", {"json": {"phone": "1"}}), "refused")
    assert not is_replay(await post(api, ("/clients", {"json": {"phone": "1"}}), "refused"))
    first = await post(api, NEW_MAILING, "done")
    assert len(first.content) > 100
    assert is_same(first, await post(api, NEW_MAILING, "done"))


async def test_refusals_of_an_owner_are_kept_up_to_a_number_and_leave_nothing_beyond(
    engine: AsyncEngine, api: httpx.AsyncClient
) -> None:
    refused = ("/clients", {"json": {"phone": "1"}})
    await execute(
        engine,
        f"""INSERT INTO idempotency (owner, key, attempt, taken_until, status, body)
            SELECT 'anybody', 'kept ' || n, gen_random_uuid(), now(), 400, ''
            FROM generate_series(1, {claims.MOST_REFUSALS - 1}) AS n""",  # noqa: S608  # a number
    )
    await post(api, refused, "the-last-kept")
    assert is_replay(await post(api, refused, "the-last-kept"))
    before = await value(engine, KEYS)
    for _ in range(2):
        answer = await post(api, refused, "one-too-many")
        assert (answer.status_code, is_replay(answer)) == (400, False)
    assert await value(engine, KEYS) == before
    done = await post(api, NEW_MAILING, "done")
    assert is_same(done, await post(api, NEW_MAILING, "done"))


async def test_a_body_of_which_not_all_was_read_may_come_again(api: httpx.AsyncClient) -> None:
    wrong = await post(api, ("/clients/import", {"content": FILE}))
    assert wrong.status_code == 415
    right = await post(api, ("/clients/import", {"content": FILE, "headers": CSV}))
    assert (right.status_code, right.json()["created"]) == (200, 2)


async def test_a_failure_here_is_not_given_again(
    engine: AsyncEngine, api: httpx.AsyncClient
) -> None:
    failing = "BEFORE INSERT ON mailing EXECUTE FUNCTION fail()"
    await execute(engine, FAIL, f"CREATE TRIGGER failing {failing}")
    assert (await post(api, NEW_MAILING)).status_code == 503
    assert (await post(api, NEW_MAILING)).status_code == 503
    await execute(engine, "DROP FUNCTION fail CASCADE")
    answer = await post(api, NEW_MAILING)
    assert answer.status_code == 201
    assert is_same(answer, await post(api, NEW_MAILING))


async def test_an_answer_that_could_not_be_kept_is_not_given(
    engine: AsyncEngine, api: httpx.AsyncClient
) -> None:
    failing = "BEFORE UPDATE OF body ON idempotency EXECUTE FUNCTION fail()"
    await execute(engine, FAIL, f"CREATE TRIGGER failing {failing}")
    assert (await post(api, NEW_MAILING)).status_code == 503
    await execute(engine, "DROP FUNCTION fail CASCADE")
    answer = await post(api, NEW_MAILING)
    assert (answer.status_code, is_replay(answer)) == (201, False)
    assert await value(engine, MAILINGS) == 1


@pytest.mark.parametrize("name", ["pause", "cancel"])
async def test_who_repeats_waits_too_until_nobody_sends(
    engine: AsyncEngine, api: httpx.AsyncClient, name: str
) -> None:
    call = await prepared(engine, api, name)
    await execute(engine, "UPDATE mailing SET audience_until = 0, status = 'running'")
    async with behind_all_stops(engine):
        asked = asyncio.create_task(post(api, call))
        await asyncio.sleep(0.3)
        assert not asked.done()
    await asked
    await execute(engine, CRASH)
    async with behind_all_stops(engine):
        repeat = asyncio.create_task(post(api, call))
        await asyncio.sleep(0.3)
        assert not repeat.done()
    assert (await repeat).status_code == 200


async def test_what_was_done_in_time_is_answered_after_the_mailings_end(
    engine: AsyncEngine, api: httpx.AsyncClient
) -> None:
    end = datetime.now(UTC) + timedelta(seconds=5)
    soon = NEW | {"datetime_start": "2020-01-01T00:00:00Z", "datetime_end": end.isoformat()}
    first = await post(api, ("/mailings", {"json": soon}))
    assert first.status_code == 201
    await execute(engine, CRASH)
    while datetime.now(UTC) <= end:
        await asyncio.sleep(0.1)
    again = await post(api, ("/mailings", {"json": soon}))
    assert (again.status_code, again.json()["id"]) == (201, first.json()["id"])
    assert (await api.post("/mailings", json=soon)).status_code == 400


async def test_after_a_day_a_key_is_as_new(engine: AsyncEngine, api: httpx.AsyncClient) -> None:
    await post(api, NEW_MAILING)
    await execute(engine, AGE)
    answer = await post(api, ANOTHER["body"])
    assert (answer.status_code, answer.json()["text"]) == (201, "Another.")
    assert is_same(answer, await post(api, ANOTHER["body"]))


async def test_within_a_day_it_is_not(engine: AsyncEngine, api: httpx.AsyncClient) -> None:
    call = NEW_MAILING
    first = await post(api, call)
    await execute(engine, "UPDATE idempotency SET created_at = now() - interval '23 h 59 min'")
    assert is_same(first, await post(api, call))


async def test_answers_of_more_than_a_day_are_deleted_in_chunks(
    engine: AsyncEngine, api: httpx.AsyncClient
) -> None:
    for number in range(5):
        await post(api, ("/mailings/77/pause", {}), f"old-{number}")
    await execute(engine, AGE)
    await post(api, ("/mailings/77/pause", {}), "new")
    found = [await do(engine, lambda db: claims.purge(db, 2)) for _ in range(4)]
    assert found == [2, 2, 1, 0]
    assert await value(engine, "SELECT key FROM idempotency") == "new"


async def test_the_periodic_job_deletes_them(engine: AsyncEngine, api: httpx.AsyncClient) -> None:
    await post(api, ("/mailings/77/pause", {}))
    await execute(engine, AGE)
    clear = next(job for job in jobs(engine, Settings(), None) if job.name == "clear")
    await clear.run()
    assert await value(engine, KEYS) == 0


@pytest.mark.parametrize("state", ["answered", "dead"])
async def test_of_an_erased_client_no_answer_stays(
    engine: AsyncEngine, api: httpx.AsyncClient, state: str
) -> None:
    call = NEW_CLIENT
    client = (await post(api, call)).json()
    digest = await value(engine, "SELECT digest FROM idempotency")
    if state == "dead":
        await execute(engine, CRASH)
    assert (await api.delete(f"/clients/{client['id']}")).status_code == 204
    for again in (call, NEW_MAILING):
        answer = await post(api, again)
        assert (answer.status_code, answer.json()["detail"]) == (409, ERASED)
    assert await value(engine, "SELECT body FROM idempotency") is None
    assert await value(engine, "SELECT digest FROM idempotency") not in {digest, None}


async def test_of_a_client_erased_before_the_answer_went_out_nothing_is_kept(
    engine: AsyncEngine, api: httpx.AsyncClient
) -> None:
    async with held(engine, "answer"):
        asking = asyncio.create_task(post(api, NEW_CLIENT))
        await until_held(engine)
        client_id = await value(engine, "SELECT id FROM client")
        assert (await api.delete(f"/clients/{client_id}")).status_code == 204
    answer = await asking
    assert (answer.status_code, answer.json()["detail"]) == (409, ERASED)
    assert await value(engine, "SELECT body FROM idempotency") is None
