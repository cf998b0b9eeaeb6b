"""Mailings for browser tests, created through the API of a running mailer process."""

from datetime import UTC, datetime
from typing import Any

from tests.processes import MailerProcess, until

from mailer.sample_data import new_mailing

# as if the gateway had rejected the first message of the mailing $1
REJECT_FIRST_MESSAGE = """
    UPDATE message SET status = 'undelivered', reason = 'rejected_400', attempts = 1,
        failures = '[{"attempt": 1, "claimed_at": "2020-01-15T06:00:00+00:00",
            "ended_at": "2020-01-15T06:00:10+00:00", "reason": "rejected_400"}]'
    WHERE id = (SELECT min(id) FROM message WHERE mailing_id = $1)"""


async def add_mailing(mailer: MailerProcess, starts_in: float = 3600, **fields: Any) -> int:
    """Create a mailing that starts in `starts_in` seconds and lasts an hour; return its id."""
    new = new_mailing(starts_in=starts_in, **fields)
    return int((await mailer.call("POST", "/mailings", new, 201))["id"])


async def start_now(mailer: MailerProcess, mailing_id: int) -> None:
    """Start a mailing at once, for pages that were opened before its start."""
    start = {"datetime_start": datetime.now(UTC).isoformat()}
    await mailer.call("PATCH", f"/mailings/{mailing_id}", start)


async def add_finished_with_failure(mailer: MailerProcess, tag: str, clients: int) -> int:
    """Create a finished mailing to new clients with a tag; its first message was rejected.

    The mailing is paused until its messages exist, so that the first one is not sent. Returns the
    mailing's id.
    """
    await mailer.create_clients(clients, tags=(tag,))
    mailing_id = await add_mailing(mailer, starts_in=0.5, client_filter=tag)
    await mailer.call("POST", f"/mailings/{mailing_id}/pause")

    async def enqueued() -> bool | None:
        created = (await mailer.mailing(mailing_id))["created_messages"]
        return True if created == clients else None  # None: `until` asks again

    await until(enqueued)
    await mailer.query(REJECT_FIRST_MESSAGE, mailing_id)
    await mailer.call("POST", f"/mailings/{mailing_id}/resume")
    await mailer.finished(mailing_id)
    return mailing_id
