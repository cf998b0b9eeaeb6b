"""Parser of database URLs: from the text to parameters under libpq's names.

`postgresql://me:secret@db:5433/shop?sslmode=require` gives user, password, host, port, dbname and
sslmode. See https://www.postgresql.org/docs/current/libpq-connect.html, section 32.1.1.2.
`mailer.db.url` checks the parameters and uses them.
"""

import configparser
import os
import re
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote

SCHEMES = ("postgresql://", "postgres://")
DEFAULT_PORT = "5432"

AFTER_SCHEME = re.compile(
    r"(?:(?P<user>[^:@/]*)(?::(?P<password>[^@/]*))?@)?(?P<hosts>[^/?]*)"
    r"(?:/(?P<dbname>[^?]*))?(?:\?(?P<query>.*))?",
    re.DOTALL,
)
"""The parts of a URL after its scheme; all of them are optional."""
HOST = re.compile(r"(?:\[(?P<address>[^\]]+)\]|(?P<name>[^:\[\]]*))(?::(?P<port>[0-9]*))?")
"""One of the hosts of a URL: an IPv6 address in brackets, or a name or an IPv4 address; a port."""


def read_parameters(url: str) -> dict[str, str]:
    """Return all parameters from every part of the URL and from its service, by libpq's names.

    Lists of hosts and ports are texts with commas, as in libpq. Raises `ValueError` with a message
    that holds no value from the URL, because a value may be a password.
    """
    scheme = next((scheme for scheme in SCHEMES if url.startswith(scheme)), None)
    match = AFTER_SCHEME.fullmatch(url.removeprefix(scheme)) if scheme else None
    if match is None:
        raise ValueError("must be a URL that starts with postgresql:// or postgres://")
    parts = match.groupdict(default="")
    parameters = {
        name: _decode(parts[name], name) for name in ("user", "password", "dbname") if parts[name]
    }
    if parts["hosts"]:
        hosts, ports = zip(*_split_hosts(parts["hosts"]), strict=True)
        parameters["host"] = ",".join(_decode(host, "host") for host in hosts)
        if any(ports):
            parameters["port"] = ",".join(port or DEFAULT_PORT for port in ports)
    parameters |= dict(_read_query(parts["query"]))
    if service := parameters.pop("service", None):
        parameters = _read_service(service) | parameters
    return parameters


def safe_name(name: str) -> str:
    """Return a parameter's name for an error message, as in "the parameter NAME".

    A name of unusual characters is replaced by "in its query": it may be part of a password that
    contains `?` or `&` and was not percent-encoded.
    """
    return name if re.fullmatch(r"[A-Za-z_]{1,40}", name) else "in its query"


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
    """Yield name and value of each parameter in the query of a URL."""
    for pair in query.removesuffix("&").split("&") if query else ():
        name, equals, value = pair.partition("=")
        name = _decode(name, "the name of a parameter")
        if not equals or "=" in value:
            raise ValueError(f"the parameter {safe_name(name)} must be name=value, with = as %3D")
        yield ("dbname" if name == "database" else name), _decode(value, safe_name(name))


def _decode(text: str, label: str) -> str:
    """Return percent-encoded text decoded; `label` names the part in the error message."""
    if re.search(r"%(?![0-9A-Fa-f]{2})", text) or "%00" in text:
        raise ValueError(f"{label} has a % that is not followed by two digits; write it as %25")
    try:
        return unquote(text, errors="strict")
    except UnicodeDecodeError:
        raise ValueError(f"{label} is not UTF-8") from None


def _read_service(name: str) -> dict[str, str]:
    """Return the parameters of a service: a section of libpq's service file (section 32.17)."""
    file = Path(os.environ.get("PGSERVICEFILE") or Path.home() / ".pg_service.conf")
    services = configparser.RawConfigParser(delimiters=["="], comment_prefixes=["#"], strict=False)
    try:
        services.read_string(file.read_text())
        return dict(services[name])
    except (OSError, UnicodeError, KeyError, configparser.Error):
        raise ValueError(
            f"the service of the parameter service cannot be read from {file}"
        ) from None
