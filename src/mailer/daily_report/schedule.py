"""Send the daily report when it is due, once for all workers together."""

from datetime import date, datetime, time, timedelta
from hashlib import sha256
from zoneinfo import ZoneInfo

import structlog
from sqlalchemy import func, select
from sqlalchemy.ext.asyncio import AsyncEngine

from mailer.daily_report import store
from mailer.daily_report.mail import send_report
from mailer.daily_report.report import daily_report
from mailer.daily_report.store import ReportLease
from mailer.mail.job import MailJob
from mailer.mail.sending import MailNotSentError, retry_delay
from mailer.mail.smtp_config import SmtpConfig

log = structlog.get_logger()

SEND_LEASE = timedelta(minutes=10)
"""How long a worker may take to send a report; longer than all its timeouts together."""
MAX_REPORT_AGE = timedelta(days=7)
"""How old the day of a report may be. Older reports that could not be sent are dropped."""


def newest_due(now: datetime, at: time, zone: ZoneInfo) -> date:
    """Return the newest day whose report is due at `now`.

    The report of a day is due on the next day, at the time `at` in `zone`. When the clocks skip
    that time, the report is due at the clock change. When that time occurs twice, the report is due
    the first time.
    """
    local = now.astimezone(zone)
    is_due_today = datetime.combine(local.date(), at, zone).timestamp() <= now.timestamp()
    # Python interprets a time that the clocks skip as a moment after the clock change. But the
    # report is due at the change, when the local clock shows a later time than `at`.
    is_due_today = is_due_today or local.time() >= at
    return local.date() - timedelta(days=1 if is_due_today else 2)


def _digest(recipient: str) -> bytes:
    """Return the hash that stands for a recipient's address, which the database does not store."""
    return sha256(recipient.lower().encode()).digest()


class DailyMail(MailJob):
    """Sends each day's report when it is due, at the time `at` in `time_zone`.

    Only one worker sends each report; a row of the table `daily_report` is its lease. If a worker
    ends or loses the database after the mail server has accepted a mail and before that is
    recorded, the mail is sent again. Both mails have the same Message-ID, so that mail programs can
    recognize the duplicate.
    """

    def __init__(self, engine: AsyncEngine, smtp: SmtpConfig, at: time, time_zone: str) -> None:
        self._engine = engine
        self._smtp = smtp
        self._at = at
        self._time_zone = time_zone

    async def _send_due(self) -> None:
        async with self._engine.connect() as connection:
            now = (await connection.execute(select(func.now()))).scalar_one()
        await self.send_due(now)

    async def send_due(self, now: datetime) -> None:
        """Send the oldest report that is due at `now`, unless another worker sends it.

        No database connection is held while the mail is sent. If the mail server does not accept
        the report for some recipients, the report is scheduled again, with a growing delay. The
        next attempt leaves out recipients who were accepted or permanently refused.
        """
        newest = newest_due(now, self._at, ZoneInfo(self._time_zone))
        async with self._engine.begin() as connection:
            too_old = newest - MAX_REPORT_AGE
            await store.add_due(connection, too_old=too_old, newest_due=newest, now=now)
            until = now + SEND_LEASE
            lease = await store.acquire(connection, too_old=too_old, now=now, until=until)
        if lease is None:
            return
        pending = [
            recipient
            for recipient in self._smtp.recipients
            if _digest(recipient) not in lease.settled_recipients
        ]
        newly_settled = await self._send(lease, pending) if pending else []
        async with self._engine.begin() as connection:
            if set(pending) <= set(newly_settled):
                await store.mark_sent(connection, lease)
            else:
                await store.reschedule(
                    connection,
                    lease,
                    until=now + retry_delay(lease.attempts),
                    settled_recipients=[*lease.settled_recipients, *map(_digest, newly_settled)],
                )

    async def _send(self, lease: ReportLease, pending: list[str]) -> list[str]:
        """Send a report to `pending`; return the recipients that are settled now.

        The mail server has accepted or permanently refused these recipients.
        """
        report = await daily_report(self._engine, lease.day, self._time_zone)
        try:
            result = await send_report(
                report, self._smtp, f"report.{lease.day}.{lease.id}", pending
            )
        except MailNotSentError as error:
            log.warning(
                "report_failed",
                day=lease.day,
                attempts=lease.attempts,
                reason=str(error),
                again_in=retry_delay(lease.attempts).total_seconds(),
            )
            return []
        return [*result.accepted, *result.refused]
