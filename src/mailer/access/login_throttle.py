"""Throttling of sign-ins by password: after several failures in a row, the next one has to wait.

Failures are counted three times: for the name, for the network of the address, and for both
together. The counters are in the database, so that all workers share them. An attempt counts as a
failure before its password is checked, so that many attempts at once cannot pass the limit. The
right password undoes this. The caller owns the transaction.
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
from mailer.db.tables.access import known_network, login_throttle
from mailer.errors import MailerError
from mailer.validation import is_storable

log = structlog.get_logger()

IPV6_PREFIX = 64
"""Bits of an IPv6 address that identify a network; its owner can choose the other bits freely."""


class ThrottleLimit(msgspec.Struct, frozen=True):
    """After how many failures in a row sign-ins have to wait, and how long at most.

    After `free_failures` the wait is 1 s. Each further failure doubles it, to at most `max_wait`
    seconds.
    """

    free_failures: int
    max_wait: int


NAME_AND_ADDRESS_LIMIT = ThrottleLimit(free_failures=5, max_wait=900)
"""For one name from one address."""
ADDRESS_LIMIT = ThrottleLimit(free_failures=30, max_wait=900)
"""For all names from one address."""
NAME_LIMIT = ThrottleLimit(free_failures=50, max_wait=60)
"""For one name from all addresses together, except from known networks of the name: networks from
which it has signed in. So an attacker with many addresses cannot lock this user out there."""
KNOWN_NETWORK_LIFETIME = timedelta(days=30)
"""A network stays known for a name for this time after the last sign-in from it."""


class ThrottleCounter(msgspec.Struct, frozen=True):
    """A counter of consecutive failures: a row of `login_throttle`."""

    digest: bytes
    """The key of the row. Not the name itself, because users may type a password instead of it."""
    limit: ThrottleLimit
    kind: str
    """What the counter counts by, for the log: "name", "address" or "both"."""


class LoginAttempt(msgspec.Struct, frozen=True):
    """An attempt to sign in that has been counted, with its three counters."""

    name: ThrottleCounter
    name_and_address: ThrottleCounter
    address: ThrottleCounter
    network_digest: bytes
    """The key of the row of `known_network` for this name and this network."""
    blocked_until: Mapping[bytes, datetime]
    """When the wait ends that this attempt has set, by the digest of each increased counter."""


class ThrottledError(MailerError):
    """Too many wrong passwords."""

    def __init__(self, seconds: int = 0) -> None:
        super().__init__()
        self.seconds = seconds
        """Seconds until the next attempt is allowed, at least 1."""


INCREMENT = text("""
    INSERT INTO login_throttle (digest, failures, blocked_until, updated_at)
    VALUES (:digest, 1, clock_timestamp(), clock_timestamp())
    ON CONFLICT (digest) DO UPDATE SET
        failures = login_throttle.failures + 1,
        blocked_until = clock_timestamp() + CASE
            WHEN login_throttle.failures + 1 < :free_failures THEN interval '0'
            ELSE least(:max_wait, 2 ^ least(login_throttle.failures + 1 - :free_failures, 20))
                * interval '1 second'
        END,
        updated_at = clock_timestamp()
    WHERE login_throttle.blocked_until <= clock_timestamp()
    RETURNING blocked_until, failures""")
"""Counts a failure and sets the wait until the next attempt; returns no row during an earlier wait.

The wait is 2 ^ (failures - free_failures) seconds, at most `max_wait`. The exponent stops at 20, so
that the power does not overflow.
"""
DECREMENT = text("""
    UPDATE login_throttle SET
        failures = greatest(failures - 1, 0),
        blocked_until = CASE
            WHEN blocked_until = :set_by_attempt THEN clock_timestamp() ELSE blocked_until
        END
    WHERE digest = :digest""")
"""Undoes the count of one attempt, and its wait unless a later attempt has set another one."""
REMEMBER_NETWORK = text("""
    INSERT INTO known_network (digest, seen_at) VALUES (:digest, clock_timestamp())
    ON CONFLICT (digest) DO UPDATE SET seen_at = excluded.seen_at""")
"""Stores the moment of a sign-in, from which on the network is known for the name."""


async def count_attempt(
    connection: AsyncConnection, name: str, address: str | None
) -> LoginAttempt:
    """Count an attempt to sign in as a failure, before its password is checked.

    Raises `ThrottledError` while attempts are blocked. The caller must then roll the transaction
    back, so that the attempt is not counted.
    """
    network = network_of(address)
    folded_name = await _fold_name(connection, name.strip())
    by_name = _counter(NAME_LIMIT, "name", folded_name)
    by_both = _counter(NAME_AND_ADDRESS_LIMIT, "both", folded_name, network)
    by_address = _counter(ADDRESS_LIMIT, "address", network)
    network_digest = _digest("home", folded_name, network)  # "home" only makes the digest differ
    # attempts lock their counters in the same order, so that no deadlock is possible
    counters = sorted((by_name, by_both, by_address), key=lambda counter: counter.digest)
    if await _is_known_network(connection, network_digest):
        counters.remove(by_name)  # here, failures from other networks block nobody
    blocked_until: dict[bytes, datetime] = {}
    for counter in counters:
        parameters = {"digest": counter.digest} | msgspec.structs.asdict(counter.limit)
        row = (await connection.execute(INCREMENT, parameters)).one_or_none()
        if row is None:
            raise ThrottledError(await _seconds_blocked(connection, counters))
        if row.failures == counter.limit.free_failures:  # only at the first of several waits
            log.warning("login_throttled", by=counter.kind)
        blocked_until[counter.digest] = row.blocked_until
    return LoginAttempt(by_name, by_both, by_address, network_digest, blocked_until)


async def forget_attempts(connection: AsyncConnection, attempt: LoginAttempt) -> None:
    """Reset both counters with the name after the right password, and remember the network.

    In the counter of the address only this attempt is undone: otherwise an attacker could reset the
    counter by signing in as a user of their own.
    """
    digests_of_name = [attempt.name.digest, attempt.name_and_address.digest]
    rows = select(login_throttle.c.digest).where(
        login_throttle.c.digest.in_([*digests_of_name, attempt.address.digest])
    )
    # lock in the same order as `count_attempt`
    await connection.execute(rows.order_by(login_throttle.c.digest).with_for_update())
    await connection.execute(
        delete(login_throttle).where(login_throttle.c.digest.in_(digests_of_name))
    )
    await _decrement(connection, attempt, [attempt.address.digest])
    await connection.execute(REMEMBER_NETWORK, {"digest": attempt.network_digest})


async def uncount_attempt(connection: AsyncConnection, attempt: LoginAttempt) -> None:
    """Undo the count of an attempt that ended for lack of capacity to hash passwords."""
    await _decrement(connection, attempt, sorted(attempt.blocked_until))


async def _decrement(
    connection: AsyncConnection, attempt: LoginAttempt, digests: Iterable[bytes]
) -> None:
    """Undo the count of an attempt in the counters with these digests."""
    for digest in digests:
        parameters = {"digest": digest, "set_by_attempt": attempt.blocked_until[digest]}
        await connection.execute(DECREMENT, parameters)


async def _is_known_network(connection: AsyncConnection, digest: bytes) -> bool:
    """Return whether the network and the name with this digest have had a sign-in lately."""
    is_known = exists().where(
        known_network.c.digest == digest,
        known_network.c.seen_at > func.now() - KNOWN_NETWORK_LIFETIME,
    )
    return bool((await connection.execute(select(is_known))).scalar_one())


async def _seconds_blocked(connection: AsyncConnection, counters: Sequence[ThrottleCounter]) -> int:
    """Return the seconds until none of the counters blocks, at least 1."""
    remaining = func.extract(
        "epoch", func.max(login_throttle.c.blocked_until) - func.clock_timestamp()
    )
    digests = [counter.digest for counter in counters]
    statement = select(remaining).where(login_throttle.c.digest.in_(digests))
    # at least one of the rows exists: the one that blocks, which INCREMENT has locked
    return max(1, math.ceil((await connection.execute(statement)).scalar_one()))


async def _fold_name(connection: AsyncConnection, name: str) -> str:
    """Return a form that is equal for all spellings of a user's name.

    The database converts the case, since it also does so when it searches for a user.
    """
    if not is_storable(name):  # the database would reject it, so no user has this name
        return name
    folded: str = (await connection.execute(select(func.lower(clean_name(name))))).scalar_one()
    return folded


def _counter(limit: ThrottleLimit, kind: str, *counted: str) -> ThrottleCounter:
    """Return a counter of a `kind`; `counted` is the name, the network, or both."""
    return ThrottleCounter(_digest(kind, *counted), limit, kind)


def _digest(*parts: str) -> bytes:
    joined = "\0".join(parts).encode(errors="surrogatepass")
    return hashlib.sha256(joined).digest()


def network_of(address: str | None) -> str:
    """Return an IPv4 address itself, or the /64 network of an IPv6 address.

    The owner of an IPv6 network can choose any address in it. Any other text is returned unchanged,
    and "" for None.
    """
    try:
        parsed = ipaddress.ip_address(address or "")
    except ValueError:
        return address or ""
    if parsed.version == 4:  # noqa: PLR2004  # IPv4
        return str(parsed)
    return str(ipaddress.ip_network((int(parsed), IPV6_PREFIX), strict=False))
