"""The proxy through which a gateway is reached, as the environment's variables name it."""

import base64
from collections.abc import Mapping
from urllib.parse import unquote, urlsplit

import msgspec

from mailer.urls import split_url


class Proxy(msgspec.Struct, frozen=True):
    """An HTTP proxy."""

    url: str
    """Without user and password."""
    headers: Mapping[str, str] = {}
    """Headers for the proxy: its user and password, if it has any."""

    def __repr__(self) -> str:
        return f"Proxy({self.url!r})"  # no secrets

    __str__ = __repr__


def find_proxy(url: str, environ: Mapping[str, str]) -> Proxy | None:
    """Return the proxy for requests to `url`; None if there is none for it.

    HTTP_PROXY is for http and HTTPS_PROXY for https; NO_PROXY lists hosts and domains that are
    reached directly. A name in lower case comes first. Raises `ValueError`.
    """
    parts = urlsplit(url)
    name = f"{parts.scheme.upper()}_PROXY"
    address = _variable(environ, name)
    if not address or _is_direct(parts.hostname or "", _variable(environ, "NO_PROXY")):
        return None
    try:
        proxy = split_url(address, ("http",))
    except ValueError as error:
        raise ValueError(f"the environment variable {name} {error}") from None
    host_and_port = proxy.netloc.rpartition("@")[2]
    headers = {}
    if proxy.username is not None:
        credentials = f"{unquote(proxy.username)}:{unquote(proxy.password or '')}"
        encoded = base64.b64encode(credentials.encode()).decode()
        headers["Proxy-Authorization"] = f"Basic {encoded}"
    return Proxy(f"http://{host_and_port}", headers)


def _is_direct(host: str, no_proxy: str) -> bool:
    """Return whether a host is in the list, or in a domain of it; `*` stands for all hosts."""
    names = [name.strip().lower().removeprefix(".") for name in no_proxy.split(",")]
    return "*" in names or any(f".{host}".endswith(f".{name}") for name in names if name)


def _variable(environ: Mapping[str, str], name: str) -> str:
    return environ.get(name.lower(), environ.get(name, ""))
