"""A real mail server on loopback that keeps the mails it receives."""

import asyncio
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from email import message_from_bytes
from email.message import EmailMessage
from email.policy import default
from typing import Any

from aiosmtpd.smtp import SMTP, AuthResult, Envelope, LoginPassword, Session


class Mailbox:
    """The mails that a mail server has received, with sender, recipients and encryption.

    `refusing` is the address of a recipient to reject. The server calls `handle_RCPT` and
    `handle_DATA` for the SMTP commands RCPT (a recipient) and DATA (the mail); they return its
    reply.
    """

    def __init__(self, refusing: str | None = None) -> None:
        self.answers = {refusing: "550 5.1.1 no such user"} if refusing else {}
        """The replies that reject recipients, by address; other recipients are accepted."""
        self.data_answer: str | None = None
        """The reply that rejects every mail; None to accept mails."""
        self.envelopes: list[Envelope] = []
        self.was_encrypted: list[bool] = []
        """For each envelope, whether its connection was encrypted."""

    async def handle_RCPT(  # noqa: N802  # aiosmtpd's name
        self, server: SMTP, _session: Session, envelope: Envelope, address: str, _options: Any
    ) -> str:
        del server
        if answer := self.answers.get(address):
            return answer
        envelope.rcpt_tos.append(address)
        return "250 OK"

    async def handle_DATA(self, _server: SMTP, session: Session, envelope: Envelope) -> str:  # noqa: N802  # likewise
        if self.data_answer is not None:
            return self.data_answer
        self.envelopes.append(envelope)
        self.was_encrypted.append(session.ssl is not None)
        return "250 OK"

    def mail(self) -> EmailMessage:
        """Return the only mail received."""
        (envelope,) = self.envelopes
        assert isinstance(envelope.content, bytes)
        mail = message_from_bytes(envelope.content, policy=default)
        assert isinstance(mail, EmailMessage)
        return mail


def check_login(
    _server: SMTP, _session: Session, _envelope: Envelope, _mechanism: str, data: Any
) -> Any:
    """Accept only the login ops@example.org with the password p@ss/word."""
    is_valid = data == LoginPassword(b"ops@example.org", b"p@ss/word")
    return AuthResult(success=is_valid, handled=False)  # aiosmtpd itself sends the reply


@asynccontextmanager
async def mail_server(
    mailbox: Mailbox, tls: ssl.SSLContext | None = None, **options: Any
) -> AsyncIterator[int]:
    """Run a mail server on loopback; yield its port.

    With `tls`, connections are encrypted from their start. `options` are those of aiosmtpd's class
    `SMTP`. With `tls_context` the server offers STARTTLS, and with `authenticator` a login, without
    encryption only if `auth_require_tls` is False.
    """
    loop = asyncio.get_running_loop()
    server = await loop.create_server(
        lambda: SMTP(mailbox, hostname="localhost", loop=loop, **options), "127.0.0.1", 0, ssl=tls
    )
    async with server:
        yield server.sockets[0].getsockname()[1]
