"""The daily report that goes out by itself: when a day's is due, and once over all processes."""

import asyncio
from datetime import date, datetime, time, timedelta
from hashlib import sha256
from uuid import UUID
from zoneinfo import ZoneInfo

import structlog
from sqlalchemy import ARRAY, Date, LargeBinary, Row, TextClause, bindparam, func, select, text
from sqlalchemy.ext.asyncio import AsyncEngine

from mailer.report.daily import daily_report
from mailer.report.mail import MailNotSentError, Post, send_report
from mailer.settings import Settings

log = structlog.get_logger()

LEASE = timedelta(minutes=10)
"""How long a process may take for a report: longer than its statements and its mail together."""
FIRST_PAUSE, LONGEST_PAUSE = timedelta(seconds=30), timedelta(minutes=15)
"""Until the next attempt after the first that failed, and after many."""
OLDEST = timedelta(days=7)
"""For how long a report that could not be sent is worth sending."""


def newest_due(now: datetime, at: time, zone: ZoneInfo) -> date:
    """Return the last day whose report is due, which it is from `at` on the day after.

    When the clocks are set forward over `at` it is due as they change; when `at` comes twice, the
    first time.
    """
    local = now.astimezone(zone)
    is_due = datetime.combine(local.date(), at, zone).timestamp() <= now.timestamp()
    is_due = is_due or local.time() >= at  # where the clocks skip it, Python takes it for later
    return local.date() - timedelta(days=1 if is_due else 2)


def pause_after(attempts: int) -> timedelta:
    """Return how long to wait after so many attempts that failed: each time twice as long."""
    return min(LONGEST_PAUSE, FIRST_PAUSE * (1 << min(attempts - 1, 10)))


def _digest(recipient: str) -> bytes:
    """Return what stands for a recipient in the database, which holds no staff's addresses."""
    return sha256(recipient.lower().encode()).digest()


# Days on which no process ran are made up for; before the first report there is none to make up.
ADD = text("""
    INSERT INTO report (day, taken_until)
    SELECT missed::date, :now FROM generate_series(
        greatest(:oldest + 1, (SELECT coalesce(max(day) + 1, :newest) FROM report))::timestamp,
        (:newest)::timestamp, interval '1 day') AS missed
    ON CONFLICT DO NOTHING""").bindparams(
    bindparam("newest", type_=Date), bindparam("oldest", type_=Date)
)
# A row that another process locks, or has taken since, is not this one's. A restored database may
# not know of those that went out.
TAKE = text("""
    UPDATE report SET attempts = attempts + 1, taken_until = :until
    WHERE day = (SELECT day FROM report
                 WHERE sent_at IS NULL AND taken_until <= :now AND day > :oldest
                    AND (SELECT sending_is_allowed())
                 ORDER BY day LIMIT 1 FOR UPDATE SKIP LOCKED)
    RETURNING day, id, attempts, decided""")
MARK = text("UPDATE report SET sent_at = now() WHERE day = :day")
RESCHEDULE = text("""
    UPDATE report SET taken_until = :until, decided = :decided
    WHERE day = :day AND attempts = :attempts AND sent_at IS NULL""").bindparams(
    bindparam("decided", type_=ARRAY(LargeBinary))
)


class DailyMail:
    """Sends the report of each day when it is due, by the settings' clock and zone.

    Each day's goes out once, whichever process takes it: a row of `report` says which. A process
    that ends, or loses the database, after the mail server has taken the mail and before that is
    written leads to another mail of that day; both have the same Message-ID, by which mail
    programs can tell.
    """

    def __init__(self, engine: AsyncEngine, post: Post, settings: Settings) -> None:
        self._engine = engine
        self._post = post
        self._at = time.fromisoformat(settings.report_at)
        self._time_zone = settings.report_time_zone
        self._sending: asyncio.Task[None] | None = None

    async def run(self) -> None:
        """Send the oldest report that is due; being cancelled does not stop it, see `finish`."""
        self._sending = asyncio.create_task(self._send_due())
        await asyncio.shield(self._sending)

    async def finish(self, patience: float) -> None:
        """Give what is being sent so many seconds: stopped half-way it might come twice."""
        if self._sending is not None:
            await asyncio.wait([self._sending], timeout=patience)
            self._sending.cancel()  # in vain if it has ended

    async def _send_due(self) -> None:
        async with self._engine.connect() as connection:
            now = (await connection.execute(select(func.now()))).scalar_one()
        await self.send_due(now)

    async def send_due(self, now: datetime) -> None:
        """Send the oldest report that is due at `now`, if any is and no other process sends it.

        No connection is held while the mail goes out. A report that the mail server does not take,
        for all or for some recipients, is scheduled again, each time later; who has it already,
        or was refused for good, is left out then.
        """
        taken = await self._take(now)
        if taken is None:
            return
        pending = [each for each in self._post.recipients if _digest(each) not in taken.decided]
        decided, is_complete = list(taken.decided), True
        if pending:
            decided, is_complete = await self._send(taken, pending)
        if is_complete:
            await self._write(MARK, day=taken.day)
        else:
            until = now + pause_after(taken.attempts)
            this = {"day": taken.day, "attempts": taken.attempts}
            await self._write(RESCHEDULE, **this, until=until, decided=decided)

    async def _send(
        self, taken: Row[tuple[date, UUID, int, list[bytes]]], pending: list[str]
    ) -> tuple[list[bytes], bool]:
        """Send a report; return for whom it is decided, as digests, and whether that is all."""
        report = await daily_report(self._engine, taken.day, self._time_zone)
        try:
            result = await send_report(
                report, self._post, f"report.{taken.day}.{taken.id}", pending
            )
        except MailNotSentError as error:
            log.warning(
                "report_failed",
                day=taken.day,
                attempts=taken.attempts,
                reason=str(error),
                again_in=pause_after(taken.attempts).total_seconds(),
            )
            return taken.decided, False
        decided = (*result.accepted, *result.refused)
        return [*taken.decided, *map(_digest, decided)], not result.deferred

    async def _take(self, now: datetime) -> Row[tuple[date, UUID, int, list[bytes]]] | None:
        newest = newest_due(now, self._at, ZoneInfo(self._time_zone))
        taking = {"now": now, "until": now + LEASE, "oldest": newest - OLDEST}
        async with self._engine.begin() as connection:
            days = {"newest": newest, "oldest": newest - OLDEST}
            await connection.execute(ADD, {**days, "now": now})
            return (await connection.execute(TAKE, taking)).one_or_none()

    async def _write(self, statement: TextClause, **values: object) -> None:
        async with self._engine.begin() as connection:
            await connection.execute(statement, values)
