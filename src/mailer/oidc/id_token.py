"""Validation of ID tokens (OpenID Connect Core 1.0, section 3.1.3.7).

An ID token is a signed JSON object. Its members, called claims, identify the user who has signed in
at the provider. Sections cited in this file are those of Core 1.0.
"""

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
"""Accepted signature algorithms, each with the hash function of the claim `at_hash`. All are
asymmetric, so that only the provider can sign."""
CLOCK_LEEWAY = 60
"""Seconds by which the provider's clock may differ from the clock of the database."""
MAX_CLAIMS_BYTES = 256 * 1024
MAX_SUBJECT_LENGTH = 255
"""Characters of the claim `sub` (section 2)."""
CLAIM_ERRORS = {
    "iss": "wrong_issuer",
    "aud": "wrong_audience",
    "exp": "expired",
    "iat": "wrong_time",
    "nbf": "wrong_time",
    "sub": "no_subject",
}
"""Reasons for the log, by the claim that is missing or wrong."""


class ExpectedClaims(msgspec.Struct, frozen=True):
    """What a token must contain so that it belongs to this sign-in.

    `client_id` must be the audience. `nonce` is a random value that mailer sent at the start.
    """

    issuer: str
    client_id: str
    nonce: str


_REGISTRY = jws.JWSRegistry(algorithms=list(ALGORITHMS), strict_check_header=False)


class Token:
    """An ID token whose header has been checked; its signature and claims are not verified yet.

    `alg` is its signature algorithm, `kid` the id of its key. Creating one raises `SignInError` for
    a malformed token, for an algorithm that mailer does not accept, and for one that is not among
    `advertised`, the algorithms in the provider's metadata.
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
        _check_claims(claims, expected, now)
        at_hash = claims.get("at_hash")
        if "at_hash" in claims and not _is_hash_of(access_token, at_hash, self.alg):
            raise SignInError("wrong_at_hash")
        return claims

    def _is_signed(self, key: Key) -> bool:
        """Return whether the signature of the token is that of the key's owner."""
        # joserfc warns that the name EdDSA is deprecated, but providers still use it
        with warnings.catch_warnings(action="ignore", category=SecurityWarning):
            try:
                return jws.validate_compact(self._token, key, registry=_REGISTRY)
            except (JoseError, ValueError):
                return False


def _check_claims(claims: dict[str, Any], expected: ExpectedClaims, now: float) -> None:
    """Raise `SignInError` if a claim is missing or wrong; `now` is seconds since 1970."""
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
        first_claim = error.claim.partition(",")[0]  # joserfc joins the names of missing claims
        raise SignInError(CLAIM_ERRORS.get(first_claim, "bad_token")) from None
    has_several_audiences = isinstance(claims["aud"], list) and len(claims["aud"]) > 1
    needs_azp = has_several_audiences or "azp" in claims  # azp: the client that asked for the token
    if needs_azp and claims.get("azp") != expected.client_id:
        raise SignInError("wrong_audience")
    if not _is_same(claims.get("nonce"), expected.nonce):
        raise SignInError("wrong_nonce")
    subject = claims["sub"]
    if len(subject) > MAX_SUBJECT_LENGTH or not (subject.isascii() and subject.isprintable()):
        raise SignInError("no_subject")


def _is_hash_of(access_token: str | None, at_hash: object, alg: str) -> bool:
    """Return whether `at_hash` is the left half of the access token's hash (section 3.1.3.6).

    `alg` is the algorithm of the ID token, which determines the hash function.
    """
    digest = hashlib.new(ALGORITHMS[alg], (access_token or "").encode()).digest()
    half = base64.urlsafe_b64encode(digest[: len(digest) // 2]).rstrip(b"=").decode()
    return access_token is not None and _is_same(at_hash, half)


def _is_same(value: object, expected: str) -> bool:
    """Compare in constant time."""
    return isinstance(value, str) and hmac.compare_digest(value.encode(), expected.encode())
