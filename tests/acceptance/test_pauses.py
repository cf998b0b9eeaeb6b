"""A pause that the gateway asks for delays messages and ends none; an operator can end it."""

import asyncio
from datetime import UTC, datetime, timedelta

from tests.acceptance.test_main_job import a_mailing, add_clients
from tests.processes import MailerProcess, Mailers, until
from tests.wire import OK, Talk, answer, request_of, served

YEAR = "Retry-After: 31536000"


def refusing_first(status: int, count: int, seen: list[str]) -> Talk:
    """Ask for a pause of a year `count` times, then take everything."""

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            seen.append((await request_of(reader))[0])
            good = answer(200, OK)
            writer.write(good if len(seen) > count else answer(status, b"", YEAR))

    return talk


async def until_waiting(mailer: MailerProcess, mailing_id: int, count: int) -> None:
    path = f"/mailings/{mailing_id}/messages?status=scheduled&reason=http_500"

    async def look() -> bool | None:
        return (await mailer.call("GET", path))["count"] == count or None

    await until(look)


async def try_now(mailer: MailerProcess) -> None:
    own = {"Origin": mailer.address}
    async with mailer.session.post(
        "/gateway/try", data={"back": "/system"}, headers=own, allow_redirects=False
    ) as answered:
        assert answered.status == 303
        assert answered.headers["Location"] == "/system"


async def test_a_pause_for_the_whole_gateway_is_shown_and_ended_by_try_now(
    start_mailer: Mailers,
) -> None:
    seen: list[str] = []
    async with served(refusing_first(503, 1, seen)) as url:
        mailers = [
            await start_mailer(gateway_url=url, gateway_concurrency="1", retry_after_cap="600")
            for _ in range(2)
        ]
        mailer = mailers[0]
        await add_clients(mailer, 3)
        created = await mailer.call("POST", "/mailings", a_mailing(), 201)

        async def find_held() -> MailerProcess | None:
            for each in mailers:
                if (await each.call("GET", "/gateway"))["held"]:
                    return each
            return None

        mailer = await until(find_held)
        assert (await mailer.mailing(created["id"]))["held"]["reason"] == "http_503"
        status = await mailer.call("GET", "/gateway")
        left = datetime.fromisoformat(status["retry_at"]) - datetime.now(UTC)
        assert left <= timedelta(seconds=600)
        for path in ("/", "/system", f"/mailings/{created['id']}"):
            async with mailer.session.get(path) as page:
                assert 'action="/gateway/try"' in await page.text()

        await try_now(mailers[0])  # every worker hears of it
        assert (await mailer.finished(created["id"]))["delivered_messages"] == 3


async def test_what_waits_for_a_pause_lasts_until_the_end_and_goes_out_when_asked(
    start_mailer: Mailers,
) -> None:
    seen: list[str] = []
    async with served(refusing_first(500, 4, seen)) as url:
        mailer = await start_mailer(gateway_url=url, gateway_concurrency="4")
        await add_clients(mailer, 4)
        end = datetime.now(UTC) + timedelta(seconds=300)
        soon = a_mailing() | {"datetime_end": end.isoformat()}
        created = await mailer.call("POST", "/mailings", soon, 201)
        await until_waiting(mailer, created["id"], 4)
        mailing = await mailer.mailing(created["id"])
        assert (mailing["status"], mailing["scheduled_messages"]) == ("running", 4)
        due = await mailer.query("SELECT min(due_at) > $1 FROM message", end)
        assert due is True

        await try_now(mailer)
        assert (await mailer.finished(created["id"]))["delivered_messages"] == 4
        assert await mailer.query("SELECT count(*) FROM audit WHERE action = 'gateway_tried'") == 1
