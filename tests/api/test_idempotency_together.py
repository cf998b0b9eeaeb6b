"""Idempotency-Key when several ask at once, when one is late, and when much is sent."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
from sqlalchemy.ext.asyncio import AsyncEngine
from tests.api.repeats import (
    ANNA,
    CRASH,
    CRASH_EARLY,
    CSV,
    MAILINGS,
    NEW_CLIENT,
    NEW_MAILING,
    Call,
    held,
    impatient,
    is_replay,
    is_same,
    post,
    until_held,
)
from tests.api.visits import BROWSER
from tests.asked import inside
from tests.patience import PATIENCE
from tests.sample import OPEN, execute, value

from mailer.app import create_app
from mailer.client.upload import IMPORT_LIMIT
from mailer.db.engine import create_engine
from mailer.web.body import BODY_LIMIT
from mailer.web.connection import Limits

FILE = b"phone\n79160000005\n79160000006\n"
IMPORT: Call = ("/clients/import", {"content": FILE, "headers": CSV})
CLIENTS = "SELECT count(*) FROM client"
AUDITED = "SELECT count(*) FROM audit"
TAKE_OVER = "UPDATE idempotency SET attempt = gen_random_uuid()"
"""As if another process took over the claim, because this one stood still for so long."""
MANY = b"phone\n" + b"".join(b"7916%07d\n" % number for number in range(100_000))
BUSY = "The request with this Idempotency-Key is still being processed; ask again."


async def in_parts(content: bytes) -> AsyncIterator[bytes]:
    """Give a body whose length is not told."""
    for start in range(0, len(content), 65_536):
        yield content[start : start + 65_536]


@pytest.mark.parametrize(
    "call", [NEW_MAILING, NEW_CLIENT, IMPORT], ids=["mailing", "client", "import"]
)
async def test_of_many_at_once_one_is_done_and_all_get_its_answer(
    engine: AsyncEngine, api: httpx.AsyncClient, call: Call
) -> None:
    answers = await asyncio.gather(*(post(api, call) for _ in range(30)))
    assert len({(answer.status_code, answer.content) for answer in answers}) == 1
    assert answers[0].is_success
    assert sum(not is_replay(answer) for answer in answers) == 1
    assert await value(engine, AUDITED) == 1


async def test_different_keys_do_not_wait_for_each_other(
    engine: AsyncEngine, api: httpx.AsyncClient
) -> None:
    async with held(engine, "create"):
        asking = asyncio.create_task(post(api, NEW_MAILING))
        await until_held(engine)
        assert (await post(api, NEW_CLIENT, "b")).status_code == 201
        assert not asking.done()
    assert (await asking).status_code == 201


async def test_a_repeat_waits_for_the_first_answer_and_holds_no_connection(
    engine: AsyncEngine, api: httpx.AsyncClient
) -> None:
    async with held(engine, "record"):
        first = asyncio.create_task(post(api, NEW_MAILING))
        await until_held(engine)
        repeats = [asyncio.create_task(post(api, NEW_MAILING)) for _ in range(30)]
        await asyncio.sleep(0.3)
        assert (await api.get("/mailings")).status_code == 200
        assert not any(task.done() for task in (first, *repeats))
    answer = await first
    assert all([is_same(answer, await repeat) for repeat in repeats])


async def test_who_has_waited_half_a_lease_is_told_to_ask_again(engine: AsyncEngine) -> None:
    async with impatient(engine, lease=1) as api, held(engine, "record"):
        first = asyncio.create_task(post(api, NEW_MAILING))
        await until_held(engine)
        answer = await post(api, NEW_MAILING)
        assert (answer.status_code, answer.json()["detail"]) == (409, BUSY)
        assert answer.headers["Retry-After"] == "1"
        assert not is_replay(answer)
        assert not first.done()
    assert (await first).status_code == 201


async def test_a_form_whose_first_request_is_still_in_work_says_so(engine: AsyncEngine) -> None:
    to = f"http://mailer/clients/new?once={'a' * 32}"
    async with impatient(engine, lease=1) as api, held(engine, "record"):
        api.headers.update(BROWSER | {"Accept-Language": "ru"})
        first = asyncio.create_task(api.post(to, data=ANNA))
        await until_held(engine)
        answer = await api.post(to, data=ANNA)
        assert answer.status_code == 409
        assert "Эта форма уже отправлена и ещё обрабатывается." in answer.text
        assert not first.done()
    assert (await first).status_code == 303


async def test_a_lease_is_renewed_while_the_request_is_worked_on(engine: AsyncEngine) -> None:
    async with impatient(engine, lease=0.6) as api:
        async with held(engine, "create"):
            first = asyncio.create_task(post(api, NEW_MAILING))
            await until_held(engine)
            await asyncio.sleep(1.5)
            assert (await post(api, NEW_MAILING)).json()["detail"] == BUSY
        answer = await first
        assert answer.status_code == 201
        assert is_same(answer, await post(api, NEW_MAILING))
    assert await value(engine, MAILINGS) == 1


@pytest.mark.parametrize(
    ("call", "step"),
    [(NEW_MAILING, "create"), (NEW_CLIENT, "import"), (IMPORT, "import")],
    ids=["mailing", "client", "import"],
)
async def test_who_is_late_does_nothing_and_gives_the_answer_of_who_took_over(
    engine: AsyncEngine, api: httpx.AsyncClient, call: Call, step: str
) -> None:
    async with held(engine, step):
        late = asyncio.create_task(post(api, call))
        await until_held(engine)
        await execute(engine, TAKE_OVER)
    await asyncio.sleep(0.3)
    assert not late.done()
    done = await value(engine, MAILINGS), await value(engine, CLIENTS), await value(engine, AUDITED)
    assert done == (0, 0, 0)
    # the answer of the other
    await execute(
        engine,
        "UPDATE idempotency SET status = 201, media_type = 'application/json', body = '{}'",
    )
    answer = await late
    assert (answer.status_code, answer.content, is_replay(answer)) == (201, b"{}", True)


async def test_who_is_late_and_whose_successor_died_asks_for_another_try(
    engine: AsyncEngine, api: httpx.AsyncClient
) -> None:
    async with held(engine, "create"):
        late = asyncio.create_task(post(api, NEW_MAILING))
        await until_held(engine)
        await execute(engine, TAKE_OVER, "UPDATE idempotency SET taken_until = now()")
    assert ((await late).status_code, (await late).json()["detail"]) == (409, BUSY)
    assert await value(engine, MAILINGS) == 0
    assert (await post(api, NEW_MAILING)).status_code == 201


async def test_who_takes_over_from_one_about_to_commit_learns_what_it_did(
    engine: AsyncEngine, api: httpx.AsyncClient
) -> None:
    async with held(engine, "answer"):
        first = asyncio.create_task(post(api, NEW_MAILING))
        await until_held(engine)
        await execute(engine, "UPDATE idempotency SET taken_until = now()")
        second = asyncio.create_task(post(api, NEW_MAILING))
        await until_held(engine, 2)
    answers = await asyncio.gather(first, second)
    assert {answer.status_code for answer in answers} == {201}
    assert answers[0].content == answers[1].content
    assert await value(engine, MAILINGS) == 1


# ---- much is sent ---------------------------------------------------------------------------


async def test_a_large_file_is_known_again(engine: AsyncEngine, api: httpx.AsyncClient) -> None:
    assert len(MANY) > BODY_LIMIT
    first = await post(api, ("/clients/import", {"content": in_parts(MANY), "headers": CSV}))
    assert first.json()["created"] == 100_000
    again = await post(api, ("/clients/import", {"content": in_parts(MANY), "headers": CSV}))
    assert is_same(first, again)
    other = MANY[:-2] + b"0\n"
    answer = await post(api, ("/clients/import", {"content": in_parts(other), "headers": CSV}))
    assert answer.status_code == 409
    assert await value(engine, CLIENTS) == 100_000


@pytest.mark.parametrize("has_effect", [True, False])
async def test_a_large_file_whose_process_died_is_imported_once(
    engine: AsyncEngine, api: httpx.AsyncClient, *, has_effect: bool
) -> None:
    def call() -> Call:
        return "/clients/import", {"content": in_parts(MANY), "headers": CSV}

    first = await post(api, call())
    await execute(engine, CRASH)
    if not has_effect:
        await execute(engine, CRASH_EARLY, "DELETE FROM client")
    answer = await post(api, call())
    assert (answer.status_code, answer.json(), is_replay(answer)) == (200, first.json(), False)
    assert await value(engine, CLIENTS) == 100_000


async def test_a_repeat_beyond_the_limit_is_413(api: httpx.AsyncClient) -> None:
    await post(api, NEW_MAILING)
    too_much = b" " * (BODY_LIMIT + 1)
    for content in (too_much, in_parts(too_much)):
        answer = await post(api, ("/mailings", {"content": content}))
        assert answer.status_code == 413
    headers = CSV | {"Content-Length": str(IMPORT_LIMIT + 1)}
    await post(api, IMPORT, "b")
    answer = await post(api, ("/clients/import", {"content": b"", "headers": headers}), "b")
    assert answer.status_code == 413


async def test_a_database_that_is_away_is_503() -> None:
    engine = create_engine("postgresql://127.0.0.1:1/")
    app = create_app(engine, settings=OPEN)
    transport = inside(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://mailer/api/v1") as api:
        answer = await post(api, NEW_MAILING)
    assert (answer.status_code, answer.headers["Retry-After"]) == (503, "1")
    await engine.dispose()


HEAD = {
    "type": "http",
    "asgi": {"version": "3.0"},
    "http_version": "1.1",
    "method": "POST",
    "scheme": "http",
    "raw_path": b"",
    "root_path": "",
    "query_string": b"",
    "headers": [(b"host", b"localhost"), (b"idempotency-key", b"a")],
    "client": None,
    "server": ("mailer", 80),
}


async def sent_to(engine: AsyncEngine, path: str, receive: Any) -> list[int]:
    """Return the statuses of what is sent to a client whose body is what `receive` gives."""
    statuses = []

    async def send(message: Any) -> None:
        if message["type"] == "http.response.start":
            statuses.append(message["status"])

    app = create_app(engine, settings=OPEN, limits=Limits(body=0.3))
    await app(HEAD | {"path": f"/api/v1{path}"}, receive, send)  # type: ignore[arg-type]  # as a server would
    return statuses


async def test_a_repeat_that_is_broken_off_gets_no_answer(
    engine: AsyncEngine, api: httpx.AsyncClient
) -> None:
    await post(api, NEW_MAILING)

    async def receive() -> Any:
        return {"type": "http.disconnect"}

    assert await sent_to(engine, "/mailings", receive) == []


async def test_a_repeat_that_drips_is_given_up(engine: AsyncEngine, api: httpx.AsyncClient) -> None:
    await post(api, NEW_MAILING)

    async def receive() -> Any:
        await asyncio.sleep(0.02)
        return {"type": "http.request", "body": b" ", "more_body": True}

    async with asyncio.timeout(PATIENCE):
        assert await sent_to(engine, "/mailings", receive) == [408]
