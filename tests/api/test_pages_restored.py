"""Pages of a restored database: the warning, the confirmation, and the right to resume sending."""

from sqlalchemy.ext.asyncio import AsyncEngine
from tests.api.browser_session import signed_in_browser
from tests.factories import add_due_messages, do, execute, value

from mailer.db import origin
from mailer.roles import Role


async def restore(engine: AsyncEngine) -> str:
    """Turn the database into a restored one with a running mailing of three messages.

    Returns since when it is held: the value of the form's field `held_since`.
    """
    await add_due_messages(engine, 3)
    await execute(engine, "UPDATE origin SET moved_at = moved_at")  # as restoring a dump does
    await do(engine, origin.update)  # mailer detects it
    hold = await do(engine, origin.get_hold)
    assert hold is not None
    return hold.since.isoformat()


async def test_operators_and_admins_are_warned_on_every_page_and_viewers_are_not(
    engine: AsyncEngine,
) -> None:
    await restore(engine)
    warned_roles: dict[Role, bool] = {"viewer": False, "operator": True, "admin": True}
    for role, is_warned in warned_roles.items():
        async with await signed_in_browser(engine, role) as browser:
            for path in ("/", "/mailings", "/clients"):
                response = await browser.get(path)
                assert response.status_code == 200
                assert ('href="/restored"' in response.text) == is_warned, (role, path)
            page = await browser.get("/restored")
            assert page.status_code == (200 if is_warned else 403)
            assert ("Allow sending" in page.text) == (role == "admin")
            assert ("3 messages would be sent" in page.text) == is_warned


async def test_an_admin_resumes_sending_once_and_only_for_the_hold_shown(
    engine: AsyncEngine,
) -> None:
    held_since = await restore(engine)
    async with await signed_in_browser(engine, "operator") as browser:
        response = await browser.post("/restored", data={"held_since": held_since})
        assert response.status_code == 403
    async with await signed_in_browser(engine, "admin") as browser:
        not_moments = ("", "yesterday", "2030-01-01T00:00:00", "0001-01-01T00:00:00+14:00")
        for text in not_moments:
            response = await browser.post("/restored", data={"held_since": text})
            assert response.status_code == 400, text
        another_restore = {"held_since": "2030-01-01T00:00:00+00:00"}
        assert (await browser.post("/restored", data=another_restore)).status_code == 409
        assert await do(engine, origin.get_hold) is not None

        response = await browser.post("/restored", data={"held_since": held_since})
        assert (response.status_code, response.headers["location"]) == (303, "/restored")
        assert await do(engine, origin.get_hold) is None
        assert "This database is allowed to send." in (await browser.get("/restored")).text
        assert "/restored" not in (await browser.get("/")).text
        response = await browser.post("/restored", data={"held_since": held_since})
        assert response.status_code == 409
    entry = "SELECT actor || ' ' || target_kind FROM audit WHERE action = 'sending_resumed'"
    assert await value(engine, entry) == "admin database"


async def test_a_running_mailing_shows_that_the_database_was_restored(engine: AsyncEngine) -> None:
    await restore(engine)
    async with await signed_in_browser(engine, "operator") as browser:
        page = " ".join((await browser.get("/mailings/1")).text.split())
    assert "The database was restored: nothing is sent until an admin allows it." in page
    assert "The gateway has accepted nothing" not in page
