"""Secrets that nobody can guess: what is shown once, and what is kept of it."""

import hashlib
import secrets

BYTES = 32


def new_secret(prefix: str = "") -> str:
    """Return 256 random bits as text; a prefix tells people and scanners what it is for."""
    return prefix + secrets.token_urlsafe(BYTES)


def digest(secret: str) -> bytes:
    """Return what is kept of a secret: of so many random bits, one plain hash is enough."""
    return hashlib.sha256(secret.encode(errors="backslashreplace")).digest()
