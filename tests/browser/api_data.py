"""Clients and mailings for browser tests, created through the API."""

from datetime import UTC, datetime, timedelta
from typing import Any

from tests.processes import MailerProcess, until

FAIL_FIRST_MESSAGE = """
    UPDATE message SET status = 'undelivered', reason = 'rejected_400', attempts = 1,
        failures = '[{"attempt": 1, "claimed_at": "2030-01-15T06:00:00+00:00",
            "ended_at": "2030-01-15T06:00:10+00:00", "reason": "rejected_400"}]'
    WHERE id = (SELECT min(id) FROM message WHERE mailing_id = $1)"""


async def add_clients(mailer: MailerProcess, tag: str, count: int) -> None:
    """Create clients with the test's own tag; the first one ever has the phone 79160000000."""
    existing = await mailer.query("SELECT count(*) FROM client")
    for n in range(existing, existing + count):
        phone = f"7916{n:07}"
        await mailer.call("POST", "/clients", {"phone": phone, "tag": tag}, 201)


async def add_mailing(mailer: MailerProcess, starts_in: float = 3600, **fields: Any) -> int:
    """Create a mailing that starts in `starts_in` seconds and lasts an hour; return its id."""
    start = datetime.now(UTC) + timedelta(seconds=starts_in)
    new = {
        "datetime_start": start.isoformat(),
        "datetime_end": (start + timedelta(hours=1)).isoformat(),
        "text": "Your order is ready.",
    }
    return int((await mailer.call("POST", "/mailings", new | fields, 201))["id"])


async def start_now(mailer: MailerProcess, mailing_id: int) -> None:
    """Start a mailing at once, for pages that were opened before its start."""
    start = {"datetime_start": datetime.now(UTC).isoformat()}
    await mailer.call("PATCH", f"/mailings/{mailing_id}", start)


async def add_with_failure(mailer: MailerProcess, tag: str, count: int) -> int:
    """Create a finished mailing to new clients, the first of whose messages was rejected."""
    await add_clients(mailer, tag, count)
    mailing_id = await add_mailing(mailer, 0.5, client_filter=tag)
    await mailer.call("POST", f"/mailings/{mailing_id}/pause")

    async def is_enqueued() -> bool | None:
        return (await mailer.mailing(mailing_id))["created_messages"] == count or None

    await until(is_enqueued)
    await mailer.query(FAIL_FIRST_MESSAGE, mailing_id)
    await mailer.call("POST", f"/mailings/{mailing_id}/resume")
    await mailer.finished(mailing_id)
    return mailing_id
