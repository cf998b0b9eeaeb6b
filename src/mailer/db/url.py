"""Parser of database URLs in the form of libpq and psql.

See https://www.postgresql.org/docs/current/libpq-connect.html, sections 32.1.1.2 and 32.1.2. A
parameter that the driver does not support is refused by name if leaving it out would make the
connection less secure; otherwise it is ignored.
"""

import configparser
import ipaddress
import os
import random
import re
import ssl
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote, urlencode

import msgspec

from mailer.urls import MAX_PORT

POSTGRESQL_SCHEMES = ("postgresql://", "postgres://")
DEFAULT_CONNECT_TIMEOUT = 5.0  # seconds
MAX_CONNECT_TIMEOUT = 300.0  # seconds
MIN_LISTED_HOSTS = 2  # a URL with so many hosts has a list of servers

AUTHORITY = re.compile(
    r"(?:(?P<user>[^:@/]*)(?::(?P<password>[^@/]*))?@)?(?P<hosts>[^/?]*)"
    r"(?:/(?P<database>[^?]*))?(?:\?(?P<query>.*))?",
    re.DOTALL,
)
HOST = re.compile(r"(?:\[(?P<address>[^\]]+)\]|(?P<name>[^:\[\]]*))(?::(?P<port>[0-9]*))?")

FORWARDED_PARAMETERS = frozenset(
    {
        *("sslmode", "sslnegotiation", "sslcert", "sslkey", "sslpassword", "sslrootcert", "sslcrl"),
        *("ssl_min_protocol_version", "ssl_max_protocol_version", "target_session_attrs"),
        *("passfile", "krbsrvname", "gsslib"),
    }
)
"""Parameters that the driver interprets like libpq."""
OWN_PARAMETERS = frozenset(
    {
        *("host", "hostaddr", "port", "dbname", "user", "password", "connect_timeout", "options"),
        *("application_name", "load_balance_hosts", "ssl"),
    }
)
CHOICES = {
    "load_balance_hosts": ("disable", "random"),
    "target_session_attrs": (
        *("any", "read-write", "read-only"),
        *("primary", "standby", "prefer-standby"),
    ),
}
FILES = ("sslcert", "sslkey", "sslrootcert", "sslcrl", "passfile")

IGNORED_PARAMETERS: dict[str, Callable[[str], bool]] = {
    "fallback_application_name": lambda _: True,
    **dict.fromkeys(
        ("keepalives", "keepalives_idle", "keepalives_interval", "keepalives_count"), str.isdecimal
    ),
    "tcp_user_timeout": str.isdecimal,
    "gssencmode": {"disable", "prefer"}.__contains__,
    "channel_binding": {"disable", "prefer"}.__contains__,
    "client_encoding": lambda value: value.upper().replace("-", "") in {"UTF8", "AUTO"},
    "sslcompression": {"0", "1"}.__contains__,
    "sslsni": {"1"}.__contains__,
    "sslcertmode": {"allow"}.__contains__,
    "gssdelegation": {"0"}.__contains__,
    "replication": {"false", "off", "no", "0"}.__contains__,
    "min_protocol_version": {"3.0"}.__contains__,
    "max_protocol_version": {"3.0", "3.2", "latest"}.__contains__,
}
"""Parameters that are ignored, with a check of the values that may be ignored: other values are
refused. Keepalives are not needed because statements have timeouts; the other parameters are
allowed only with the values that describe what the driver does anyway."""


class ConnectionTarget(msgspec.Struct, frozen=True):
    """The servers to connect to, and how."""

    attempts: list[dict[str, Any]]
    """Arguments of asyncpg.connect for each host, in the order to try them; without settings of the
    session."""
    timeout: float
    """Seconds to connect to each host."""
    server_settings: dict[str, str]


def read_url(url: str) -> ConnectionTarget:
    """Parse a database URL.

    Raises `ValueError` with a message that names the wrong part or parameter but holds no value
    from the URL, because a value may be a password.
    """
    parameters = _read_parameters(url)
    hosts = _read_hosts(parameters)
    _check_certificate(parameters)
    if parameters.get("load_balance_hosts", "disable") == "random":
        random.shuffle(hosts)
    common = _common_arguments(parameters)
    session_attrs = parameters.get("target_session_attrs")
    if len(hosts) >= MIN_LISTED_HOSTS and session_attrs in {None, "any"}:
        session_attrs = "read-write"  # of several hosts only a writable one is useful
    # One host after another, each with its own timeout, as libpq does: the driver would apply one
    # timeout to all hosts together.
    rounds = ["standby", "any"] if session_attrs == "prefer-standby" else [session_attrs]
    return ConnectionTarget(
        attempts=[
            {**common, **host, **({"target_session_attrs": attrs} if attrs else {})}
            for attrs in rounds
            for host in hosts or [{}]
        ],
        timeout=_read_timeout(parameters.get("connect_timeout")),
        server_settings={
            name: parameters[name]
            for name in ("application_name", "options")
            if parameters.get(name)
        },
    )


def _common_arguments(parameters: dict[str, str]) -> dict[str, Any]:
    """Return the arguments of asyncpg.connect that are the same for every host."""
    tls: dict[str, Any] = {}
    if parameters.get("sslrootcert") == "system":
        tls = {"ssl": _system_tls_context(parameters)}
    dsn_parameters = {
        name: value
        for name, value in parameters.items()
        if name in FORWARDED_PARAMETERS and name.startswith("ssl") and value
    }
    return {
        **{name: parameters[name] for name in ("user", "password") if parameters.get(name)},
        **({"database": parameters["dbname"]} if parameters.get("dbname") else {}),
        **{
            name: parameters[name]
            for name in ("passfile", "krbsrvname", "gsslib")
            if parameters.get(name)
        },
        # the driver accepts these only in a URL
        "dsn": "postgresql://?" + urlencode(dsn_parameters, quote_via=quote)
        if dsn_parameters and not tls
        else None,
        **tls,
    }


def _read_parameters(url: str) -> dict[str, str]:
    """Return all parameters by libpq's names, from every part of the URL and from its service."""
    scheme = next((scheme for scheme in POSTGRESQL_SCHEMES if url.startswith(scheme)), None)
    match = AUTHORITY.fullmatch(url.removeprefix(scheme)) if scheme else None
    if match is None:
        raise ValueError("must be a URL that starts with postgresql:// or postgres://")
    parts = match.groupdict(default="")
    parameters = {
        name: _decode(parts[key], name)
        for name, key in (("user", "user"), ("password", "password"), ("dbname", "database"))
        if parts[key]
    }
    if parts["hosts"]:
        hosts, ports = zip(*_split_hosts(parts["hosts"]), strict=True)
        parameters["host"] = ",".join(_decode(host, "host") for host in hosts)
        if any(ports):
            parameters["port"] = ",".join(port or "5432" for port in ports)
    parameters |= dict(_read_query(parts["query"]))
    if service := parameters.pop("service", None):
        parameters = _read_service(service) | parameters
    for name in sorted(parameters):
        _check_parameter(name, parameters[name])
    if parameters.pop("ssl", None) == "true":
        parameters["sslmode"] = "require"
    return parameters


def _split_hosts(hosts: str) -> Iterator[tuple[str, str]]:
    """Yield host and port of each entry of a list; the port is "" when it is not given."""
    for entry in hosts.split(","):
        match = HOST.fullmatch(entry)
        if match is None:
            raise ValueError(
                "a host in it is not a name, an address or [an IPv6 address], or its port is not a"
                " number"
            )
        yield match["address"] or match["name"], match["port"] or ""


def _read_query(query: str) -> Iterator[tuple[str, str]]:
    for pair in query.removesuffix("&").split("&") if query else ():
        name, equals, value = pair.partition("=")
        name = _decode(name, "the name of a parameter")
        if not equals or "=" in value:
            raise ValueError(f"the parameter {_safe_name(name)} must be name=value, with = as %3D")
        yield ("dbname" if name == "database" else name), _decode(value, _safe_name(name))


def _decode(text: str, label: str) -> str:
    """Return percent-encoded text decoded; `label` names it in the error message."""
    if re.search(r"%(?![0-9A-Fa-f]{2})", text) or "%00" in text:
        raise ValueError(f"{label} has a % that is not followed by two digits; write it as %25")
    try:
        return unquote(text, errors="strict")
    except UnicodeDecodeError:
        raise ValueError(f"{label} is not UTF-8") from None


def _check_parameter(name: str, value: str) -> None:
    if name in IGNORED_PARAMETERS:
        if not IGNORED_PARAMETERS[name](value):
            raise ValueError(f"the parameter {name} cannot have this value here")
    elif name == "ssl":
        if value != "true":
            raise ValueError("the parameter ssl can only be true; use sslmode")
    elif name in CHOICES:
        if value not in CHOICES[name]:
            raise ValueError(f"the parameter {name} must be one of {', '.join(CHOICES[name])}")
    elif name not in FORWARDED_PARAMETERS | OWN_PARAMETERS:
        raise ValueError(
            f"the parameter {_safe_name(name)} is not supported; write settings of the server as"
            " options=-cNAME%3DVALUE"
        )
    if name in FILES and value and not (name == "sslrootcert" and value == "system"):
        _check_readable(name, value)


def _safe_name(name: str) -> str:
    """Return a parameter's name for an error message.

    A strange name is replaced: it may be part of a password with unescaped characters.
    """
    return name if re.fullmatch(r"[A-Za-z_]{1,40}", name) else "in its query"


def _check_readable(name: str, path: str) -> None:
    try:
        with Path(path).open("rb") as file:
            file.read(1)
    except OSError as error:
        raise ValueError(f"the file of the parameter {name}: {error.strerror}") from None
    if name in {"sslrootcert", "sslcrl"}:
        try:
            ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(cafile=path)
        except ssl.SSLError:
            raise ValueError(f"the file of the parameter {name} holds no PEM") from None


def _check_certificate(parameters: dict[str, str]) -> None:
    if not parameters.get("sslcert"):
        return
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_cert_chain(
            parameters["sslcert"],
            parameters.get("sslkey") or None,
            parameters.get("sslpassword", ""),  # without a password OpenSSL prompts on the terminal
        )
    except ssl.SSLError:
        raise ValueError(
            "the parameters sslcert, sslkey and sslpassword do not give a certificate and its key"
        ) from None


def _read_service(name: str) -> dict[str, str]:
    """Return the parameters of a service (libpq, section 32.17); those of the URL override them."""
    file = Path(os.environ.get("PGSERVICEFILE") or Path.home() / ".pg_service.conf")
    services = configparser.RawConfigParser(delimiters=["="], comment_prefixes=["#"], strict=False)
    try:
        services.read_string(file.read_text())
        return dict(services[name])
    except (OSError, UnicodeError, KeyError, configparser.Error):
        raise ValueError(
            f"the service of the parameter service cannot be read from {file}"
        ) from None


def _read_hosts(parameters: dict[str, str]) -> list[dict[str, Any]]:
    """Return the host and port of each server to try; [] when the driver's defaults apply."""
    names = [name.strip() for name in parameters.get("host", "").split(",")]
    if addresses := parameters.get("hostaddr"):
        if parameters.get("sslmode") == "verify-full" and any(names):
            raise ValueError("the parameter hostaddr cannot be used with sslmode=verify-full")
        names = [address.strip() for address in addresses.split(",")]
        if not all(map(_is_address, names)):
            raise ValueError("the parameter hostaddr must be an IP address, or several")
    ports = [port.strip() for port in parameters.get("port", "").split(",")]
    if len(ports) not in {1, len(names)}:
        raise ValueError("the parameter port must have one number, or one for each host")
    if not all(port == "" or _is_port(port) for port in ports):
        raise ValueError("a port in it is not a number from 1 to 65535")
    if len(ports) == 1:
        ports *= len(names)
    if not any(names):
        return [{"port": int(ports[0])}] if ports[0] else []
    if not all(names):
        raise ValueError("a host in its list is empty")
    if any(name.startswith("@") for name in names):
        raise ValueError("a host in it is an abstract socket, which is not supported")
    return [
        {"host": name, **({"port": int(port)} if port else {})}
        for name, port in zip(names, ports, strict=True)
    ]


def _is_address(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True


def _is_port(text: str) -> bool:
    return bool(re.fullmatch(r"[0-9]{1,5}", text)) and 1 <= int(text) <= MAX_PORT


def _read_timeout(value: str | None) -> float:
    """Return the connect timeout in seconds; 0, in libpq no limit, means the default here."""
    if not value:
        return DEFAULT_CONNECT_TIMEOUT
    if not re.fullmatch(r"-?[0-9]{1,9}", value):
        raise ValueError("the parameter connect_timeout must be a whole number of seconds")
    return min(float(value), MAX_CONNECT_TIMEOUT) if int(value) > 0 else DEFAULT_CONNECT_TIMEOUT


def _system_tls_context(parameters: dict[str, str]) -> ssl.SSLContext:
    """Return a TLS context for sslrootcert=system, as in libpq.

    It trusts the CAs of this machine and verifies the host name.
    """
    if parameters.get("sslmode", "verify-full") != "verify-full":
        raise ValueError("the parameter sslrootcert=system works only with sslmode=verify-full")
    context = ssl.create_default_context()
    if certificate := parameters.get("sslcert"):
        context.load_cert_chain(
            certificate, parameters.get("sslkey"), parameters.get("sslpassword", "")
        )
    return context
