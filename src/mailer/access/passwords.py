"""Passwords: what one may be, and what is kept of it (argon2id, RFC 9106)."""

import asyncio
import base64
import unicodedata
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
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
    if password.casefold() == name.casefold():
        return [FieldError("password", "must not be the name")]
    return []


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
