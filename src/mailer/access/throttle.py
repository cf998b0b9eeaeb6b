"""How often passwords may be tried. The caller owns the transaction.

What is counted stands in the database, so that all processes share it. An attempt is counted as a
failure before it is looked at, so that of a hundred at once not all get through; a right password
takes its count back.
"""

import hashlib
import ipaddress
import math
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime, timedelta

import msgspec
import structlog
from sqlalchemy import delete, exists, func, select, text
from sqlalchemy.ext.asyncio import AsyncConnection

from mailer.access.model import clean_name
from mailer.db.access import home, throttle
from mailer.errors import MailerError
from mailer.validation import is_storable

log = structlog.get_logger()

IPV6_PREFIX = 64
"""Bits of an IPv6 address that tell one customer from another: the rest anybody may choose."""


class Limit(msgspec.Struct, frozen=True):
    """How many failures in a row are free; then waits double, from 1 s up to `longest`."""

    free: int
    longest: int
    """Seconds."""


BY_BOTH = Limit(5, 900)
BY_ADDRESS = Limit(30, 900)
BY_NAME = Limit(50, 60)
"""Over all addresses but those that the name is at home at: who guesses from many places cannot
keep somebody out who signs in from where they do."""
HOME = timedelta(days=30)
"""For so long a name is at home where it has shown the right password."""


class Counter(msgspec.Struct, frozen=True):
    """What failures are counted by, as its digest: names that are typed may be passwords."""

    digest: bytes
    limit: Limit
    by: str
    """For the log: name, address, or both."""


class Attempt(msgspec.Struct, frozen=True):
    """An attempt that was counted."""

    name: Counter
    both: Counter
    address: Counter
    home: bytes
    """The digest of the name and the network."""
    blocked_until: Mapping[bytes, datetime]
    """What the counting has put, by counter, to be taken back."""


class ThrottledError(MailerError):
    """Too many wrong passwords."""

    def __init__(self, seconds: int = 0) -> None:
        super().__init__()
        self.seconds = seconds
        """How long to wait, at least 1."""


COUNT = text("""
    INSERT INTO throttle (digest, failures, blocked_until, updated_at)
    VALUES (:digest, 1, clock_timestamp(), clock_timestamp())
    ON CONFLICT (digest) DO UPDATE SET
        failures = throttle.failures + 1,
        blocked_until = clock_timestamp() + CASE
            WHEN throttle.failures + 1 < :free THEN interval '0'
            ELSE least(:longest, 2 ^ least(throttle.failures + 1 - :free, 20)) * interval '1 second'
        END,
        updated_at = clock_timestamp()
    WHERE throttle.blocked_until <= clock_timestamp()
    RETURNING blocked_until, failures""")
TAKE_BACK = text("""
    UPDATE throttle SET
        failures = greatest(failures - 1, 0),
        blocked_until = CASE WHEN blocked_until = :put THEN clock_timestamp() ELSE blocked_until END
    WHERE digest = :digest""")
REMEMBER = text("""
    INSERT INTO home (digest, seen_at) VALUES (:digest, clock_timestamp())
    ON CONFLICT (digest) DO UPDATE SET seen_at = excluded.seen_at""")


async def count(connection: AsyncConnection, name: str, address: str | None) -> Attempt:
    """Count an attempt to sign in.

    Raises `ThrottledError` while none may be made: then the transaction must end, for nothing is
    to be counted.
    """
    place, who = network(address), await _folded(connection, name.strip())
    by_name = _counter(BY_NAME, "name", who)
    both = _counter(BY_BOTH, "both", who, place)
    by_address = _counter(BY_ADDRESS, "address", place)
    at_home = _digest("home", who, place)
    counters = sorted((by_name, both, by_address), key=lambda counter: counter.digest)
    if await _is_home(connection, at_home):
        counters.remove(by_name)
    until: dict[bytes, datetime] = {}
    for counter in counters:  # in one order for all: nobody waits in a circle
        given = {"digest": counter.digest} | msgspec.structs.asdict(counter.limit)
        row = (await connection.execute(COUNT, given)).one_or_none()
        if row is None:
            raise ThrottledError(await _wait(connection, counters))
        if row.failures == counter.limit.free:  # the first time: no more than once in a row
            log.warning("sign_ins_slowed", by=counter.by)
        until[counter.digest] = row.blocked_until
    return Attempt(by_name, both, by_address, at_home, until)


async def clear(connection: AsyncConnection, attempt: Attempt) -> None:
    """Forget failures of who has shown the right password, and remember where they are at home.

    Of the address only this attempt is taken back: one account of one's own does not open the way
    to guessing others.
    """
    known = [attempt.name.digest, attempt.both.digest]
    rows = select(throttle.c.digest).where(throttle.c.digest.in_([*known, attempt.address.digest]))
    await connection.execute(rows.order_by(throttle.c.digest).with_for_update())  # as in `count`
    await connection.execute(delete(throttle).where(throttle.c.digest.in_(known)))
    await _take_back(connection, attempt, [attempt.address.digest])
    await connection.execute(REMEMBER, {"digest": attempt.home})


async def take_back(connection: AsyncConnection, attempt: Attempt) -> None:
    """Forget an attempt whose password nobody has looked at."""
    await _take_back(connection, attempt, sorted(attempt.blocked_until))


async def _take_back(
    connection: AsyncConnection, attempt: Attempt, digests: Iterable[bytes]
) -> None:
    for digest in digests:
        given = {"digest": digest, "put": attempt.blocked_until[digest]}
        await connection.execute(TAKE_BACK, given)


async def _is_home(connection: AsyncConnection, digest: bytes) -> bool:
    known = exists().where(home.c.digest == digest, home.c.seen_at > func.now() - HOME)
    return bool((await connection.execute(select(known))).scalar_one())


async def _wait(connection: AsyncConnection, counters: Sequence[Counter]) -> int:
    """Return the seconds until the last of several blocks ends."""
    left = func.extract("epoch", func.max(throttle.c.blocked_until) - func.clock_timestamp())
    statement = select(left).where(throttle.c.digest.in_([each.digest for each in counters]))
    return max(1, math.ceil((await connection.execute(statement)).scalar_one() or 0))


async def _folded(connection: AsyncConnection, name: str) -> str:
    """Return what all spellings that open one account have in common: the database says which."""
    if not is_storable(name):
        return name
    folded: str = (await connection.execute(select(func.lower(clean_name(name))))).scalar_one()
    return folded


def _counter(limit: Limit, by: str, *parts: str) -> Counter:
    return Counter(_digest(by, *parts), limit, by)


def _digest(*parts: str) -> bytes:
    known = "\0".join(parts).encode(errors="surrogatepass")
    return hashlib.sha256(known).digest()


def network(address: str | None) -> str:
    """Return the part of an address that its owner cannot choose."""
    try:
        known = ipaddress.ip_address(address or "")
    except ValueError:
        return address or ""
    if known.version == 4:  # noqa: PLR2004  # IPv4
        return str(known)
    return str(ipaddress.ip_network((int(known), IPV6_PREFIX), strict=False))
