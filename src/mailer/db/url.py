"""Database URLs, in the form that libpq and so psql take.

https://www.postgresql.org/docs/current/libpq-connect.html, sections 32.1.1.2 and 32.1.2. What the
driver cannot do is refused by name where it would weaken the connection, else left out.
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

SCHEMES = ("postgresql://", "postgres://")
DEFAULT_CONNECT_TIMEOUT = 5.0  # seconds
MAX_CONNECT_TIMEOUT = 300.0  # seconds
MAX_PORT = 65_535
FEWEST_HOSTS = 2  # in a list

AUTHORITY = re.compile(
    r"(?:(?P<user>[^:@/]*)(?::(?P<password>[^@/]*))?@)?(?P<hosts>[^/?]*)"
    r"(?:/(?P<database>[^?]*))?(?:\?(?P<query>.*))?",
    re.DOTALL,
)
HOST = re.compile(r"(?:\[(?P<address>[^\]]+)\]|(?P<name>[^:\[\]]*))(?::(?P<port>[0-9]*))?")

PASSED_ON = frozenset(
    {
        *("sslmode", "sslnegotiation", "sslcert", "sslkey", "sslpassword", "sslrootcert", "sslcrl"),
        *("ssl_min_protocol_version", "ssl_max_protocol_version", "target_session_attrs"),
        *("passfile", "krbsrvname", "gsslib"),
    }
)
"""Parameters that the driver understands as libpq does."""
READ_HERE = frozenset(
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

LEFT_OUT: dict[str, Callable[[str], bool]] = {
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
"""Parameters that change nothing here with these values: sessions are watched by their own time
limits, and the rest says what the driver does anyway. With other values they are refused."""


class Target(msgspec.Struct, frozen=True):
    """Where and how to connect; `attempts` are the hosts in the order to try them."""

    attempts: list[dict[str, Any]]
    """Arguments for asyncpg.connect, without those of the session."""
    timeout: float
    """Seconds for each host."""
    server_settings: dict[str, str]


def read_url(url: str) -> Target:
    """Return what `url` means.

    Raises `ValueError` with a sentence that names the part or parameter that is wrong, and holds
    nothing of the URL's values, of which one is a password.
    """
    parameters = _parameters(url)
    hosts = _hosts(parameters)
    _check_certificate(parameters)
    if parameters.get("load_balance_hosts", "disable") == "random":
        random.shuffle(hosts)
    tls: dict[str, Any] = {"ssl": _trusted_by_system(parameters)} if _is_system(parameters) else {}
    passed = {
        name: value
        for name, value in parameters.items()
        if name in PASSED_ON and name.startswith("ssl") and value
    }
    common = {
        **{name: parameters[name] for name in ("user", "password") if parameters.get(name)},
        **({"database": parameters["dbname"]} if parameters.get("dbname") else {}),
        **{
            name: parameters[name]
            for name in ("passfile", "krbsrvname", "gsslib")
            if parameters.get(name)
        },
        # the driver takes these from a URL alone
        "dsn": "postgresql://?" + urlencode(passed, quote_via=quote)
        if passed and not tls
        else None,
        **tls,
    }
    wanted = parameters.get("target_session_attrs")
    if len(hosts) >= FEWEST_HOSTS and wanted in {None, "any"}:
        wanted = "read-write"  # no other can be worked with
    # one after another, as libpq does: the driver has one time limit for all
    passes = ["standby", "any"] if wanted == "prefer-standby" else [wanted]
    return Target(
        attempts=[
            {**common, **place, **({"target_session_attrs": each} if each else {})}
            for each in passes
            for place in hosts or [{}]
        ],
        timeout=_timeout(parameters.get("connect_timeout")),
        server_settings={
            name: parameters[name]
            for name in ("application_name", "options")
            if parameters.get(name)
        },
    )


def _parameters(url: str) -> dict[str, str]:
    scheme = next((each for each in SCHEMES if url.startswith(each)), None)
    found = AUTHORITY.fullmatch(url.removeprefix(scheme)) if scheme else None
    if found is None:
        raise ValueError("must be a URL that starts with postgresql:// or postgres://")
    parts = found.groupdict(default="")
    parameters = {
        name: _decoded(parts[key], name)
        for name, key in (("user", "user"), ("password", "password"), ("dbname", "database"))
        if parts[key]
    }
    if parts["hosts"]:
        hosts, ports = zip(*_split_hosts(parts["hosts"]), strict=True)
        parameters["host"] = ",".join(_decoded(host, "host") for host in hosts)
        if any(ports):
            parameters["port"] = ",".join(port or "5432" for port in ports)
    parameters |= dict(_query(parts["query"]))
    if service := parameters.pop("service", None):
        parameters = _service(service) | parameters
    for name in sorted(parameters):
        _check(name, parameters[name])
    if parameters.pop("ssl", None) == "true":
        parameters["sslmode"] = "require"
    return parameters


def _split_hosts(given: str) -> Iterator[tuple[str, str]]:
    for part in given.split(","):
        found = HOST.fullmatch(part)
        if found is None:
            raise ValueError("a host in it is not a name, an address or [an IPv6 address], or its"
                " port is not a number")  # fmt: skip
        yield found["address"] or found["name"], found["port"] or ""


def _query(query: str) -> Iterator[tuple[str, str]]:
    for pair in query.removesuffix("&").split("&") if query else ():
        name, equals, value = pair.partition("=")
        name = _decoded(name, "the name of a parameter")
        if not equals or "=" in value:
            raise ValueError(f"the parameter {_shown(name)} must be name=value, with = as %3D")
        yield ("dbname" if name == "database" else name), _decoded(value, _shown(name))


def _decoded(text: str, what: str) -> str:
    if re.search(r"%(?![0-9A-Fa-f]{2})", text) or "%00" in text:
        raise ValueError(f"{what} has a % that is not followed by two digits; write it as %25")
    try:
        return unquote(text, errors="strict")
    except UnicodeDecodeError:
        raise ValueError(f"{what} is not UTF-8") from None


def _check(name: str, value: str) -> None:
    if name in LEFT_OUT:
        if not LEFT_OUT[name](value):
            raise ValueError(f"the parameter {name} cannot have this value here")
    elif name == "ssl":
        if value != "true":
            raise ValueError("the parameter ssl can be true alone; use sslmode")
    elif name in CHOICES:
        if value not in CHOICES[name]:
            raise ValueError(f"the parameter {name} must be one of {', '.join(CHOICES[name])}")
    elif name not in PASSED_ON | READ_HERE:
        raise ValueError(
            f"the parameter {_shown(name)} is not supported; settings of the server go into"
            " options=-cNAME%3DVALUE"
        )
    if name in FILES and value and not (name == "sslrootcert" and value == "system"):
        _check_readable(name, value)


def _shown(name: str) -> str:
    """Return a parameter's name as an error may show it; a wrong one may be part of a password."""
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
            parameters.get("sslpassword", ""),  # or OpenSSL asks the terminal
        )
    except ssl.SSLError:
        raise ValueError(
            "the parameters sslcert, sslkey and sslpassword give no certificate with its key"
        ) from None


def _service(name: str) -> dict[str, str]:
    """Return the parameters of a service (libpq, section 32.17), which those of a URL override."""
    file = Path(os.environ.get("PGSERVICEFILE") or Path.home() / ".pg_service.conf")
    services = configparser.RawConfigParser(delimiters=["="], comment_prefixes=["#"], strict=False)
    try:
        services.read_string(file.read_text())
        return dict(services[name])
    except (OSError, UnicodeError, KeyError, configparser.Error):
        raise ValueError(
            f"the service of the parameter service cannot be read from {file}"
        ) from None


def _hosts(parameters: dict[str, str]) -> list[dict[str, Any]]:
    """Return host and port of each place to try; none when the driver's defaults hold."""
    names = [name.strip() for name in parameters.get("host", "").split(",")]
    if addresses := parameters.get("hostaddr"):
        if parameters.get("sslmode") == "verify-full" and any(names):
            raise ValueError("the parameter hostaddr cannot go with sslmode=verify-full")
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


def _timeout(given: str | None) -> float:
    """Return seconds; libpq's 0 waits for ever, which nothing here does."""
    if not given:
        return DEFAULT_CONNECT_TIMEOUT
    if not re.fullmatch(r"-?[0-9]{1,9}", given):
        raise ValueError("the parameter connect_timeout must be a whole number of seconds")
    return min(float(given), MAX_CONNECT_TIMEOUT) if int(given) > 0 else DEFAULT_CONNECT_TIMEOUT


def _is_system(parameters: dict[str, str]) -> bool:
    return parameters.get("sslrootcert") == "system"


def _trusted_by_system(parameters: dict[str, str]) -> ssl.SSLContext:
    """Return what libpq does for sslrootcert=system: the machine's CAs, and the host's name."""
    if parameters.get("sslmode", "verify-full") != "verify-full":
        raise ValueError("the parameter sslrootcert=system goes with sslmode=verify-full alone")
    context = ssl.create_default_context()
    if certificate := parameters.get("sslcert"):
        context.load_cert_chain(
            certificate, parameters.get("sslkey"), parameters.get("sslpassword", "")
        )
    return context
