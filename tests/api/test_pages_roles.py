"""What a page offers is what its viewer may do, its live sections too."""

import asyncio
import re
from collections.abc import Iterable

import httpx
import pytest
from sqlalchemy.ext.asyncio import AsyncEngine
from tests.api.visits import SITE, signed_in
from tests.asked import inside
from tests.sample import OPEN, add_clients, add_mailing, add_messages, execute

from mailer.admin.live import Live
from mailer.app import create_app
from mailer.settings import Role

ALL = {"viewer", "operator", "admin"}
OFFERED = {
    "/mailings/new": {"operator", "admin"},
    "/mailings/1/edit": {"operator", "admin"},
    "/mailings/1/pause": {"operator", "admin"},
    "/mailings/1/cancel": {"operator", "admin"},
    "/mailings/1/retry": {"operator", "admin"},
    "/mailings/new?from=1": {"operator", "admin"},
    "/clients/import": {"operator", "admin"},
    "/clients/new": {"operator", "admin"},
    "/clients/1/delete": {"operator", "admin"},
    "/clients.csv": ALL,
    "/mailings/1/messages.csv": ALL,
    "/keys": {"admin"},
    "/people": {"admin"},
    "/people/new": {"admin"},
    "/system": {"admin"},
}
"""Addresses that pages lead to, with those whom they are shown to."""
PAGES = (
    "/",
    "/mailings",
    "/mailings/1",
    "/mailings/1/messages",
    "/mailings/1/messages/1",
    "/clients",
    "/clients/1",
    "/account",
    "/people",
    "/system",
)


@pytest.fixture
async def filled(engine: AsyncEngine) -> AsyncEngine:
    """A mailing under way, of which one message was given up."""
    clients = await add_clients(engine, 2)
    mailing_id = await add_mailing(engine, clients=2)
    await execute(
        engine,
        "UPDATE mailing SET datetime_start = now() - interval '1 hour',"
        " datetime_end = now() + interval '1 hour'",
    )
    await add_messages(engine, mailing_id, clients[:1], "undelivered", "rejected_400")
    await add_messages(engine, mailing_id, clients[1:], "scheduled")
    return engine


async def seen(browser: httpx.AsyncClient, paths: Iterable[str]) -> dict[str, str]:
    """Return the pages that somebody may see."""
    answers = {path: await browser.get(path) for path in paths}
    return {path: answer.text for path, answer in answers.items() if answer.status_code == 200}


@pytest.mark.parametrize("role", sorted(ALL))
async def test_pages_lead_to_what_their_viewer_may_do_and_to_nothing_else(
    filled: AsyncEngine, role: Role
) -> None:
    browser = await signed_in(filled, role)
    pages = await seen(browser, PAGES)
    assert len(pages) == len(PAGES) - (0 if role == "admin" else 2)
    links = {link for page in pages.values() for link in re.findall('href="([^"]+)"', page)}
    assert links & OFFERED.keys() == {link for link, roles in OFFERED.items() if role in roles}
    for link in sorted(links):
        if link.startswith("/") and not link.startswith(("/static/", "/docs", "/redoc")):
            answer = await browser.get(link.replace("&amp;", "&"))
            assert answer.status_code == 200, link


async def test_viewer_is_shown_no_form_but_those_of_finding_and_of_their_own(
    filled: AsyncEngine,
) -> None:
    pages = await seen(await signed_in(filled, "viewer"), PAGES)
    forms = {
        action
        for page in pages.values()
        for action in re.findall('<form method="post"(?: action="([^"]*)")?', page)
    }
    assert forms == {"/logout", "/preferences", "/account/sessions", "/account/password"}
    assert "79160000001" in pages["/clients/1"]
    assert 'id="client"' not in pages["/clients/1"]
    assert "if an operator asks for that" in pages["/mailings/1/messages/1"]


async def test_empty_site_leads_a_viewer_to_nothing_they_may_not_do(engine: AsyncEngine) -> None:
    pages = await seen(await signed_in(engine, "viewer"), ("/", "/mailings", "/clients"))
    assert not re.search("/new|/import", " ".join(pages.values()))


async def test_live_sections_offer_to_each_what_they_may_do(filled: AsyncEngine) -> None:
    """Also when those of two roles watch the same page at once."""
    live = Live()
    app = create_app(filled, live=live)
    asyncio.get_running_loop().call_later(1, live.stop)

    async def watched(role: Role) -> str:
        browser = await signed_in(filled, role)
        browser._transport = inside(app)  # noqa: SLF001  # one application for both
        return (await browser.get(f"{SITE}/live/mailings/1")).text

    viewer, operator = await asyncio.gather(watched("viewer"), watched("operator"))
    assert 'id="controls"' in viewer
    assert 'id="controls"' in operator
    assert "/mailings/1/pause" not in viewer
    assert "/mailings/1/pause" in operator


async def test_where_nobody_is_asked_everything_is_offered(filled: AsyncEngine) -> None:
    browser = await signed_in(filled, "viewer", settings=OPEN)
    pages = await seen(browser, PAGES)
    links = {link for page in pages.values() for link in re.findall('href="([^"]+)"', page)}
    of_accounts = {"/people", "/people/new", "/keys"}
    assert links & OFFERED.keys() == OFFERED.keys() - of_accounts
