"""What the URLs of the settings may look like, and where a message's id goes in the gateway's."""

import ipaddress
import re
from collections.abc import Collection
from urllib.parse import SplitResult, unquote, urlsplit

import msgspec

CHARACTERS = re.compile(r"(?:[A-Za-z0-9._~:/?#\[\]@!$&'()*+,;=-]|%[0-9A-Fa-f]{2})*")
"""What a URL consists of (RFC 3986, section 2)."""
LABEL = re.compile(r"[A-Za-z0-9_](?:[A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?")
"""A part of a host's name between two dots (RFC 1123, section 2.1), and `_`, which some have."""
HOST_LIMIT = 253
"""Characters of a host's name."""


class GatewayUrl(msgspec.Struct, frozen=True):
    """Where messages are posted to: the id of each stands between `before` and `after`."""

    before: str
    after: str
    user: str | None = None
    password: str = ""


def split_url(value: str, schemes: Collection[str]) -> SplitResult:
    """Return the parts of a URL that can be spoken to; raises `ValueError` saying what is wrong."""
    starts = " or ".join(f"{scheme}://" for scheme in schemes)
    if not CHARACTERS.fullmatch(value):
        # urlsplit drops some of these silently
        raise ValueError(
            "must have no blank, line end, letter outside ASCII or other character that a URL"
            " cannot have; write it as %XX"
        )
    if not value.lower().startswith(tuple(f"{scheme}://" for scheme in schemes)):
        raise ValueError(f"must be a URL that starts with {starts}")
    try:
        parts = urlsplit(value)
        host = parts.hostname
    except ValueError:  # of an IPv6 address
        host = None
    if not host or not is_host(host):
        raise ValueError("must have the name or the address of a host")
    try:
        port = parts.port
    except ValueError:
        port = 0
    if port == 0:
        raise ValueError("must have a port between 1 and 65535")
    return parts


def is_host(host: str) -> bool:
    """Whether this can be the name or the address of a host."""
    if ":" in host:
        try:
            ipaddress.IPv6Address(host)
        except ValueError:
            return False
        return True
    labels = host.removesuffix(".").split(".")
    if labels[-1].isdigit():  # no name ends so (RFC 1123, section 2.1)
        return _is_ipv4(".".join(labels))
    return len(host) <= HOST_LIMIT and all(map(LABEL.fullmatch, labels))


def _is_ipv4(host: str) -> bool:
    try:
        ipaddress.IPv4Address(host)
    except ValueError:
        return False
    return True


def read_gateway_url(value: str) -> GatewayUrl:
    """Return where a message's id goes in the gateway's URL.

    To the end of it: of its path, where a query follows, unless the query's last value is left out
    for the id, as in `?key=abc&id=`. Raises `ValueError` saying what is wrong.
    """
    parts = split_url(value, ("http", "https"))
    if "#" in value:
        raise ValueError("must have no fragment: what follows # is never sent, the id neither")
    user = password = None
    if "@" in parts.netloc:
        user, password = _unquoted(parts.username or ""), _unquoted(parts.password or "")
        if not user or ":" in user:
            raise ValueError("must have a user before the @, without a colon in its name")
    path, mark, query = value.partition("?")
    path = path.replace(parts.netloc, parts.netloc.rpartition("@")[2], 1)
    if not parts.path:
        path += "/"
    if query and not query.endswith("="):
        return GatewayUrl(path, mark + query, user, password or "")
    return GatewayUrl(path + mark + query, "", user, password or "")


def _unquoted(value: str) -> str:
    try:
        return unquote(value, errors="strict")
    except UnicodeDecodeError:
        raise ValueError("must have user and password in UTF-8") from None
