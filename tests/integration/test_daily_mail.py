"""The daily report by mail, with a real mail server."""

import asyncio
import sys
from collections.abc import AsyncIterator
from datetime import UTC, date, datetime, time, timedelta
from email import message_from_bytes
from pathlib import Path
from typing import Any

import pytest
from aiosmtpd.smtp import SMTP, Envelope, Session
from sqlalchemy.ext.asyncio import AsyncEngine
from structlog.testing import capture_logs
from tests.factories import add_clients, add_mailing, add_messages, execute, value
from tests.mailserver import Mailbox, mail_server

from mailer.daily_report.schedule import SEND_LEASE, DailyMail
from mailer.dispatch.schedule import JobLimits, jobs
from mailer.errors import StartError
from mailer.gateway.channel import NO_CHANNELS
from mailer.mail.sending import MAX_RETRY_DELAY
from mailer.mail.smtp_config import read_smtp_config
from mailer.settings import Settings
from mailer.worker import serve

DAY = date(2020, 1, 15)
MORNING = datetime(2020, 1, 16, 8, tzinfo=UTC)
"""When the report of `DAY` is due."""
SECOND, MINUTE, A_DAY = timedelta(seconds=1), timedelta(minutes=1), timedelta(days=1)
SENT_DAYS = "SELECT array_agg(day ORDER BY day) FROM daily_report WHERE sent_at IS NOT NULL"
UNAVAILABLE_PORT = 1
"""A port at which no mail server listens."""


@pytest.fixture
def mailbox() -> Mailbox:
    """The mails that the mail server has received."""
    return Mailbox()


@pytest.fixture
async def port(mailbox: Mailbox) -> AsyncIterator[int]:
    """The port of a mail server that puts mails into `mailbox`."""
    async with mail_server(mailbox) as port:
        yield port


def daily_mail(engine: AsyncEngine, port: int) -> DailyMail:
    """Return the daily mail of one worker: at 08:00 UTC, to two recipients."""
    settings = Settings(
        smtp_url=f"smtp://127.0.0.1:{port}", report_recipients="boss@example.org, ops@example.org"
    )
    return DailyMail(engine, read_smtp_config(settings), time(8), "UTC")


async def test_the_report_of_the_previous_day_is_sent_when_due(
    engine: AsyncEngine, mailbox: Mailbox, port: int
) -> None:
    mailing_id = await add_mailing(engine, clients=1)
    await add_messages(engine, mailing_id, await add_clients(engine, 1), "delivered")
    sent_before = (
        "INSERT INTO daily_report (day, leased_until, attempts, sent_at)"
        " VALUES ('2020-01-14', now(), 1, now())"
    )
    await execute(engine, sent_before)
    mail = daily_mail(engine, port)

    await mail.send_due(MORNING - SECOND)
    assert not mailbox.envelopes

    with capture_logs() as logs:
        await mail.send_due(MORNING)
    assert mailbox.mail()["Subject"] == "mailer, 2020-01-15: 1 delivered, 0 not"
    assert await value(engine, SENT_DAYS) == [date(2020, 1, 14), DAY]
    assert logs == [{"event": "report_sent", "log_level": "info", "day": DAY, "recipients": 2}]


async def test_a_report_is_sent_once_by_concurrent_and_later_workers(
    engine: AsyncEngine, mailbox: Mailbox, port: int
) -> None:
    async with asyncio.TaskGroup() as tasks:
        for _ in range(8):
            tasks.create_task(daily_mail(engine, port).send_due(MORNING))
    for minutes in range(0, 24 * 60, 30):  # until the next report is due
        await daily_mail(engine, port).send_due(MORNING + minutes * MINUTE)

    assert len(mailbox.envelopes) == 1


async def test_a_report_is_sent_when_the_mail_server_is_back(
    engine: AsyncEngine, mailbox: Mailbox, port: int
) -> None:
    unavailable = daily_mail(engine, UNAVAILABLE_PORT)
    now = MORNING
    with capture_logs() as logs:
        while now < MORNING + timedelta(hours=2):
            await unavailable.send_due(now)
            now += 20 * SECOND
    for event in logs:
        assert (event["event"], event["day"]) == ("report_failed", DAY)
        assert event["reason"].startswith("the mail server 127.0.0.1:1 did not accept")
        assert "example.org" not in str(event)
    # after 0.5, 1, 2, 4 and 8 minutes, and then every quarter of an hour
    assert len(logs) == 12

    await daily_mail(engine, port).send_due(now + MAX_RETRY_DELAY)

    assert mailbox.mail()["Subject"].startswith("mailer, 2020-01-15")
    assert await value(engine, SENT_DAYS) == [DAY]


async def test_failed_reports_are_sent_oldest_first_for_a_week(
    engine: AsyncEngine, mailbox: Mailbox, port: int
) -> None:
    unavailable = daily_mail(engine, UNAVAILABLE_PORT)
    for days in range(10):
        # each call tries one report: the oldest of those that do not wait for a retry
        for _ in range(days + 1):
            await unavailable.send_due(MORNING + days * A_DAY)

    available = daily_mail(engine, port)
    for _ in range(10):
        await available.send_due(MORNING + 9 * A_DAY + MAX_RETRY_DELAY)

    assert await value(engine, SENT_DAYS) == [DAY + days * A_DAY for days in range(3, 10)]
    assert len(mailbox.envelopes) == 7


async def test_days_on_which_no_worker_ran_get_a_report(
    engine: AsyncEngine, mailbox: Mailbox, port: int
) -> None:
    mail = daily_mail(engine, port)
    await mail.send_due(MORNING)
    for _ in range(9):  # each call sends one report
        await mail.send_due(MORNING + 4 * A_DAY)
    first_days = [DAY + days * A_DAY for days in range(5)]
    assert await value(engine, SENT_DAYS) == first_days
    assert len(mailbox.envelopes) == len(first_days)


async def test_days_on_which_no_worker_ran_get_a_report_for_a_week_only(
    engine: AsyncEngine, mailbox: Mailbox, port: int
) -> None:
    mail = daily_mail(engine, port)
    await mail.send_due(MORNING)
    for _ in range(9):
        await mail.send_due(MORNING + 30 * A_DAY)
    last_week = [DAY + days * A_DAY for days in range(24, 31)]
    assert await value(engine, SENT_DAYS) == [DAY, *last_week]
    assert len(mailbox.envelopes) == 1 + len(last_week)


async def test_a_report_leased_by_another_worker_is_sent_after_the_lease_expires(
    engine: AsyncEngine, mailbox: Mailbox, port: int
) -> None:
    leased = (
        "INSERT INTO daily_report (day, leased_until) VALUES ('2020-01-15', '2020-01-16 08:10Z')"
    )
    await execute(engine, leased)
    mail = daily_mail(engine, port)
    await mail.send_due(MORNING)
    await mail.send_due(MORNING + SEND_LEASE - SECOND)
    assert not mailbox.envelopes

    await mail.send_due(MORNING + SEND_LEASE)
    assert len(mailbox.envelopes) == 1


async def test_a_report_sent_twice_has_the_same_message_id(
    engine: AsyncEngine, mailbox: Mailbox, port: int
) -> None:
    mail = daily_mail(engine, port)
    await mail.send_due(MORNING)
    # as after a crash before it is recorded that the report was sent
    await execute(engine, "UPDATE daily_report SET sent_at = NULL")
    await mail.send_due(MORNING + SEND_LEASE)
    await mail.send_due(MORNING + A_DAY)

    first, repeated, of_next_day = map(message_id, mailbox.envelopes)
    assert repeated == first
    assert of_next_day != first


async def test_a_temporarily_refused_recipient_is_retried_alone(
    engine: AsyncEngine, mailbox: Mailbox, port: int
) -> None:
    mailbox.answers = {"boss@example.org": "450 4.2.0 greylisted"}
    mail = daily_mail(engine, port)
    with capture_logs() as logs:
        await mail.send_due(MORNING)
    assert [envelope.rcpt_tos for envelope in mailbox.envelopes] == [["ops@example.org"]]
    assert await value(engine, SENT_DAYS) is None
    assert [(event["event"], event["recipients"]) for event in logs] == [
        ("report_deferred", 1),
        ("report_sent", 1),
    ]
    assert "example.org" not in str(logs)

    await mail.send_due(MORNING + MAX_RETRY_DELAY)  # still refused
    assert len(mailbox.envelopes) == 1
    mailbox.answers.clear()
    other_worker = daily_mail(engine, port)
    await other_worker.send_due(MORNING + 2 * MAX_RETRY_DELAY)

    first, second = mailbox.envelopes
    assert second.rcpt_tos == ["boss@example.org"]
    assert message_id(first) == message_id(second)
    assert await value(engine, SENT_DAYS) == [DAY]


def message_id(envelope: Envelope) -> str:
    """Return the Message-ID of a mail."""
    assert isinstance(envelope.content, bytes)
    return str(message_from_bytes(envelope.content)["Message-ID"])


async def test_a_permanently_refused_recipient_is_not_retried(
    engine: AsyncEngine, mailbox: Mailbox, port: int
) -> None:
    mailbox.answers = {
        "boss@example.org": "550 5.1.1 <boss@example.org> unknown",
        "ops@example.org": "452 4.2.2 full",
    }
    mail = daily_mail(engine, port)
    with capture_logs() as logs:
        await mail.send_due(MORNING)
    assert {event["event"]: event["codes"] for event in logs} == {
        "report_deferred": [452],
        "report_refused": [550],
    }
    assert "example.org" not in str(logs)
    mailbox.answers = {}
    await mail.send_due(MORNING + MAX_RETRY_DELAY)
    assert [envelope.rcpt_tos for envelope in mailbox.envelopes] == [["ops@example.org"]]
    assert await value(engine, SENT_DAYS) == [DAY]


@pytest.mark.parametrize("answer", ["421 4.3.2 shutting down", "451 4.3.0 try later"])
async def test_after_a_temporary_failure_of_the_server_all_recipients_are_retried(
    engine: AsyncEngine, mailbox: Mailbox, port: int, answer: str
) -> None:
    mailbox.data_answer = answer
    mail = daily_mail(engine, port)
    await mail.send_due(MORNING)
    assert not mailbox.envelopes
    mailbox.data_answer = None
    await mail.send_due(MORNING + MAX_RETRY_DELAY)
    assert len(mailbox.envelopes[0].rcpt_tos) == 2


class SlowMailbox(Mailbox):
    """A mailbox that accepts a mail only when `may_answer` is set."""

    def __init__(self) -> None:
        super().__init__()
        self.has_mail = asyncio.Event()
        self.may_answer = asyncio.Event()

    async def handle_DATA(self, server: SMTP, session: Session, envelope: Envelope) -> str:  # noqa: N802  # aiosmtpd's name
        self.has_mail.set()
        await self.may_answer.wait()
        return await super().handle_DATA(server, session, envelope)


async def test_no_database_connection_is_held_while_the_mail_is_sent(engine: AsyncEngine) -> None:
    mailbox = SlowMailbox()
    async with mail_server(mailbox) as port, asyncio.TaskGroup() as tasks:
        tasks.create_task(daily_mail(engine, port).send_due(MORNING))
        await mailbox.has_mail.wait()
        pool: Any = engine.pool
        assert pool.checkedout() == 0
        mailbox.may_answer.set()


async def test_a_mail_being_sent_is_finished_when_the_worker_stops(engine: AsyncEngine) -> None:
    mailbox = SlowMailbox()
    async with mail_server(mailbox) as port:
        mail = daily_mail(engine, port)
        job = asyncio.create_task(mail.run())
        await mailbox.has_mail.wait()
        job.cancel()  # as the dispatcher does when it stops
        await asyncio.wait([job])
        finishing = asyncio.create_task(mail.finish(max_wait=30))
        mailbox.may_answer.set()
        await finishing

    assert len(mailbox.envelopes) == 1
    assert len(await value(engine, SENT_DAYS)) == 1


async def test_the_example_report_is_written(tmp_path: Path) -> None:
    script = Path(__file__).parents[2] / "docs/pictures/report.py"
    page = tmp_path / "report.html"
    process = await asyncio.create_subprocess_exec(sys.executable, str(script), str(page))
    assert await process.wait() == 0
    assert "attempts_exhausted" in page.read_text()


async def test_the_report_is_a_job_only_if_mail_is_configured(
    engine: AsyncEngine,
) -> None:
    mail = daily_mail(engine, UNAVAILABLE_PORT)
    limits = JobLimits.of(Settings())
    with_mail = {job.name: job.run for job in jobs(engine, NO_CHANNELS, limits, report=mail.run)}
    without_mail = {job.name for job in jobs(engine, NO_CHANNELS, limits, report=None)}
    assert with_mail["send_report"] == mail.run
    assert "send_report" not in without_mail


async def test_recipients_without_a_mail_server_are_a_start_error() -> None:
    """A mail server without recipients of the report is none: notices may be sent."""
    with pytest.raises(StartError, match="MAILER_SMTP_URL is not set"):
        await serve(Settings(auth="none", report_recipients="a@b.org"))
