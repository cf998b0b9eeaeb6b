"""Passwords, and the random secrets of API keys and of session cookies.

Only the argon2id hash (RFC 9106) of a password and the SHA-256 digest of a secret are stored.
"""

import asyncio
import base64
import hashlib
import re
import secrets
import unicodedata
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from string import digits, punctuation
from typing import Annotated, TypeVar

from argon2 import PasswordHasher
from argon2.exceptions import VerifyMismatchError
from msgspec import Meta

from mailer.errors import FieldError, UnavailableError
from mailer.limits import ConcurrencyLimiter
from mailer.validation import STORABLE

MIN_PASSWORD_LENGTH, MAX_PASSWORD_LENGTH = 12, 1_024
"""Characters. There are no rules about kinds of characters, because such rules lead to worse
passwords (NIST SP 800-63B, 3.1.1.2)."""
COMMON_PASSWORDS_FILE = Path(__file__).parent / "common_passwords" / "passwords.txt"
OWN_COMMON_PASSWORDS = ("mailer", "admin", "administrator")
"""Passwords that are easy to guess for mailer, and not in the file of common ones."""
CHARACTER_RUNS = "01234567890123456789 98765432109876543210 abcdefghijklmnopqrstuvwxyz"
"""A password that is a part of this text counts as common."""
MIN_DISTINCT_CHARACTERS = 6
"""A password with fewer different characters counts as common."""
RUSSIAN_KEYS = str.maketrans("йцукенгшщзхъфывапролджэячсмитьбю", "qwertyuiop[]asdfghjkl;'zxcvbnm,.")
"""Maps each Cyrillic letter to the character on the same key of a Latin keyboard. The file of
common passwords contains Russian words typed with these characters."""
MAX_CONCURRENT_HASHES = 2
"""Passwords hashed or verified at the same time. Each takes 64 MiB of memory and one CPU core."""


class HashingBusyError(UnavailableError):
    """Too many passwords are being checked; try again in a few seconds."""

    retry_after = 5


HASH_LIMITER = ConcurrencyLimiter(MAX_CONCURRENT_HASHES, timeout=5.0, busy=HashingBusyError)

Password = Annotated[
    str,
    Meta(
        min_length=MIN_PASSWORD_LENGTH,
        max_length=MAX_PASSWORD_LENGTH,
        pattern=STORABLE,
        extra={"rule": "must be 12 to 1024 characters"},
    ),
]
Result = TypeVar("Result")


@cache
def _hasher() -> PasswordHasher:
    """Return the hasher, with the usual cost parameters of argon2-cffi."""
    return PasswordHasher()


@cache
def _thread_pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(MAX_CONCURRENT_HASHES, thread_name_prefix="password")


@cache
def _dummy_hash() -> str:
    """Return the hash that `verify_password` uses for an unknown user; no password matches it.

    It has the usual cost parameters, so verifying takes as long as for a real hash. Its salt and
    digest are zero bytes, so creating it takes no time.
    """
    hasher = _hasher()
    cost = f"m={hasher.memory_cost},t={hasher.time_cost},p={hasher.parallelism}"
    salt, digest = (
        base64.b64encode(bytes(length)).rstrip(b"=").decode()
        for length in (hasher.salt_len, hasher.hash_len)
    )
    return f"$argon2id$v=19${cost}${salt}${digest}"


async def hash_password(password: str) -> str:
    """Return the hash of a password; raises `HashingBusyError`."""
    return await _in_thread(lambda: _hasher().hash(_to_bytes(password)))


async def verify_password(stored_hash: str | None, password: str) -> bool:
    """Return whether a password has this hash; raises `HashingBusyError`.

    For an unknown user `stored_hash` is None, and the result is False. It takes as long as for a
    known user, so that the time does not reveal which names exist.
    """
    return await _in_thread(lambda: _matches(stored_hash, password))


def needs_rehash(stored_hash: str) -> bool:
    """Return whether a hash was created with other cost parameters than those used now."""
    return _hasher().check_needs_rehash(stored_hash)


def find_weakness(name: str, password: str) -> list[FieldError]:
    """Return the reason why a password is easy to guess, as an error, or an empty list.

    `name` is the user's name. The length is not checked here.
    """
    text = _fold(password)
    text_without_ends = text.strip(f"{digits}{punctuation} ")
    if _fold(name) in {text, text_without_ends}:
        return [FieldError("password", "must not be the name")]
    if _is_common(text):
        return [FieldError("password", "is too common, or too close to a common password")]
    return []


@cache
def _common_passwords() -> frozenset[str]:
    return frozenset((*COMMON_PASSWORDS_FILE.read_text().split(), *OWN_COMMON_PASSWORDS))


def _is_common(text: str) -> bool:
    """Return whether a folded password is common, or close to a common one.

    It is close if it differs only by added digits, punctuation, blanks or repetition. Runs of
    digits or of the alphabet, and passwords of few different characters, are common too. Source:
    NIST SP 800-63B, 3.1.1.2.
    """
    letters = _letters(text)
    latin = letters.translate(RUSSIAN_KEYS)  # some Cyrillic letters become punctuation
    candidates = map(_without_repetition, (text, letters, latin, _letters(latin)))
    return (
        len(set(text)) < MIN_DISTINCT_CHARACTERS
        or text in CHARACTER_RUNS
        or any(candidate in _common_passwords() for candidate in candidates)
    )


def _fold(original: str) -> str:
    """Return a text in lower case, without compatibility forms and invisible characters.

    So variants that look alike become equal, such as wide letters and ordinary ones.
    """
    text = "".join(char for char in original if unicodedata.category(char) != "Cf")
    return unicodedata.normalize("NFKC", text).casefold()


def _letters(text: str) -> str:
    return "".join(filter(str.isalpha, text))


def _without_repetition(text: str) -> str:
    """Return the unit that `text` repeats: "abc" for "abcabc", and for "abc" itself."""
    # in the doubled text, `text` occurs again first where its first unit ends
    return text[: (text + text).find(text, 1)] if text else text


def _matches(stored_hash: str | None, password: str) -> bool:
    if len(password) > MAX_PASSWORD_LENGTH:  # nobody has such a password; hashing it takes long
        return False
    try:
        _hasher().verify(stored_hash or _dummy_hash(), _to_bytes(password))
    except VerifyMismatchError:
        return False
    return stored_hash is not None


def _to_bytes(password: str) -> bytes:
    """Return the bytes to hash: the same for every way to type a character (NIST SP 800-63B)."""
    return unicodedata.normalize("NFKC", password).encode(errors="surrogatepass")


async def _in_thread(hashing: Callable[[], Result]) -> Result:
    """Run `hashing` in a thread, since it would block the event loop for too long.

    Raises `HashingBusyError` if no slot becomes free in time.
    """
    async with HASH_LIMITER.slot():
        return await asyncio.get_running_loop().run_in_executor(_thread_pool(), hashing)


SECRET_BYTES = 32
SECRET_PATTERN = re.compile(r"[A-Za-z0-9_-]{43}")
"""`SECRET_BYTES` bytes in URL-safe base64."""


def new_secret(prefix: str = "") -> str:
    """Return 256 random bits as text, after a prefix.

    The prefix shows users and secret scanners what the secret is for.
    """
    return prefix + secrets.token_urlsafe(SECRET_BYTES)


def has_secret_format(text: str, prefix: str = "") -> bool:
    """Return whether `new_secret(prefix)` can have returned `text`; if not, no query is needed."""
    return text.startswith(prefix) and bool(SECRET_PATTERN.fullmatch(text, len(prefix)))


def digest(secret: str) -> bytes:
    """Return the SHA-256 digest to store; a secret of 256 random bits needs no slow hash."""
    return hashlib.sha256(secret.encode(errors="backslashreplace")).digest()
