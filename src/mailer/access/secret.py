"""Secrets that nobody can guess: what is shown once, and what is kept of it."""

import hashlib
import re
import secrets

BYTES = 32
SHAPE = re.compile(r"[A-Za-z0-9_-]{43}")
"""Of so many bytes as text."""


def new_secret(prefix: str = "") -> str:
    """Return 256 random bits as text; a prefix tells people and scanners what it is for."""
    return prefix + secrets.token_urlsafe(BYTES)


def has_shape(given: str, prefix: str = "") -> bool:
    """Whether `given` may be a secret of ours, with this prefix: nothing else need be looked up."""
    return given.startswith(prefix) and bool(SHAPE.fullmatch(given, len(prefix)))


def digest(secret: str) -> bytes:
    """Return what is kept of a secret: of so many random bits, one plain hash is enough."""
    return hashlib.sha256(secret.encode(errors="backslashreplace")).digest()
