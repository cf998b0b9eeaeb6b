"""Clients and mailings for tests in the browser, through the API and without a wait."""

from datetime import UTC, datetime, timedelta
from typing import Any

from tests.processes import MailerProcess, until

GIVE_UP = """
    UPDATE message SET status = 'undelivered', reason = 'rejected_400', attempts = 1,
        failures = '[{"attempt": 1, "claimed_at": "2030-01-15T06:00:00+00:00",
            "ended_at": "2030-01-15T06:00:10+00:00", "reason": "rejected_400"}]'
    WHERE id = (SELECT min(id) FROM message WHERE mailing_id = $1)"""


async def add_clients(mailer: MailerProcess, tag: str, count: int) -> None:
    """Add clients with a tag of the test's own; the first has the phone 79160000000."""
    present = await mailer.query("SELECT count(*) FROM client")
    for n in range(present, present + count):
        phone = f"7916{n:07}"
        await mailer.call("POST", "/clients", {"phone": phone, "tag": tag}, 201)


async def add_mailing(mailer: MailerProcess, starts_in: float = 3600, **given: Any) -> int:
    """Add a mailing that starts in so many seconds and goes on for an hour; return its id."""
    start = datetime.now(UTC) + timedelta(seconds=starts_in)
    new = {
        "datetime_start": start.isoformat(),
        "datetime_end": (start + timedelta(hours=1)).isoformat(),
        "text": "Your order is ready.",
    }
    return int((await mailer.call("POST", "/mailings", new | given, 201))["id"])


async def start_now(mailer: MailerProcess, mailing_id: int) -> None:
    """Have a mailing start at once, after a page was seen before its start."""
    start = {"datetime_start": datetime.now(UTC).isoformat()}
    await mailer.call("PATCH", f"/mailings/{mailing_id}", start)


async def add_with_failure(mailer: MailerProcess, tag: str, clients: int) -> int:
    """Add a mailing to new clients that is finished, but for the first whom it was refused for."""
    await add_clients(mailer, tag, clients)
    mailing_id = await add_mailing(mailer, 0.5, client_filter=tag)
    await mailer.call("POST", f"/mailings/{mailing_id}/pause")

    async def is_taken() -> bool | None:
        return (await mailer.mailing(mailing_id))["created_messages"] == clients or None

    await until(is_taken)
    await mailer.query(GIVE_UP, mailing_id)
    await mailer.call("POST", f"/mailings/{mailing_id}/resume")
    await mailer.finished(mailing_id)
    return mailing_id
