"""Random secrets for API keys and cookies. They are shown once; only their digests are stored."""

import hashlib
import re
import secrets

SECRET_BYTES = 32
SECRET_PATTERN = re.compile(r"[A-Za-z0-9_-]{43}")
"""`SECRET_BYTES` bytes in URL-safe base64."""


def new_secret(prefix: str = "") -> str:
    """Return 256 random bits as text; a prefix tells users and secret scanners what it is for."""
    return prefix + secrets.token_urlsafe(SECRET_BYTES)


def has_shape(text: str, prefix: str = "") -> bool:
    """Return whether `text` has the form of a secret; other texts need no database query."""
    return text.startswith(prefix) and bool(SECRET_PATTERN.fullmatch(text, len(prefix)))


def digest(secret: str) -> bytes:
    """Return the SHA-256 digest to store; a secret of 256 random bits needs no slow hash."""
    return hashlib.sha256(secret.encode(errors="backslashreplace")).digest()
