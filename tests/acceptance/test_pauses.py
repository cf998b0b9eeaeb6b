"""A pause requested by the gateway delays messages but ends none; a user can end the pause.

The gateway requests it by the header Retry-After. With the status 503 the pause is for all
messages, with 500 for this message only.
"""

import asyncio
from datetime import UTC, datetime, timedelta

from tests.fault_servers import OK, Talk, http_response, read_request, served
from tests.processes import MailerProcess, Mailers, until, until_true

from mailer.sample_data import new_mailing

PAUSE_OF_A_YEAR = "Retry-After: 31536000"


def requests_pause(status: int, *, at_first: int) -> Talk:
    """Return a gateway that requests a pause of a year in its first `at_first` responses.

    These have the status `status`. All later messages are accepted.
    """
    requests = 0

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal requests
        while True:
            await read_request(reader)
            requests += 1
            if requests <= at_first:
                writer.write(http_response(status, b"", PAUSE_OF_A_YEAR))
            else:
                writer.write(http_response(200, OK))

    return talk


async def until_waiting(mailer: MailerProcess, mailing_id: int, count: int) -> None:
    """Wait until `count` messages of a mailing are scheduled again after a 500."""
    path = f"/mailings/{mailing_id}/messages?status=scheduled&reason=http_500"

    async def are_waiting() -> bool:
        return bool((await mailer.call("GET", path))["count"] == count)

    await until_true(are_waiting)


async def try_now(mailer: MailerProcess) -> None:
    """End the pause, as a user does with the button "Try now" of a page."""
    same_origin = {"Origin": mailer.address}
    async with mailer.session.post(
        "/gateway/try", data={"return_path": "/system"}, headers=same_origin, allow_redirects=False
    ) as response:
        assert response.status == 303
        assert response.headers["Location"] == "/system"


async def test_pause_of_the_whole_gateway_is_shown_and_ended_by_try_now(
    start_mailer: Mailers,
) -> None:
    async with served(requests_pause(503, at_first=1)) as url:
        processes = [
            await start_mailer(gateway_url=url, gateway_concurrency="1", retry_after_cap="600")
            for _ in range(2)
        ]
        await processes[0].create_clients(3)
        created = await processes[0].call("POST", "/mailings", new_mailing(), 201)

        async def find_paused() -> MailerProcess | None:
            for process in processes:
                if (await process.call("GET", "/gateways/default"))["held"]:
                    return process
            return None

        paused = await until(find_paused)
        assert (await paused.mailing(created["id"]))["held"]["reason"] == "http_503"
        gateway_status = await paused.call("GET", "/gateways/default")
        remaining = datetime.fromisoformat(gateway_status["retry_at"]) - datetime.now(UTC)
        assert remaining <= timedelta(seconds=600)  # retry_after_cap, instead of a year
        for path in ("/", "/system", f"/mailings/{created['id']}"):
            async with paused.session.get(path) as page:
                assert 'action="/gateway/try"' in await page.text()

        await try_now(processes[0])  # which notifies all workers
        assert (await paused.finished(created["id"]))["delivered_messages"] == 3


async def test_message_with_a_pause_past_the_end_is_sent_after_try_now(
    start_mailer: Mailers,
) -> None:
    async with served(requests_pause(500, at_first=4)) as url:
        mailer = await start_mailer(gateway_url=url, gateway_concurrency="4")
        await mailer.create_clients(4)
        end = datetime.now(UTC) + timedelta(seconds=300)
        body = new_mailing() | {"datetime_end": end.isoformat()}
        created = await mailer.call("POST", "/mailings", body, 201)
        await until_waiting(mailer, created["id"], count=4)
        mailing = await mailer.mailing(created["id"])
        assert (mailing["status"], mailing["scheduled_messages"]) == ("running", 4)
        are_due_after_end = await mailer.query("SELECT min(due_at) > $1 FROM message", end)
        assert are_due_after_end is True

        await try_now(mailer)
        assert (await mailer.finished(created["id"]))["delivered_messages"] == 4
        assert await mailer.query("SELECT count(*) FROM audit WHERE action = 'gateway_tried'") == 1
