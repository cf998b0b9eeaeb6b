"""A pause requested by the gateway delays messages but ends none; a user can end the pause."""

import asyncio
from datetime import UTC, datetime, timedelta

from tests.fault_servers import OK, Talk, http_response, read_request, served
from tests.processes import MailerProcess, Mailers, until

from mailer.sample_data import new_mailing

YEAR = "Retry-After: 31536000"


def reject_first(status: int, count: int) -> Talk:
    """Request a pause of a year for the first `count` requests, then accept all."""
    requests: list[str] = []

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            requests.append((await read_request(reader))[0])
            accepted = http_response(200, OK)
            writer.write(accepted if len(requests) > count else http_response(status, b"", YEAR))

    return talk


async def until_waiting(mailer: MailerProcess, mailing_id: int, count: int) -> None:
    path = f"/mailings/{mailing_id}/messages?status=scheduled&reason=http_500"

    async def are_waiting() -> bool | None:
        return (await mailer.call("GET", path))["count"] == count or None

    await until(are_waiting)


async def try_now(mailer: MailerProcess) -> None:
    same_origin = {"Origin": mailer.address}
    async with mailer.session.post(
        "/gateway/try", data={"return_path": "/system"}, headers=same_origin, allow_redirects=False
    ) as response:
        assert response.status == 303
        assert response.headers["Location"] == "/system"


async def test_pause_of_the_whole_gateway_is_shown_and_ended_by_try_now(
    start_mailer: Mailers,
) -> None:
    async with served(reject_first(503, 1)) as url:
        mailers = [
            await start_mailer(gateway_url=url, gateway_concurrency="1", retry_after_cap="600")
            for _ in range(2)
        ]
        mailer = mailers[0]
        await mailer.create_clients(3)
        created = await mailer.call("POST", "/mailings", new_mailing(), 201)

        async def find_held() -> MailerProcess | None:
            for process in mailers:
                if (await process.call("GET", "/gateway"))["held"]:
                    return process
            return None

        mailer = await until(find_held)
        assert (await mailer.mailing(created["id"]))["held"]["reason"] == "http_503"
        status = await mailer.call("GET", "/gateway")
        left = datetime.fromisoformat(status["retry_at"]) - datetime.now(UTC)
        assert left <= timedelta(seconds=600)
        for path in ("/", "/system", f"/mailings/{created['id']}"):
            async with mailer.session.get(path) as page:
                assert 'action="/gateway/try"' in await page.text()

        await try_now(mailers[0])  # which notifies all workers
        assert (await mailer.finished(created["id"]))["delivered_messages"] == 3


async def test_message_with_a_pause_past_the_end_is_sent_after_try_now(
    start_mailer: Mailers,
) -> None:
    async with served(reject_first(500, 4)) as url:
        mailer = await start_mailer(gateway_url=url, gateway_concurrency="4")
        await mailer.create_clients(4)
        end = datetime.now(UTC) + timedelta(seconds=300)
        soon = new_mailing() | {"datetime_end": end.isoformat()}
        created = await mailer.call("POST", "/mailings", soon, 201)
        await until_waiting(mailer, created["id"], 4)
        mailing = await mailer.mailing(created["id"])
        assert (mailing["status"], mailing["scheduled_messages"]) == ("running", 4)
        due = await mailer.query("SELECT min(due_at) > $1 FROM message", end)
        assert due is True

        await try_now(mailer)
        assert (await mailer.finished(created["id"]))["delivered_messages"] == 4
        assert await mailer.query("SELECT count(*) FROM audit WHERE action = 'gateway_tried'") == 1
