"""Sending the daily report by mail."""

import asyncio
import re
from email.headerregistry import Address
from email.message import EmailMessage
from email.utils import format_datetime, make_msgid
from urllib.parse import unquote, urlsplit

import aiosmtplib
import msgspec
import structlog

from mailer.errors import StartError, UnavailableError
from mailer.report.chart import draw
from mailer.report.daily import DailyReport, render_html, render_text
from mailer.settings import Settings

log = structlog.get_logger()

PATIENCE = 30.0
"""Seconds to wait for each answer of the mail server."""
LONGEST = 120.0
"""Seconds for the whole of it."""
WORDS_LIMIT = 500
"""Characters of what a mail server says that are passed on."""
LOOPBACK = ("localhost", "127.0.0.1", "::1")
ADDRESS = re.compile(r"[A-Za-z0-9.!#$%&'*+/=?^_`{|}~-]{1,64}@[A-Za-z0-9](?:[A-Za-z0-9.-]{0,253})")
"""What HTML takes for a mail address: all that are in use, and nothing that breaks a header."""


class MailNotSentError(UnavailableError):
    """The mail server did not take the report."""


class Post(msgspec.Struct, frozen=True, kw_only=True):
    """By which server a mail goes, and to whom."""

    host: str
    port: int
    is_tls: bool
    user: str | None
    password: str | None
    recipients: list[str]

    def __repr__(self) -> str:
        return f"Post({self.host}:{self.port})"

    @property
    def sender(self) -> str:
        """The address that the server knows us by; without one the first recipient's own."""
        if self.user is not None and ADDRESS.fullmatch(self.user):
            return self.user
        return self.recipients[0]

    @property
    def starts_tls(self) -> bool | None:
        """Whether the connection is to be encrypted once it is open; None where it may be.

        With a login it must be: who strips the server's offer would get the password. On this
        machine nobody is between.
        """
        if self.is_tls or self.user is None:
            return False
        return None if self.host in LOOPBACK else True


def post_of(settings: Settings) -> Post:
    """Return how the settings have mail sent; raises `StartError` naming what is wrong.

    Ports unless given: 465 for smtps, 587 for smtp with a login, else 25.
    """
    if settings.smtp_url is None:
        raise StartError("MAILER_SMTP_URL is not set: there is no server to send mail by")
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
    return Post(
        host=host,
        port=port or (465 if is_tls else 587 if parts.username else 25),
        is_tls=is_tls,
        user=unquote(parts.username) if parts.username else None,
        password=unquote(parts.password or "") if parts.username else None,
        recipients=_recipients(settings.report_recipients),
    )


def _recipients(given: str | None) -> list[str]:
    addresses = [address for part in (given or "").split(",") if (address := part.strip())]
    if not addresses:
        raise StartError("MAILER_REPORT_RECIPIENTS is not set: nobody is to get the report")
    for address in addresses:
        if not ADDRESS.fullmatch(address):
            raise StartError(f"MAILER_REPORT_RECIPIENTS: {address!r} is not a mail address")
    return addresses


async def send_report(report: DailyReport, post: Post, message_id: str | None = None) -> None:
    """Send the report to everybody who is to get it.

    `message_id` is the part before the @ of what the mail is known by, anew each time unless given.

    With a login the connection is encrypted before it, or the mail is not sent; on this machine
    alone it may go in the clear. smtps is always encrypted. Raises `MailNotSentError`.
    """
    message = await asyncio.to_thread(_message, report, post, message_id)  # others are being served
    try:
        async with asyncio.timeout(LONGEST):
            refused, _ = await aiosmtplib.send(
                message,
                hostname=post.host,
                port=post.port,
                username=post.user,
                password=post.password,
                use_tls=post.is_tls,
                start_tls=post.starts_tls,
                timeout=PATIENCE,
            )
    except (aiosmtplib.SMTPException, OSError, UnicodeError) as error:
        words = _words(error)[:WORDS_LIMIT]
        said = f"the mail server {post.host}:{post.port} did not take the report: {words}"
        raise MailNotSentError(said) from error
    if refused:
        codes = sorted({response.code for response in refused.values()})
        log.warning("report_refused", day=report.day, recipients=len(refused), codes=codes)
    log.info("report_sent", day=report.day, recipients=len(post.recipients) - len(refused))


def _message(report: DailyReport, post: Post, message_id: str | None) -> EmailMessage:
    message = EmailMessage()
    outcomes = report.outcomes
    failed = outcomes.undelivered + outcomes.unknown + outcomes.cancelled
    message["Subject"] = f"mailer, {report.day}: {outcomes.delivered:,} delivered, {failed:,} not"
    message["From"] = Address("mailer", addr_spec=post.sender)
    message["To"] = ", ".join(post.recipients)
    message["Date"] = format_datetime(report.made_at)
    domain = post.sender.rpartition("@")[2]
    known_by = f"<{message_id}@{domain}>" if message_id else make_msgid(domain=domain)
    message["Message-ID"] = known_by
    message["Auto-Submitted"] = "auto-generated"  # RFC 3834: no holiday replies
    message.set_content(render_text(report))
    chart = f"chart.{known_by.strip('<>')}"
    message.add_alternative(render_html(report, f"cid:{chart}"), subtype="html")
    if report.busy_hours:
        *_, html = message.iter_parts()
        png = draw(report.hours, report.time_zone)
        html.add_related(
            png, "image", "png", cid=f"<{chart}>", disposition="inline", filename="chart.png"
        )
    return message


def _words(error: BaseException) -> str:
    """Return what a server said, or what kept us from it, in one line."""
    if isinstance(error, aiosmtplib.SMTPRecipientsRefused):
        return "; ".join(f"{refused.recipient}: {_words(refused)}" for refused in error.recipients)
    if isinstance(error, aiosmtplib.SMTPResponseException):
        return " ".join(f"{error.code} {error.message}".split())
    return " ".join(str(error).split()) or type(error).__name__
