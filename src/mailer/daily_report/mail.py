"""Send the daily report by mail, encrypted if possible.

`send_report` sends one mail, for the schedule; `report_command` is the command `mailer report`.
"""

import asyncio
import contextlib
import re
from datetime import date
from email.headerregistry import Address
from email.message import EmailMessage
from email.utils import format_datetime, make_msgid
from functools import partial

import aiosmtplib
import msgspec
import structlog

from mailer.daily_report.render import render_html, render_text
from mailer.daily_report.report import DailyReport, daily_report
from mailer.daily_report.smtp_config import SmtpConfig, read_smtp_config
from mailer.db.startup import DatabaseSource, run_on_database
from mailer.errors import UnavailableError
from mailer.settings import Settings
from mailer.statuses import FAILURES

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


class MailNotSentError(UnavailableError):
    """The mail server did not accept the report."""


class MailResult(msgspec.Struct, frozen=True):
    """For which recipients the mail server accepted the report."""

    accepted: list[str]
    deferred: dict[str, int]
    """Temporarily refused recipients (4xx), with the reply code."""
    refused: dict[str, int]
    """Permanently refused recipients, with the reply code."""


async def send_report(
    report: DailyReport,
    smtp: SmtpConfig,
    message_id: str | None = None,
    recipients: list[str] | None = None,
) -> MailResult:
    """Send the report to `recipients`. Default: all recipients of the settings.

    `message_id` is the part of the Message-ID before the @. Default: a new one for each mail.

    smtps is always encrypted. With a login, the connection is encrypted before the login, or the
    mail is not sent; connections to this machine are the exception. Without a login, the connection
    is encrypted if the server offers that. If encrypting fails, the mail is sent without it.

    Raises `MailNotSentError` when the server neither accepted nor refused any recipient.
    """
    message = _create_mail(report, smtp, message_id)
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
            result = await _deliver(client, message, smtp.sender, recipients or smtp.recipients)
    except (aiosmtplib.SMTPException, OSError, UnicodeError) as error:
        reason = _describe(error)[:MAX_REPLY_LENGTH]
        raise MailNotSentError(
            f"the mail server {smtp.host}:{smtp.port} did not accept the report: {reason}"
        ) from error
    finally:
        await _close(client)
    _log_result(report.day, result)
    return result


def _log_result(day: date, result: MailResult) -> None:
    """Log for how many recipients the report was accepted, deferred and refused."""
    for event, codes in (("report_deferred", result.deferred), ("report_refused", result.refused)):
        if codes:
            log.warning(event, day=day, recipients=len(codes), codes=sorted(set(codes.values())))
    if result.accepted:
        log.info("report_sent", day=day, recipients=len(result.accepted))


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


def _create_mail(report: DailyReport, smtp: SmtpConfig, message_id: str | None) -> EmailMessage:
    message = EmailMessage()
    delivered = report.outcomes.delivered
    not_delivered = sum(getattr(report.outcomes, name) for name in FAILURES)
    subject = f"mailer, {report.day}: {delivered:,} delivered, {not_delivered:,} not"
    if report.outcomes.sent:
        subject += f", {report.outcomes.sent:,} without a receipt"
    message["Subject"] = subject
    message["From"] = Address("mailer", addr_spec=smtp.sender)
    message["To"] = ", ".join(smtp.recipients)
    message["Date"] = format_datetime(report.as_of)
    domain = smtp.sender.rpartition("@")[2]
    message["Message-ID"] = f"<{message_id}@{domain}>" if message_id else make_msgid(domain=domain)
    message["Auto-Submitted"] = "auto-generated"  # RFC 3834: asks for no automatic replies
    message.set_content(render_text(report), cte=TRANSFER_ENCODING)
    message.add_alternative(render_html(report), subtype="html", cte=TRANSFER_ENCODING)
    return message


def _describe(error: BaseException) -> str:
    """Return a server's answer, or the connection error, in one line without mail addresses."""
    if isinstance(error, aiosmtplib.SMTPRecipientsRefused):
        return "; ".join(sorted({_describe(refused) for refused in error.recipients}))
    if isinstance(error, aiosmtplib.SMTPResponseException):
        text = f"{error.code} {error.message}"
    else:
        text = str(error) or type(error).__name__
    return REDACTED_ADDRESS.sub("***", " ".join(text.split()))


async def report_command(settings: Settings, day: date, *, send: bool) -> str:
    """Return the report of a day as text; with `send`, also send it by mail.

    Raises `StartError`, and `MailNotSentError` when a recipient did not get the mail.
    """
    smtp = read_smtp_config(settings) if send else None
    zone = settings.report_time_zone
    source = DatabaseSource.of(settings)
    report = await run_on_database(source, partial(daily_report, day=day, time_zone=zone))
    if smtp is not None:
        result = await send_report(report, smtp)
        if failed := {**result.deferred, **result.refused}:
            recipients = ", ".join(f"{recipient} ({code})" for recipient, code in failed.items())
            raise MailNotSentError(f"the mail server did not accept the report for {recipients}")
    return render_text(report)
