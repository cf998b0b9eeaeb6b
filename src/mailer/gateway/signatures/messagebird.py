"""MessageBird: a JSON Web Token (RFC 7519) with hashes of the URL and of the body.

Source: `request_validator.py` of messagebird 2.2 for Python. The older scheme (headers
`MessageBird-Signature` and `MessageBird-Request-Timestamp`) is deprecated and left out.
"""

import base64
import hashlib
import hmac
from datetime import datetime, timedelta
from typing import TypeVar

import msgspec

from mailer.gateway.callback import Callback
from mailer.gateway.signatures.checks import MAX_SIGNATURE_AHEAD, add_headers, fits, nonce
from mailer.gateway.signatures.fields import encode
from mailer.json_input import read_json

TokenPart = TypeVar("TokenPart", "TokenHeader", "TokenClaims")

ISSUER = "MessageBird"
JWT_HEADER = "messagebird-signature-jwt"
JWT_ALGORITHMS = {"HS256": hashlib.sha256, "HS384": hashlib.sha384, "HS512": hashlib.sha512}
MAX_TOKEN_BYTES = 8_192
TOKEN_LIFETIME = timedelta(minutes=1)
"""From `nbf` to `exp` of MessageBird's tokens."""


class TokenHeader(msgspec.Struct):
    """Header of a token."""

    alg: str


class TokenClaims(msgspec.Struct, omit_defaults=True):
    """What a token says about a call. Times are in seconds since 1970."""

    iss: str
    nbf: float
    exp: float
    url_hash: str
    payload_hash: str | None = None
    """None for a call without a body."""
    jti: str | None = None

    def are_of(self, callback: Callback, now: datetime) -> bool:
        """Return whether they describe this call, at this time."""
        leeway = MAX_SIGNATURE_AHEAD.total_seconds()
        return (
            self.iss == ISSUER
            and self.nbf - leeway <= now.timestamp() <= self.exp + leeway
            and self.url_hash == _hash(encode(callback.url))
            and self.payload_hash == _body_hash(callback)
        )


def verify(callback: Callback, secret: str, now: datetime) -> bool:
    """Return whether the token is signed, and describes this call at this time."""
    header, claims, signature = callback.headers.get(JWT_HEADER, "").split(".")
    algorithm = _read(header, TokenHeader).alg
    if algorithm not in JWT_ALGORITHMS:
        return False
    is_signed = fits(_signature(f"{header}.{claims}", algorithm, secret), signature)
    return is_signed and _read(claims, TokenClaims).are_of(callback, now)


def sign(callback: Callback, secret: str, now: datetime) -> Callback:
    """Add the header of MessageBird."""
    claims = TokenClaims(
        iss=ISSUER,
        nbf=int(now.timestamp()),
        exp=int((now + TOKEN_LIFETIME).timestamp()),
        url_hash=_hash(encode(callback.url)),
        payload_hash=_body_hash(callback),
        jti=nonce(now),
    )
    signed = ".".join(_encode(msgspec.json.encode(part)) for part in (TokenHeader("HS256"), claims))
    return add_headers(callback, {JWT_HEADER: f"{signed}.{_signature(signed, 'HS256', secret)}"})


def _signature(signed: str, algorithm: str, secret: str) -> str:
    return _encode(hmac.digest(secret.encode(), encode(signed), JWT_ALGORITHMS[algorithm]))


def _hash(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _body_hash(callback: Callback) -> str | None:
    return _hash(callback.body) if callback.body else None


def _encode(part: bytes) -> str:
    return base64.urlsafe_b64encode(part).rstrip(b"=").decode()


def _read(part: str, shape: type[TokenPart]) -> TokenPart:
    content = base64.urlsafe_b64decode(encode(part) + b"==")
    return read_json(content, shape, limit=MAX_TOKEN_BYTES)
