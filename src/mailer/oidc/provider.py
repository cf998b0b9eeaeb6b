"""Sign-in with an OpenID provider: the authorization code flow with PKCE.

The browser brings a code from the provider. mailer exchanges the code for tokens, and proves with a
secret, the code verifier, that it has started this sign-in (PKCE, RFC 7636).
"""

import base64
import hashlib
import secrets
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any, Self
from urllib.parse import quote_plus, urlencode, urlsplit, urlunsplit

import msgspec

from mailer.clock import database_clock, elapsed
from mailer.oidc.discovery import (
    ProviderDocument,
    ProviderHttp,
    ProviderMetadata,
    ProviderResponse,
    SecondsClock,
)
from mailer.oidc.id_token import ExpectedClaims, Token
from mailer.oidc.model import Identity, ProviderUnavailableError, SignInError, SignInStart
from mailer.roles import ROLES, Role, parse_role_mapping
from mailer.settings import Settings
from mailer.text import clean_label

OIDC_SCOPES = "openid profile email"
"""Scopes that mailer requests, for the claims with the user's name."""
MAX_NAME_LENGTH = 200
"""Characters of a user's name; the rest of a longer one is not used."""
NAME_CLAIMS = ("name", "preferred_username", "email", "sub")
"""The claims used as a user's name, in order of preference."""

PROVIDER_ERRORS = {
    "invalid_grant": "code_refused",
    "invalid_client": "client_refused",
    "unauthorized_client": "client_refused",
}
"""Reasons for the log, by the error code of the token endpoint (RFC 6749, section 5.2). For any
other code the reason is `refused`."""


class Tokens(msgspec.Struct, frozen=True):
    """A successful response of the token endpoint."""

    id_token: str
    access_token: str | None = None


class ProviderRefusal(msgspec.Struct, frozen=True):
    """An error response of the token endpoint."""

    error: str


def _database_time() -> float:
    return database_clock.now().timestamp()


class Provider:
    """An OpenID provider at which mailer is registered as a client; must be closed.

    `client_secret` is None for a client that is registered without one. `role_claim` is the name of
    the claim with a user's roles, or the path to it, separated by dots. `roles` maps the values of
    that claim to mailer's roles. Both clocks return seconds: `now` since 1970, `clock` from an
    arbitrary start; only `clock` never goes back.
    """

    def __init__(  # noqa: PLR0913  # five settings and two clocks
        self,
        issuer: str,
        client_id: str,
        client_secret: str | None,
        role_claim: str,
        roles: Mapping[str, Role],
        *,
        now: SecondsClock = _database_time,
        clock: SecondsClock = elapsed,
    ) -> None:
        self.issuer = issuer
        self._client_id = client_id
        self._client_secret = client_secret
        self._role_claim = role_claim
        self._roles = dict(roles)
        self._now = now
        self._http = ProviderHttp()
        self._metadata = ProviderMetadata(issuer, self._http, clock)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Cancel running requests and close all connections."""
        await self._metadata.close()
        await self._http.close()

    async def start(self, redirect_uri: str) -> SignInStart:
        """Start a sign-in; the provider will redirect the browser to `redirect_uri`.

        Raises `ProviderUnavailableError`, and `SignInError` if the provider's metadata do not match
        the configured issuer.
        """
        metadata = await self._metadata.document()
        state, nonce, verifier = (secrets.token_urlsafe(32) for _ in range(3))
        parameters = {
            "response_type": "code",
            "client_id": self._client_id,
            "redirect_uri": redirect_uri,
            "scope": OIDC_SCOPES,
            "state": state,
            "nonce": nonce,
            "code_challenge": _pkce_challenge(verifier),
            "code_challenge_method": "S256",
        }
        parts = urlsplit(metadata.authorization_endpoint)
        query = "&".join(filter(None, (parts.query, urlencode(parameters))))
        url = urlunsplit(parts._replace(query=query, fragment=""))
        return SignInStart(url, state, nonce, verifier)

    async def finish(
        self, code: str, redirect_uri: str, nonce: str, verifier: str, iss: str | None = None
    ) -> Identity:
        """Exchange `code` for tokens, verify them, and return the user's identity.

        `code` and `iss` (the issuer, RFC 9207) are parameters of the callback; `nonce` and
        `verifier` are those of `start`. The caller must have compared the state. A code can be
        used once. Raises `SignInError` if any check fails, and `ProviderUnavailableError`.
        """
        metadata = await self._metadata.document()
        must_have_iss = metadata.authorization_response_iss_parameter_supported
        has_wrong_issuer = must_have_iss if iss is None else iss != self.issuer
        if has_wrong_issuer:
            raise SignInError("wrong_issuer")
        tokens = await self._fetch_tokens(metadata, code, redirect_uri, verifier)
        token = Token(tokens.id_token, metadata.id_token_signing_alg_values_supported)
        key = await self._metadata.key(token.kid, token.alg)
        expected = ExpectedClaims(self.issuer, self._client_id, nonce)
        claims = token.claims(key, expected, tokens.access_token, self._now())
        subject, role_values = claims["sub"], _read_claim(claims, self._role_claim)
        if role_values is None:  # some providers return roles at the userinfo endpoint only
            userinfo = await self._fetch_userinfo(metadata, tokens.access_token, subject)
            role_values = _read_claim(userinfo, self._role_claim)
            claims = userinfo | claims
        role = self._highest_role(role_values)
        if role is None:
            raise SignInError("no_role", (self.issuer, subject))
        return Identity(self.issuer, subject, _display_name(claims), role)

    async def _fetch_tokens(
        self, metadata: ProviderDocument, code: str, redirect_uri: str, verifier: str
    ) -> Tokens:
        """Exchange a code for tokens; mailer authenticates by a method that the provider supports.

        Raises `SignInError` if the provider refuses, and `ProviderUnavailableError`.
        """
        form = {
            "grant_type": "authorization_code",
            "code": code,
            "redirect_uri": redirect_uri,
            "code_verifier": verifier,
        }
        authorization = None
        if self._client_secret is None:
            form["client_id"] = self._client_id
        elif "client_secret_basic" in metadata.token_endpoint_auth_methods_supported:
            authorization = _basic_authorization(self._client_id, self._client_secret)
        else:
            form |= {"client_id": self._client_id, "client_secret": self._client_secret}
        response = await self._http.request(metadata.token_endpoint, form, authorization)
        if response.status != HTTPStatus.OK:
            raise _refusal_error(response)
        return response.read(Tokens)

    async def _fetch_userinfo(
        self, metadata: ProviderDocument, access_token: str | None, subject: str
    ) -> dict[str, Any]:
        """Return the claims from the userinfo endpoint (Core 1.0, section 5.3); {} without one.

        Raises `SignInError` if they are of another subject, and `ProviderUnavailableError`.
        """
        if metadata.userinfo_endpoint is None or access_token is None:
            return {}
        response = await self._http.request(
            metadata.userinfo_endpoint, authorization=f"Bearer {access_token}"
        )
        if response.status != HTTPStatus.OK:
            raise ProviderUnavailableError(f"http_{response.status}")
        claims = response.read(dict[str, Any])
        if claims.get("sub") != subject:
            raise SignInError("wrong_subject")
        return claims

    def _highest_role(self, claim: object) -> Role | None:
        """Return the highest role in the value of the role claim; None if it contains none."""
        values = claim if isinstance(claim, list) else [claim]
        roles = {
            self._roles[value]
            for value in values
            if isinstance(value, str) and value in self._roles
        }
        return max(roles, key=ROLES.index, default=None)


def _read_claim(claims: dict[str, Any], name: str) -> Any:  # noqa: ANN401  # a claim is any JSON
    """Return the claim `name`, or the value at this path in nested claims; None if neither exists.

    In a path such as `realm_access.roles`, dots separate the steps.
    """
    if name in claims:
        return claims[name]
    value: Any = claims
    for step in name.split("."):
        value = value.get(step) if isinstance(value, dict) else None
    return value


def _display_name(claims: dict[str, Any]) -> str:
    """Return the user's name: normalized, printable, of at most `MAX_NAME_LENGTH` characters."""
    for claim in NAME_CLAIMS:
        value = claims.get(claim)
        if isinstance(value, str):
            name = clean_label("".join(filter(str.isprintable, value))[:MAX_NAME_LENGTH])
            if name:
                return name
    return str(claims["sub"])


def _pkce_challenge(verifier: str) -> str:
    """Return the PKCE code challenge of a verifier, method S256 (RFC 7636, section 4.2)."""
    digest = hashlib.sha256(verifier.encode()).digest()
    return base64.urlsafe_b64encode(digest).rstrip(b"=").decode()


def _basic_authorization(client_id: str, secret: str) -> str:
    """Return the Authorization header of a client that has a secret (RFC 6749, section 2.3.1)."""
    pair = f"{quote_plus(client_id)}:{quote_plus(secret)}"
    return f"Basic {base64.b64encode(pair.encode()).decode()}"


def _refusal_error(response: ProviderResponse) -> SignInError:
    """Return the error for an error response of the token endpoint."""
    return SignInError(PROVIDER_ERRORS.get(response.read(ProviderRefusal).error, "refused"))


def create_provider(settings: Settings) -> Provider | None:
    """Return the provider in the settings; None if there is none or authentication is off."""
    if (
        not settings.is_auth_enabled
        or settings.oidc_issuer is None
        or settings.oidc_client_id is None
    ):
        return None
    return Provider(
        settings.oidc_issuer,
        settings.oidc_client_id,
        settings.oidc_client_secret,
        settings.oidc_role_claim,
        parse_role_mapping(settings.oidc_roles),
    )
