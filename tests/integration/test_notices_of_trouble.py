"""Notices by mail of gateways in trouble and held mailings, with a real mail server."""

from collections.abc import AsyncIterator
from datetime import timedelta

import pytest
from sqlalchemy.ext.asyncio import AsyncEngine
from tests.factories import (
    add_clients,
    add_mailing,
    add_messages,
    execute,
    value,
)
from tests.integration.notice_parts import (
    add_user,
    mails,
    notice_mail,
    pass_minutes,
    report_outage,
    text_of,
    watch,
)
from tests.mailserver import Mailbox, mail_server

from mailer.clock import database_clock
from mailer.gateway.channel import Channels


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
