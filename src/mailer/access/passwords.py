"""Passwords: what one may be, and what is kept of it (argon2id, RFC 9106)."""

import asyncio
import base64
import re
import unicodedata
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from itertools import pairwise
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
SIGNS, MOST_SIGNS = f"{digits}{punctuation} ", 6
"""What may stand around a common password, and how many of them make it no other one."""
OWN_WORDS = ("mailer", "administrator")
"""What comes to mind here, and is not on the list."""
RUSSIAN_KEYS = str.maketrans("йцукенгшщзхъфывапролджэячсмитьбю", "qwertyuiop[]asdfghjkl;'zxcvbnm,.")
"""The Latin keys of a Russian keyboard: the list has what Russian words are on them."""
LOOKALIKES = str.maketrans("@4310$5", "aaeioss")
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
    if name.casefold() in {password.casefold(), password.casefold().strip(SIGNS)}:
        return [FieldError("password", "must not be the name")]
    if _is_common(password):
        return [FieldError("password", "is one of the most used passwords, or nearly so")]
    return []


@cache
def _common() -> frozenset[str]:
    return frozenset((*COMMON.read_text().split(), *OWN_WORDS))


def _is_common(password: str) -> bool:
    """Whether a password is among the most used ones (NIST SP 800-63B, 3.1.1.2), or nearly so.

    That is one with a few digits or signs around it, with some in the place of letters that look
    alike, or typed on Russian keys; one that is repeated, and a run such as `123456789012`: few of
    the list are as long as ours must be.
    """
    text = "".join(each for each in password if unicodedata.category(each) != "Cf")
    text = unicodedata.normalize("NFKC", text).casefold()
    return _is_listed(text) or _is_repetitive(text)


def _is_listed(text: str) -> bool:
    """Whether a text is listed as it is or as it is meant, but for a few signs around it."""
    meant = (
        text,
        text.translate(RUSSIAN_KEYS),
        text.strip(digits).translate(LOOKALIKES),  # a sign at its end may be a letter, too
    )
    cores = {each.strip(SIGNS) for each in meant}
    return text in _common() or any(
        core in _common() and len(text) - len(core) <= MOST_SIGNS for core in cores
    )


def _is_repetitive(text: str) -> bool:
    steps = {(ord(after) - ord(before)) % 10 for before, after in pairwise(text)}
    if len(steps) == 1 and (text.isdecimal() or text.isalpha()):
        return True
    words = {word for word in re.split(r"[\W\d_]+", text) if word}
    if len(words) == 1 and words <= _common() and text.count(min(words)) > 1:
        return True
    # a text that is a part repeated is found in itself doubled before its end
    part = text[: (text + text).find(text, 1)]
    return len(part) < len(text) and (len(part) < SHORTEST // 2 or part in _common())


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
