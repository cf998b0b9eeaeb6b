"""What tests of notices by mail share: users, ended mailings, workers, and the passing of time."""

from email import message_from_bytes
from email.message import EmailMessage
from email.policy import default
from functools import partial
from typing import Any

from sqlalchemy.ext.asyncio import AsyncEngine
from tests.factories import (
    SETTLED,
    add_clients,
    add_mailing,
    add_messages,
    create_channels,
    do,
    execute,
)
from tests.mailserver import Mailbox

from mailer.access import service
from mailer.access.model import COMMAND_LINE
from mailer.access.users import NewUser
from mailer.admin.notices.mail import compose
from mailer.gateway.channel import Channels
from mailer.mail.smtp_config import read_smtp_config
from mailer.notice import recipients
from mailer.notice.delivery import NoticeMail
from mailer.notice.model import NOTICE_CHOICES, NoticeSettings
from mailer.notice.watch import NoticeWatch
from mailer.settings import Settings

ADDRESS = "ann@example.org"
UNAVAILABLE_PORT = 1
"""A port at which no mail server listens."""
PAST_PAUSES = "UPDATE notice_recipient SET next_mail_at = next_mail_at - interval '1 hour'"
DIGEST_OVER = "UPDATE notice_ended_mailing SET ended_at = ended_at - interval '3 min'"


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
