"""Sending the daily report by mail."""

import asyncio
import contextlib
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
FAREWELL_TIMEOUT = 5.0  # seconds
PERMANENT = 500
"""From this reply code on a refusal is for good (RFC 5321, section 4.2.1)."""
LOOPBACK = ("localhost", "127.0.0.1", "::1")
LINE_SAFE = "quoted-printable"
"""Short lines of ASCII, whatever the server can take."""
ADDRESS = re.compile(r"[A-Za-z0-9.!#$%&'*+/=?^_`{|}~-]{1,64}@[A-Za-z0-9](?:[A-Za-z0-9.-]{0,253})")
"""What HTML takes for a mail address: all that are in use, and nothing that breaks a header."""


SHOWN_ADDRESS = re.compile(r"[^\s<>:;,\"'()]+@[^\s<>:;,\"'()]+")


BEFORE_TLS = (
    aiosmtplib.SMTPConnectError,
    aiosmtplib.SMTPHeloError,
    aiosmtplib.SMTPAuthenticationError,
)
"""Errors of a connection that have nothing to do with its encryption."""


class MailNotSentError(UnavailableError):
    """The mail server did not take the report."""


class Post(msgspec.Struct, frozen=True, kw_only=True):
    """By which server a mail goes, and to whom."""

    host: str
    port: int
    is_tls: bool
    user: str | None
    password: str | None
    sender: str
    recipients: list[str]

    def __repr__(self) -> str:
        return f"Post({self.host}:{self.port})"

    @property
    def starts_tls(self) -> bool | None:
        """Whether the connection is to be encrypted once it is open; None where it may be.

        With a login it must be: who strips the server's offer would get the password. On this
        machine nobody is between.
        """
        if self.is_tls:
            return False
        return None if self.user is None or self.host in LOOPBACK else True

    @property
    def validates(self) -> bool:
        """Whether the server's certificate must be known and its own.

        Without a login encryption is only opportunistic (RFC 7435): refusing a certificate would
        leave clear text, which is worse.
        """
        return self.is_tls or self.user is not None


class MailResult(msgspec.Struct, frozen=True):
    """Which recipients the mail server took the report for."""

    accepted: list[str]
    deferred: dict[str, int]
    """Refused for now (4xx), with the reply code."""
    refused: dict[str, int]
    """Refused for good, with the reply code."""


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
    user = unquote(parts.username) if parts.username else None
    return Post(
        host=host,
        port=port or (465 if is_tls else 587 if parts.username else 25),
        is_tls=is_tls,
        user=user,
        password=unquote(parts.password or "") if parts.username else None,
        sender=_sender(settings.smtp_from, user, host),
        recipients=_recipients(settings.report_recipients),
    )


def _sender(given: str | None, user: str | None, host: str) -> str:
    """Return the address to send from: as given, else the login, else mailer at the server."""
    if given is not None:
        if (address := _address(given)) is None:
            raise StartError("MAILER_SMTP_FROM: is not a mail address")
        return address
    if user is not None and ADDRESS.fullmatch(user):
        return user
    return _address(f"mailer@{host}") or "mailer@localhost"


def _address(given: str) -> str | None:
    """Return a mail address with its domain in ASCII (RFC 5890); None when it is none."""
    local, _, domain = given.strip().rpartition("@")
    try:
        address = f"{local}@{domain.encode('idna').decode()}"
    except UnicodeError:
        return None
    return address if ADDRESS.fullmatch(address) else None


def _recipients(given: str | None) -> list[str]:
    written = [address for part in (given or "").split(",") if (address := part.strip())]
    if not written:
        raise StartError("MAILER_REPORT_RECIPIENTS is not set: nobody is to get the report")
    addresses = {each: _address(each) for each in written}
    if wrong := [each for each, address in addresses.items() if address is None]:
        raise StartError(f"MAILER_REPORT_RECIPIENTS: {wrong[0]!r} is not a mail address")
    return list(dict.fromkeys(address for address in addresses.values() if address))


async def send_report(
    report: DailyReport,
    post: Post,
    message_id: str | None = None,
    recipients: list[str] | None = None,
) -> MailResult:
    """Send the report to `recipients`, unless given to everybody who is to get it.

    `message_id` is the part before the @ of what the mail is known by, anew each time unless given.

    With a login the connection is encrypted before it, or the mail is not sent; on this machine
    alone it may go in the clear. smtps is always encrypted. Without a login it is encrypted when
    the server offers it and can do it. Raises `MailNotSentError` when no recipient was decided on.
    """
    message = await asyncio.to_thread(_message, report, post, message_id)  # others are being served
    client = _client(post, post.starts_tls)
    try:
        async with asyncio.timeout(LONGEST):
            try:
                await client.connect()
            except BEFORE_TLS:
                raise
            except (aiosmtplib.SMTPException, OSError) as error:
                if post.validates:
                    raise
                log.warning("mail_not_encrypted", reason=_words(error)[:WORDS_LIMIT])
                client.close()
                client = _client(post, starts_tls=False)
                await client.connect()
            result = await _deliver(client, message, post.sender, recipients or post.recipients)
    except (aiosmtplib.SMTPException, OSError, UnicodeError) as error:
        words = _words(error)[:WORDS_LIMIT]
        said = f"the mail server {post.host}:{post.port} did not take the report: {words}"
        raise MailNotSentError(said) from error
    finally:
        await _close(client)
    for event, codes in (("report_deferred", result.deferred), ("report_refused", result.refused)):
        if codes:
            log.warning(
                event, day=report.day, recipients=len(codes), codes=sorted(set(codes.values()))
            )
    if result.accepted:
        log.info("report_sent", day=report.day, recipients=len(result.accepted))
    return result


def _client(post: Post, starts_tls: bool | None) -> aiosmtplib.SMTP:  # noqa: FBT001  # of three values
    return aiosmtplib.SMTP(
        hostname=post.host,
        port=post.port,
        username=post.user,
        password=post.password,
        use_tls=post.is_tls,
        start_tls=starts_tls,
        validate_certs=post.validates,
        timeout=PATIENCE,
    )


async def _close(client: aiosmtplib.SMTP) -> None:
    """Say goodbye; what comes of it changes nothing any more."""
    with contextlib.suppress(aiosmtplib.SMTPException, OSError):
        if client.is_connected:
            await client.quit(timeout=FAREWELL_TIMEOUT)
    client.close()


async def _deliver(
    client: aiosmtplib.SMTP, message: EmailMessage, sender: str, recipients: list[str]
) -> MailResult:
    try:
        answers, _ = await client.send_message(message, sender=sender, recipients=recipients)
        codes = {recipient: answer.code for recipient, answer in answers.items()}
    except aiosmtplib.SMTPRecipientsRefused as error:
        codes = {refused.recipient: refused.code for refused in error.recipients}
    return MailResult(
        accepted=[each for each in recipients if each not in codes],
        deferred={each: code for each, code in codes.items() if code < PERMANENT},
        refused={each: code for each, code in codes.items() if code >= PERMANENT},
    )


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
    message.set_content(render_text(report), cte=LINE_SAFE)
    chart = f"chart.{known_by.strip('<>')}"
    message.add_alternative(render_html(report, f"cid:{chart}"), subtype="html", cte=LINE_SAFE)
    if report.busy_hours:
        *_, html = message.iter_parts()
        png = draw(report.hours, report.time_zone)
        html.add_related(
            png, "image", "png", cid=f"<{chart}>", disposition="inline", filename="chart.png"
        )
    return message


def _words(error: BaseException) -> str:
    """Return what a server said, or what kept us from it, in one line without addresses."""
    if isinstance(error, aiosmtplib.SMTPRecipientsRefused):
        return "; ".join(sorted({_words(refused) for refused in error.recipients}))
    if isinstance(error, aiosmtplib.SMTPResponseException):
        said = f"{error.code} {error.message}"
    else:
        said = str(error) or type(error).__name__
    return SHOWN_ADDRESS.sub("***", " ".join(said.split()))
