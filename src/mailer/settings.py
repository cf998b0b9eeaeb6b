"""What an operator may set: environment variables with the prefix MAILER_, or a `.env` file."""

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

from mailer.errors import StartError
from mailer.urls import read_gateway_url, split_url
from mailer.variables import PREFIX, find_unreadable, read_variables, shown_name

SECRETS = frozenset(
    {"database_url", "gateway_token", "smtp_url", "oidc_client_secret", "monitoring_token"}
)  # URLs may carry a password
NEVER_EMPTY = frozenset({"monitoring_token"})
"""Settings that shut something: one that was to be filled in and was not must not open it. Without
the gateway's token or the provider's secret nothing is opened: they refuse us."""
HIDDEN = "***"
KEYS = re.compile(r"(?<=://)[^/?#]*(?=@)|(?<=\?).*")
"""The user and the password of a URL, and its query: a gateway may want its key there."""

LEASE_SLACK = 2
"""Seconds of a lease beyond the gateway's time: to wait for a turn, and to write the outcome."""

Role = Literal["viewer", "operator", "admin"]
ROLES: tuple[Role, ...] = ("viewer", "operator", "admin")
"""What a person may do here, from the least on."""
Scope = Literal["read", "write", "admin"]
"""What somebody may do: look at clients, mailings and messages; change them too; read the audit log
too, where a person also sees the system and keeps keys and accounts."""
SCOPES: tuple[Scope, ...] = ("read", "write", "admin")
"""Each may do what those before it may."""

Seconds = Annotated[float, Meta(gt=0, le=86_400)]
Count = Annotated[int, Meta(ge=1, le=10_000)]
TimeOfDay = Annotated[str, Meta(pattern=r"^([01][0-9]|2[0-3]):[0-5][0-9]$", max_length=5)]


def default_data_dir() -> str:
    """Return the folder for data when none is set: the user's own; root's can be read by others.

    PostgreSQL refuses to run as root, so that the unprivileged user it runs as must reach it.
    """
    if os.geteuid() == 0:
        return "/var/lib/mailer"
    return platformdirs.user_data_dir("mailer")


class Settings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Every setting, read once at the start; durations are seconds."""

    database_url: str | None = None
    data_dir: str = msgspec.field(default_factory=default_data_dir)
    host: str = "127.0.0.1"
    port: Annotated[int, Meta(ge=0, le=65_535)] = 8000
    gateway_url: str | None = None
    gateway_token: Annotated[str, Meta(pattern=r"^[!-~]+(?!\n)$")] | None = None
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
    key_rate: Annotated[float, Meta(ge=0, le=1_000_000)] = 100
    monitoring_token: Annotated[str, Meta(pattern=r"^[!-~]+(?!\n)$")] | None = None
    trusted_proxies: str | None = None
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    log_format: Literal["console", "json"] | None = None
    smtp_url: str | None = None
    smtp_from: str | None = None
    report_recipients: str | None = None
    report_at: TimeOfDay = "08:00"
    report_time_zone: str = "UTC"
    oidc_issuer: str | None = None
    oidc_client_id: str | None = None
    oidc_client_secret: str | None = None
    oidc_role_claim: Annotated[str, Meta(max_length=200)] = "roles"
    oidc_roles: Annotated[str, Meta(max_length=10_000)] = ",".join(
        f"{each}={each}" for each in ROLES
    )
    retention_days: Annotated[int, Meta(ge=0, le=36_500)] = 0

    def shown(self) -> dict[str, object]:
        """Return every setting by its name, secrets hidden."""
        settings = msgspec.structs.asdict(self) | {
            name: HIDDEN for name in SECRETS if getattr(self, name)
        }
        if self.gateway_url:
            settings["gateway_url"] = KEYS.sub(HIDDEN, self.gateway_url)
        return settings

    def __repr__(self) -> str:
        shown = (
            f"{name}={value if value == HIDDEN else repr(value)}"
            for name, value in self.shown().items()
        )
        return f"Settings({', '.join(shown)})"

    __str__ = __repr__

    @property
    def is_loopback(self) -> bool:
        """Whether only this machine can reach the API."""
        return is_loopback(self.host)

    @property
    def proxies(self) -> list[str]:
        """Addresses and networks whose word on who a request comes from counts."""
        return [part.strip() for part in (self.trusted_proxies or "").split(",") if part.strip()]


def is_loopback(host: str) -> bool:
    """Whether a host's name or address is that of this machine, to itself."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def role_words(mapping: str) -> dict[str, Role]:
    """Return the role that each word of an identity provider stands for.

    `mapping` is `role=word` with commas between; a role may have several words. Raises `ValueError`
    when it is anything else, or when a word stands for two roles.
    """
    words: dict[str, Role] = {}
    for pair in mapping.split(","):
        name, _, word = (part.strip() for part in pair.partition("="))
        role = next((each for each in ROLES if each == name), None)
        if role is None or not word or word in words:
            raise ValueError
        words[word] = role
    return words


def read_settings(environ: Mapping[str, str], env_file: Path = Path(".env")) -> Settings:
    """Read the settings from `env_file`, overridden by `environ`.

    One that is empty counts as not set, but where that would open what it is to shut. Raises
    `StartError` with one line that names every variable that is unknown or wrong.
    """
    variables = read_variables(environ, env_file)
    if unreadable := find_unreadable(variables):
        raise StartError("; ".join(sorted(unreadable)))
    every = {name.removeprefix(PREFIX).lower(): value for name, value in variables.items()}
    given = {name: value for name, value in every.items() if value}
    known = {field.name: field.type for field in msgspec.structs.fields(Settings)}
    wrong = [
        f"{shown_name(PREFIX + name.upper())} is not a setting"
        for name in given.keys() - known.keys()
    ]
    wrong += [
        f"{PREFIX}{name.upper()}: is empty; set it, or leave it out"
        for name in NEVER_EMPTY & every.keys() - given.keys()
    ]
    values = {}
    for name in known.keys() & given.keys():
        try:
            values[name] = msgspec.convert(given[name], known[name], strict=False)
        except msgspec.ValidationError as error:
            wrong.append(f"{PREFIX}{name.upper()}: {str(error).lower()}")
    settings = Settings(**values)
    wrong += _broken_rules(settings)
    if wrong:
        message = "; ".join(sorted(wrong))
        raise StartError(message)
    return settings


def _broken_rules(settings: Settings) -> list[str]:
    """Rules that one variable's type cannot say."""
    wrong = []
    if settings.database_url is not None and not _is_database_url(settings.database_url):
        start = "postgresql:// or postgres://"
        wrong.append(f"{PREFIX}DATABASE_URL: must be a URL that starts with {start}")
    wrong += _broken_url_rules(settings)
    wrong += _broken_oidc_rules(settings)
    if settings.auth == "none" and not settings.is_loopback:
        wrong.append(f"{PREFIX}AUTH=none is allowed on a loopback {PREFIX}HOST only")
    wrong += [
        f"{PREFIX}TRUSTED_PROXIES: {proxy!r} is not an address or a network"
        for proxy in settings.proxies
        if not _is_network(proxy)
    ]
    if settings.report_time_zone not in zoneinfo.available_timezones():
        wrong.append(f"{PREFIX}REPORT_TIME_ZONE: not an IANA time zone")
    if settings.lease < settings.gateway_timeout + LEASE_SLACK:
        wrong.append(f"{PREFIX}LEASE must be {LEASE_SLACK} s longer than {PREFIX}GATEWAY_TIMEOUT")
    return wrong


def _broken_url_rules(settings: Settings) -> list[str]:
    wrong = []
    if settings.gateway_url is not None:
        try:
            user = read_gateway_url(settings.gateway_url).user
        except ValueError as error:
            wrong.append(f"{PREFIX}GATEWAY_URL: {error}")
        else:
            if settings.gateway_token and user is not None:
                alone = f"a user in it cannot go with {PREFIX}GATEWAY_TOKEN"
                wrong.append(f"{PREFIX}GATEWAY_URL: {alone}")
    if settings.smtp_url is not None:
        try:
            split_url(settings.smtp_url, ("smtp", "smtps"))
        except ValueError as error:
            wrong.append(f"{PREFIX}SMTP_URL: {error}")
    return wrong


def _broken_oidc_rules(settings: Settings) -> list[str]:
    wrong = []
    if settings.oidc_issuer is not None and not _is_issuer(settings.oidc_issuer):
        wrong.append(
            f"{PREFIX}OIDC_ISSUER: must be a URL that starts with https://, or with http:// on"
            " loopback, without user, query and fragment"
        )
    if (settings.oidc_issuer is None) != (settings.oidc_client_id is None):
        wrong.append(f"{PREFIX}OIDC_ISSUER and {PREFIX}OIDC_CLIENT_ID: both or none")
    try:
        role_words(settings.oidc_roles)
    except ValueError:
        wrong.append(
            f"{PREFIX}OIDC_ROLES: must be like viewer=staff,operator=marketing,admin=it, each word"
            " for one role"
        )
    return wrong


def _is_issuer(value: str) -> bool:
    """Whether `value` may be an issuer (OpenID Connect Discovery 1.0, section 3)."""
    try:
        parts = split_url(value, ("http", "https"))
    except ValueError:
        return False
    return not set("?#@") & set(value) and (
        parts.scheme == "https" or is_loopback(parts.hostname or "")
    )


def _is_database_url(value: str) -> bool:
    """Whether `value` is a URL of PostgreSQL's; the rest of it is read where it is used."""
    return value.startswith(("postgresql://", "postgres://"))


def _is_network(value: str) -> bool:
    try:
        ipaddress.ip_network(value)
    except ValueError:
        return False
    return True
