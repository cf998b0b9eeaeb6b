"""SQL of the users who get notices. The caller owns the transaction."""

from typing import Any

from sqlalchemy import ARRAY, String, bindparam, text
from sqlalchemy.ext.asyncio import AsyncConnection

from mailer.access import audit, users
from mailer.access.model import Actor
from mailer.notice.model import (
    TEST_PAUSE,
    MailTooSoonError,
    NoAddressError,
    NoticeRecipient,
    NoticeSettings,
    NoticeSummary,
)
from mailer.notice.queue import MAIL_LEASE

SELECT_RECIPIENT = text("""
    SELECT user_id, address, kinds, language, time_zone, attempted_at, sent_at, failures, failure,
        (SELECT count(*) FROM notice WHERE notice.user_id = :user_id) AS waiting
    FROM notice_recipient WHERE user_id = :user_id""")


async def get(connection: AsyncConnection, user_id: int) -> NoticeRecipient | None:
    """Return a user's address and notices; None if the user has no address."""
    row = (await connection.execute(SELECT_RECIPIENT, {"user_id": user_id})).mappings().first()
    return None if row is None else NoticeRecipient(**row)


# A new address has no failures, and what waits for the old one is sent to it at once.
SAVE_RECIPIENT = text("""
    INSERT INTO notice_recipient AS known (user_id, address, kinds, language, time_zone)
    VALUES (:user_id, :address, :kinds, :language, :time_zone)
    ON CONFLICT (user_id) DO UPDATE SET kinds = excluded.kinds, language = excluded.language,
        time_zone = excluded.time_zone, address = excluded.address, failures = 0, failure = NULL,
        next_mail_at = CASE WHEN known.failures > 0 THEN now() ELSE known.next_mail_at END,
        claims = known.claims + 1""").bindparams(bindparam("kinds", type_=ARRAY(String)))
DELETE_RECIPIENT = text("DELETE FROM notice_recipient WHERE user_id = :user_id")


async def save(
    connection: AsyncConnection, user_id: int, settings: NoticeSettings, by: Actor
) -> None:
    """Store a user's address and notices; without an address, nothing is sent to the user.

    The audit log has the notices, and whether there is an address, but never the address. Raises
    `UserNotFoundError`.
    """
    user = await users.get(connection, user_id, lock=True)
    before = await get(connection, user_id)
    values: dict[str, Any] = {
        "user_id": user.id,
        "address": settings.address,
        "kinds": sorted(set(settings.kinds)),
        "language": settings.language,
        "time_zone": settings.time_zone,
    }
    if before is None and settings.address is None:
        return
    statement = DELETE_RECIPIENT if settings.address is None else SAVE_RECIPIENT
    await connection.execute(statement, values)
    await audit.record(
        connection,
        by,
        "notices_changed",
        audit.Target("user", user.id),
        before=_audited(before.address if before else None, before.kinds if before else []),
        after=_audited(settings.address, values["kinds"]),
    )


def _audited(address: str | None, kinds: list[Any]) -> dict[str, Any]:
    return {"has_mail": address is not None, "notices": kinds if address else []}


# The row is updated, so two requests at the same time write one notice. The lease of an attempt
# that is running stays: its mail must not be sent twice.
ADD_TEST_NOTICE = text(f"""
    WITH recipient AS (
        UPDATE notice_recipient SET next_mail_at = CASE
            WHEN next_mail_at = attempted_at + make_interval(secs => {MAIL_LEASE.total_seconds()})
            THEN next_mail_at ELSE now() END
        WHERE user_id = :user_id AND NOT EXISTS (
                SELECT FROM notice WHERE notice.user_id = :user_id AND kind = 'test')
            AND coalesce(attempted_at, '-infinity')
                < now() - make_interval(secs => {TEST_PAUSE.total_seconds()})
        RETURNING user_id
    )
    INSERT INTO notice (user_id, kind, data) SELECT user_id, 'test', '{{}}' FROM recipient""")  # noqa: S608  # a number


async def add_test(connection: AsyncConnection, user_id: int, by: Actor) -> None:
    """Have a test mail sent to a user within seconds, together with what waits for the user.

    Raises `NoAddressError`, and `MailTooSoonError` if a mail was tried a moment ago.
    """
    if await get(connection, user_id) is None:
        raise NoAddressError
    if not (await connection.execute(ADD_TEST_NOTICE, {"user_id": user_id})).rowcount:
        raise MailTooSoonError
    await audit.record(connection, by, "notices_tested", audit.Target("user", user_id))


SUMMARY = text("""
    SELECT count(*) AS recipients, count(*) FILTER (WHERE failures > 0) AS failing,
        max(failure) AS failure, (SELECT count(*) FROM notice) AS waiting, max(sent_at) AS sent_at
    FROM notice_recipient""")


async def summarize(connection: AsyncConnection) -> NoticeSummary:
    """Return how the sending of notices goes, over all users."""
    return NoticeSummary(*(await connection.execute(SUMMARY)).one())
