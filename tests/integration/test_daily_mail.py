"""The daily report that goes out by itself, to a real mail server."""

import asyncio
import sys
from collections.abc import AsyncIterator
from datetime import UTC, date, datetime, timedelta
from email import message_from_bytes
from pathlib import Path
from typing import Any

import msgspec
import pytest
from aiosmtpd.smtp import SMTP, Envelope, Session
from sqlalchemy.ext.asyncio import AsyncEngine
from structlog.testing import capture_logs
from tests.mailserver import Mailbox, mail_server
from tests.sample import add_clients, add_mailing, add_messages, execute, value

from mailer.app import serve
from mailer.dispatch.schedule import jobs
from mailer.errors import StartError
from mailer.report.daily_mail import LEASE, LONGEST_PAUSE, DailyMail
from mailer.report.mail import post_of
from mailer.settings import Settings

DAY = date(2020, 1, 15)
MORNING = datetime(2020, 1, 16, 8, tzinfo=UTC)
"""When the day's report is due."""
SECOND, MINUTE, A_DAY = timedelta(seconds=1), timedelta(minutes=1), timedelta(days=1)
SENT = "SELECT array_agg(day ORDER BY day) FROM report WHERE sent_at IS NOT NULL"


@pytest.fixture
def mailbox() -> Mailbox:
    return Mailbox()


@pytest.fixture
async def port(mailbox: Mailbox) -> AsyncIterator[int]:
    async with mail_server(mailbox) as port:
        yield port


def daily_mail(engine: AsyncEngine, port: int) -> DailyMail:
    settings = Settings(
        smtp_url=f"smtp://127.0.0.1:{port}", report_recipients="boss@example.org, ops@example.org"
    )
    return DailyMail(engine, post_of(settings), settings)


async def test_report_of_the_day_before_is_sent_when_it_is_due(
    engine: AsyncEngine, mailbox: Mailbox, port: int
) -> None:
    mailing_id = await add_mailing(engine, clients=1)
    await add_messages(engine, mailing_id, await add_clients(engine, 1), "delivered")
    await execute(engine, "INSERT INTO report VALUES ('2020-01-14', DEFAULT, now(), 1, now())")
    mail = daily_mail(engine, port)

    await mail.send_due(MORNING - SECOND)
    assert not mailbox.envelopes

    with capture_logs() as logs:
        await mail.send_due(MORNING)
    assert mailbox.mail()["Subject"] == "mailer, 2020-01-15: 1 delivered, 0 not"
    assert await value(engine, SENT) == [date(2020, 1, 14), DAY]
    assert logs == [{"event": "report_sent", "log_level": "info", "day": DAY, "recipients": 2}]


async def test_report_is_sent_once_by_many_processes_at_once_and_by_those_that_start_later(
    engine: AsyncEngine, mailbox: Mailbox, port: int
) -> None:
    async with asyncio.TaskGroup() as tasks:
        for _ in range(8):
            tasks.create_task(daily_mail(engine, port).send_due(MORNING))
    for later in range(0, 24 * 60, 30):
        await daily_mail(engine, port).send_due(MORNING + later * MINUTE)

    assert len(mailbox.envelopes) == 1


async def test_report_is_sent_later_when_the_mail_server_was_away(
    engine: AsyncEngine, mailbox: Mailbox, port: int
) -> None:
    away = daily_mail(engine, 1)
    tries, now = 0, MORNING
    while now < MORNING + timedelta(hours=2):
        with capture_logs() as logs:
            await away.send_due(now)
        for event in logs:
            assert (event["event"], event["day"]) == ("report_failed", DAY)
            assert event["reason"].startswith("the mail server 127.0.0.1:1 did not take")
            assert "example.org" not in str(event)
            tries += 1
        now += 20 * SECOND
    assert 8 <= tries <= 15

    await daily_mail(engine, port).send_due(now + LONGEST_PAUSE)

    assert mailbox.mail()["Subject"].startswith("mailer, 2020-01-15")
    assert await value(engine, SENT) == [DAY]


async def test_days_that_were_missed_are_sent_oldest_first_for_a_week(
    engine: AsyncEngine, mailbox: Mailbox, port: int
) -> None:
    for days in range(10):
        await daily_mail(engine, 1).send_due(MORNING + days * A_DAY)
        # the oldest is tried first, and those that wait leave room for the newest
        for again in range(days):
            await daily_mail(engine, 1).send_due(MORNING + days * A_DAY + again * SECOND)

    mail = daily_mail(engine, port)
    for _ in range(10):
        await mail.send_due(MORNING + 9 * A_DAY + LONGEST_PAUSE)

    assert await value(engine, SENT) == [DAY + days * A_DAY for days in range(3, 10)]
    assert len(mailbox.envelopes) == 7


async def test_days_on_which_no_process_ran_get_their_report_too(
    engine: AsyncEngine, mailbox: Mailbox, port: int
) -> None:
    mail = daily_mail(engine, port)
    await mail.send_due(MORNING)
    for _ in range(9):
        await mail.send_due(MORNING + 4 * A_DAY)
    assert await value(engine, SENT) == [DAY + days * A_DAY for days in range(5)]

    for _ in range(9):
        await mail.send_due(MORNING + 30 * A_DAY)
    last_week = [DAY + days * A_DAY for days in range(24, 31)]
    assert (await value(engine, SENT))[5:] == last_week
    assert len(mailbox.envelopes) == 12


async def test_report_that_another_process_sends_is_left_to_it_until_its_lease_ends(
    engine: AsyncEngine, mailbox: Mailbox, port: int
) -> None:
    taken = "INSERT INTO report (day, taken_until) VALUES ('2020-01-15', '2020-01-16 08:10Z')"
    await execute(engine, taken)
    mail = daily_mail(engine, port)
    await mail.send_due(MORNING)
    await mail.send_due(MORNING + LEASE - SECOND)
    assert not mailbox.envelopes

    await mail.send_due(MORNING + LEASE)
    assert len(mailbox.envelopes) == 1


async def test_report_that_comes_twice_has_one_message_id(
    engine: AsyncEngine, mailbox: Mailbox, port: int
) -> None:
    mail = daily_mail(engine, port)
    await mail.send_due(MORNING)
    first = mailbox.mail()["Message-ID"]
    await execute(engine, "UPDATE report SET sent_at = NULL")  # crashed before it was written
    mailbox.envelopes.clear()
    await mail.send_due(MORNING + LEASE)
    assert mailbox.mail()["Message-ID"] == first
    mailbox.envelopes.clear()
    await mail.send_due(MORNING + A_DAY)
    assert mailbox.mail()["Message-ID"] != first


async def test_recipient_refused_for_now_is_tried_again_and_the_others_get_it_once(
    engine: AsyncEngine, mailbox: Mailbox, port: int
) -> None:
    mailbox.answers = {"boss@example.org": "450 4.2.0 greylisted"}
    mail = daily_mail(engine, port)
    with capture_logs() as logs:
        await mail.send_due(MORNING)
    assert [envelope.rcpt_tos for envelope in mailbox.envelopes] == [["ops@example.org"]]
    assert await value(engine, SENT) is None
    assert [(event["event"], event["recipients"]) for event in logs] == [
        ("report_deferred", 1),
        ("report_sent", 1),
    ]
    assert "example.org" not in str(logs)

    await mail.send_due(MORNING + LONGEST_PAUSE)  # still refused
    assert len(mailbox.envelopes) == 1
    mailbox.answers.clear()
    await daily_mail(engine, port).send_due(MORNING + 2 * LONGEST_PAUSE)  # any process goes on

    first, second = mailbox.envelopes
    assert second.rcpt_tos == ["boss@example.org"]
    assert message_id(first) == message_id(second)
    assert await value(engine, SENT) == [DAY]


def message_id(envelope: Envelope) -> str:
    assert isinstance(envelope.content, bytes)
    return str(message_from_bytes(envelope.content)["Message-ID"])


async def test_recipient_refused_for_good_is_given_up(
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
    await mail.send_due(MORNING + LONGEST_PAUSE)
    assert [envelope.rcpt_tos for envelope in mailbox.envelopes] == [["ops@example.org"]]
    assert await value(engine, SENT) == [DAY]


@pytest.mark.parametrize("answer", ["421 4.3.2 shutting down", "451 4.3.0 try later"])
async def test_server_that_breaks_off_is_tried_again_for_all(
    engine: AsyncEngine, mailbox: Mailbox, port: int, answer: str
) -> None:
    mailbox.data_answer = answer
    mail = daily_mail(engine, port)
    await mail.send_due(MORNING)
    assert not mailbox.envelopes
    mailbox.data_answer = None
    await mail.send_due(MORNING + LONGEST_PAUSE)
    assert len(mailbox.envelopes[0].rcpt_tos) == 2


class SlowMailbox(Mailbox):
    """Takes a mail when it is told to."""

    def __init__(self) -> None:
        super().__init__()
        self.is_asked = asyncio.Event()
        self.may_answer = asyncio.Event()

    async def handle_DATA(self, server: SMTP, session: Session, envelope: Envelope) -> str:  # noqa: N802  # aiosmtpd's name
        self.is_asked.set()
        await self.may_answer.wait()
        return await super().handle_DATA(server, session, envelope)


async def test_no_connection_is_held_while_the_mail_goes_out(engine: AsyncEngine) -> None:
    mailbox = SlowMailbox()
    async with mail_server(mailbox) as port, asyncio.TaskGroup() as tasks:
        tasks.create_task(daily_mail(engine, port).send_due(MORNING))
        await mailbox.is_asked.wait()
        pool: Any = engine.pool
        assert pool.checkedout() == 0
        mailbox.may_answer.set()


async def test_mail_on_its_way_is_finished_when_the_process_stops(engine: AsyncEngine) -> None:
    mailbox = SlowMailbox()
    async with mail_server(mailbox) as port:
        mail = daily_mail(engine, port)
        job = asyncio.create_task(mail.run())
        await mailbox.is_asked.wait()
        job.cancel()  # as the scheduler does
        await asyncio.wait([job])
        finishing = asyncio.create_task(mail.finish(30))
        mailbox.may_answer.set()
        await finishing

    assert len(mailbox.envelopes) == 1
    assert await value(engine, "SELECT count(*) FROM report WHERE sent_at IS NOT NULL") == 1


async def test_example_page_shows_its_picture(tmp_path: Path) -> None:
    script = Path(__file__).parents[2] / "docs/pictures/report.py"
    page = tmp_path / "report.html"
    process = await asyncio.create_subprocess_exec(sys.executable, str(script), str(page))
    assert await process.wait() == 0
    assert 'src="data:image/png;base64,iVBORw0KGgo' in page.read_text()
    assert "attempts_exhausted" in page.read_text()


async def test_report_is_a_job_where_mail_is_set_and_none_where_not(
    engine: AsyncEngine,
) -> None:
    mail = daily_mail(engine, 1)
    assert [job.run for job in jobs(engine, Settings(), mail.run) if job.name == "report"] == [
        mail.run
    ]
    assert not [job for job in jobs(engine, Settings(), None) if job.name == "report"]


@pytest.mark.parametrize(
    ("given", "missing"),
    [
        ({"smtp_url": "smtp://mail"}, "MAILER_REPORT_RECIPIENTS is not set"),
        ({"report_recipients": "a@b.org"}, "MAILER_SMTP_URL is not set"),
    ],
)
async def test_half_of_what_mail_needs_stops_the_start(given: dict[str, str], missing: str) -> None:
    with pytest.raises(StartError, match=missing):
        await serve(msgspec.structs.replace(Settings(auth="none"), **given))
