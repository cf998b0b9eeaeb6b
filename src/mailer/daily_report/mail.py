"""Send the daily report by mail."""

import asyncio
import contextlib
import re
from datetime import date
from email.headerregistry import Address
from email.message import EmailMessage
from email.utils import format_datetime, make_msgid
from functools import partial
from urllib.parse import unquote, urlsplit

import aiosmtplib
import msgspec
import structlog

from mailer.daily_report.render import render_html, render_text
from mailer.daily_report.report import DailyReport, daily_report
from mailer.db.startup import DatabaseSource, run_on_database
from mailer.errors import StartError, UnavailableError
from mailer.settings import Settings
from mailer.statuses import FAILURES
from mailer.urls import is_loopback

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
ADDRESS_PATTERN = re.compile(
    r"[A-Za-z0-9.!#$%&'*+/=?^_`{|}~-]{1,64}@[A-Za-z0-9](?:[A-Za-z0-9.-]{0,253})"
)
"""Mail addresses as in HTML input fields. It excludes characters that could break a header."""
REDACTED_ADDRESS = re.compile(r"[^\s<>:;,\"'()]+@[^\s<>:;,\"'()]+")
"""Anything like a mail address in an answer of a mail server, which is replaced by ***."""
ERRORS_WITHOUT_TLS = (
    aiosmtplib.SMTPConnectError,
    aiosmtplib.SMTPHeloError,
    aiosmtplib.SMTPAuthenticationError,
)
"""Errors of connecting that encryption does not cause. They would happen without it, too."""


class MailNotSentError(UnavailableError):
    """The mail server did not accept the report."""


class SmtpConfig(msgspec.Struct, frozen=True, kw_only=True):
    """The mail server to use, the sender and the recipients."""

    host: str
    port: int
    is_tls: bool
    """Whether the connection is encrypted from its start (smtps)."""
    user: str | None
    """None when the server needs no login."""
    password: str | None
    sender: str
    """The sender's address."""
    recipients: list[str]
    """The recipients' addresses."""

    def __repr__(self) -> str:
        return f"SmtpConfig({self.host}:{self.port})"

    @property
    def starts_tls(self) -> bool | None:
        """Whether encryption by STARTTLS is required (True), not used (False), or optional (None).

        With a login it is required: otherwise an attacker who removes the server's offer of
        STARTTLS would get the password. Connections to this machine do not need it.
        """
        if self.is_tls:
            return False
        return None if self.user is None or is_loopback(self.host) else True

    @property
    def validates_certificate(self) -> bool:
        """Whether the server's certificate must be trusted and match its name.

        Without a login, any certificate is accepted (opportunistic encryption, RFC 7435). If one
        were refused, the mail would be sent in clear text, which is worse.
        """
        return self.is_tls or self.user is not None


class MailResult(msgspec.Struct, frozen=True):
    """For which recipients the mail server accepted the report."""

    accepted: list[str]
    deferred: dict[str, int]
    """Temporarily refused recipients (4xx), with the reply code."""
    refused: dict[str, int]
    """Permanently refused recipients, with the reply code."""


def read_smtp_config(settings: Settings) -> SmtpConfig:
    """Return the mail configuration that the settings define.

    Raises `StartError` for a missing or wrong setting. Default ports: 465 for smtps, 587 for smtp
    with a login, 25 otherwise.
    """
    if settings.smtp_url is None:
        raise StartError("MAILER_SMTP_URL is not set: sending mail needs a mail server")
    parts = urlsplit(settings.smtp_url)
    is_tls = parts.scheme == "smtps"
    try:
        host, port = parts.hostname, parts.port
    except ValueError:
        host = port = None
    if not host or parts.path not in ("", "/") or parts.query or parts.fragment:
        raise StartError(
            "MAILER_SMTP_URL: must be smtp[s]://[user:password@]host[:port], with every character"
            " of user and password that is not a letter or a digit written as %XX"
        )
    user = unquote(parts.username) if parts.username else None
    return SmtpConfig(
        host=host,
        port=port or (465 if is_tls else 587 if parts.username else 25),
        is_tls=is_tls,
        user=user,
        password=unquote(parts.password or "") if parts.username else None,
        sender=_sender(settings.smtp_from, user, host),
        recipients=_recipients(settings.report_recipients),
    )


def _sender(smtp_from: str | None, user: str | None, host: str) -> str:
    """Return the sender's address: from the setting, else the login, else mailer@host."""
    if smtp_from is not None:
        if (address := _normalize_address(smtp_from)) is None:
            raise StartError("MAILER_SMTP_FROM: is not a mail address")
        return address
    if user is not None and ADDRESS_PATTERN.fullmatch(user):
        return user
    return _normalize_address(f"mailer@{host}") or "mailer@localhost"


def _normalize_address(text: str) -> str | None:
    """Return a mail address with its domain in ASCII (RFC 5890); None when it is not valid."""
    local, _, domain = text.strip().rpartition("@")
    try:
        address = f"{local}@{domain.encode('idna').decode()}"
    except UnicodeError:
        return None
    return address if ADDRESS_PATTERN.fullmatch(address) else None


def _recipients(setting: str | None) -> list[str]:
    """Return the addresses of the setting, which are separated by commas, without duplicates."""
    entries = [entry for part in (setting or "").split(",") if (entry := part.strip())]
    if not entries:
        raise StartError("MAILER_REPORT_RECIPIENTS is not set: the report has no recipients")
    addresses = {entry: _normalize_address(entry) for entry in entries}
    if invalid := [entry for entry, address in addresses.items() if address is None]:
        raise StartError(f"MAILER_REPORT_RECIPIENTS: {invalid[0]!r} is not a mail address")
    return list(dict.fromkeys(address for address in addresses.values() if address))


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
            except ERRORS_WITHOUT_TLS:
                raise
            except (aiosmtplib.SMTPException, OSError) as error:
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
        codes = {recipient: refusal.code for recipient, refusal in refusals.items()}
    except aiosmtplib.SMTPRecipientsRefused as error:  # no recipient was accepted
        codes = {refused.recipient: refused.code for refused in error.recipients}
    return MailResult(
        accepted=[recipient for recipient in recipients if recipient not in codes],
        deferred={name: code for name, code in codes.items() if code < FIRST_PERMANENT_CODE},
        refused={name: code for name, code in codes.items() if code >= FIRST_PERMANENT_CODE},
    )


def _create_mail(report: DailyReport, smtp: SmtpConfig, message_id: str | None) -> EmailMessage:
    message = EmailMessage()
    outcomes = report.outcomes
    failed = sum(getattr(outcomes, name) for name in FAILURES)
    message["Subject"] = f"mailer, {report.day}: {outcomes.delivered:,} delivered, {failed:,} not"
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
