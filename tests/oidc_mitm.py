"""A proxy between mailer and its OpenID provider, with which a test changes responses.

The proxy is the "man in the middle" (mitm). The provider uses the address of the proxy as its own,
so for mailer this address is the issuer. Also functions that sign in through the proxy.
"""

import base64
import contextlib
import hashlib
import hmac
import warnings
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any
from urllib.parse import parse_qs, urlsplit

import aiohttp
import msgspec
import pytest
from aiohttp import web
from joserfc import jws
from joserfc.errors import SecurityWarning
from joserfc.jwk import Key

from mailer.oidc.model import Identity, ProviderUnavailableError, SignInError
from mailer.oidc.provider import Provider
from mailer.roles import ROLES, Role
from tests.provider import OpenIdProvider, sign_in

REDIRECT = "http://127.0.0.1:1/callback"
"""No server listens here; tests read the parameters from the redirect's URL."""
ROLE_WORDS: dict[str, Role] = {role: role for role in ROLES}
"""A mapping of roles under which the provider uses the same words as mailer."""

# paths of the provider
DISCOVERY = "/.well-known/openid-configuration"
TOKEN = "/token"  # noqa: S105  # a path
KEYS = "/jwks"
USERINFO = "/me"

Claims = dict[str, Any]
"""A JSON object: of a response, or the header or the claims of an ID token."""
Change = Callable[[Claims], Any]
"""Changes the JSON of a response, in place or by returning a new value."""
Sign = Callable[[Claims, Claims], str]
"""Creates a token with a header and claims, and signs it or not."""
Answer = Callable[[web.Request], Awaitable[web.StreamResponse]]
"""Answers a request instead of the provider."""


class ProviderProxy:
    """The proxy; it passes requests on to the provider, and responses back.

    A function in `changes` changes the responses of a path. A function in `answers` answers the
    requests of a path instead of the provider.
    """

    def __init__(self, openid: OpenIdProvider, session: aiohttp.ClientSession) -> None:
        self.openid = openid
        self._session = session
        self.issuer = ""
        self.changes: dict[str, Change] = {}
        self.answers: dict[str, Answer] = {}
        self.request_counts: Counter[str] = Counter()
        self.sent: list[tuple[str, dict[str, str], str]] = []
        """Path, headers and body of every request received."""

    async def answer(self, request: web.Request) -> web.StreamResponse:
        """Handle a request."""
        self.request_counts[request.path] += 1
        body = await request.read()
        self.sent.append((request.path, dict(request.headers), body.decode()))
        if request.path in self.answers:
            return await self.answers[request.path](request)
        async with self._session.request(
            request.method,
            self.openid.issuer + request.path_qs,
            headers=request.headers,  # including the Host of the request
            data=body,
            allow_redirects=False,
        ) as original:
            content = await original.read()
            headers = {
                name: value
                for name, value in original.headers.items()
                if name in {"Location", "Content-Type"}
            }
            response = web.Response(status=original.status, body=content, headers=headers)
            response.headers.extend(
                ("Set-Cookie", cookie) for cookie in original.headers.getall("Set-Cookie", [])
            )
        if request.path in self.changes and response.status == 200:
            value = msgspec.json.decode(content)
            changed = self.changes[request.path](value)
            response.body = msgspec.json.encode(value if changed is None else changed)
        return response

    def provider(self, **options: Any) -> Provider:
        """Return mailer's client of this provider, which the caller must close.

        Unless the options name a `client_id`, a new client is registered at the provider.
        """
        if "client_id" not in options:
            client = self.openid.register(REDIRECT)
            options |= {"client_id": client.client_id, "client_secret": client.client_secret}
        options = {"role_claim": "roles", "roles": ROLE_WORDS, **options}
        return Provider(self.issuer, **options)

    def change_token(self, change: Change) -> None:
        """Change the claims of every ID token."""
        self.changes[TOKEN] = lambda response: self.change_claims(response, change)

    def change_claims(self, response: Claims, change: Change) -> None:
        """Change the claims of a response's ID token, and sign it with its original key."""
        _replace(
            response, lambda header, old: signed(header, _changed(change, old), self._key(header))
        )

    def replace_tokens(self, sign: Sign) -> None:
        """Replace every ID token by the result of `sign`, called with its header and claims."""
        self.changes[TOKEN] = lambda response: _replace(response, sign)

    def _key(self, header: Claims) -> Key:
        return next(key for key in self.openid.keys.values() if key.kid == header["kid"])


class Clock:
    """A clock whose time, in seconds, is set by a test."""

    def __init__(self) -> None:
        self.time = 0.0

    def __call__(self) -> float:
        return self.time


@contextlib.asynccontextmanager
async def running_proxy(openid: OpenIdProvider) -> AsyncIterator[ProviderProxy]:
    """Run a proxy in front of a provider."""
    async with aiohttp.ClientSession(cookie_jar=aiohttp.DummyCookieJar()) as session:
        proxy = ProviderProxy(openid, session)
        runner = web.AppRunner(_application(proxy), shutdown_timeout=0.1)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        proxy.issuer = f"http://127.0.0.1:{runner.addresses[0][1]}"
        yield proxy
        await runner.cleanup()


async def sign_in_identity(provider: Provider, login: str = "vera", **overrides: str) -> Identity:
    """Sign a user of the provider in, as a browser and mailer would, and return the identity.

    `overrides` replace arguments of `Provider.finish`, with which mailer handles the callback.
    """
    start = await provider.start(REDIRECT)
    redirect = parse_qs(urlsplit(await sign_in(start.url, login)).query)
    assert redirect["state"] == [start.state]
    arguments = {"nonce": start.nonce, "verifier": start.verifier, "redirect_uri": REDIRECT}
    arguments |= {"code": redirect["code"][0], "iss": redirect["iss"][0]}
    return await provider.finish(**{**arguments, **overrides})


async def refusal(provider: Provider, login: str = "vera", **overrides: str) -> str:
    """Sign in, which must fail, and return the reason for the log.

    Also assert that the text for the user is one of the fixed ones, without any secret.
    """
    with pytest.raises(SignInError) as error:
        await sign_in_identity(provider, login, **overrides)
    assert str(error.value).endswith((" Start it again.", " for one."))
    assert error.value.__cause__ is None
    return error.value.reason


async def unavailable_reason(provider: Provider) -> str:
    """Sign in, which must fail because of the provider, and return the reason for the log."""
    with pytest.raises(ProviderUnavailableError) as error:
        await sign_in_identity(provider)
    assert str(error.value).endswith(" Try again later.")
    return error.value.reason


def provider_at(url: str) -> Provider:
    """Return mailer's client of a provider at which it is not registered."""
    return Provider(url.removesuffix("/send/"), "mailer", None, "roles", {})


def signed(header: Claims, claims: Claims, key: Key) -> str:
    """Return a token with this header and these claims, signed with `key`."""
    registry = jws.JWSRegistry(algorithms=[header["alg"]], strict_check_header=False)
    # joserfc warns that the algorithm's name EdDSA is deprecated
    with warnings.catch_warnings(action="ignore", category=SecurityWarning):
        return jws.serialize_compact(header, msgspec.json.encode(claims), key, registry=registry)


def signed_by_hmac(header: Claims, claims: Claims, secret: bytes) -> str:
    """Return a token signed by HMAC with any `secret`; joserfc would refuse some secrets."""
    parts = f"{_base64url(msgspec.json.encode(header))}.{_base64url(msgspec.json.encode(claims))}"
    return f"{parts}.{_base64url(hmac.digest(secret, parts.encode(), hashlib.sha256))}"


def unsigned(header: Claims, claims: Claims) -> str:
    """Return a token without a signature."""
    return f"{_base64url(msgspec.json.encode(header))}.{_base64url(msgspec.json.encode(claims))}."


def _base64url(content: bytes) -> str:
    return base64.urlsafe_b64encode(content).rstrip(b"=").decode()


def _replace(response: Claims, sign: Sign) -> None:
    """Replace the ID token in a response of the token endpoint by the result of `sign`."""
    token = jws.extract_compact(response["id_token"].encode())
    response["id_token"] = sign(token.headers(), msgspec.json.decode(token.payload or b""))


def _changed(change: Change, claims: Claims) -> Claims:
    """Return the result of a change, which may be `claims` itself, changed in place."""
    changed = change(claims)
    return claims if changed is None else changed


def _application(proxy: ProviderProxy) -> web.Application:
    application = web.Application()
    application.router.add_route("*", "/{path:.*}", proxy.answer)
    return application
