"""Address of the HTTP client and scheme of requests that come through trusted proxies.

Each proxy appends the address of its peer to X-Forwarded-For. Read from the right, the first
address that is not a trusted proxy is the client's. Of several schemes in X-Forwarded-Proto the
first is the client's. A client that forges it harms only itself: its browser rejects the cookies.
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
FORWARDED_SCHEMES = frozenset({"http", "https"})
MAX_HOPS = 20
"""Entries of X-Forwarded-For that are read, from the right."""
MAX_WARNINGS = 10
"""Addresses of untrusted proxies that are logged, each once."""


class TrustedProxies:
    """Addresses and networks of trusted proxies."""

    def __init__(self, networks: Iterable[str]) -> None:
        self._networks = [ipaddress.ip_network(network) for network in networks]
        self._is_trusted = lru_cache(maxsize=4096)(self._is_in_networks)

    def __contains__(self, address: str) -> bool:
        return bool(self._networks) and len(address) <= len("[]") + 45 and self._is_trusted(address)

    def _is_in_networks(self, address: str) -> bool:
        try:
            parsed = ipaddress.ip_address(address)
        except ValueError:
            return False
        mapped = getattr(parsed, "ipv4_mapped", None)
        return any(ip in network for ip in (parsed, mapped) if ip for network in self._networks)

    def sender(self, forwarded_for: Iterable[bytes]) -> tuple[str, int]:
        """Return the client's address and port in X-Forwarded-For; the address "" if invalid."""
        entries = b",".join(forwarded_for).rsplit(b",", MAX_HOPS)[-MAX_HOPS:]
        hops = [_parse_entry(entry.decode("latin-1").strip()) for entry in entries]
        return next((hop for hop in reversed(hops) if hop[0] not in self), hops[0])


def trust_proxies(app: ASGIApp, proxies: TrustedProxies) -> ASGIApp:
    """Wrap an application to take client address and scheme from the headers of trusted proxies.

    Forwarding headers from another address are ignored, and logged once for each address. They hint
    at a proxy that should be trusted: otherwise cookies have no `Secure`, and all clients of the
    proxy count as one address.
    """
    warned: set[str] = set()

    async def apply(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == ScopeType.HTTP:
            peer = (scope.get("client") or ("", 0))[0]
            if peer in proxies:
                _apply_forwarded(scope, proxies)
            elif (
                len(warned) < MAX_WARNINGS
                and peer not in warned
                and any(name in FORWARDING_HEADERS for name, _ in scope["headers"])
            ):
                warned.add(peer)
                log.warning(
                    "proxy_not_trusted",
                    proxy=peer,
                    setting="MAILER_TRUSTED_PROXIES",
                    because="its X-Forwarded headers are ignored: cookies are set without Secure,"
                    " and all its clients count as one address",
                )
        await app(scope, receive, send)

    return apply


def _apply_forwarded(scope: Scope, proxies: TrustedProxies) -> None:
    protocols = [value for name, value in scope["headers"] if name == FORWARDED_PROTO]
    first = b",".join(protocols).partition(b",")[0].decode("latin-1").strip().lower()
    if first in FORWARDED_SCHEMES:
        scope["scheme"] = first
    forwarded_for = [value for name, value in scope["headers"] if name == FORWARDED_FOR]
    if forwarded_for and (sender := proxies.sender(forwarded_for))[0]:
        scope["client"] = sender


def _parse_entry(entry: str) -> tuple[str, int]:
    """Return address and port of an entry such as `192.0.2.1:80` or `[2001:db8::1]`.

    The address is "" for an entry without one, such as `unknown`; the port is 0 if there is none.
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
