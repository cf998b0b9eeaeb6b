"""Somebody between mailer and its identity provider, who passes on everything, and changes some.

The provider takes its address for its own: for mailer this is the issuer.
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

from mailer.access.oidc.model import Identity, ProviderAwayError, SignInError
from mailer.access.oidc.provider import Provider
from mailer.settings import ROLES, Role
from tests.provider import OpenIdProvider, sign_in

REDIRECT = "http://127.0.0.1:1/callback"
"""Where nobody listens: what comes back is read from the address."""
ROLE_WORDS: dict[str, Role] = {role: role for role in ROLES}

DISCOVERY = "/.well-known/openid-configuration"
TOKEN = "/token"  # noqa: S105  # a path
KEYS = "/jwks"
USERINFO = "/me"

Claims = dict[str, Any]
Change = Callable[[Claims], Any]
"""Changes what an answer says, in its place or by returning what takes it."""
Sign = Callable[[Claims, Claims], str]
"""Makes a token of a header and claims."""
Answer = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Middle:
    """The provider behind a server of its own; `changes` and `answers` go by path."""

    def __init__(self, openid: OpenIdProvider, session: aiohttp.ClientSession) -> None:
        self.openid = openid
        self._session = session
        self.issuer = ""
        self.changes: dict[str, Change] = {}
        self.answers: dict[str, Answer] = {}
        self.asked: Counter[str] = Counter()
        self.sent: list[tuple[str, dict[str, str], str]] = []
        """Path, headers and body of every request that came."""

    async def answer(self, request: web.Request) -> web.StreamResponse:
        self.asked[request.path] += 1
        body = await request.read()
        self.sent.append((request.path, dict(request.headers), body.decode()))
        if request.path in self.answers:
            return await self.answers[request.path](request)
        async with self._session.request(
            request.method,
            self.openid.issuer + request.path_qs,
            headers=request.headers,  # with the Host that was asked for
            data=body,
            allow_redirects=False,
        ) as passed:
            content = await passed.read()
            headers = {
                name: value
                for name, value in passed.headers.items()
                if name in {"Location", "Content-Type"}
            }
            response = web.Response(status=passed.status, body=content, headers=headers)
            response.headers.extend(
                ("Set-Cookie", each) for each in passed.headers.getall("Set-Cookie", [])
            )
        if request.path in self.changes and response.status == 200:
            said = msgspec.json.decode(content)
            changed = self.changes[request.path](said)
            response.body = msgspec.json.encode(said if changed is None else changed)
        return response

    def provider(self, **others: Any) -> Provider:
        """Return mailer's side, a client that the provider knows; to be closed."""
        if "client_id" not in others:
            client = self.openid.register(REDIRECT)
            others |= {"client_id": client.client_id, "client_secret": client.client_secret}
        others = {"role_claim": "roles", "roles": ROLE_WORDS, **others}
        return Provider(self.issuer, **others)

    def change_token(self, change: Change) -> None:
        """Change the claims of every ID token."""
        self.changes[TOKEN] = lambda answer: self.sign_again(answer, change)

    def sign_again(self, answer: Claims, change: Change) -> None:
        """Change the claims of an answer's ID token, and sign it by the key that it had."""
        _replace(
            answer, lambda header, old: signed(header, _changed(change, old), self._key(header))
        )

    def sign_anew(self, sign: Sign) -> None:
        """Put what `sign` makes of its header and its claims in the place of every ID token."""
        self.changes[TOKEN] = lambda answer: _replace(answer, sign)

    def _key(self, header: Claims) -> Key:
        return next(key for key in self.openid.keys.values() if key.kid == header["kid"])


class Clock:
    """A clock that a test moves."""

    def __init__(self) -> None:
        self.time = 0.0

    def __call__(self) -> float:
        return self.time


@contextlib.asynccontextmanager
async def between(openid: OpenIdProvider) -> AsyncIterator[Middle]:
    """Stand between a provider and who asks for it."""
    async with aiohttp.ClientSession(cookie_jar=aiohttp.DummyCookieJar()) as session:
        middle = Middle(openid, session)
        runner = web.AppRunner(_application(middle), shutdown_timeout=0.1)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        middle.issuer = f"http://127.0.0.1:{runner.addresses[0][1]}"
        yield middle
        await runner.cleanup()


async def who_signs_in(provider: Provider, login: str = "vera", **others: str) -> Identity:
    """Sign in from the start to the end; `others` take the place of what should be given there."""
    start = await provider.start(REDIRECT)
    back = parse_qs(urlsplit(await sign_in(start.url, login)).query)
    assert back["state"] == [start.state]
    given = {"nonce": start.nonce, "verifier": start.verifier, "redirect_uri": REDIRECT}
    return await provider.finish(
        **{**given, "code": back["code"][0], "iss": back["iss"][0], **others}
    )


async def refusal(provider: Provider, login: str = "vera", **others: str) -> str:
    """Return why nobody comes in, as the log has it; what a person reads has no secret in it."""
    with pytest.raises(SignInError) as error:
        await who_signs_in(provider, login, **others)
    assert str(error.value).endswith((" Start it again.", " for one."))
    assert error.value.__cause__ is None
    return error.value.reason


async def absence(provider: Provider) -> str:
    with pytest.raises(ProviderAwayError) as error:
        await who_signs_in(provider)
    assert str(error.value).endswith(" Try again later.")
    return error.value.reason


def nobodys(url: str) -> Provider:
    """Return mailer's side of a provider that does not know it."""
    return Provider(url.removesuffix("/send/"), "mailer", None, "roles", {})


def signed(header: Claims, claims: Claims, key: Key) -> str:
    """Return a token with these parts, signed by `key`."""
    registry = jws.JWSRegistry(algorithms=[header["alg"]], strict_check_header=False)
    with warnings.catch_warnings(action="ignore", category=SecurityWarning):  # of EdDSA's name
        return jws.serialize_compact(header, msgspec.json.encode(claims), key, registry=registry)


def signed_by_hmac(header: Claims, claims: Claims, secret: bytes) -> str:
    """Return a token that anybody can sign who knows `secret`; joserfc would refuse to."""
    parts = f"{_part(msgspec.json.encode(header))}.{_part(msgspec.json.encode(claims))}"
    return f"{parts}.{_part(hmac.digest(secret, parts.encode(), hashlib.sha256))}"


def unsigned(header: Claims, claims: Claims) -> str:
    """Return a token that nobody signed."""
    return f"{_part(msgspec.json.encode(header))}.{_part(msgspec.json.encode(claims))}."


def _part(content: bytes) -> str:
    return base64.urlsafe_b64encode(content).rstrip(b"=").decode()


def _replace(answer: Claims, sign: Sign) -> None:
    token = jws.extract_compact(answer["id_token"].encode())
    answer["id_token"] = sign(token.headers(), msgspec.json.decode(token.payload or b""))


def _changed(change: Change, claims: Claims) -> Claims:
    changed = change(claims)
    return claims if changed is None else changed


def _application(middle: Middle) -> web.Application:
    application = web.Application()
    application.router.add_route("*", "/{path:.*}", middle.answer)
    return application
