"""Validation of ID tokens (OpenID Connect Core 1.0, section 3.1.3.7)."""

import base64
import hashlib
import hmac
import warnings
from typing import Any

import msgspec
from joserfc import jws
from joserfc.errors import ClaimError, JoseError, SecurityWarning
from joserfc.jwk import Key
from joserfc.jwt import JWTClaimsRegistry

from mailer.json_input import JsonError, read_json
from mailer.oidc.model import SignInError

ALGORITHMS = {
    **{f"{kind}{bits}": f"sha{bits}" for kind in ("RS", "PS", "ES") for bits in (256, 384, 512)},
    "EdDSA": "sha512",
    "Ed25519": "sha512",
}
"""Accepted signature algorithms, each with the hash that `at_hash` uses. All are asymmetric, so
that only the provider can sign."""
CLOCK_LEEWAY = 60
"""Seconds by which the provider's clock may differ from the database's."""
MAX_CLAIMS_BYTES = 256 * 1024
MAX_SUBJECT_LENGTH = 255
"""Characters (Core 1.0, section 2)."""
CLAIM_ERRORS = {
    "iss": "wrong_issuer",
    "aud": "wrong_audience",
    "exp": "expired",
    "iat": "wrong_time",
    "nbf": "wrong_time",
    "sub": "no_subject",
}


class ExpectedClaims(msgspec.Struct, frozen=True):
    """The issuer, the audience and the nonce that a token must have."""

    issuer: str
    client_id: str
    nonce: str


_REGISTRY = jws.JWSRegistry(algorithms=list(ALGORITHMS), strict_check_header=False)


class Token:
    """An ID token that is parsed but not verified yet; raises `SignInError` if it is malformed.

    `advertised` are the algorithms that the provider claims to use.
    """

    def __init__(self, text: str, advertised: tuple[str, ...]) -> None:
        try:
            self._token = jws.extract_compact(text.encode(), registry=_REGISTRY)
            header = self._token.headers()
        except (JoseError, ValueError):
            raise SignInError("bad_token") from None
        self.alg = str(header.get("alg"))
        self.kid = header.get("kid")
        if self.alg not in ALGORITHMS or self.alg not in advertised:
            raise SignInError("wrong_algorithm")
        if str(header.get("typ", "JWT")).upper() != "JWT":  # an access token or a logout token
            raise SignInError("wrong_type")

    def claims(
        self, key: Key, expected: ExpectedClaims, access_token: str | None, now: float
    ) -> dict[str, Any]:
        """Verify the signature and the claims, and return the claims.

        `now` is seconds since 1970. Raises `SignInError`.
        """
        if not self._is_signed(key):
            raise SignInError("bad_signature")
        try:
            claims = read_json(self._token.payload or b"", dict[str, Any], limit=MAX_CLAIMS_BYTES)
        except JsonError:
            raise SignInError("bad_token") from None
        _check(claims, expected, now)
        if "at_hash" in claims and not _is_hash(claims["at_hash"], self.alg, access_token):
            raise SignInError("wrong_at_hash")
        return claims

    def _is_signed(self, key: Key) -> bool:
        # joserfc warns that the name EdDSA is deprecated, but providers still use it
        with warnings.catch_warnings(action="ignore", category=SecurityWarning):
            try:
                return jws.validate_compact(self._token, key, registry=_REGISTRY)
            except (JoseError, ValueError):
                return False


def _check(claims: dict[str, Any], expected: ExpectedClaims, now: float) -> None:
    rules = JWTClaimsRegistry(
        now=int(now),
        leeway=CLOCK_LEEWAY,
        iss={"essential": True, "value": expected.issuer},
        aud={"essential": True, "value": expected.client_id},
        exp={"essential": True},
        iat={"essential": True},
        sub={"essential": True},
    )
    try:
        rules.validate(claims)
    except ClaimError as error:
        raise SignInError(CLAIM_ERRORS.get(error.claim.partition(",")[0], "bad_token")) from None
    has_several = isinstance(claims["aud"], list) and len(claims["aud"]) > 1
    if (has_several or "azp" in claims) and claims.get("azp") != expected.client_id:
        raise SignInError("wrong_audience")
    if not _is_same(claims.get("nonce"), expected.nonce):
        raise SignInError("wrong_nonce")
    subject = claims["sub"]
    if len(subject) > MAX_SUBJECT_LENGTH or not (subject.isascii() and subject.isprintable()):
        raise SignInError("no_subject")


def _is_hash(at_hash: object, alg: str, access_token: str | None) -> bool:
    """Return whether `at_hash` is the left half of the access token's hash (section 3.1.3.6)."""
    digest = hashlib.new(ALGORITHMS[alg], (access_token or "").encode()).digest()
    half = base64.urlsafe_b64encode(digest[: len(digest) // 2]).rstrip(b"=").decode()
    return access_token is not None and _is_same(at_hash, half)


def _is_same(value: object, expected: str) -> bool:
    """Compare in constant time."""
    return isinstance(value, str) and hmac.compare_digest(value.encode(), expected.encode())
