"""A restored database on the pages: who is told, what is shown, and who may let it send."""

from sqlalchemy.ext.asyncio import AsyncEngine
from tests.api.visits import signed_in
from tests.sample import add_due_messages, do, execute, value

from mailer.db import origin
from mailer.settings import Role


async def restored(engine: AsyncEngine) -> str:
    """Make it a restored database with a mailing under way; return since when it is held."""
    await add_due_messages(engine, 3)
    await execute(engine, "UPDATE origin SET moved_at = moved_at")  # as a dump writes it
    await do(engine, origin.update)
    hold = await do(engine, origin.hold)
    assert hold is not None
    return hold.since.isoformat()


async def test_operators_and_admins_are_told_on_every_page_and_viewers_are_not(
    engine: AsyncEngine,
) -> None:
    await restored(engine)
    told: dict[Role, bool] = {"viewer": False, "operator": True, "admin": True}
    for role, is_told in told.items():
        async with await signed_in(engine, role) as browser:
            for path in ("/", "/mailings", "/clients"):
                answer = await browser.get(path)
                assert answer.status_code == 200
                assert ('href="/restored"' in answer.text) == is_told, (role, path)
            shown = await browser.get("/restored")
            assert shown.status_code == (200 if is_told else 403)
            assert ("Let it send" in shown.text) == (role == "admin")
            assert ("3 messages would be sent" in shown.text) == is_told


async def test_admin_lets_it_send_once_and_only_what_was_shown(engine: AsyncEngine) -> None:
    held_since = await restored(engine)
    async with await signed_in(engine, "operator") as browser:
        answer = await browser.post("/restored", data={"held_since": held_since})
        assert answer.status_code == 403
    async with await signed_in(engine, "admin") as browser:
        for given, status in (
            *(("", 400), ("yesterday", 400), ("2030-01-01T00:00:00", 400)),
            *(("0001-01-01T00:00:00+14:00", 400), ("2030-01-01T00:00:00+00:00", 409)),
        ):
            answer = await browser.post("/restored", data={"held_since": given})
            assert answer.status_code == status, given
        assert await do(engine, origin.hold) is not None

        answer = await browser.post("/restored", data={"held_since": held_since})
        assert (answer.status_code, answer.headers["location"]) == (303, "/restored")
        assert await do(engine, origin.hold) is None
        assert "This database may send." in (await browser.get("/restored")).text
        assert "/restored" not in (await browser.get("/")).text
        answer = await browser.post("/restored", data={"held_since": held_since})
        assert answer.status_code == 409
    by = "SELECT actor || ' ' || target_kind FROM audit WHERE action = 'sending_resumed'"
    assert await value(engine, by) == "admin database"


async def test_running_mailing_says_why_it_waits(engine: AsyncEngine) -> None:
    await restored(engine)
    async with await signed_in(engine, "operator") as browser:
        page = " ".join((await browser.get("/mailings/1")).text.split())
    assert "The database was restored: nothing is sent until an admin agrees." in page
    assert "The gateway has taken nothing" not in page
