"""Address of the HTTP client and scheme of requests that come through trusted proxies.

Each proxy appends the address from which it got the request to X-Forwarded-For. A client may put
addresses there too, which come first. So the list is read from the right, and the first address
that is not a trusted proxy is the client's. Of several schemes in X-Forwarded-Proto the first is
the client's. A client that forges it harms only itself: its browser rejects the cookies.
"""

import ipaddress
from collections.abc import Iterable
from functools import lru_cache

import structlog
from litestar.enums import ScopeType
from litestar.types import ASGIApp, Receive, Scope, Send

log = structlog.get_logger()

FORWARDED_FOR, FORWARDED_PROTO = b"x-forwarded-for", b"x-forwarded-proto"
FORWARDING_HEADERS = frozenset({FORWARDED_FOR, FORWARDED_PROTO, b"x-forwarded-host", b"forwarded"})
"""Headers that only proxies send: a request with one of them came through a proxy."""
FORWARDED_SCHEMES = frozenset({"http", "https"})
"""Values of X-Forwarded-Proto that are believed."""
MAX_HOPS = 20
"""Entries of X-Forwarded-For that are read, from the right."""
MAX_WARNINGS = 10
"""Number of addresses of untrusted proxies that are logged, each once."""
MAX_ADDRESS_LENGTH = len("[]") + 45
"""Characters of an IPv6 address in its longest form, in brackets."""


class TrustedProxies:
    """The trusted proxies, given as addresses and networks. `address in proxies` asks for one."""

    def __init__(self, networks: Iterable[str]) -> None:
        self._networks = [ipaddress.ip_network(network) for network in networks]
        self._is_trusted = lru_cache(maxsize=4096)(self._is_in_networks)

    def __contains__(self, address: str) -> bool:
        is_short = len(address) <= MAX_ADDRESS_LENGTH  # so that the cache stays small
        return bool(self._networks) and is_short and self._is_trusted(address)

    def _is_in_networks(self, address: str) -> bool:
        """Return whether a text is the address of a trusted proxy; `_is_trusted` caches this."""
        try:
            parsed = ipaddress.ip_address(address)
        except ValueError:
            return False
        # the IPv4 address in an IPv6 address such as ::ffff:10.0.0.1; None in other addresses
        mapped = getattr(parsed, "ipv4_mapped", None)
        addresses = [ip for ip in (parsed, mapped) if ip]
        return any(ip in network for ip in addresses for network in self._networks)

    def sender(self, forwarded_for: Iterable[bytes]) -> tuple[str, int]:
        """Return the client's address and port, from the values of X-Forwarded-For.

        If all addresses are trusted proxies, it is the first one. The address is "" if the entry
        that should have it is invalid.
        """
        entries = b",".join(forwarded_for).rsplit(b",", MAX_HOPS)[-MAX_HOPS:]
        hops = [_parse_entry(entry.decode("latin-1").strip()) for entry in entries]
        for address, port in reversed(hops):
            if address not in self:
                return address, port
        return hops[0]


def trust_proxies(app: ASGIApp, proxies: TrustedProxies) -> ASGIApp:
    """Wrap an application to take client address and scheme from the headers of trusted proxies.

    Forwarding headers from another address are ignored, and logged once for each address: perhaps
    it is a proxy that should be trusted. While it is not, cookies have no `Secure`, and all clients
    of the proxy count as one address.
    """
    logged_peers: set[str] = set()

    async def apply_or_warn(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == ScopeType.HTTP:
            peer = (scope.get("client") or ("", 0))[0]
            if peer in proxies:
                _apply_forwarded(scope, proxies)
            elif (
                len(logged_peers) < MAX_WARNINGS
                and peer not in logged_peers
                and any(name in FORWARDING_HEADERS for name, _ in scope["headers"])
            ):
                logged_peers.add(peer)
                log.warning(
                    "proxy_not_trusted",
                    proxy=peer,
                    setting="MAILER_TRUSTED_PROXIES",
                    because="its X-Forwarded headers are ignored: cookies are set without Secure,"
                    " and all its clients count as one address",
                )
        await app(scope, receive, send)

    return apply_or_warn


def _apply_forwarded(scope: Scope, proxies: TrustedProxies) -> None:
    """Set the scheme and the client address of a request from its forwarding headers."""
    schemes = [value for name, value in scope["headers"] if name == FORWARDED_PROTO]
    first_scheme = b",".join(schemes).partition(b",")[0].decode("latin-1").strip().lower()
    if first_scheme in FORWARDED_SCHEMES:
        scope["scheme"] = first_scheme
    forwarded_for = [value for name, value in scope["headers"] if name == FORWARDED_FOR]
    if forwarded_for and (sender := proxies.sender(forwarded_for))[0]:
        scope["client"] = sender


def _parse_entry(entry: str) -> tuple[str, int]:
    """Return address and port of an entry such as `192.0.2.1:80` or `[2001:db8::1]`.

    The address is "" for an entry without one, such as `unknown`; the port is 0 if there is none.
    """
    if entry.startswith("["):
        host, _, colon_and_port = entry[1:].partition("]")
        port = colon_and_port.removeprefix(":")
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
