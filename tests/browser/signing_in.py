"""A mailer process with authentication, and signing in with a browser."""

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager

from playwright.async_api import Page, expect
from sqlalchemy.ext.asyncio import AsyncEngine
from tests.browser.page_states import DESK
from tests.factories import add_clients, add_mailing, execute
from tests.processes import Gateway, MailerProcess, mailers

from mailer.access import service
from mailer.access.model import COMMAND_LINE
from mailer.access.users import NewUser
from mailer.roles import Role

PASSWORD = "correct horse battery"  # noqa: S105  # used in tests alone


@asynccontextmanager
async def mailer_with_users(
    engine: AsyncEngine, database_url: str, gateway: Gateway, users: Mapping[str, Role]
) -> AsyncIterator[MailerProcess]:
    """Start a process where these users can sign in with `PASSWORD`.

    Its mailing 1 is scheduled for three clients.
    """
    await add_clients(engine, 3)
    await add_mailing(engine, status="scheduled", clients=3)
    await execute(
        engine,
        "UPDATE mailing SET datetime_start = now() + interval '1 hour',"
        " datetime_end = now() + interval '2 hours'",
    )
    for name, role in users.items():
        new = NewUser(name=name, role=role, password=PASSWORD)
        await service.create_user(engine, new, COMMAND_LINE)
    async with mailers(database_url) as start:
        yield await start(**gateway.settings, auth="required")


async def sign_in(page: Page, name: str, password: str = PASSWORD) -> None:
    """Fill in and send the sign-in form."""
    await page.locator("[name=name]").fill(name)
    await page.locator("[name=password]").fill(password)
    await page.locator("main button").click()


async def wait_until_loaded(page: Page) -> None:
    """Wait until the scripts of a page run and it is in the browser's time zone.

    A script sets the time zone on the first visit, and loads the page again.
    """
    await expect(page.locator("html")).to_have_attribute("data-zone", DESK.time_zone)
    await page.wait_for_load_state()
