"""What an identity provider says of itself, its keys, and how it is asked."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Generic, TypeVar
from urllib.parse import urlsplit

import aiohttp
import msgspec
from joserfc.errors import JoseError
from joserfc.jwk import ECKey, JWKRegistry, Key, OKPKey, RSAKey

from mailer.access.oidc.model import ProviderAwayError, SignInError
from mailer.clock import elapsed
from mailer.json_input import JsonError, read_json
from mailer.settings import is_loopback

TIME_LIMIT = 10.0
"""Seconds for an answer, from the first byte sent to the last one read."""
ANSWER_LIMIT = 256 * 1024
KEYS_LIMIT = 100
"""Keys of a provider that are looked at."""
KEPT = 3600.0
"""Seconds for which what a provider says of itself holds, and its keys."""
ASK_KEYS_EVERY = 60.0
"""Seconds between two requests for keys because of one that nobody knows."""

Clock = Callable[[], float]
Shape = TypeVar("Shape")


class Metadata(msgspec.Struct, frozen=True):
    """The part of a provider's configuration that signing in needs (Discovery 1.0, section 3)."""

    issuer: str
    authorization_endpoint: str
    token_endpoint: str
    jwks_uri: str
    userinfo_endpoint: str | None = None
    id_token_signing_alg_values_supported: tuple[str, ...] = ("RS256",)
    token_endpoint_auth_methods_supported: tuple[str, ...] = ("client_secret_basic",)
    authorization_response_iss_parameter_supported: bool = False

    def check(self, issuer: str) -> None:
        """Raise `SignInError` unless this is `issuer`, and can be spoken to safely."""
        if self.issuer != issuer:
            raise SignInError("wrong_issuer")
        endpoints = (self.authorization_endpoint, self.token_endpoint, self.jwks_uri)
        for endpoint in (*endpoints, self.userinfo_endpoint):
            if endpoint is not None and not _is_safe(endpoint, issuer):
                raise SignInError("unsafe_endpoint")


class Answer(msgspec.Struct, frozen=True):
    """What came back: any status but a redirect and a failure of the server."""

    status: int
    body: bytes

    def read(self, shape: type[Shape]) -> Shape:
        """Return the body as JSON; raises `ProviderAwayError` when it is something else."""
        try:
            return read_json(self.body, shape, limit=ANSWER_LIMIT)
        except JsonError:
            raise ProviderAwayError("bad_answer") from None


class Wire:
    """The requests to a provider: bounded, never redirected, never through a proxy."""

    def __init__(self) -> None:
        self._session: aiohttp.ClientSession | None = None

    async def close(self) -> None:
        """Close every connection."""
        if self._session is not None:
            await self._session.close()
            self._session = None

    async def ask(
        self, url: str, form: Mapping[str, str] | None = None, authorization: str | None = None
    ) -> Answer:
        """GET `url`, or POST it a form; raises `ProviderAwayError` when no sound answer comes."""
        if self._session is None:
            self._session = aiohttp.ClientSession(
                headers={"Accept": "application/json", "Accept-Encoding": "identity"},
                auto_decompress=False,  # a few bytes that unpack to many are no answer
                cookie_jar=aiohttp.DummyCookieJar(),
                timeout=aiohttp.ClientTimeout(total=TIME_LIMIT),
                trust_env=False,
            )
        headers = {} if authorization is None else {"Authorization": authorization}
        method = "GET" if form is None else "POST"
        try:
            async with self._session.request(
                method, url, data=form, headers=headers, allow_redirects=False
            ) as response:
                return Answer(_sound(response.status), await _read(response))
        except TimeoutError:
            raise ProviderAwayError("timeout") from None
        except (aiohttp.ClientError, OSError, ValueError):  # the last: no URL that can be asked
            raise ProviderAwayError("connection_failed") from None


class Kept(Generic[Shape]):
    """What a provider answered, for an hour; it is asked once for all who wait at the time."""

    def __init__(self, ask: Callable[[], Awaitable[Shape]], clock: Clock) -> None:
        self._ask = ask
        self._clock = clock
        self._asking: asyncio.Task[Shape] | None = None
        self._until = float("-inf")

    @property
    def is_asking(self) -> bool:
        """Whether an answer is under way."""
        return self._asking is not None and not self._asking.done()

    async def get(self) -> Shape:
        """Return what was answered, and ask when that is an hour ago."""
        if self._asking is None or self.is_asking or self._clock() >= self._until:
            return await self.renew()
        return self._asking.result()

    async def renew(self) -> Shape:
        """Ask anew, or wait for the answer that is under way; who leaves does not end it."""
        if self._asking is None or self._asking.done():
            self._asking = asyncio.create_task(self._answer())
        return await asyncio.shield(self._asking)

    async def close(self) -> None:
        """End the request that is under way; who waits for it is cancelled."""
        if self._asking is not None:
            self._asking.cancel()
            await asyncio.wait([self._asking])

    async def _answer(self) -> Shape:
        self._until = float("-inf")  # a failure is not kept
        answer = await self._ask()
        self._until = self._clock() + KEPT
        return answer


class Provided:
    """What a provider says of itself, and its keys."""

    def __init__(self, issuer: str, wire: Wire, clock: Clock = elapsed) -> None:
        self._issuer = issuer
        self._wire = wire
        self._clock = clock
        self._metadata = Kept(self._fetch_metadata, clock)
        self._keys = Kept(self._fetch_keys, clock)
        self._ask_again_from = float("-inf")

    async def close(self) -> None:
        """End the requests that are under way."""
        await self._keys.close()
        await self._metadata.close()

    async def metadata(self) -> Metadata:
        """Return what the provider says of itself.

        Raises `ProviderAwayError`, and `SignInError` when it is not the issuer that it should be.
        """
        return await self._metadata.get()

    async def key(self, kid: object, alg: str) -> Key:
        """Return the key for a signature; raises `SignInError` when the provider has no such key.

        A key that nobody knows may be new: then they are asked for again, if not just done.
        """
        found = _find(await self._keys.get(), kid, alg)
        if found is None and (self._keys.is_asking or self._clock() >= self._ask_again_from):
            self._ask_again_from = self._clock() + ASK_KEYS_EVERY
            found = _find(await self._keys.renew(), kid, alg)
        if found is None:
            raise SignInError("unknown_key")
        return found

    async def _fetch_metadata(self) -> Metadata:
        url = f"{self._issuer.rstrip('/')}/.well-known/openid-configuration"
        metadata = (await self._get(url)).read(Metadata)
        metadata.check(self._issuer)
        return metadata

    async def _fetch_keys(self) -> list[Key]:
        metadata = await self.metadata()
        found = (await self._get(metadata.jwks_uri)).read(KeySet).keys
        return [key for each in found[:KEYS_LIMIT] if (key := _public_key(each)) is not None]

    async def _get(self, url: str) -> Answer:
        answer = await self._wire.ask(url)
        if answer.status != 200:  # noqa: PLR2004  # nothing else is an answer to these
            raise ProviderAwayError(f"http_{answer.status}")
        return answer


class KeySet(msgspec.Struct, frozen=True):
    """A JSON Web Key Set (RFC 7517, section 5)."""

    keys: list[dict[str, Any]]


_KEY_TYPES: dict[str, type[Key]] = {"RS": RSAKey, "PS": RSAKey, "ES": ECKey, "Ed": OKPKey}


def _find(keys: list[Key], kid: object, alg: str) -> Key | None:
    """Without a key id there must be only one that fits (Core 1.0, section 10.1)."""
    fitting = [key for key in keys if _fits(key, alg)]
    if kid is None:
        return fitting[0] if len(fitting) == 1 else None
    return next((key for key in fitting if key.kid == kid), None)


def _fits(key: Key, alg: str) -> bool:
    stated = key.get("alg")
    return isinstance(key, _KEY_TYPES[alg[:2]]) and (stated is None or stated == alg)


def _public_key(given: dict[str, Any]) -> Key | None:
    """Return a key for signatures; None for any other, which does not spoil the rest."""
    if str(given.get("kty")) not in {"RSA", "EC", "OKP"} or given.get("use", "sig") != "sig":
        return None
    try:
        return JWKRegistry.import_key(given)
    except (JoseError, ValueError, TypeError, KeyError):
        return None


def _is_safe(endpoint: str, issuer: str) -> bool:
    """Whether an endpoint speaks TLS, or is on this machine like its issuer."""
    try:
        parts = urlsplit(endpoint)
        host = parts.hostname or ""
    except ValueError:
        return False
    if parts.scheme == "https":
        return bool(host)
    return parts.scheme == "http" and issuer.startswith("http://") and is_loopback(host)


def _sound(status: int) -> int:
    """Return a status that says something; a redirect is never followed."""
    is_refusal = 400 <= status < 500 and status not in {408, 429}  # noqa: PLR2004  # HTTP's own
    if status == 200 or is_refusal:  # noqa: PLR2004  # likewise
        return status
    raise ProviderAwayError(f"http_{status}")


async def _read(response: aiohttp.ClientResponse) -> bytes:
    body = b""
    async for part in response.content.iter_any():
        body += part
        if len(body) > ANSWER_LIMIT:
            raise ProviderAwayError("too_large")
    return body
