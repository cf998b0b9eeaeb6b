"""SQL of notices as jobs: claims of the next mail of a user, and its result.

The caller owns the transaction. The row of a recipient is the lease: several workers may run these
statements, and each user's mail is sent by one of them. If it dies, another one sends the same mail
after the lease.
"""

from datetime import datetime, timedelta
from typing import Any

import msgspec
from sqlalchemy import ARRAY, BigInteger, String, bindparam, text
from sqlalchemy.ext.asyncio import AsyncConnection

from mailer.notice.model import (
    MAX_NOTICES_PER_MAIL,
    MIN_MAIL_PAUSE,
    NOTICE_RETENTION,
    Language,
    NoticeKind,
)

MAIL_LEASE = timedelta(minutes=10)
"""How long a worker may take to send a mail; longer than all its timeouts together."""

# To all enabled users who have chosen it.
ADD_NOTICES = text("""
    INSERT INTO notice (user_id, kind, data)
    SELECT user_id, :kind, (:data)::json FROM notice_recipient
    JOIN app_user ON app_user.id = user_id
    WHERE disabled_at IS NULL AND :choice = ANY (kinds) ORDER BY user_id""").bindparams(
    bindparam("kind", type_=String), bindparam("choice", type_=String)
)


async def add(connection: AsyncConnection, choice: str, kind: NoticeKind, data: object) -> None:
    """Write a notice for each user who has chosen this kind of notice."""
    values = {"choice": choice, "kind": kind, "data": msgspec.json.encode(data).decode()}
    await connection.execute(ADD_NOTICES, values)


class Notice(msgspec.Struct, frozen=True):
    """A notice that is to be mailed."""

    id: int
    kind: NoticeKind
    data: Any
    created_at: datetime


class Claim(msgspec.Struct, frozen=True, kw_only=True):
    """The next mail of a user, claimed by this worker."""

    user_id: int
    claims: int
    """Identifies the claim together with the user."""
    address: str
    language: Language
    time_zone: str
    failures: int
    batch_until: int
    now: datetime
    notices: list[Notice]


# A restored copy of the database must not tell what the original has reported.
CLAIM_MAIL = text(f"""
    UPDATE notice_recipient SET claims = claims + 1, attempted_at = now(),
        next_mail_at = now() + make_interval(secs => {MAIL_LEASE.total_seconds()}),
        batch_until = coalesce(batch_until, (SELECT max(id) FROM (
            SELECT id FROM notice WHERE notice.user_id = notice_recipient.user_id
            ORDER BY id LIMIT {MAX_NOTICES_PER_MAIL}) AS first))
    WHERE user_id = (
        SELECT user_id FROM notice_recipient AS recipient
        JOIN app_user ON app_user.id = user_id
        WHERE next_mail_at <= now() AND disabled_at IS NULL
            AND EXISTS (SELECT FROM notice WHERE notice.user_id = recipient.user_id)
            AND (SELECT sending_is_allowed())
        ORDER BY next_mail_at LIMIT 1 FOR NO KEY UPDATE OF recipient SKIP LOCKED)
    RETURNING user_id, claims, address, language, time_zone, failures, batch_until,
        now() AS now""")  # noqa: S608  # numbers
READ_BATCH = text(f"""
    SELECT id, kind, data, created_at FROM notice
    WHERE user_id = :user_id AND id <= :batch_until ORDER BY id
    LIMIT {MAX_NOTICES_PER_MAIL}""")  # noqa: S608  # a number


async def claim(connection: AsyncConnection) -> Claim | None:
    """Claim the mail that has been due for the longest time; None if none is due.

    An attempt that is repeated has the notices of the first one.
    """
    row = (await connection.execute(CLAIM_MAIL)).mappings().one_or_none()
    if row is None:
        return None
    values = {"user_id": row["user_id"], "batch_until": row["batch_until"]}
    notices = [Notice(*each) for each in await connection.execute(READ_BATCH, values)]
    return Claim(**row, notices=notices)


DELETE_NOTICES = text("DELETE FROM notice WHERE id = ANY (:ids)").bindparams(
    bindparam("ids", type_=ARRAY(BigInteger))
)
# A worker that has lost its lease changes nothing of the recipient.
RECORD_MAIL = """
    UPDATE notice_recipient SET next_mail_at = now() + make_interval(secs => :pause), {values}
    WHERE user_id = :user_id AND claims = :claims"""
RECORD_SENT = text(
    RECORD_MAIL.format(values="batch_until = NULL, sent_at = now(), failures = 0, failure = NULL")
)
RECORD_NOTHING = text(RECORD_MAIL.format(values="batch_until = NULL"))
RECORD_REFUSED = text(
    RECORD_MAIL.format(values="batch_until = NULL, failures = failures + 1, failure = :failure")
)
RECORD_FAILED = text(RECORD_MAIL.format(values="failures = failures + 1, failure = :failure"))


async def record_sent(connection: AsyncConnection, claim: Claim) -> None:
    """Record that a mail was sent: its notices are done."""
    await _end(connection, claim)
    await connection.execute(RECORD_SENT, _values(claim, MIN_MAIL_PAUSE))


async def record_nothing(connection: AsyncConnection, claim: Claim) -> None:
    """Record that the notices of a mail have nothing to tell any more, so that none was sent."""
    await _end(connection, claim)
    await connection.execute(RECORD_NOTHING, _values(claim, timedelta()))


async def record_refused(connection: AsyncConnection, claim: Claim, failure: str) -> None:
    """Record that the mail server refuses the address permanently: the notices are dropped."""
    await _end(connection, claim)
    values = _values(claim, MIN_MAIL_PAUSE) | {"failure": failure}
    await connection.execute(RECORD_REFUSED, values)


async def record_failed(
    connection: AsyncConnection, claim: Claim, failure: str, pause: timedelta
) -> None:
    """Record that a mail was not sent, and is tried again after a pause."""
    await connection.execute(RECORD_FAILED, _values(claim, pause) | {"failure": failure})


async def _end(connection: AsyncConnection, claim: Claim) -> None:
    await connection.execute(DELETE_NOTICES, {"ids": [notice.id for notice in claim.notices]})


def _values(claim: Claim, pause: timedelta) -> dict[str, Any]:
    return {
        "user_id": claim.user_id,
        "claims": claim.claims,
        "pause": pause.total_seconds(),
    }


DELETE_EXPIRED_NOTICES = text(f"""
    DELETE FROM notice WHERE id = ANY (ARRAY(
        SELECT id FROM (SELECT id, created_at FROM notice ORDER BY id LIMIT :limit) AS oldest
        WHERE created_at < now() - make_interval(
            secs => {NOTICE_RETENTION.total_seconds()})))""")  # noqa: S608  # a number


async def delete_expired(connection: AsyncConnection, limit: int) -> int:
    """Delete up to `limit` notices that could not be mailed for too long; return how many."""
    return (await connection.execute(DELETE_EXPIRED_NOTICES, {"limit": limit})).rowcount
