"""Validation of the URLs in settings; the gateway's URL and the place of a message's id in it."""

import ipaddress
import re
from collections.abc import Collection
from urllib.parse import SplitResult, unquote, urlsplit

import msgspec

URL_CHARACTERS = re.compile(r"(?:[A-Za-z0-9._~:/?#\[\]@!$&'()*+,;=-]|%[0-9A-Fa-f]{2})*")
"""Characters allowed in a URL (RFC 3986, section 2)."""
HOST_LABEL = re.compile(r"[A-Za-z0-9_](?:[A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?")
"""Part of a host name between two dots (RFC 1123, section 2.1); `_` is also allowed because some
hosts use it."""
MAX_HOST_LENGTH = 253
"""Characters of a host name."""
MAX_PORT = 65_535


class GatewayUrl(msgspec.Struct, frozen=True):
    """The URL to which a message is posted: `before`, then the message's id, then `after`.

    `user` and `password` were in the URL of the setting, and are sent in a header instead.
    """

    before: str
    after: str
    user: str | None = None
    password: str = ""

    def __repr__(self) -> str:
        origin = "/".join(self.before.split("/")[:3])
        return f"GatewayUrl({origin!r})"  # no secrets: they can be in the rest

    __str__ = __repr__


def split_url(value: str, schemes: Collection[str]) -> SplitResult:
    """Return the parts of a URL with one of `schemes` and a valid host and port.

    Raises `ValueError` whose message says what is wrong.
    """
    prefixes = " or ".join(f"{scheme}://" for scheme in schemes)
    if not URL_CHARACTERS.fullmatch(value):
        # checked first, because urlsplit silently drops some characters
        raise ValueError(
            "must have no blank, line end, letter outside ASCII or other character that a URL"
            " cannot have; write it as %XX"
        )
    if not value.lower().startswith(tuple(f"{scheme}://" for scheme in schemes)):
        raise ValueError(f"must be a URL that starts with {prefixes}")
    try:
        parts = urlsplit(value)
        host = parts.hostname
    except ValueError:  # a wrong IPv6 address
        host = None
    if not host or not is_host(host):
        raise ValueError("must have the name or the address of a host")
    try:
        port = parts.port
    except ValueError:  # not a number, or too large
        port = 0
    if port == 0:
        raise ValueError(f"must have a port between 1 and {MAX_PORT}")
    return parts


def is_host(host: str) -> bool:
    """Return whether a text can be the name or the address of a host."""
    if ":" in host:
        try:
            ipaddress.IPv6Address(host)
        except ValueError:
            return False
        return True
    labels = host.removesuffix(".").split(".")
    if labels[-1].isdigit():  # not a name, whose last label is never a number (RFC 1123, 2.1)
        return _is_ipv4(".".join(labels))
    return len(host) <= MAX_HOST_LENGTH and all(map(HOST_LABEL.fullmatch, labels))


def _is_ipv4(host: str) -> bool:
    try:
        ipaddress.IPv4Address(host)
    except ValueError:
        return False
    return True


def read_gateway_url(value: str) -> GatewayUrl:
    """Parse the gateway's URL and find the place of a message's id in it.

    The id is appended to the path. When the query ends with an empty value, as in `?key=abc&id=`,
    the id is that value instead. Raises `ValueError` whose message says what is wrong.
    """
    parts = split_url(value, ("http", "https"))
    if "#" in value:
        raise ValueError("must have no fragment: neither # nor a message id after it is ever sent")
    user = password = None
    if "@" in parts.netloc:
        user, password = _unquote(parts.username or ""), _unquote(parts.password or "")
        if not user or ":" in user:
            raise ValueError("must have a user before the @, without a colon in its name")
    base, question_mark, query = value.partition("?")
    host_and_port = parts.netloc.rpartition("@")[2]
    base = base.replace(parts.netloc, host_and_port, 1)
    if not parts.path:
        base += "/"
    before_id, after_id = base, question_mark + query
    if not query or query.endswith("="):
        before_id, after_id = base + question_mark + query, ""
    return GatewayUrl(before=before_id, after=after_id, user=user, password=password or "")


def _unquote(value: str) -> str:
    """Decode the %XX of a user or a password."""
    try:
        return unquote(value, errors="strict")
    except UnicodeDecodeError:
        raise ValueError("must have user and password in UTF-8") from None


def is_loopback(host: str) -> bool:
    """Return whether a host's name or address means this machine itself."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
