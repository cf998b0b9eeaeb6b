"""Database URLs in the form of libpq and psql, as arguments of the driver asyncpg.

See https://www.postgresql.org/docs/current/libpq-connect.html, section 32.1.2. A parameter that the
driver does not support is refused by name if leaving it out would make the connection less secure;
otherwise it is ignored.
"""

import ipaddress
import random
import re
import ssl
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

import msgspec

from mailer.db.url_parameters import read_parameters, safe_name
from mailer.urls import MAX_PORT

DEFAULT_CONNECT_TIMEOUT = 5.0  # seconds
MAX_CONNECT_TIMEOUT = 300.0  # seconds
MIN_LISTED_HOSTS = 2  # a URL with so many hosts has a list of servers

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
"""Parameters that this module interprets itself."""
CHOICES = {
    "load_balance_hosts": ("disable", "random"),
    "target_session_attrs": (
        *("any", "read-write", "read-only"),
        *("primary", "standby", "prefer-standby"),
    ),
}
"""The allowed values of parameters that are a choice."""
FILES = ("sslcert", "sslkey", "sslrootcert", "sslcrl", "passfile")
"""Parameters whose value is the path of a file."""

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
"""Parameters that are ignored, each with a function that returns whether a value may be ignored.

Any other value is refused. Keepalives are not needed because statements have timeouts. The other
parameters may have only values that describe what the driver does anyway.
"""


class ConnectionTarget(msgspec.Struct, frozen=True):
    """The servers to connect to, and how."""

    attempts: list[dict[str, Any]]
    """Arguments of asyncpg.connect for each attempt, in the order to try them, without
    `server_settings`. Usually there is one attempt for each host."""
    timeout: float
    """Seconds that each attempt may take."""
    server_settings: dict[str, str]
    """Settings of the session that the URL gives."""


def read_url(url: str) -> ConnectionTarget:
    """Return the target of a database URL.

    Raises `ValueError` with a message that names the wrong part or parameter but holds no value
    from the URL, because a value may be a password.
    """
    parameters = read_parameters(url)
    for name in sorted(parameters):
        _check_parameter(name, parameters[name])
    if parameters.pop("ssl", None) == "true":
        parameters["sslmode"] = "require"
    hosts = _read_hosts(parameters)
    _check_certificate(parameters)
    if parameters.get("load_balance_hosts", "disable") == "random":
        random.shuffle(hosts)
    return ConnectionTarget(
        attempts=_list_attempts(parameters, hosts),
        timeout=_read_timeout(parameters.get("connect_timeout")),
        server_settings={
            name: parameters[name]
            for name in ("application_name", "options")
            if parameters.get(name)
        },
    )


def _list_attempts(parameters: dict[str, str], hosts: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the arguments of asyncpg.connect for each attempt, in the order to try them.

    There is an attempt for each host, as in libpq: asyncpg could take all hosts at once, but would
    apply one timeout to all of them together.
    """
    same_for_all = _common_arguments(parameters)
    session_attrs = parameters.get("target_session_attrs")
    if len(hosts) >= MIN_LISTED_HOSTS and session_attrs in {None, "any"}:
        session_attrs = "read-write"  # of several hosts only a writable one is useful
    # asyncpg applies `prefer-standby` to the hosts of one call, and each attempt has one host: so
    # every host is tried as a standby, and then every host as any server
    rounds = ["standby", "any"] if session_attrs == "prefer-standby" else [session_attrs]
    return [
        {**same_for_all, **host, **({"target_session_attrs": attrs} if attrs else {})}
        for attrs in rounds
        for host in hosts or [{}]  # without a host asyncpg uses its default
    ]


def _common_arguments(parameters: dict[str, str]) -> dict[str, Any]:
    """Return the arguments of asyncpg.connect that are the same for every host."""
    arguments: dict[str, Any] = {
        name: parameters[name]
        for name in ("user", "password", "passfile", "krbsrvname", "gsslib")
        if parameters.get(name)
    }
    if parameters.get("dbname"):
        arguments["database"] = parameters["dbname"]
    # asyncpg accepts the parameters of TLS only in a URL, its argument `dsn`
    tls_parameters = {
        name: value
        for name, value in parameters.items()
        if name in FORWARDED_PARAMETERS and name.startswith("ssl") and value
    }
    arguments["dsn"] = None
    if parameters.get("sslrootcert") == "system":
        arguments["ssl"] = _system_tls_context(parameters)
    elif tls_parameters:
        arguments["dsn"] = "postgresql://?" + urlencode(tls_parameters, quote_via=quote)
    return arguments


def _check_parameter(name: str, value: str) -> None:
    """Raise `ValueError` for an unknown parameter or a value that is not allowed."""
    if name in IGNORED_PARAMETERS:
        may_be_ignored = IGNORED_PARAMETERS[name]
        if not may_be_ignored(value):
            raise ValueError(f"the parameter {name} cannot have this value here")
    elif name == "ssl":
        if value != "true":
            raise ValueError("the parameter ssl can only be true; use sslmode")
    elif name in CHOICES:
        if value not in CHOICES[name]:
            raise ValueError(f"the parameter {name} must be one of {', '.join(CHOICES[name])}")
    elif name not in FORWARDED_PARAMETERS | OWN_PARAMETERS:
        raise ValueError(
            f"the parameter {safe_name(name)} is not supported; write settings of the server as"
            " options=-cNAME%3DVALUE"
        )
    if name in FILES and value and not (name == "sslrootcert" and value == "system"):
        _check_readable(name, value)


def _check_readable(name: str, path: str) -> None:
    """Raise `ValueError` when the file cannot be read, or should have certificates and has none."""
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
    """Raise `ValueError` when the client's own certificate does not fit its key or password."""
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


def _read_hosts(parameters: dict[str, str]) -> list[dict[str, Any]]:
    """Return asyncpg's arguments `host` and `port` for each server to try.

    The list is empty when the URL names neither: then the driver uses its defaults.
    """
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
    """Return the connect timeout in seconds.

    Without a value, and for 0 or less, which libpq reads as "no limit", it is the default.
    """
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
