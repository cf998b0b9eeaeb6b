"""What proxies say of a request: who sent it, and whether by https.

To X-Forwarded-For each proxy appends the address that it was called from: read from the right, the
first that is no trusted proxy sent the request. Of several schemes in X-Forwarded-Proto the first
is the sender's own; a lie there costs only the liar, whose browser keeps no cookie for https.
"""

import ipaddress
from collections.abc import Iterable
from functools import lru_cache

import structlog
from litestar.enums import ScopeType
from litestar.types import ASGIApp, Receive, Scope, Send

log = structlog.get_logger()

FORWARDED_FOR, FORWARDED_PROTO = b"x-forwarded-for", b"x-forwarded-proto"
FORWARDED = frozenset({FORWARDED_FOR, FORWARDED_PROTO, b"x-forwarded-host", b"forwarded"})
SCHEMES = frozenset({"http", "https"})
MOST_HOPS = 20
"""Entries of X-Forwarded-For that are looked at, from the right."""
MOST_WARNINGS = 10
"""Addresses that are warned of, each once."""


class TrustedProxies:
    """Addresses and networks of proxies that are believed."""

    def __init__(self, networks: Iterable[str]) -> None:
        self._networks = [ipaddress.ip_network(network) for network in networks]
        self._is_trusted = lru_cache(maxsize=4096)(self._look_up)

    def __contains__(self, address: str) -> bool:
        return bool(self._networks) and len(address) <= len("[]") + 45 and self._is_trusted(address)

    def _look_up(self, address: str) -> bool:
        try:
            parsed = ipaddress.ip_address(address)
        except ValueError:
            return False
        mapped = getattr(parsed, "ipv4_mapped", None)
        return any(each in net for each in (parsed, mapped) if each for net in self._networks)

    def sender(self, forwarded_for: Iterable[bytes]) -> tuple[str, int]:
        """Return the address and the port that X-Forwarded-For names; "" where it names none."""
        entries = b",".join(forwarded_for).rsplit(b",", MOST_HOPS)[-MOST_HOPS:]
        named = [_address(entry.decode("latin-1").strip()) for entry in entries]
        return next((each for each in reversed(named) if each[0] not in self), named[0])


def believing(app: ASGIApp, proxies: TrustedProxies) -> ASGIApp:
    """Wrap an application: a request by a trusted proxy is its sender's, by the sender's scheme.

    Where such headers come from another address, that is logged, once for each of some addresses:
    a proxy that is not trusted makes cookies without `Secure`, and all senders one.
    """
    warned: set[str] = set()

    async def read(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == ScopeType.HTTP:
            peer = (scope.get("client") or ("", 0))[0]
            if peer in proxies:
                _believe(scope, proxies)
            elif (
                len(warned) < MOST_WARNINGS
                and peer not in warned
                and any(name in FORWARDED for name, _ in scope["headers"])
            ):
                warned.add(peer)
                log.warning(
                    "proxy_not_trusted",
                    proxy=peer,
                    setting="MAILER_TRUSTED_PROXIES",
                    because="its X-Forwarded headers are passed over: cookies go without Secure,"
                    " and all who come through it count as one",
                )
        await app(scope, receive, send)

    return read


def _believe(scope: Scope, proxies: TrustedProxies) -> None:
    given = [value for name, value in scope["headers"] if name == FORWARDED_PROTO]
    first = b",".join(given).partition(b",")[0].decode("latin-1").strip().lower()
    if first in SCHEMES:
        scope["scheme"] = first
    forwarded_for = [value for name, value in scope["headers"] if name == FORWARDED_FOR]
    if forwarded_for and (sender := proxies.sender(forwarded_for))[0]:
        scope["client"] = sender


def _address(entry: str) -> tuple[str, int]:
    """Return the address and the port of an entry such as `192.0.2.1:80` or `[2001:db8::1]`.

    What is no address, such as `unknown`, is "".
    """
    if entry.startswith("["):
        host, _, rest = entry[1:].partition("]")
        port = rest.removeprefix(":")
    elif entry.count(":") == 1:
        host, _, port = entry.partition(":")
    else:
        host, port = entry, ""
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return "", 0
    is_port = port.isascii() and port.isdigit() and len(port) <= len("65535")
    return host, int(port) if is_port else 0
