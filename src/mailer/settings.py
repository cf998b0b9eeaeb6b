"""Settings, read from environment variables with the prefix MAILER_ or from a `.env` file.

The setting `gateway_url` is in the variable MAILER_GATEWAY_URL. README lists all settings.
"""

import ipaddress
import os
import re
import zoneinfo
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal

import msgspec
import platformdirs
from msgspec import Meta

from mailer.contact_cap import ContactCap
from mailer.errors import StartError
from mailer.roles import ROLES, parse_role_mapping
from mailer.text import fold_keyword
from mailer.urls import is_loopback, read_gateway_url, split_url
from mailer.variables import PREFIX, find_wrong_characters, printable_name, read_variables

SECRETS = frozenset(
    {"database_url", "gateway_token", "smtp_url", "oidc_client_secret", "monitoring_token"}
)
"""Settings that are hidden completely when settings are shown. The URLs may contain a password."""
NEVER_EMPTY = frozenset({"monitoring_token"})
"""Settings whose empty value is refused instead of being read as not set.

They restrict access, and an empty value, perhaps left by mistake, would lift the restriction.
Secrets that mailer itself sends are not among them: if one is missing, the other side refuses.
"""
HIDDEN = "***"
"""What is shown instead of a secret."""
URL_SECRETS = re.compile(r"(?<=://)[^/?#]*(?=@)|(?<=\?).*")
"""The parts of the gateway's URL that are hidden: user and password, and the query, which may
contain the gateway's key."""

LEASE_SLACK = 2
"""Seconds by which a lease must be longer than the gateway's timeout: the time to wait for a slot
before the request and to write the result after it."""

Seconds = Annotated[float, Meta(gt=0, le=86_400)]
Count = Annotated[int, Meta(ge=1, le=10_000)]
# `$` also matches before a line end at the end of a text. So a text that ends with one is excluded
# by its length here, and by `(?!\n)` below.
HourAndMinute = Annotated[str, Meta(pattern=r"^([01][0-9]|2[0-3]):[0-5][0-9]$", max_length=5)]
HeaderToken = Annotated[str, Meta(pattern=r"^[!-~]+(?!\n)$")]
"""Visible ASCII characters, which can be sent in the header Authorization."""


STOP_WORDS = (
    "STOP, STOPALL, STOP ALL, UNSUBSCRIBE, CANCEL, END, QUIT, REVOKE, OPTOUT, OPT OUT, СТОП,"
    " ОТПИСАТЬСЯ, ОТПИСКА, ОТПИСАТЬ, ОТПИШИТЕ, ОТКАЗ"  # noqa: RUF001  # a word of Russian
)
"""The English words are those of Twilio:
https://www.twilio.com/docs/messaging/tutorials/advanced-opt-out."""
START_WORDS = "START, UNSTOP, SUBSCRIBE, СТАРТ, ПОДПИСАТЬСЯ, ПОДПИСКА"  # noqa: RUF001  # words of Russian
"""Without YES, which Twilio has: it is the answer to many other questions."""


def default_data_dir() -> str:
    """Return the default data folder: the user's own data folder, or /var/lib/mailer for root.

    Root's own folder is unsuitable: PostgreSQL refuses to run as root, and the unprivileged user
    that it runs as instead must be able to reach the folder.
    """
    if os.geteuid() == 0:
        return "/var/lib/mailer"
    return platformdirs.user_data_dir("mailer")


class Settings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """All settings, read once at the start. Durations are in seconds; README explains each one."""

    database_url: str | None = None
    data_dir: str = msgspec.field(default_factory=default_data_dir)
    host: str = "127.0.0.1"
    port: Annotated[int, Meta(ge=0, le=65_535)] = 8000
    gateways: str | None = None
    gateway_url: str | None = None
    gateway_token: HeaderToken | None = None
    gateway_timeout: Seconds = 10
    gateway_concurrency: Count = 50
    gateway_rate: Annotated[float, Meta(ge=0, le=1_000_000)] = 0
    retry_attempts: Annotated[int, Meta(ge=1, le=1000)] = 8
    retry_base: Seconds = 1
    retry_cap: Seconds = 300
    retry_after_cap: Seconds = 900
    breaker_failures: Count = 10
    breaker_reset: Seconds = 15
    lease: Seconds = 60
    shutdown_grace: Annotated[float, Meta(ge=0, le=3600)] = 20
    auth: Literal["required", "none"] = "required"
    confirm_above: Annotated[int, Meta(ge=0, le=1_000_000_000)] = 1_000
    require_approval: bool = False
    key_rate: Annotated[float, Meta(ge=0, le=1_000_000)] = 100
    monitoring_token: HeaderToken | None = None
    trusted_proxies: str | None = None
    public_url: str | None = None
    receipt_wait: Annotated[float, Meta(gt=0, le=30 * 86_400)] = 3 * 86_400
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    log_format: Literal["console", "json"] | None = None
    smtp_url: str | None = None
    smtp_from: str | None = None
    report_recipients: str | None = None
    report_at: HourAndMinute = "08:00"
    report_time_zone: str = "UTC"
    oidc_issuer: str | None = None
    oidc_client_id: str | None = None
    oidc_client_secret: str | None = None
    oidc_role_claim: Annotated[str, Meta(max_length=200)] = "roles"
    oidc_roles: Annotated[str, Meta(max_length=10_000)] = ",".join(
        f"{role}={role}" for role in ROLES
    )
    webhook_private_addresses: bool = False
    contact_cap: Annotated[str, Meta(max_length=20)] | None = None
    retention_days: Annotated[int, Meta(ge=0, le=36_500)] = 0
    stop_words: Annotated[str, Meta(max_length=10_000)] = STOP_WORDS
    start_words: Annotated[str, Meta(max_length=10_000)] = START_WORDS
    opt_out_text: Annotated[str, Meta(max_length=1_600)] | None = None

    def redacted(self) -> dict[str, object]:
        """Return all settings by name, with `HIDDEN` instead of each secret."""
        settings = msgspec.structs.asdict(self) | {
            name: HIDDEN for name in SECRETS if getattr(self, name)
        }
        if self.gateway_url:
            settings["gateway_url"] = URL_SECRETS.sub(HIDDEN, self.gateway_url)
        return settings

    def __repr__(self) -> str:
        fields = (
            f"{name}={value if value == HIDDEN else repr(value)}"
            for name, value in self.redacted().items()
        )
        return f"Settings({', '.join(fields)})"

    __str__ = __repr__

    @property
    def is_loopback(self) -> bool:
        """Whether mailer listens on loopback: only this machine can reach the API."""
        return is_loopback(self.host)

    @property
    def is_auth_enabled(self) -> bool:
        """Whether users and programs must authenticate."""
        return self.auth != "none"

    @property
    def approval_above(self) -> int | None:
        """Number of clients above which a second user must launch a mailing; None: never."""
        return self.confirm_above if self.require_approval else None

    @property
    def parsed_contact_cap(self) -> ContactCap | None:
        """The contact cap; None without one."""
        return None if self.contact_cap is None else ContactCap.parse(self.contact_cap)

    @property
    def proxies(self) -> list[str]:
        """Addresses and networks of trusted proxies; mailer believes their X-Forwarded headers."""
        return [part.strip() for part in (self.trusted_proxies or "").split(",") if part.strip()]


def read_settings(environ: Mapping[str, str], env_file: Path = Path(".env")) -> Settings:
    """Read the settings from `env_file`, overridden by `environ`.

    An empty variable counts as not set; it is refused when it is in `NEVER_EMPTY`. Raises
    `StartError` with one line that names every unknown or wrong variable.
    """
    variables = read_variables(environ, env_file)
    if wrong := find_wrong_characters(variables):
        raise StartError("; ".join(sorted(wrong)))
    # by the names of the fields of `Settings`
    texts = {name.removeprefix(PREFIX).lower(): text for name, text in variables.items()}
    non_empty = {name: text for name, text in texts.items() if text}
    types = {field.name: field.type for field in msgspec.structs.fields(Settings)}
    errors = [
        f"{printable_name(PREFIX + name.upper())} is not a setting"
        for name in non_empty.keys() - types.keys()
    ]
    errors += [
        f"{PREFIX}{name.upper()}: is empty; set it, or leave it out"
        for name in NEVER_EMPTY & texts.keys() - non_empty.keys()
    ]
    values = {}
    for name in types.keys() & non_empty.keys():
        try:
            values[name] = msgspec.convert(non_empty[name], types[name], strict=False)
        except msgspec.ValidationError as error:
            errors.append(f"{PREFIX}{name.upper()}: {str(error).lower()}")
    settings = Settings(**values)
    errors += _find_errors(settings)
    if errors:
        message = "; ".join(sorted(errors))
        raise StartError(message)
    return settings


def _find_errors(settings: Settings) -> list[str]:
    """Return an error message for each broken rule that the types of the fields do not check."""
    errors = []
    if settings.database_url is not None and not _is_database_url(settings.database_url):
        prefixes = "postgresql:// or postgres://"
        errors.append(f"{PREFIX}DATABASE_URL: must be a URL that starts with {prefixes}")
    errors += _find_url_errors(settings)
    errors += _find_oidc_errors(settings)
    errors += _find_word_errors(settings)
    try:
        settings.parsed_contact_cap  # noqa: B018  # it raises the error
    except ValueError as error:
        errors.append(f"{PREFIX}CONTACT_CAP: {error}")
    if not settings.is_auth_enabled and not settings.is_loopback:
        errors.append(f"{PREFIX}AUTH=none is allowed on a loopback {PREFIX}HOST only")
    if settings.require_approval and not settings.is_auth_enabled:
        errors.append(f"{PREFIX}REQUIRE_APPROVAL needs users; it is not for {PREFIX}AUTH=none")
    errors += [
        f"{PREFIX}TRUSTED_PROXIES: {proxy!r} is not an address or a network"
        for proxy in settings.proxies
        if not _is_network(proxy)
    ]
    if settings.report_time_zone not in zoneinfo.available_timezones():
        errors.append(f"{PREFIX}REPORT_TIME_ZONE: not an IANA time zone")
    # with a file of gateways, each has a timeout of its own, which `configured_gateways` checks
    if settings.gateways is None and settings.lease < settings.gateway_timeout + LEASE_SLACK:
        errors.append(f"{PREFIX}LEASE must be {LEASE_SLACK} s longer than {PREFIX}GATEWAY_TIMEOUT")
    return errors


def _find_url_errors(settings: Settings) -> list[str]:
    """Return the errors in the URLs of the gateway, of mailer and of the mail server."""
    errors = []
    if settings.gateways is not None and settings.gateway_url is not None:
        errors.append(f"{PREFIX}GATEWAYS and {PREFIX}GATEWAY_URL: set only one")
    if settings.gateway_url is not None:
        try:
            user = read_gateway_url(settings.gateway_url).user
        except ValueError as error:
            errors.append(f"{PREFIX}GATEWAY_URL: {error}")
        else:
            if settings.gateway_token and user is not None:
                conflict = f"a user in it cannot be combined with {PREFIX}GATEWAY_TOKEN"
                errors.append(f"{PREFIX}GATEWAY_URL: {conflict}")
    if settings.public_url is not None and (reason := _find_url_mistake(settings.public_url)):
        errors.append(f"{PREFIX}PUBLIC_URL: {reason}")
    if settings.smtp_url is not None:
        try:
            split_url(settings.smtp_url, ("smtp", "smtps"))
        except ValueError as error:
            errors.append(f"{PREFIX}SMTP_URL: {error}")
    return errors


def _find_url_mistake(value: str) -> str | None:
    """Return why `value` cannot be the start of mailer's own URLs; None if it can."""
    try:
        split_url(value, ("http", "https"))
    except ValueError as error:
        return str(error)
    return "must have no user, query or fragment" if set("?#@") & set(value) else None


def _find_oidc_errors(settings: Settings) -> list[str]:
    """Return the errors in the settings for the OpenID provider."""
    errors = []
    if settings.oidc_issuer is not None and not _is_issuer(settings.oidc_issuer):
        errors.append(
            f"{PREFIX}OIDC_ISSUER: must be a URL that starts with https://, or with http:// on"
            " loopback, without user, query and fragment"
        )
    if (settings.oidc_issuer is None) != (settings.oidc_client_id is None):
        errors.append(f"{PREFIX}OIDC_ISSUER and {PREFIX}OIDC_CLIENT_ID: set both or none")
    try:
        parse_role_mapping(settings.oidc_roles)
    except ValueError:
        errors.append(
            f"{PREFIX}OIDC_ROLES: must be like viewer=staff,operator=marketing,admin=it, each name"
            " for one role"
        )
    return errors


def fold_keywords(words: str) -> frozenset[str]:
    """Return the keywords in a setting, which commas separate, in the form for comparison."""
    return frozenset(fold_keyword(word) for word in words.split(","))


def _find_word_errors(settings: Settings) -> list[str]:
    """Return the errors in the stop and start words of replies."""
    stop_words, start_words = (
        fold_keywords(settings.stop_words),
        fold_keywords(settings.start_words),
    )
    errors = [
        f"{PREFIX}{name}: must be words of letters or digits, separated by commas"
        for name, words in (("STOP_WORDS", stop_words), ("START_WORDS", start_words))
        if "" in words
    ]
    if not errors and stop_words & start_words:
        errors.append(f"{PREFIX}STOP_WORDS and {PREFIX}START_WORDS: a word is in both")
    return errors


def _is_issuer(value: str) -> bool:
    """Return whether `value` may be the URL of an OpenID provider, its issuer.

    Rules: OpenID Connect Discovery 1.0, section 3. On loopback http:// is allowed, for tests.
    """
    try:
        parts = split_url(value, ("http", "https"))
    except ValueError:
        return False
    return not set("?#@") & set(value) and (
        parts.scheme == "https" or is_loopback(parts.hostname or "")
    )


def _is_database_url(value: str) -> bool:
    """Return whether `value` has PostgreSQL's scheme.

    `mailer.db.url` checks the rest, when a command needs the database.
    """
    return value.startswith(("postgresql://", "postgres://"))


def _is_network(value: str) -> bool:
    try:
        ipaddress.ip_network(value)
    except ValueError:
        return False
    return True
