"""The mail server, the sender, and the recipients of the daily report, from the settings."""

import re
from urllib.parse import unquote, urlsplit

import msgspec

from mailer.errors import StartError
from mailer.settings import Settings
from mailer.urls import is_loopback

ADDRESS_PATTERN = re.compile(
    r"[A-Za-z0-9.!#$%&'*+/=?^_`{|}~-]{1,64}@[A-Za-z0-9](?:[A-Za-z0-9.-]{0,253})"
)
"""Mail addresses as in HTML input fields. It excludes characters that could break a header."""


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
    """The addresses of those who get the daily report; empty if nobody does."""

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


def read_smtp_config(settings: Settings, *, needs_recipients: bool = True) -> SmtpConfig:
    """Return the mail configuration that the settings define.

    Without `needs_recipients`, nobody has to get the report: notices need no recipients. Default
    ports: 465 for smtps, 587 for smtp with a login, 25 otherwise. Raises `StartError` for a missing
    or wrong setting.
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
        recipients=_recipients(settings.report_recipients) if needs_recipients else [],
    )


def _sender(smtp_from: str | None, user: str | None, host: str) -> str:
    """Return the sender's address: from the setting, else the login, else mailer@host.

    If `host` cannot be part of an address, as an IPv6 address cannot, it is mailer@localhost.
    """
    if smtp_from is not None:
        if (address := normalize_address(smtp_from)) is None:
            raise StartError("MAILER_SMTP_FROM: is not a mail address")
        return address
    if user is not None and ADDRESS_PATTERN.fullmatch(user):
        return user
    return normalize_address(f"mailer@{host}") or "mailer@localhost"


def normalize_address(text: str) -> str | None:
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
    addresses = {entry: normalize_address(entry) for entry in entries}
    if invalid := [entry for entry, address in addresses.items() if address is None]:
        raise StartError(f"MAILER_REPORT_RECIPIENTS: {invalid[0]!r} is not a mail address")
    return list(dict.fromkeys(address for address in addresses.values() if address))
