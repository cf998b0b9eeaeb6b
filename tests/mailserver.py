"""A real mail server on loopback that keeps what it takes."""

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
    """What a mail server took, from whom and for whom, and over which connection."""

    def __init__(self, refusing: str | None = None) -> None:
        self.answers = {refusing: "550 5.1.1 no such user"} if refusing else {}
        """What recipients are answered, other than that it is well."""
        self.data_answer: str | None = None
        """What a mail is answered instead of being taken."""
        self.envelopes: list[Envelope] = []
        self.was_encrypted: list[bool] = []

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
        """The one mail that was taken."""
        (envelope,) = self.envelopes
        assert isinstance(envelope.content, bytes)
        mail = message_from_bytes(envelope.content, policy=default)
        assert isinstance(mail, EmailMessage)
        return mail


def knows(_server: SMTP, _session: Session, _envelope: Envelope, _way: str, data: Any) -> Any:
    is_known = data == LoginPassword(b"ops@example.org", b"p@ss/word")
    return AuthResult(success=is_known, handled=False)


@asynccontextmanager
async def mail_server(
    mailbox: Mailbox, tls: ssl.SSLContext | None = None, **options: Any
) -> AsyncIterator[int]:
    """A mail server on loopback; gives its port."""
    loop = asyncio.get_running_loop()
    server = await loop.create_server(
        lambda: SMTP(mailbox, hostname="localhost", loop=loop, **options), "127.0.0.1", 0, ssl=tls
    )
    async with server:
        yield server.sockets[0].getsockname()[1]
