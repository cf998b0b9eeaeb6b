"""The pages and the command of a user's notices by mail."""

from typing import Any

import httpx
import pytest
from sqlalchemy.ext.asyncio import AsyncEngine
from tests.api.browser_session import signed_in_browser
from tests.factories import do, execute, rows, value

from mailer.access import service
from mailer.access.model import COMMAND_LINE
from mailer.access.users import NewUser
from mailer.errors import InvalidError
from mailer.notice import commands, recipients
from mailer.settings import Settings

FORM = {
    "mail": " ann@example.org ",
    "notice-mailing_unreached": "on",
    "notice-gateway_trouble": "on",
    "language": "ru",
    "time_zone": "Europe/Moscow",
}
WITH_MAIL = Settings(smtp_url="smtp://mail.example", public_url="https://sms.example")
OWN = "/profile/notices"


async def get_html(browser: httpx.AsyncClient, path: str) -> str:
    """Return the HTML of a page, with every run of blanks as one space."""
    response = await browser.get(path)
    assert response.status_code == 200, response.text
    return " ".join(response.text.split())


async def test_a_user_chooses_the_own_notices(engine: AsyncEngine) -> None:
    browser = await signed_in_browser(engine, "viewer", settings=WITH_MAIL)
    assert OWN in await get_html(browser, "/profile")
    assert "Send a test mail" not in await get_html(browser, OWN)
    response = await browser.post(OWN, data=FORM)
    assert (response.status_code, response.headers["location"]) == (303, OWN)
    page = await get_html(browser, OWN)
    assert 'value="ann@example.org"' in page
    assert 'id="notice-mailing_unreached" checked' in page
    assert 'id="notice-mailing_held" checked' not in page
    assert '<option value="ru" lang="ru" selected>' in page
    assert "No mail has been sent yet." in page
    assert "MAILER_SMTP_URL" not in page

    await browser.post(OWN, data={"mail": "", "language": "en", "time_zone": "UTC"})
    assert await value(engine, "SELECT count(*) FROM notice_recipient") == 0


async def test_without_a_mail_server_the_page_says_what_to_set(engine: AsyncEngine) -> None:
    browser = await signed_in_browser(engine, "viewer")
    await browser.post(OWN, data=FORM)
    page = await get_html(browser, OWN)
    assert "No mail can be sent, because no mail server is configured. Set MAILER_SMTP_URL" in page
    assert "Send a test mail" not in page


async def test_without_a_public_url_the_page_says_that_mails_have_no_links(
    engine: AsyncEngine,
) -> None:
    settings = Settings(smtp_url="smtp://mail.example")
    browser = await signed_in_browser(engine, "viewer", settings=settings)
    assert "Set MAILER_PUBLIC_URL" in await get_html(browser, OWN)


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"mail": "ann"}, "mail"),
        ({"mail": "ann@example.org\nBcc: eve@example.org"}, "mail"),
        ({"mail": f"{'a' * 300}@example.org"}, "mail"),
        ({"mail": ""}, "mail"),
        ({"language": "de"}, "language"),
        ({"time_zone": "Mars"}, "time_zone"),
    ],
)
async def test_a_wrong_form_is_shown_again_with_its_errors(
    engine: AsyncEngine, change: dict[str, str], field: str
) -> None:
    browser = await signed_in_browser(engine, "viewer", settings=WITH_MAIL)
    response = await browser.post(OWN, data=FORM | change)
    assert response.status_code == 400
    assert f'id="{field}-error"' in response.text
    assert await value(engine, "SELECT count(*) FROM notice_recipient") == 0


async def test_a_test_mail_is_queued_once(engine: AsyncEngine) -> None:
    browser = await signed_in_browser(engine, "viewer", settings=WITH_MAIL)
    assert (await browser.post(f"{OWN}/test")).status_code == 409
    await browser.post(OWN, data=FORM)
    assert (await browser.post(f"{OWN}/test")).status_code == 303
    assert "1 notice waits to be mailed." in await get_html(browser, OWN)
    again = await browser.post(f"{OWN}/test")
    assert again.status_code == 409
    assert "A mail was sent less than a minute ago" in again.text
    assert await value(engine, "SELECT count(*) FROM notice WHERE kind = 'test'") == 1


async def test_an_admin_chooses_the_notices_of_a_user(engine: AsyncEngine) -> None:
    admin = await signed_in_browser(engine, "admin", "root", settings=WITH_MAIL)
    new = NewUser(name="ann", role="viewer", password="correct horse battery")  # noqa: S106  # used in tests alone
    user_id = (await service.create_user(engine, new, COMMAND_LINE)).id
    path = f"/users/{user_id}/notices"
    assert path in await get_html(admin, f"/users/{user_id}")
    response = await admin.post(path, data=FORM)
    assert (response.status_code, response.headers["location"]) == (303, path)
    assert "Notices by mail for ann" in await get_html(admin, path)
    [entry] = await rows(engine, "SELECT actor, after FROM audit WHERE action = 'notices_changed'")
    assert entry["actor"] == "root"
    assert "Mail address is set" in await get_html(admin, "/audit")

    viewer = await signed_in_browser(engine, "operator", "bob", settings=WITH_MAIL)
    assert (await viewer.get(path)).status_code == 403
    assert (await viewer.post(path, data=FORM)).status_code == 403
    assert (await admin.get("/users/999/notices")).status_code == 404


async def test_failures_of_sending_are_visible(engine: AsyncEngine) -> None:
    admin = await signed_in_browser(engine, "admin", settings=WITH_MAIL)
    await admin.post(OWN, data=FORM)
    await execute(
        engine,
        "UPDATE notice_recipient SET failures = 2, failure = 'smtp_550', attempted_at = now()",
    )
    assert "the mail server answered with the code 550" in await get_html(admin, OWN)
    system = await get_html(admin, "/system")
    assert "The last mail to 1 user was not sent: the mail server answered with the code" in system
    assert "ann@example.org" not in system


async def test_the_command_sets_and_removes_the_notices_of_a_user(engine: AsyncEngine) -> None:
    new = NewUser(name="ann", role="viewer", password="correct horse battery")  # noqa: S106  # used in tests alone
    user_id = (await service.create_user(engine, new, COMMAND_LINE)).id
    values: dict[str, Any] = {
        "mail": "ann@example.org",
        "kinds": ["mailing_held"],
        "language": "en",
        "time_zone": "UTC",
    }
    await commands.set_notices(engine, "ann", None, values)
    recipient = await do(engine, lambda database: recipients.get(database, user_id))
    assert recipient is not None
    assert (recipient.address, recipient.kinds) == ("ann@example.org", ["mailing_held"])
    with pytest.raises(InvalidError, match="mail"):
        await commands.set_notices(engine, "ann", None, values | {"mail": "ann"})
    await commands.set_notices(engine, "ann", None, values | {"mail": "", "kinds": []})
    assert await do(engine, lambda database: recipients.get(database, user_id)) is None
