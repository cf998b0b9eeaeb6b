"""SQL of the table `daily_report`: which reports are due, and which worker sends each."""

from datetime import date, datetime
from uuid import UUID

import msgspec
from sqlalchemy import ARRAY, Date, LargeBinary, bindparam, text
from sqlalchemy.ext.asyncio import AsyncConnection


class ReportLease(msgspec.Struct, frozen=True):
    """A report that this worker is to send, and that no other worker sends meanwhile."""

    day: date
    id: UUID
    """Identifies the mail; the same for every attempt."""
    attempts: int
    """Attempts to send the report, including the current one."""
    settled_recipients: list[bytes]
    """Hashes of the recipients that the mail server has accepted or permanently refused."""


# Adds a row for each day after the last day in the table, up to `:newest_due`. So days on which no
# worker ran get a report, too. Days up to `:too_old` are left out. In an empty table, the only new
# row is of `:newest_due`. A new row can be leased at once, because its `leased_until` is now.
INSERT_DUE = text("""
    INSERT INTO daily_report (day, leased_until)
    SELECT due_day::date, :now FROM generate_series(
        greatest(:too_old + 1,
            (SELECT coalesce(max(day) + 1, :newest_due) FROM daily_report))::timestamp,
        (:newest_due)::timestamp, interval '1 day') AS due_day
    ON CONFLICT DO NOTHING""").bindparams(
    bindparam("newest_due", type_=Date), bindparam("too_old", type_=Date)
)


async def add_due(
    connection: AsyncConnection, *, too_old: date, newest_due: date, now: datetime
) -> None:
    """Add the missing rows of due reports to the table.

    `newest_due` is the newest day whose report is due. Reports of `too_old` and of the days before
    are not sent any more, and are not added.
    """
    values = {"too_old": too_old, "newest_due": newest_due, "now": now}
    await connection.execute(INSERT_DUE, values)


# Leases the oldest report that is not sent and neither leased nor delayed. Skips a row that another
# worker has locked. A restored database may not know which reports were sent, so that it sends none
# before sending is allowed.
ACQUIRE = text("""
    UPDATE daily_report SET attempts = attempts + 1, leased_until = :until
    WHERE day = (SELECT day FROM daily_report
                 WHERE sent_at IS NULL AND leased_until <= :now AND day > :too_old
                    AND (SELECT sending_is_allowed())
                 ORDER BY day LIMIT 1 FOR UPDATE SKIP LOCKED)
    RETURNING day, id, attempts, settled_recipients""")


async def acquire(
    connection: AsyncConnection, *, too_old: date, now: datetime, until: datetime
) -> ReportLease | None:
    """Lease the oldest report that is to be sent, until `until`; return None if there is none.

    Reports of `too_old` and of the days before are not sent any more.
    """
    values = {"too_old": too_old, "now": now, "until": until}
    row = (await connection.execute(ACQUIRE, values)).one_or_none()
    return None if row is None else ReportLease(*row)


MARK_SENT = text("UPDATE daily_report SET sent_at = now() WHERE day = :day")


async def mark_sent(connection: AsyncConnection, lease: ReportLease) -> None:
    """Record that a report is sent: all its recipients are settled."""
    await connection.execute(MARK_SENT, {"day": lease.day})


# The condition on the attempts is false when another worker has acquired the report meanwhile.
RESCHEDULE = text("""
    UPDATE daily_report SET leased_until = :until, settled_recipients = :settled_recipients
    WHERE day = :day AND attempts = :attempts AND sent_at IS NULL""").bindparams(
    bindparam("settled_recipients", type_=ARRAY(LargeBinary))
)


async def reschedule(
    connection: AsyncConnection,
    lease: ReportLease,
    *,
    until: datetime,
    settled_recipients: list[bytes],
) -> None:
    """End a lease; the next attempt to send the report is at `until` or later."""
    await connection.execute(
        RESCHEDULE,
        {
            "day": lease.day,
            "attempts": lease.attempts,
            "until": until,
            "settled_recipients": settled_recipients,
        },
    )
