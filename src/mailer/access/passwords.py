"""Passwords: what one may be, and what is kept of it (argon2id, RFC 9106)."""

import asyncio
import base64
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
from mailer.validation import STORABLE
from mailer.web.turns import Turns

SHORTEST, LONGEST = 12, 1_024
"""Characters. Length is all that is asked for: rules about kinds of characters lead to worse
passwords (NIST SP 800-63B, 3.1.1.2)."""
COMMON = Path(__file__).parent / "common_passwords" / "passwords.txt"
OWN_WORDS = ("mailer", "admin", "administrator")
"""Obvious here, and not on the list."""
RUNS = "01234567890123456789 98765432109876543210 abcdefghijklmnopqrstuvwxyz"
MIN_DISTINCT = 6  # characters
RUSSIAN_KEYS = str.maketrans("йцукенгшщзхъфывапролджэячсмитьбю", "qwertyuiop[]asdfghjkl;'zxcvbnm,.")
"""The Latin keys of a Russian keyboard: the list has what Russian words are on them."""
AT_ONCE = 2
"""Passwords that are hashed at the same time: each takes 64 MiB and keeps a core busy."""


class HashingBusyError(UnavailableError):
    """Too many passwords are looked at; try again in a few seconds."""

    retry_after = 5


TURNS = Turns(AT_ONCE, patience=5.0, busy=HashingBusyError)

Password = Annotated[
    str,
    Meta(
        min_length=SHORTEST,
        max_length=LONGEST,
        pattern=STORABLE,
        extra={"rule": "must be 12 to 1024 characters"},
    ),
]
Result = TypeVar("Result")


@cache
def _hasher() -> PasswordHasher:
    return PasswordHasher()


@cache
def _threads() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(AT_ONCE, thread_name_prefix="password")


@cache
def _nobodys() -> str:
    """Return what is compared where nothing is kept, so that it takes as long.

    It is the hash of no password, and so need not be made when the first of these comes.
    """
    made = _hasher()
    cost = f"m={made.memory_cost},t={made.time_cost},p={made.parallelism}"
    salt, digest = (
        base64.b64encode(bytes(length)).rstrip(b"=").decode()
        for length in (made.salt_len, made.hash_len)
    )
    return f"$argon2id$v=19${cost}${salt}${digest}"


async def hashed(password: str) -> str:
    """Return what is kept of a password; raises `HashingBusyError`."""
    return await _in_thread(lambda: _hasher().hash(_normal(password)))


async def matches(kept: str | None, password: str) -> bool:
    """Whether a password is the one of which `kept` is kept; with None it takes as long.

    Raises `HashingBusyError`.
    """
    return await _in_thread(lambda: _matches(kept, password))


def is_outdated(kept: str) -> bool:
    """Whether a password would be hashed otherwise today."""
    return _hasher().check_needs_rehash(kept)


def too_easy(name: str, password: str) -> list[FieldError]:
    """Name what is wrong with a password of somebody called so, whatever its length."""
    text = _plain(password)
    if _plain(name) in {text, text.strip(f"{digits}{punctuation} ")}:
        return [FieldError("password", "must not be the name")]
    if _is_common(text):
        return [FieldError("password", "is too common, or too close to a common password")]
    return []


@cache
def _common() -> frozenset[str]:
    return frozenset((*COMMON.read_text().split(), *OWN_WORDS))


def _is_common(text: str) -> bool:
    """Whether a password is among the most used ones (NIST SP 800-63B, 3.1.1.2), or close to one.

    It is close when only digits, signs, blanks and repetition are added. A run of digits or of the
    alphabet, and a text of fewer than `MIN_DISTINCT` different characters, count as common.
    """
    letters = _letters(text)
    latin = letters.translate(RUSSIAN_KEYS)
    candidates = map(_without_repetition, (text, letters, latin, _letters(latin)))
    return (
        len(set(text)) < MIN_DISTINCT
        or text in RUNS
        or any(each in _common() for each in candidates)
    )


def _plain(password: str) -> str:
    """Return a password without differences that people do not see, such as of case."""
    text = "".join(each for each in password if unicodedata.category(each) != "Cf")
    return unicodedata.normalize("NFKC", text).casefold()


def _letters(text: str) -> str:
    return "".join(filter(str.isalpha, text))


def _without_repetition(text: str) -> str:
    # a part that is repeated: the doubled text has the whole text again where the part ends
    return text[: (text + text).find(text, 1)] if text else text


def _matches(kept: str | None, password: str) -> bool:
    if len(password) > LONGEST:
        return False
    try:
        _hasher().verify(kept or _nobodys(), _normal(password))
    except VerifyMismatchError:
        return False
    return kept is not None


def _normal(password: str) -> bytes:
    """Return the same bytes for what looks the same, whatever typed it (NIST SP 800-63B)."""
    return unicodedata.normalize("NFKC", password).encode(errors="surrogatepass")


async def _in_thread(work: Callable[[], Result]) -> Result:
    async with TURNS.turn():
        return await asyncio.get_running_loop().run_in_executor(_threads(), work)
