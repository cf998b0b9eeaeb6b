"""Notices by mail with a real mailer process and a real mail server."""

from collections.abc import AsyncIterator
from email import message_from_bytes
from email.policy import default

import pytest
from tests.mailserver import Mailbox, mail_server
from tests.processes import Gateways, MailerProcess, Mailers, until_true

from mailer.sample_data import new_mailing

DIGEST_OVER = """
    WITH old AS (
        UPDATE notice_ended_mailing SET ended_at = ended_at - interval '3 min' RETURNING 1)
    SELECT count(*) FROM old"""
"""Acts as if the ended mailings had waited for others; returns how many there are."""


@pytest.fixture
def mailbox() -> Mailbox:
    """The mails that the mail server has received."""
    return Mailbox()


@pytest.fixture
async def mail_port(mailbox: Mailbox) -> AsyncIterator[int]:
    """The port of a mail server that puts mails into `mailbox`."""
    async with mail_server(mailbox) as port:
        yield port


def subjects(mailbox: Mailbox) -> list[str]:
    """Return the subjects of the mails that the server has received."""
    contents = [envelope.content for envelope in mailbox.envelopes]
    return [
        message_from_bytes(content, policy=default)["Subject"]
        for content in contents
        if isinstance(content, bytes)
    ]


ADD_USER = """
    WITH added AS (
        INSERT INTO app_user (name, role, password_hash) VALUES ('ann', 'viewer', 'none')
        RETURNING id)
    INSERT INTO notice_recipient (user_id, address, kinds, language, time_zone)
    SELECT id, 'ann@example.org', '{mailing_unreached}', 'en', 'UTC' FROM added
    RETURNING user_id"""
"""Creates a user who wants to know of mailings that do not reach everybody."""


async def test_a_mailing_with_rejected_messages_is_mailed_by_one_of_two_processes(
    start_gateway: Gateways,
    start_mailer: Mailers,
    mailbox: Mailbox,
    mail_port: int,
) -> None:
    gateway = await start_gateway(reject_rate=1.0)
    settings = {"smtp_url": f"smtp://127.0.0.1:{mail_port}", "public_url": "https://sms.example"}
    first: MailerProcess = await start_mailer(**gateway.settings, **settings)
    await start_mailer(**gateway.settings, **settings)
    await first.query(ADD_USER)
    for number in range(3):
        await first.call("POST", "/clients", {"phone": f"7916000000{number}"}, 201)
    payload = new_mailing(name="Sale", client_filter=None)
    mailing = await first.call("POST", "/mailings", payload, 201)

    async def has_ended() -> bool:
        return bool(await first.query(DIGEST_OVER))

    await until_true(has_ended)

    async def has_mail() -> bool:
        return bool(mailbox.envelopes)

    await until_true(has_mail)
    title = "mailer: Mailing “Sale” has ended: 3 of 3 clients were not reached"
    assert subjects(mailbox) == [title]
    assert f"https://sms.example/mailings/{mailing['id']}" in str(mailbox.envelopes[0].content)
