"""Signing in by OpenID Connect: an authorization code with PKCE, and the ID token for it."""

import base64
import hashlib
import secrets
from collections.abc import Mapping
from typing import Any, Self
from urllib.parse import quote_plus, urlencode, urlsplit, urlunsplit

import msgspec

from mailer.access.oidc.discovery import Answer, Clock, Metadata, Provided, Wire
from mailer.access.oidc.id_token import Expected, Token
from mailer.access.oidc.model import Identity, ProviderAwayError, SignInError, Start
from mailer.clock import database_clock, elapsed
from mailer.settings import ROLES, Role, Settings, role_words

SCOPE = "openid profile email"
LONGEST_NAME = 200
NAMES = ("name", "preferred_username", "email", "sub")
"""The claims that name a person, the best first."""

REFUSALS = {
    "invalid_grant": "code_refused",
    "invalid_client": "client_refused",
    "unauthorized_client": "client_refused",
}
"""What the token endpoint's words (RFC 6749, section 5.2) are in the log; the rest `refused`."""


class Tokens(msgspec.Struct, frozen=True):
    """What the token endpoint gives for a code."""

    id_token: str
    access_token: str | None = None


class Refusal(msgspec.Struct, frozen=True):
    """Why the token endpoint gives nothing."""

    error: str


def _now() -> float:
    return database_clock.now().timestamp()


class Provider:
    """An identity provider at which mailer is a client; to be closed.

    `client_secret` is None for a public client. `role_claim` names the claim with a person's roles,
    or is the path to it with dots between; `roles` has the role for each word in it. Both clocks
    are seconds: `now` since 1970, `clock` since whenever.
    """

    def __init__(  # noqa: PLR0913  # what an operator sets, and two clocks
        self,
        issuer: str,
        client_id: str,
        client_secret: str | None,
        role_claim: str,
        roles: Mapping[str, Role],
        *,
        now: Clock = _now,
        clock: Clock = elapsed,
    ) -> None:
        self._issuer = issuer
        self._client_id = client_id
        self._client_secret = client_secret
        self._role_claim = role_claim
        self._roles = dict(roles)
        self._now = now
        self._wire = Wire()
        self._provided = Provided(issuer, self._wire, clock)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """End what is under way, and close every connection."""
        await self._provided.close()
        await self._wire.close()

    async def start(self, redirect_uri: str) -> Start:
        """Begin a sign-in that comes back to `redirect_uri`.

        Raises `ProviderAwayError`, and `SignInError` when the provider is not what was set.
        """
        metadata = await self._provided.metadata()
        state, nonce, verifier = (secrets.token_urlsafe(32) for _ in range(3))
        question = {
            "response_type": "code",
            "client_id": self._client_id,
            "redirect_uri": redirect_uri,
            "scope": SCOPE,
            "state": state,
            "nonce": nonce,
            "code_challenge": _challenge(verifier),
            "code_challenge_method": "S256",
        }
        parts = urlsplit(metadata.authorization_endpoint)
        query = "&".join(filter(None, (parts.query, urlencode(question))))
        url = urlunsplit(parts._replace(query=query, fragment=""))
        return Start(url, state, nonce, verifier)

    async def finish(
        self, code: str, redirect_uri: str, nonce: str, verifier: str, iss: str | None = None
    ) -> Identity:
        """Return who came back with `code`, which counts once.

        `iss` is what came back beside it (RFC 9207). The caller has compared the state. Raises
        `SignInError` when anything about it is wrong, and `ProviderAwayError`.
        """
        metadata = await self._provided.metadata()
        if iss != self._issuer and (
            iss is not None or metadata.authorization_response_iss_parameter_supported
        ):
            raise SignInError("wrong_issuer")
        tokens = await self._tokens(metadata, code, redirect_uri, verifier)
        token = Token(tokens.id_token, metadata.id_token_signing_alg_values_supported)
        key = await self._provided.key(token.kid, token.alg)
        expected = Expected(self._issuer, self._client_id, nonce)
        claims = token.claims(key, expected, tokens.access_token, self._now())
        subject, given = claims["sub"], _claim(claims, self._role_claim)
        if given is None:
            told = await self._userinfo(metadata, tokens.access_token, subject)
            given = _claim(told, self._role_claim)
            claims = told | claims
        role = self._role(given)
        if role is None:
            raise SignInError("no_role", (self._issuer, subject))
        return Identity(self._issuer, subject, _name(claims), role)

    async def _tokens(
        self, metadata: Metadata, code: str, redirect_uri: str, verifier: str
    ) -> Tokens:
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
            authorization = _basic(self._client_id, self._client_secret)
        else:
            form |= {"client_id": self._client_id, "client_secret": self._client_secret}
        answer = await self._wire.ask(metadata.token_endpoint, form, authorization)
        if answer.status != 200:  # noqa: PLR2004  # the one that gives something
            raise _refusal(answer)
        return answer.read(Tokens)

    async def _userinfo(
        self, metadata: Metadata, access_token: str | None, subject: str
    ) -> dict[str, Any]:
        """Return what the provider tells of a person elsewhere (Core 1.0, section 5.3)."""
        if metadata.userinfo_endpoint is None or access_token is None:
            return {}
        answer = await self._wire.ask(
            metadata.userinfo_endpoint, authorization=f"Bearer {access_token}"
        )
        if answer.status != 200:  # noqa: PLR2004  # likewise
            raise ProviderAwayError(f"http_{answer.status}")
        claims = answer.read(dict[str, Any])
        if claims.get("sub") != subject:
            raise SignInError("wrong_subject")
        return claims

    def _role(self, given: object) -> Role | None:
        """Return the highest role that the claim gives, if it gives any."""
        words = given if isinstance(given, list) else [given]
        found = {
            self._roles[each] for each in words if isinstance(each, str) and each in self._roles
        }
        return max(found, key=ROLES.index, default=None)


def _claim(claims: dict[str, Any], name: str) -> Any:  # noqa: ANN401  # a claim is any JSON
    """Return a claim by its name, which may have dots of its own, or else by the path to it."""
    if name in claims:
        return claims[name]
    found: Any = claims
    for step in name.split("."):
        found = found.get(step) if isinstance(found, dict) else None
    return found


def _name(claims: dict[str, Any]) -> str:
    """Return what to call a person: one short line that shows as it is."""
    for each in NAMES:
        given = claims.get(each)
        if isinstance(given, str):
            shown = "".join(filter(str.isprintable, given)).strip()[:LONGEST_NAME]
            if shown:
                return shown
    return str(claims["sub"])


def _challenge(verifier: str) -> str:
    """Return what is told of a verifier beforehand (RFC 7636, section 4.2)."""
    digest = hashlib.sha256(verifier.encode()).digest()
    return base64.urlsafe_b64encode(digest).rstrip(b"=").decode()


def _basic(client_id: str, secret: str) -> str:
    """Return the header that authenticates a client (RFC 6749, section 2.3.1)."""
    pair = f"{quote_plus(client_id)}:{quote_plus(secret)}"
    return f"Basic {base64.b64encode(pair.encode()).decode()}"


def _refusal(answer: Answer) -> SignInError:
    return SignInError(REFUSALS.get(answer.read(Refusal).error, "refused"))


def provider_of(settings: Settings) -> Provider | None:
    """Return the provider that the settings name, if they name one and anybody is asked."""
    if settings.auth == "none" or settings.oidc_issuer is None or settings.oidc_client_id is None:
        return None
    return Provider(
        settings.oidc_issuer,
        settings.oidc_client_id,
        settings.oidc_client_secret,
        settings.oidc_role_claim,
        role_words(settings.oidc_roles),
    )
