"""Sending notices: once, again after a failure, and never lost."""

import asyncio
from collections.abc import AsyncIterator

import pytest
from sqlalchemy.ext.asyncio import AsyncEngine
from structlog.testing import capture_logs
from tests.factories import (
    do,
    execute,
    rows,
    value,
)
from tests.integration.notice_parts import (
    ADDRESS,
    DIGEST_OVER,
    PAST_PAUSES,
    UNAVAILABLE_PORT,
    add_user,
    end_mailing,
    mails,
    notice_mail,
    pass_minutes,
    text_of,
    watch,
)
from tests.mailserver import Mailbox, mail_server

from mailer.access.model import COMMAND_LINE
from mailer.dispatch.schedule import JobLimits, jobs
from mailer.gateway.channel import Channels
from mailer.notice import queue, recipients
from mailer.notice.model import MailTooSoonError, NoticeSettings
from mailer.settings import Settings


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


async def test_a_test_mail_does_not_end_the_lease_of_a_mail_that_is_being_sent(
    engine: AsyncEngine, mailbox: Mailbox, port: int
) -> None:
    user_id = await add_user(engine)
    await end_mailing(engine)
    await execute(engine, DIGEST_OVER)
    await watch(engine)
    claim = await do(engine, queue.claim)
    assert claim is not None
    await pass_minutes(engine, 2)  # the worker still sends it
    await do(engine, lambda database: recipients.add_test(database, user_id, COMMAND_LINE))
    await notice_mail(engine, port).run()
    assert not mailbox.envelopes
    await pass_minutes(engine, 8)
    await notice_mail(engine, port).run()
    assert len(mailbox.envelopes) == 1


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


async def test_notices_are_written_always_and_sent_only_with_a_mail_server(
    engine: AsyncEngine,
) -> None:
    """So nothing is lost while the mail server is being configured."""
    mail, limits = notice_mail(engine, UNAVAILABLE_PORT), JobLimits.of(Settings())
    with_mail = {
        job.name: job.run for job in jobs(engine, Channels(), limits, None, notices=mail.run)
    }
    without_mail = {job.name for job in jobs(engine, Channels(), limits, None)}
    assert with_mail["send_notices"] == mail.run
    assert "watch_notices" in with_mail.keys() & without_mail
    assert "send_notices" not in without_mail
