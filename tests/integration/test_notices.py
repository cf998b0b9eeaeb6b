"""What notices by mail report of ended mailings, with a real mail server."""

from collections.abc import AsyncIterator
from typing import get_args

import pytest
from sqlalchemy.ext.asyncio import AsyncEngine
from structlog.testing import capture_logs
from tests.factories import (
    SETTLED,
    add_clients,
    add_mailing,
    add_messages,
    execute,
    rows,
    value,
)
from tests.integration.notice_parts import (
    ADDRESS,
    DIGEST_OVER,
    PAST_PAUSES,
    add_user,
    end_mailing,
    mails,
    notice_mail,
    report_outage,
    text_of,
    watch,
)
from tests.mailserver import Mailbox, mail_server

from mailer.admin.language import LANGUAGES
from mailer.notice.model import NOTICE_CHOICES, Language


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


async def test_the_audit_log_never_has_the_address(engine: AsyncEngine) -> None:
    await add_user(engine)
    [entry] = await rows(engine, "SELECT * FROM audit WHERE action = 'notices_changed'")
    assert entry["after"] == {"has_mail": True, "notices": sorted(NOTICE_CHOICES)}
    assert "example.org" not in str(entry)


def test_mails_are_in_the_languages_of_the_pages() -> None:
    assert set(get_args(Language)) == LANGUAGES.keys()
