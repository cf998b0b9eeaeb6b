"""Which addresses an endpoint may have: no request may reach the network that mailer runs in.

Without this check, whoever can create a webhook could make mailer send requests to services that
only its own network can reach (server-side request forgery).
"""

import asyncio
import ipaddress
import socket
from collections.abc import Awaitable, Callable
from typing import NamedTuple

RESOLVE_TIMEOUT = 5.0
"""Seconds to wait for the addresses of a host."""

IPV6_UNICAST = ipaddress.IPv6Network("2000::/3")
"""All addresses of the public IPv6 internet are in it."""
NAT64 = ipaddress.IPv6Network("64:ff9b::/96")
"""Addresses that stand for the IPv4 address in their last 32 bits (RFC 6052)."""
# Special networks that `is_global` of some versions of Python takes for public ones
# (IANA IPv4 and IPv6 Special-Purpose Address Registries).
SPECIAL_NETWORKS = tuple(
    ipaddress.ip_network(network)
    for network in (
        "0.0.0.0/8",
        "100.64.0.0/10",
        "192.0.0.0/24",
        "192.88.99.0/24",
        "198.18.0.0/15",
        "240.0.0.0/4",
        "2001::/23",
        "2001:db8::/32",
        "3fff::/20",
    )
)

Resolve = Callable[[str, int], Awaitable[list[str]]]
"""Returns the addresses of a host and port; raises `OSError`."""


class PrivateAddressError(OSError):
    """A host has an address that is not public."""


class HostNotFoundError(OSError):
    """A host has no address, or they could not be found in time."""


class ResolvedHost(NamedTuple):
    """An address of a host, checked, with its address family."""

    address: str
    family: int


def is_public(address: str) -> bool:
    """Return whether an address is one of the public internet.

    An IPv6 address that stands for an IPv4 address (mapped, 6to4, Teredo, NAT64) counts as that.
    """
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        return False
    if isinstance(parsed, ipaddress.IPv4Address):
        return _is_public_ip(parsed)
    embedded = _embedded_ipv4(parsed)
    if embedded:
        return all(map(_is_public_ip, embedded))
    return parsed.scope_id is None and parsed in IPV6_UNICAST and _is_public_ip(parsed)


def _embedded_ipv4(address: ipaddress.IPv6Address) -> tuple[ipaddress.IPv4Address, ...]:
    """Return the IPv4 addresses for which an IPv6 address stands; empty if it is none of these."""
    if address in NAT64:
        return (ipaddress.IPv4Address(int(address) & 0xFFFFFFFF),)
    if address.teredo is not None:
        return address.teredo
    single = address.ipv4_mapped or address.sixtofour
    return () if single is None else (single,)


def _is_public_ip(address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> bool:
    if not address.is_global or address.is_multicast or address.is_reserved:
        return False
    return not any(address in network for network in SPECIAL_NETWORKS)


async def resolve_by_system(host: str, port: int) -> list[str]:
    """Return the addresses of a host by the resolver of the operating system."""
    loop = asyncio.get_running_loop()
    infos = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return [str(info[4][0]) for info in infos]


class AddressPolicy:
    """Finds the addresses of endpoints, and refuses those that are not public.

    With `allows_private`, every address is allowed. `resolve` is replaced in tests.
    """

    def __init__(
        self, *, allows_private: bool = False, resolve: Resolve = resolve_by_system
    ) -> None:
        self.allows_private = allows_private
        self._resolve = resolve

    async def find(self, host: str, port: int) -> list[ResolvedHost]:
        """Return the addresses of a host, which may be an address itself.

        If one of them is not public, none is used. Raises `PrivateAddressError` and
        `HostNotFoundError`.
        """
        try:
            async with asyncio.timeout(RESOLVE_TIMEOUT):
                addresses = await self._resolve(host, port)
        except (OSError, UnicodeError) as error:  # TimeoutError is an OSError
            raise HostNotFoundError from error
        if not addresses:
            raise HostNotFoundError
        if not self.allows_private and not all(map(is_public, addresses)):
            raise PrivateAddressError
        return [
            ResolvedHost(address, socket.AF_INET6 if ":" in address else socket.AF_INET)
            for address in dict.fromkeys(addresses)
        ]
