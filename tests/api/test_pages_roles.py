"""Pages and their live sections offer exactly what the role of the user allows."""

import asyncio
import re
from collections.abc import Iterable, Mapping

import httpx
import pytest
from sqlalchemy.ext.asyncio import AsyncEngine
from tests.api.browser_session import SITE, signed_in_browser
from tests.asgi_client import inside
from tests.factories import OPEN, add_clients, add_mailing, add_messages, execute

from mailer.admin.live import LiveUpdates
from mailer.app import create_app
from mailer.roles import Role

ALL = {"viewer", "operator", "admin"}
WRITERS = {"operator", "admin"}
ADMINS = {"admin"}
ROLES_BY_LINK = {
    "/mailings/new": WRITERS,
    "/mailings/1/edit": WRITERS,
    "/mailings/1/cancel": WRITERS,
    "/mailings/1/retry": WRITERS,
    "/mailings/new?from=1": WRITERS,
    "/clients/import": WRITERS,
    "/clients/new": WRITERS,
    "/clients/1/delete": WRITERS,
    "/clients.csv": ALL,
    "/mailings/1/messages.csv": ALL,
    "/keys": ADMINS,
    "/users": ADMINS,
    "/users/new": ADMINS,
    "/webhooks": ADMINS,
    "/system": ADMINS,
}
"""Links on pages, and the roles that see them."""
PAGES = (
    "/",
    "/mailings",
    "/mailings/1",
    "/mailings/1/messages",
    "/mailings/1/messages/1",
    "/clients",
    "/clients/1",
    "/profile",
    "/users",
    "/system",
)
"""Pages that may have these links. Only admins may see the last two."""


@pytest.fixture
async def engine_with_mailing(engine: AsyncEngine) -> AsyncEngine:
    """A database with a running mailing that has one undelivered message."""
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


async def visible_pages(browser: httpx.AsyncClient, paths: Iterable[str]) -> dict[str, str]:
    """Return the HTML of those pages that the user may see, by path."""
    responses = {path: await browser.get(path) for path in paths}
    return {
        path: response.text for path, response in responses.items() if response.status_code == 200
    }


@pytest.mark.parametrize("role", sorted(ALL))
async def test_pages_link_exactly_to_what_the_role_allows(
    engine_with_mailing: AsyncEngine, role: Role
) -> None:
    browser = await signed_in_browser(engine_with_mailing, role)
    pages = await visible_pages(browser, PAGES)
    assert len(pages) == len(PAGES) - (0 if role == "admin" else 2)
    links = links_of(pages)
    allowed_links = {link for link, roles in ROLES_BY_LINK.items() if role in roles}
    assert links & ROLES_BY_LINK.keys() == allowed_links
    for link in sorted(links):
        if link.startswith("/") and not link.startswith(("/static/", "/docs", "/redoc")):
            response = await browser.get(link.replace("&amp;", "&"))
            assert response.status_code == 200, link


def links_of(pages: Mapping[str, str]) -> set[str]:
    """Return the links on pages, and the targets of forms that only read, such as downloads."""
    target = 'href="([^"]+)"|<form[^>]* method="get" action="([^"]+)"'
    return {link or form for page in pages.values() for link, form in re.findall(target, page)}


async def test_a_viewer_sees_only_filters_and_forms_for_themselves(
    engine_with_mailing: AsyncEngine,
) -> None:
    pages = await visible_pages(await signed_in_browser(engine_with_mailing, "viewer"), PAGES)
    forms = {
        action
        for page in pages.values()
        for action in re.findall('<form method="post"(?: action="([^"]*)")?', page)
    }
    assert forms == {"/logout", "/preferences", "/profile/sessions", "/profile/password"}
    assert "79160000001" in pages["/clients/1"]
    assert 'id="client"' not in pages["/clients/1"]
    assert "Nothing happens by itself. An operator can" in pages["/mailings/1/messages/1"]


async def test_without_data_a_viewer_sees_no_links_to_forms(engine: AsyncEngine) -> None:
    pages = await visible_pages(
        await signed_in_browser(engine, "viewer"), ("/", "/mailings", "/clients")
    )
    assert not re.search("/new|/import", " ".join(pages.values()))


@pytest.mark.parametrize(
    ("path", "section"), [("mailings/1", "controls"), ("mailings?ids=1", "mailing-1")]
)
async def test_live_sections_offer_what_the_role_allows(
    engine_with_mailing: AsyncEngine, path: str, section: str
) -> None:
    """Also when users of two roles watch the same page at once."""
    live = LiveUpdates()
    app = create_app(engine_with_mailing, live=live)
    asyncio.get_running_loop().call_later(1, live.stop)  # ends the streams after a second

    async def live_section(role: Role) -> str:
        browser = await signed_in_browser(engine_with_mailing, role)
        browser._transport = inside(app)  # noqa: SLF001  # one application for both
        return (await browser.get(f"{SITE}/live/{path}")).text

    viewer, operator = await asyncio.gather(live_section("viewer"), live_section("operator"))
    assert f'id="{section}"' in viewer
    assert f'id="{section}"' in operator
    assert "/mailings/1/pause" not in viewer
    assert "/mailings/1/pause" in operator


async def test_without_auth_everything_is_offered_but_users_and_keys(
    engine_with_mailing: AsyncEngine,
) -> None:
    browser = await signed_in_browser(engine_with_mailing, "viewer", settings=OPEN)
    pages = await visible_pages(browser, PAGES)
    links = links_of(pages)
    links_that_need_auth = {"/users", "/users/new", "/keys"}
    assert links & ROLES_BY_LINK.keys() == ROLES_BY_LINK.keys() - links_that_need_auth
