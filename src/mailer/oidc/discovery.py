"""Metadata and signing keys of an OpenID provider, cached, and the HTTP requests to it.

A provider publishes its endpoints in a JSON document (OpenID Connect Discovery 1.0, cited here as
"Discovery"), and the public keys of its signatures as a JSON Web Key Set (RFC 7517).
"""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from http import HTTPStatus
from typing import Any, Generic, TypeVar
from urllib.parse import urlsplit

import aiohttp
import msgspec
from joserfc.errors import JoseError
from joserfc.jwk import ECKey, JWKRegistry, Key, OKPKey, RSAKey

from mailer.clock import elapsed
from mailer.json_input import JsonError, read_json
from mailer.oidc.model import ProviderUnavailableError, SignInError
from mailer.urls import is_loopback

REQUEST_TIMEOUT = 10.0
"""Seconds for a whole request, from connecting to the last byte of the response."""
MAX_RESPONSE_BYTES = 256 * 1024
MAX_KEYS = 100
"""Signing keys of a provider that are used; further ones in its key set are ignored."""
CACHE_TTL = 3600.0
"""Seconds for which a provider's metadata and keys are cached."""
MIN_KEY_REFRESH_INTERVAL = 60.0
"""Minimum seconds between two fetches of the keys because of tokens signed by an unknown key."""

TEMPORARY_CLIENT_ERRORS = {HTTPStatus.REQUEST_TIMEOUT, HTTPStatus.TOO_MANY_REQUESTS}
"""The 4xx statuses with which the same request may succeed later."""

SecondsClock = Callable[[], float]
"""A function that returns the time in seconds."""
Shape = TypeVar("Shape")


class ProviderDocument(msgspec.Struct, frozen=True):
    """The part of a provider's metadata that signing in needs (Discovery 1.0, section 3)."""

    issuer: str
    authorization_endpoint: str
    token_endpoint: str
    jwks_uri: str
    userinfo_endpoint: str | None = None
    id_token_signing_alg_values_supported: tuple[str, ...] = ("RS256",)
    token_endpoint_auth_methods_supported: tuple[str, ...] = ("client_secret_basic",)
    authorization_response_iss_parameter_supported: bool = False

    def check(self, issuer: str) -> None:
        """Raise `SignInError` if the metadata belong to another issuer or an endpoint is unsafe."""
        if self.issuer != issuer:
            raise SignInError("wrong_issuer")
        endpoints = (self.authorization_endpoint, self.token_endpoint, self.jwks_uri)
        for endpoint in (*endpoints, self.userinfo_endpoint):
            if endpoint is not None and not _is_safe(endpoint, issuer):
                raise SignInError("unsafe_endpoint")


class ProviderResponse(msgspec.Struct, frozen=True):
    """A response with status 200, or with a 4xx status other than 408 and 429.

    Any other status counts as an unavailable provider instead.
    """

    status: int
    body: bytes

    def read(self, shape: type[Shape]) -> Shape:
        """Decode the body, JSON of type `shape`; raises `ProviderUnavailableError` otherwise."""
        try:
            return read_json(self.body, shape, limit=MAX_RESPONSE_BYTES)
        except JsonError:
            raise ProviderUnavailableError("bad_answer") from None


class ProviderHttp:
    """HTTP client for a provider: time and size are limited, redirects and proxies are not used."""

    def __init__(self) -> None:
        self._session: aiohttp.ClientSession | None = None

    async def close(self) -> None:
        """Close all connections."""
        if self._session is not None:
            await self._session.close()
            self._session = None

    async def request(
        self, url: str, form: Mapping[str, str] | None = None, authorization: str | None = None
    ) -> ProviderResponse:
        """Send a GET, or a POST if `form` is given.

        Raises `ProviderUnavailableError` for a timeout, a failed connection, a redirect, 408, 429,
        5xx, or a response over `MAX_RESPONSE_BYTES`.
        """
        if self._session is None:
            self._session = aiohttp.ClientSession(
                headers={"Accept": "application/json", "Accept-Encoding": "identity"},
                auto_decompress=False,  # a small response could decompress to a huge one
                cookie_jar=aiohttp.DummyCookieJar(),
                timeout=aiohttp.ClientTimeout(total=REQUEST_TIMEOUT),
                trust_env=False,
            )
        headers = {} if authorization is None else {"Authorization": authorization}
        method = "GET" if form is None else "POST"
        try:
            async with self._session.request(
                method, url, data=form, headers=headers, allow_redirects=False
            ) as response:
                status = _checked_status(response.status)
                return ProviderResponse(status, await _read_body(response))
        except TimeoutError:
            raise ProviderUnavailableError("timeout") from None
        except (aiohttp.ClientError, OSError, ValueError):  # ValueError: an invalid URL
            raise ProviderUnavailableError("connection_failed") from None


class TtlCache(Generic[Shape]):
    """A value that is fetched when it is needed, and then kept for `CACHE_TTL`.

    Concurrent callers share one fetch. If it fails, all of them get its exception, and the next
    caller fetches again.
    """

    def __init__(self, fetch: Callable[[], Awaitable[Shape]], clock: SecondsClock) -> None:
        self._fetch = fetch
        self._clock = clock
        self._task: asyncio.Task[Shape] | None = None
        """The latest fetch, running or done; its result is the cached value."""
        self._expires_at = float("-inf")
        """The clock's time from which on the value must be fetched again."""

    @property
    def is_fetching(self) -> bool:
        """Whether a fetch is running."""
        return self._task is not None and not self._task.done()

    async def get(self) -> Shape:
        """Return the cached value, or fetch it if there is none or it has expired."""
        if self._task is None or self.is_fetching or self._clock() >= self._expires_at:
            return await self.refresh()
        return self._task.result()

    async def refresh(self) -> Shape:
        """Fetch the value, or join the running fetch. A cancelled caller does not cancel it."""
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._fetch_value())
        return await asyncio.shield(self._task)

    async def close(self) -> None:
        """Cancel the running fetch, and with it the callers that wait for it."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])

    async def _fetch_value(self) -> Shape:
        self._expires_at = float("-inf")  # if this fetch fails, the next `get` fetches again
        value = await self._fetch()
        self._expires_at = self._clock() + CACHE_TTL
        return value


class ProviderMetadata:
    """The metadata and the signing keys of a provider, cached."""

    def __init__(self, issuer: str, http: ProviderHttp, clock: SecondsClock = elapsed) -> None:
        self._issuer = issuer
        self._http = http
        self._clock = clock
        self._metadata = TtlCache(self._fetch_metadata, clock)
        self._keys = TtlCache(self._fetch_keys, clock)
        self._next_key_refresh_at = float("-inf")
        """The clock's time from which on an unknown key may cause a fetch of the keys."""

    async def close(self) -> None:
        """Cancel the running requests."""
        await self._keys.close()
        await self._metadata.close()

    async def document(self) -> ProviderDocument:
        """Return the provider's metadata.

        Raises `ProviderUnavailableError`, and `SignInError` if the metadata fail their check.
        """
        return await self._metadata.get()

    async def key(self, kid: object, alg: str) -> Key:
        """Return the key that verifies a token's signature.

        `kid` (the key's id) and `alg` (the algorithm, such as RS256) are from the token's header;
        `kid` is None if the header has none. If the key is unknown it may be new, so the keys are
        fetched again, at most once every `MIN_KEY_REFRESH_INTERVAL`. Raises `SignInError` if the
        provider has no such key, and `ProviderUnavailableError`.
        """
        key = _find_key(await self._keys.get(), kid, alg)
        may_refresh = self._keys.is_fetching or self._clock() >= self._next_key_refresh_at
        if key is None and may_refresh:
            self._next_key_refresh_at = self._clock() + MIN_KEY_REFRESH_INTERVAL
            key = _find_key(await self._keys.refresh(), kid, alg)
        if key is None:
            raise SignInError("unknown_key")
        return key

    async def _fetch_metadata(self) -> ProviderDocument:
        url = f"{self._issuer.rstrip('/')}/.well-known/openid-configuration"
        metadata = (await self._get(url)).read(ProviderDocument)
        metadata.check(self._issuer)
        return metadata

    async def _fetch_keys(self) -> list[Key]:
        metadata = await self.document()
        jwks = (await self._get(metadata.jwks_uri)).read(KeySet).keys
        parsed_keys = map(_parse_signing_key, jwks[:MAX_KEYS])
        return [key for key in parsed_keys if key is not None]

    async def _get(self, url: str) -> ProviderResponse:
        """Return the response to a GET; raises `ProviderUnavailableError` unless it is a 200."""
        response = await self._http.request(url)
        if response.status != HTTPStatus.OK:
            raise ProviderUnavailableError(f"http_{response.status}")
        return response


class KeySet(msgspec.Struct, frozen=True):
    """A JSON Web Key Set (RFC 7517, section 5)."""

    keys: list[dict[str, Any]]


_KEY_TYPES: dict[str, type[Key]] = {"RS": RSAKey, "PS": RSAKey, "ES": ECKey, "Ed": OKPKey}
"""The type of key that an algorithm needs, by the first two letters of the algorithm."""


def _find_key(keys: list[Key], kid: object, alg: str) -> Key | None:
    """Return the key with the id `kid` that fits the algorithm `alg`; None if there is none.

    If `kid` is None, the key must be the only one that fits (OpenID Connect Core 1.0, 10.1).
    """
    fitting_keys = [key for key in keys if _fits_algorithm(key, alg)]
    if kid is None:
        return fitting_keys[0] if len(fitting_keys) == 1 else None
    return next((key for key in fitting_keys if key.kid == kid), None)


def _fits_algorithm(key: Key, alg: str) -> bool:
    only_alg = key.get("alg")  # a provider may restrict a key to one algorithm
    return isinstance(key, _KEY_TYPES[alg[:2]]) and (only_alg is None or only_alg == alg)


def _parse_signing_key(jwk: dict[str, Any]) -> Key | None:
    """Return a JSON Web Key for signatures; None for an invalid key or one for another use.

    So one such key does not make the other keys of the set unusable.
    """
    if str(jwk.get("kty")) not in {"RSA", "EC", "OKP"} or jwk.get("use", "sig") != "sig":
        return None
    try:
        return JWKRegistry.import_key(jwk)
    except (JoseError, ValueError, TypeError, KeyError):
        return None


def _is_safe(endpoint: str, issuer: str) -> bool:
    """Return whether an endpoint is safe to use: https, or http for an issuer that also uses http.

    With http the endpoint must be on loopback.
    """
    try:
        parts = urlsplit(endpoint)
        host = parts.hostname or ""
    except ValueError:
        return False
    if parts.scheme == "https":
        return bool(host)
    return parts.scheme == "http" and issuer.startswith("http://") and is_loopback(host)


def _checked_status(status: int) -> int:
    """Return a status that a repeat of the request would not change: 200, or 4xx but 408 and 429.

    Raises `ProviderUnavailableError` for any other status.
    """
    is_client_error = HTTPStatus.BAD_REQUEST <= status < HTTPStatus.INTERNAL_SERVER_ERROR
    if status == HTTPStatus.OK or (is_client_error and status not in TEMPORARY_CLIENT_ERRORS):
        return status
    raise ProviderUnavailableError(f"http_{status}")


async def _read_body(response: aiohttp.ClientResponse) -> bytes:
    """Return the body; raises `ProviderUnavailableError` if it exceeds `MAX_RESPONSE_BYTES`."""
    body = b""
    async for part in response.content.iter_any():
        body += part
        if len(body) > MAX_RESPONSE_BYTES:
            raise ProviderUnavailableError("too_large")
    return body
