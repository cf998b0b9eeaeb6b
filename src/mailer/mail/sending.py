"""Send a mail, encrypted if possible."""

import asyncio
import contextlib
import re
from datetime import timedelta
from email.message import EmailMessage

import aiosmtplib
import msgspec
import structlog

from mailer.errors import UnavailableError
from mailer.mail.smtp_config import SmtpConfig

log = structlog.get_logger()

SMTP_COMMAND_TIMEOUT = 30.0
"""Seconds to wait for each answer of the mail server."""
SEND_TIMEOUT = 120.0
"""Seconds for the whole delivery of a mail."""
MAX_REPLY_LENGTH = 500
"""Characters of a mail server's answer that errors and logs include."""
QUIT_TIMEOUT = 5.0  # seconds
FIRST_PERMANENT_CODE = 500
"""Reply codes from this one on are permanent failures (RFC 5321, section 4.2.1)."""
MIN_RETRY_DELAY, MAX_RETRY_DELAY = timedelta(seconds=30), timedelta(minutes=15)
"""Delay before the second attempt to send a mail, and the longest delay before an attempt."""
MAX_DELAY_DOUBLINGS = 10
"""After so many doublings the delay is longer than `MAX_RETRY_DELAY` anyway."""
TRANSFER_ENCODING = "quoted-printable"
"""Short ASCII lines, which every mail server accepts."""
REDACTED_ADDRESS = re.compile(r"[^\s<>:;,\"'()]+@[^\s<>:;,\"'()]+")
"""Anything like a mail address in an answer of a mail server, which is replaced by ***."""
NON_TLS_ERRORS = (
    aiosmtplib.SMTPConnectError,
    aiosmtplib.SMTPHeloError,
    aiosmtplib.SMTPAuthenticationError,
)
"""Errors of connecting that encryption does not cause: they would happen without it, too."""


def retry_delay(attempts: int) -> timedelta:
    """Return the delay after `attempts` failed attempts; it doubles with each attempt."""
    return min(MAX_RETRY_DELAY, MIN_RETRY_DELAY * (1 << min(attempts - 1, MAX_DELAY_DOUBLINGS)))


class MailNotSentError(UnavailableError):
    """The mail server did not accept the mail."""


class MailResult(msgspec.Struct, frozen=True):
    """For which recipients the mail server accepted the mail."""

    accepted: list[str]
    deferred: dict[str, int]
    """Temporarily refused recipients (4xx), with the reply code."""
    refused: dict[str, int]
    """Permanently refused recipients, with the reply code."""


async def send_mail(message: EmailMessage, smtp: SmtpConfig, recipients: list[str]) -> MailResult:
    """Send a mail to `recipients`; return for whom the server accepted it.

    smtps is always encrypted. With a login, the connection is encrypted before the login, or the
    mail is not sent; connections to this machine are the exception. Without a login, the connection
    is encrypted if the server offers that. If encrypting fails, the mail is sent without it.

    Raises `MailNotSentError` when the server neither accepted nor refused any recipient.
    """
    client = _create_smtp_client(smtp, smtp.starts_tls)
    try:
        async with asyncio.timeout(SEND_TIMEOUT):
            try:
                await client.connect()
            except NON_TLS_ERRORS:
                raise
            except (aiosmtplib.SMTPException, OSError) as error:  # encrypting failed
                if smtp.validates_certificate:
                    raise
                log.warning("mail_not_encrypted", reason=_describe(error)[:MAX_REPLY_LENGTH])
                client.close()
                client = _create_smtp_client(smtp, starts_tls=False)
                await client.connect()
            return await _deliver(client, message, smtp.sender, recipients)
    except (aiosmtplib.SMTPException, OSError, UnicodeError) as error:
        reason = _describe(error)[:MAX_REPLY_LENGTH]
        raise MailNotSentError(
            f"the mail server {smtp.host}:{smtp.port} did not accept the mail: {reason}"
        ) from error
    finally:
        await _close(client)


def _create_smtp_client(smtp: SmtpConfig, starts_tls: bool | None) -> aiosmtplib.SMTP:  # noqa: FBT001  # it has three values
    """Return a client that is not connected yet; `starts_tls` as in `SmtpConfig`."""
    return aiosmtplib.SMTP(
        hostname=smtp.host,
        port=smtp.port,
        username=smtp.user,
        password=smtp.password,
        use_tls=smtp.is_tls,
        start_tls=starts_tls,
        validate_certs=smtp.validates_certificate,
        timeout=SMTP_COMMAND_TIMEOUT,
    )


async def _close(client: aiosmtplib.SMTP) -> None:
    """Close the connection with QUIT; errors no longer matter."""
    with contextlib.suppress(aiosmtplib.SMTPException, OSError):
        if client.is_connected:
            await client.quit(timeout=QUIT_TIMEOUT)
    client.close()


async def _deliver(
    client: aiosmtplib.SMTP, message: EmailMessage, sender: str, recipients: list[str]
) -> MailResult:
    """Send a mail on an open connection; return which recipients the server accepted."""
    try:
        refusals, _ = await client.send_message(message, sender=sender, recipients=recipients)
        failures = {recipient: refusal.code for recipient, refusal in refusals.items()}
    except aiosmtplib.SMTPRecipientsRefused as error:  # no recipient was accepted
        failures = {refused.recipient: refused.code for refused in error.recipients}
    return MailResult(
        accepted=[recipient for recipient in recipients if recipient not in failures],
        deferred={name: code for name, code in failures.items() if code < FIRST_PERMANENT_CODE},
        refused={name: code for name, code in failures.items() if code >= FIRST_PERMANENT_CODE},
    )


def _describe(error: BaseException) -> str:
    """Return a server's answer, or the connection error, in one line without mail addresses."""
    if isinstance(error, aiosmtplib.SMTPRecipientsRefused):
        return "; ".join(sorted({_describe(refused) for refused in error.recipients}))
    if isinstance(error, aiosmtplib.SMTPResponseException):
        text = f"{error.code} {error.message}"
    else:
        text = str(error) or type(error).__name__
    return REDACTED_ADDRESS.sub("***", " ".join(text.split()))
