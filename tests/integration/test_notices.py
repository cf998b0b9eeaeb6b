"""Notices by mail: ended and held mailings, gateways in trouble, with a real mail server."""

import asyncio
from collections.abc import AsyncIterator
from datetime import timedelta
from email import message_from_bytes
from email.message import EmailMessage
from email.policy import default
from functools import partial
from typing import Any

import pytest
from sqlalchemy.ext.asyncio import AsyncEngine
from structlog.testing import capture_logs
from tests.factories import (
    SETTLED,
    add_clients,
    add_mailing,
    add_messages,
    create_channels,
    do,
    execute,
    rows,
    value,
)
from tests.mailserver import Mailbox, mail_server

from mailer.access import service
from mailer.access.model import COMMAND_LINE
from mailer.access.users import NewUser
from mailer.admin.notices.mail import compose
from mailer.clock import database_clock
from mailer.gateway.channel import Channels
from mailer.mail.smtp_config import read_smtp_config
from mailer.notice import recipients
from mailer.notice.delivery import NoticeMail
from mailer.notice.model import NOTICE_CHOICES, MailTooSoonError, NoticeSettings
from mailer.notice.watch import NoticeWatch
from mailer.settings import Settings

ADDRESS = "ann@example.org"
UNAVAILABLE_PORT = 1
"""A port at which no mail server listens."""
PAST_PAUSES = "UPDATE notice_recipient SET next_mail_at = next_mail_at - interval '1 hour'"
DIGEST_OVER = "UPDATE notice_ended_mailing SET ended_at = ended_at - interval '3 min'"


@pytest.fixture(autouse=True)
def _cheap_passwords(cheap_passwords: None) -> None:
    """Hash passwords cheaply."""


@pytest.fixture
def mailbox() -> Mailbox:
    """The mails that the mail server has received."""
    return Mailbox()


@pytest.fixture
async def port(mailbox: Mailbox) -> AsyncIterator[int]:
    """The port of a mail server that puts mails into `mailbox`."""
    async with mail_server(mailbox) as port:
        yield port


async def add_user(engine: AsyncEngine, name: str = "ann", **settings: Any) -> int:
    """Create a user who wants all notices at name@example.org, unless `settings` differ."""
    new = NewUser(name=name, role="viewer", password="correct horse battery")  # noqa: S106  # used in tests alone
    user = await service.create_user(engine, new, COMMAND_LINE)
    values = {
        "mail": f"{name}@example.org",
        "kinds": list(NOTICE_CHOICES),
        "language": "en",
        "time_zone": "UTC",
    } | settings
    wanted = NoticeSettings(**values)
    await do(engine, lambda database: recipients.save(database, user.id, wanted, COMMAND_LINE))
    return user.id


def notice_mail(engine: AsyncEngine, port: int, public_url: str | None = None) -> NoticeMail:
    """Return the job of one worker that sends notices."""
    smtp = read_smtp_config(Settings(smtp_url=f"smtp://127.0.0.1:{port}"), needs_recipients=False)
    return NoticeMail(engine, smtp, partial(compose, public_url=public_url))


async def watch(engine: AsyncEngine, channels: Channels | None = None) -> None:
    """Run the job of a worker that writes notices; by default with a gateway that works."""
    await NoticeWatch(engine, create_channels() if channels is None else channels).run()


def mails(mailbox: Mailbox) -> list[EmailMessage]:
    """Return the mails that the server has received."""
    received = []
    for envelope in mailbox.envelopes:
        assert isinstance(envelope.content, bytes)
        mail = message_from_bytes(envelope.content, policy=default)
        assert isinstance(mail, EmailMessage)
        received.append(mail)
    return received


def text_of(mail: EmailMessage, kind: str = "plain") -> str:
    """Return the plain text of a mail, or its HTML."""
    part = mail.get_body((kind,))
    assert part is not None
    return str(part.get_content())


async def end_mailing(engine: AsyncEngine, failed: int = 2, name: str | None = "Spring") -> int:
    """End a mailing with one delivered message and some rejected ones; return its id."""
    clients = await add_clients(engine, failed + 1)
    mailing_id = await add_mailing(engine, clients=failed + 1)
    await add_messages(engine, mailing_id, clients[:1], "delivered")
    await add_messages(engine, mailing_id, clients[1:], "undelivered", "rejected_400")
    named = f"name = '{name}', " if name else ""
    await execute(engine, f"UPDATE mailing SET {named}{SETTLED} WHERE id = {mailing_id}")  # noqa: S608  # a number
    return mailing_id


async def report_outage(engine: AsyncEngine, gateway: str, minutes: int) -> None:
    """Store that a worker has not used a gateway for some minutes."""
    await execute(
        engine,
        "INSERT INTO gateway_outage (gateway, reason, since)"  # noqa: S608  # constants
        f" VALUES ('{gateway}', 'http_503', now() - interval '{minutes} min')"
        " ON CONFLICT (gateway) DO NOTHING",
    )


async def pass_minutes(engine: AsyncEngine, minutes: int) -> None:
    """Act as if so many minutes had passed for all trouble and all mails."""
    earlier = f"- interval '{minutes} min'"
    await execute(
        engine,
        f"UPDATE notice_trouble SET since = since {earlier},"  # noqa: S608  # a number
        f" absent_since = absent_since {earlier}, reported_at = reported_at {earlier}",
        f"UPDATE notice_recipient SET next_mail_at = next_mail_at {earlier},"  # noqa: S608  # a number
        f" attempted_at = attempted_at {earlier}",
    )


async def test_a_mailing_that_ends_with_unreached_clients_is_mailed_with_reasons(
    engine: AsyncEngine, mailbox: Mailbox, port: int
) -> None:
    await add_user(engine)
    mailing_id = await end_mailing(engine)
    sender = notice_mail(engine, port, "https://sms.example/")
    await watch(engine)  # others may end in the next two minutes
    await sender.run()
    assert not mailbox.envelopes

    await execute(engine, DIGEST_OVER)
    await watch(engine)
    with capture_logs() as logs:
        await sender.run()
    [mail] = mails(mailbox)
    assert mail["Subject"] == "mailer: Mailing “Spring” has ended: 2 of 3 clients were not reached"
    assert mail["To"] == ADDRESS
    assert mail["Auto-Submitted"] == "auto-generated"
    assert mail["List-Id"] == "mailer <notices.127.0.0.1>"
    assert mail["List-Unsubscribe"] == "<https://sms.example/profile>"
    assert "2 undelivered: the gateway rejected it with 400" in text_of(mail)
    assert f"https://sms.example/mailings/{mailing_id}" in text_of(mail)
    assert f'<a href="https://sms.example/mailings/{mailing_id}">' in text_of(mail, "html")
    assert [entry["event"] for entry in logs] == ["notice_sent"]
    assert "example.org" not in str(logs)

    for _ in range(3):
        await watch(engine)
        await execute(engine, PAST_PAUSES)
        await sender.run()
    assert len(mailbox.envelopes) == 1
    assert await value(engine, "SELECT count(*) FROM notice") == 0


async def test_a_mail_has_no_phone_and_no_text_of_a_message(
    engine: AsyncEngine, mailbox: Mailbox, port: int
) -> None:
    await add_user(engine)
    mailing_id = await end_mailing(engine, name=None)
    await execute(engine, DIGEST_OVER, "UPDATE mailing SET text = 'Secret offer'")
    await watch(engine)
    await notice_mail(engine, port).run()
    [mail] = mails(mailbox)
    content = f"{mail['Subject']} {text_of(mail)} {text_of(mail, 'html')}"
    assert f"Mailing {mailing_id} has ended" in content
    assert "Secret" not in content
    phones = await rows(engine, "SELECT phone FROM client")
    assert not any(str(row["phone"]) in content for row in phones)


async def test_a_mail_is_in_the_language_and_the_time_zone_of_the_user(
    engine: AsyncEngine, mailbox: Mailbox, port: int
) -> None:
    await add_user(engine, language="ru", time_zone="Asia/Kolkata")
    await end_mailing(engine)
    await execute(engine, DIGEST_OVER)
    await watch(engine)
    await notice_mail(engine, port).run()
    [mail] = mails(mailbox)
    assert "Рассылка «Spring» закончилась: не получили 2 из 3" in mail["Subject"]
    assert "Asia/Kolkata" in text_of(mail)


async def test_a_mailing_that_reached_everybody_is_not_mailed(
    engine: AsyncEngine, mailbox: Mailbox, port: int
) -> None:
    await add_user(engine)
    await end_mailing(engine, failed=0)
    opted_out = await add_clients(engine, 1)
    mailing_id = await add_mailing(engine, clients=1)
    await add_messages(engine, mailing_id, opted_out, "cancelled", "opted_out")
    await execute(engine, f"UPDATE mailing SET {SETTLED}", DIGEST_OVER)  # noqa: S608  # constants
    await watch(engine)
    await notice_mail(engine, port).run()
    assert not mailbox.envelopes
    assert await value(engine, "SELECT count(*) FROM notice") == 0


async def test_mailings_that_end_together_are_in_one_mail(
    engine: AsyncEngine, mailbox: Mailbox, port: int
) -> None:
    await add_user(engine)
    for number in range(25):
        await end_mailing(engine, failed=1, name=f"Sale {number}")
    await execute(engine, DIGEST_OVER)
    await watch(engine)
    await notice_mail(engine, port).run()
    [mail] = mails(mailbox)
    assert text_of(mail).count("has ended: 1 of 2 clients") == 20
    assert "5 other mailings have ended without reaching everybody" in text_of(mail)


async def test_nothing_is_stored_while_nobody_wants_notices(engine: AsyncEngine) -> None:
    await add_user(engine, kinds=["mailing_held"])
    await end_mailing(engine)
    await report_outage(engine, "main", minutes=30)
    await watch(engine)
    for table in ("notice", "notice_ended_mailing", "notice_trouble"):
        assert await value(engine, f"SELECT count(*) FROM {table}") == 0  # noqa: S608  # a constant


async def test_each_mail_is_sent_once_by_one_of_several_workers(
    engine: AsyncEngine, mailbox: Mailbox, port: int
) -> None:
    for name in ("ann", "bob"):
        await add_user(engine, name)
    await end_mailing(engine)
    await execute(engine, DIGEST_OVER)
    async with asyncio.TaskGroup() as tasks:
        for _ in range(6):
            tasks.create_task(watch(engine))
    async with asyncio.TaskGroup() as tasks:
        for _ in range(6):
            tasks.create_task(notice_mail(engine, port).run())
    assert sorted(mail["To"] for mail in mails(mailbox)) == [ADDRESS, "bob@example.org"]


async def test_a_mail_is_tried_again_with_growing_pauses_and_nothing_is_lost(
    engine: AsyncEngine, mailbox: Mailbox, port: int
) -> None:
    user_id = await add_user(engine)
    await end_mailing(engine)
    await execute(engine, DIGEST_OVER)
    await watch(engine)
    unavailable = notice_mail(engine, UNAVAILABLE_PORT)
    with capture_logs() as logs:
        for _ in range(3):
            await unavailable.run()
            await unavailable.run()  # not due yet
            await execute(engine, PAST_PAUSES)
    assert [entry["event"] for entry in logs] == ["notice_failed"] * 3
    assert [entry["again_in"] for entry in logs] == [30, 60, 120]
    assert "example.org" not in str(logs)
    recipient = await do(engine, lambda database: recipients.get(database, user_id))
    assert recipient is not None
    assert (recipient.failures, recipient.waiting) == (3, 1)
    assert recipient.failure is not None
    assert "did not accept the mail" in recipient.failure

    await notice_mail(engine, port).run()
    assert len(mailbox.envelopes) == 1
    recipient = await do(engine, lambda database: recipients.get(database, user_id))
    assert recipient is not None
    assert (recipient.failures, recipient.failure, recipient.waiting) == (0, None, 0)


async def test_a_mail_that_a_crash_repeats_has_the_same_message_id(
    engine: AsyncEngine, mailbox: Mailbox, port: int
) -> None:
    await add_user(engine)
    await end_mailing(engine)
    await execute(engine, DIGEST_OVER)
    await watch(engine)
    kept = await rows(engine, "SELECT * FROM notice")
    await notice_mail(engine, port).run()
    # as after a crash before it is recorded that the mail was sent
    await execute(
        engine,
        "INSERT INTO notice (id, user_id, kind, data) OVERRIDING SYSTEM VALUE VALUES"  # noqa: S608  # a row of ours
        f" ({kept[0]['id']}, {kept[0]['user_id']}, 'mailing_unreached',"
        f""" '{{"ids": {kept[0]["data"]["ids"]}}}')""",
        f"UPDATE notice_recipient SET batch_until = {kept[0]['id']}, next_mail_at = now()",  # noqa: S608  # a number
    )
    await end_mailing(engine, name="Later")
    await execute(engine, DIGEST_OVER)
    await watch(engine)
    await notice_mail(engine, port).run()
    await execute(engine, PAST_PAUSES)
    await notice_mail(engine, port).run()
    first, repeated, later = mails(mailbox)
    assert repeated["Message-ID"] == first["Message-ID"] != later["Message-ID"]
    assert text_of(repeated) == text_of(first)
    assert "Later" in text_of(later)


async def test_a_refused_address_is_not_tried_again_for_the_same_notices(
    engine: AsyncEngine, mailbox: Mailbox, port: int
) -> None:
    user_id = await add_user(engine)
    mailbox.answers = {ADDRESS: "550 5.1.1 no such user"}
    await end_mailing(engine)
    await execute(engine, DIGEST_OVER)
    await watch(engine)
    with capture_logs() as logs:
        await notice_mail(engine, port).run()
    assert [(entry["event"], entry["code"]) for entry in logs] == [("notice_refused", 550)]
    recipient = await do(engine, lambda database: recipients.get(database, user_id))
    assert recipient is not None
    assert (recipient.failure, recipient.waiting) == ("smtp_550", 0)
    summary = await do(engine, recipients.summarize)
    assert (summary.recipients, summary.failing) == (1, 1)


async def test_notices_that_cannot_be_mailed_expire(engine: AsyncEngine) -> None:
    await add_user(engine)
    await end_mailing(engine)
    await execute(engine, DIGEST_OVER)
    await watch(engine)
    await execute(engine, "UPDATE notice SET created_at = now() - interval '73 hours'")
    with capture_logs() as logs:
        await watch(engine)
    assert [(entry["event"], entry["notices"]) for entry in logs] == [("notices_expired", 1)]
    assert await value(engine, "SELECT count(*) FROM notice") == 0


async def test_a_gateway_is_mailed_when_it_was_out_for_minutes_and_when_it_is_back(
    engine: AsyncEngine, mailbox: Mailbox, port: int
) -> None:
    await add_user(engine)
    sender = notice_mail(engine, port, "https://sms.example")
    await report_outage(engine, "main", minutes=4)
    await watch(engine)
    await sender.run()
    assert not mailbox.envelopes

    await pass_minutes(engine, 1)
    await watch(engine)
    await sender.run()
    [down] = mails(mailbox)
    assert down["Subject"] == "mailer: Gateway main is out"
    assert "the gateway answered 503" in text_of(down)
    assert "https://sms.example/gateways/main" in text_of(down)

    await execute(engine, "DELETE FROM gateway_outage")
    await watch(engine)
    await pass_minutes(engine, 3)
    await watch(engine)
    await pass_minutes(engine, 5)
    await sender.run()
    assert mails(mailbox)[1]["Subject"] == "mailer: Gateway main works again"


async def test_a_gateway_that_flaps_is_mailed_once_an_hour_at_most(
    engine: AsyncEngine, mailbox: Mailbox, port: int
) -> None:
    await add_user(engine)
    sender = notice_mail(engine, port)
    for _ in range(60):  # down and up each minute, for two hours
        await report_outage(engine, "main", minutes=0)
        await watch(engine)
        await pass_minutes(engine, 1)
        await sender.run()
        await execute(engine, "DELETE FROM gateway_outage")
        await watch(engine)
        await pass_minutes(engine, 1)
        await sender.run()
    assert [mail["Subject"] for mail in mails(mailbox)] == ["mailer: Gateway main is out"]

    mailbox.envelopes.clear()
    for _ in range(12):  # down for ten minutes and up for ten, for four hours
        for is_down in (True, False):
            for _ in range(10):
                if is_down:
                    await report_outage(engine, "main", minutes=0)
                await watch(engine)
                await pass_minutes(engine, 1)
                await sender.run()
            await execute(engine, "DELETE FROM gateway_outage")
    subjects = [mail["Subject"] for mail in mails(mailbox)]
    assert subjects.count("mailer: Gateway main is out") <= 4
    assert subjects.count("mailer: Gateway main works again") <= 5


async def test_a_paused_gateway_is_no_trouble(engine: AsyncEngine) -> None:
    await add_user(engine)
    await report_outage(engine, "main", minutes=30)
    await execute(engine, "UPDATE gateway_outage SET reason = 'gateway_paused'")
    await watch(engine)
    assert await value(engine, "SELECT count(*) FROM notice") == 0


async def test_a_held_mailing_is_mailed_after_some_minutes_with_the_reason(
    engine: AsyncEngine, mailbox: Mailbox, port: int
) -> None:
    await add_user(engine)
    now = database_clock.now()
    mailing_id = await add_mailing(
        engine, clients=1, start=now - timedelta(hours=1), lasts=timedelta(hours=5)
    )
    clients = await add_clients(engine, 1)
    await add_messages(engine, mailing_id, clients, "scheduled")
    nothing_configured = Channels()
    sender = notice_mail(engine, port, "https://sms.example")
    await watch(engine, nothing_configured)
    await sender.run()
    assert not mailbox.envelopes

    await pass_minutes(engine, 5)
    await watch(engine, nothing_configured)
    await watch(engine, nothing_configured)
    await sender.run()
    [mail] = mails(mailbox)
    assert mail["Subject"] == f"mailer: Mailing {mailing_id} is held"
    assert "No gateway is configured, so nothing is sent." in text_of(mail)
    assert "The mailing ends at" in text_of(mail)


async def test_a_mailing_that_was_held_for_a_moment_is_not_mailed(engine: AsyncEngine) -> None:
    await add_user(engine)
    start = database_clock.now() - timedelta(hours=1)
    mailing_id = await add_mailing(engine, clients=1, start=start)
    await add_messages(engine, mailing_id, await add_clients(engine, 1), "scheduled")
    await watch(engine, Channels())
    await watch(engine)
    await pass_minutes(engine, 3)
    await watch(engine)
    await watch(engine, Channels())
    assert await value(engine, "SELECT count(*) FROM notice") == 0


async def test_a_disabled_user_gets_no_mail(
    engine: AsyncEngine, mailbox: Mailbox, port: int
) -> None:
    user_id = await add_user(engine)
    await end_mailing(engine)
    await execute(engine, DIGEST_OVER)
    await watch(engine)
    await execute(engine, f"UPDATE app_user SET disabled_at = now() WHERE id = {user_id}")  # noqa: S608  # a number
    await notice_mail(engine, port).run()
    assert not mailbox.envelopes


async def test_a_restored_database_sends_no_notices_until_it_may_send(
    engine: AsyncEngine, mailbox: Mailbox, port: int
) -> None:
    await add_user(engine)
    await end_mailing(engine)
    await execute(engine, DIGEST_OVER)
    await watch(engine)
    hold = "UPDATE origin SET held_since = {}, written_by = pg_current_xact_id()::xid::text::bigint"
    await execute(engine, "SELECT update_origin()", hold.format("now()"))
    await notice_mail(engine, port).run()
    assert not mailbox.envelopes
    await execute(engine, hold.format("NULL"))
    await notice_mail(engine, port).run()
    assert len(mailbox.envelopes) == 1


async def test_a_test_mail_is_sent_at_once_and_once_a_minute_at_most(
    engine: AsyncEngine, mailbox: Mailbox, port: int
) -> None:
    user_id = await add_user(engine)

    async def add_test() -> None:
        await do(engine, lambda database: recipients.add_test(database, user_id, COMMAND_LINE))

    await add_test()
    with pytest.raises(MailTooSoonError):
        await add_test()
    await notice_mail(engine, port).run()
    [mail] = mails(mailbox)
    assert mail["Subject"] == "mailer: This is a test mail"
    with pytest.raises(MailTooSoonError):
        await add_test()
    await pass_minutes(engine, 2)
    await add_test()


async def test_a_new_address_gets_what_could_not_be_sent_to_the_old_one(
    engine: AsyncEngine, mailbox: Mailbox, port: int
) -> None:
    user_id = await add_user(engine)
    await end_mailing(engine)
    await execute(engine, DIGEST_OVER)
    await watch(engine)
    await notice_mail(engine, UNAVAILABLE_PORT).run()
    wanted = NoticeSettings(mail="new@example.org", kinds=[], language="en", time_zone="UTC")
    await do(engine, lambda database: recipients.save(database, user_id, wanted, COMMAND_LINE))
    await notice_mail(engine, port).run()
    [mail] = mails(mailbox)
    assert mail["To"] == "new@example.org"


async def test_the_audit_log_never_has_the_address(engine: AsyncEngine) -> None:
    await add_user(engine)
    [entry] = await rows(engine, "SELECT * FROM audit WHERE action = 'notices_changed'")
    assert entry["after"] == {"has_mail": True, "notices": sorted(NOTICE_CHOICES)}
    assert "example.org" not in str(entry)
