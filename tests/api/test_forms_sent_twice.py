"""A form that creates something makes it once, however often it is sent."""

import asyncio
import html
import re

import httpx
import pytest
from sqlalchemy.ext.asyncio import AsyncEngine
from tests.api.visits import BROWSER, SITE, page, signed_in
from tests.sample import value

FORMS = {
    "/clients/new": {"phone": "79160000001", "time_zone": "UTC"},
    "/mailings/new": {
        "text": "Hello",
        "start": "2040-01-01T09:00",
        "end": "2040-01-02T09:00",
        "audience": "everybody",
        "on_unknown": "retry",
        "time_zone": "UTC",
    },
}
TABLES = {"/clients/new": "client", "/mailings/new": "mailing"}


def action(shown: str) -> str:
    """Where the form of a page goes that has a key."""
    [found] = re.findall(r'action="([^"]*once=[0-9a-f]{32}[^"]*)"', shown)
    return html.unescape(str(found))


async def sent(api: httpx.AsyncClient, path: str, form: dict[str, str]) -> httpx.Response:
    return await api.post(f"{SITE}{path}", data=form, headers=BROWSER)


async def made(engine: AsyncEngine, path: str) -> int:
    return int(await value(engine, f"SELECT count(*) FROM {TABLES[path]}"))  # noqa: S608  # ours


@pytest.mark.parametrize("path", FORMS)
async def test_the_repeat_of_a_form_leads_to_what_the_first_made(
    api: httpx.AsyncClient, engine: AsyncEngine, path: str
) -> None:
    to = action(await page(api, path))
    first = await sent(api, to, FORMS[path])
    again = await sent(api, to, FORMS[path])
    assert (first.status_code, again.status_code) == (303, 303)
    assert again.headers["location"] == first.headers["location"]
    assert await made(engine, path) == 1


@pytest.mark.parametrize("path", FORMS)
async def test_a_double_click_makes_one(
    api: httpx.AsyncClient, engine: AsyncEngine, path: str
) -> None:
    to = action(await page(api, path))
    answers = await asyncio.gather(*(sent(api, to, FORMS[path]) for _ in range(4)))
    assert {answer.status_code for answer in answers} == {303}
    assert len({answer.headers["location"] for answer in answers}) == 1
    assert await made(engine, path) == 1


async def test_a_form_opened_anew_or_changed_makes_another(
    api: httpx.AsyncClient, engine: AsyncEngine
) -> None:
    path = "/mailings/new"
    to = action(await page(api, path))
    await sent(api, to, FORMS[path])
    await sent(api, to, FORMS[path] | {"text": "Another"})
    await sent(api, action(await page(api, path)), FORMS[path])
    assert await made(engine, path) == 3


async def test_a_form_that_was_refused_may_be_mended_and_sent_again(
    api: httpx.AsyncClient, engine: AsyncEngine
) -> None:
    path = "/mailings/new"
    to = action(await page(api, path))
    refused = await sent(api, to, FORMS[path] | {"text": ""})
    assert refused.status_code == 400
    assert action(refused.text) == to
    assert (await sent(api, to, FORMS[path])).status_code == 303
    assert (await sent(api, to, FORMS[path])).status_code == 303
    assert await made(engine, path) == 1


async def test_what_was_deleted_is_not_made_again_by_a_repeat(
    api: httpx.AsyncClient, engine: AsyncEngine
) -> None:
    path = "/clients/new"
    to = action(await page(api, path))
    made_at = (await sent(api, to, FORMS[path])).headers["location"]
    await api.delete(f"{SITE}/api/v1{made_at}")
    assert (await sent(api, to, FORMS[path])).status_code in {303, 409}
    assert await value(engine, "SELECT count(*) FROM client WHERE deleted_at IS NULL") == 0


async def test_a_new_user_is_made_once_and_the_copy_of_a_mailing_too(engine: AsyncEngine) -> None:
    browser = await signed_in(engine, "admin")
    shown = (await browser.get("/people/new")).text
    secret = "four words as a phrase"  # noqa: S105  # of nobody
    form = {"name": "oleg", "role": "viewer", "password": secret, "again": secret}
    answers = [await browser.post(action(shown), data=form) for _ in range(2)]
    assert [answer.status_code for answer in answers] == [303, 303]
    mailing = await browser.post("/mailings/new", data=FORMS["/mailings/new"])
    number = mailing.headers["location"].rpartition("/")[2]
    to = action((await browser.get(f"/mailings/new?from={number}")).text)
    assert f"from={number}" in to
    for _ in range(2):
        await browser.post(to, data=FORMS["/mailings/new"])
    assert await value(engine, "SELECT count(*) FROM mailing") == 2


@pytest.mark.parametrize("path", ["/login", "/logout", "/preferences", "/clients/import"])
async def test_other_forms_take_no_key(api: httpx.AsyncClient, path: str) -> None:
    answer = await sent(api, f"{path}?once={'a' * 32}", {"name": "x", "password": "y"})
    assert answer.status_code < 500
