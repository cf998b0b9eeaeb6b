"""Hostile input during the soak: files and request headers that are expensive to process.

Only a server error in the answer is a violation here, except 503. Other checks find whether the
input delayed or changed anything else.
"""

import asyncio
from http import HTTPStatus

import aiohttp

from soaking.faults import Fleet
from soaking.journal import Journal, RandomSource

FILES = {
    "short lines": b"phone\n" + b"x\n" * 3_000_000,
    "quotes": b"phone\n" + b'x","' * 150_000,
    "wrong phones": b"phone\n" + b"+8 (916) 123-45-6\n" * 450_000,
    "one line": b"phone\n" + b"7" * 5_000_000,
    "many empty fields": b"phone\n" + b"," * 2_000_000,
    "not text": b"phone\n" + b"\xff\xfe\x00\n" * 1_000_000,
}
"""Files of 0.6 to 8 MB. None contains a valid client, so that the directory does not change."""
HEADERS = {
    "Accept-Language": "," * 31_000,
    "Accept-Encoding": "gzip;q=0.1," * 2_800,
    "Accept": "a/b;q=0.1," * 3_100,
    "Cookie": "a=b;" * 7_700,
    "X-Forwarded-For": "1.2.3.4," * 3_800,
    "If-None-Match": '"a",' * 7_700,
}
"""Each value is a little below the 32 KiB that the server accepts."""
PATHS = ("/", "/login", "/api/v1/clients")
CONNECTIONS = 60
"""Concurrent connections of `send_hostile_headers`."""
TIMEOUT = aiohttp.ClientTimeout(total=45)
"""Time to wait for an answer."""


async def send_hostile_imports(fleet: Fleet, journal: Journal, rng: RandomSource) -> None:
    """Import hostile files at random intervals, each at a random running worker."""
    async with aiohttp.ClientSession(timeout=TIMEOUT) as session:
        while await journal.sleep(rng.uniform(8, 25)):
            name = rng.choice(list(FILES))
            if fleet.addresses:
                url = f"{rng.choice(fleet.addresses)}/api/v1/clients/import"
                with journal.fault("hostile import"):
                    await _send(session, journal, f"import of {name}", url, FILES[name], {})


async def send_hostile_headers(fleet: Fleet, journal: Journal, rng: RandomSource) -> None:
    """Send requests with hostile headers over many connections, at random intervals."""
    connector = aiohttp.TCPConnector(limit=CONNECTIONS, force_close=True)
    async with aiohttp.ClientSession(timeout=TIMEOUT, connector=connector) as session:
        while await journal.sleep(rng.uniform(8, 25)):
            name = rng.choice(list(HEADERS))
            if fleet.addresses:
                url = f"{rng.choice(fleet.addresses)}{rng.choice(PATHS)}"
                with journal.fault("hostile headers"):
                    headers = {name: HEADERS[name]}
                    requests = (
                        _send(session, journal, f"header {name}", url, None, headers)
                        for _ in range(3 * CONNECTIONS)  # some wait for a connection
                    )
                    await asyncio.gather(*requests)


async def _send(  # noqa: PLR0913, PLR0917  # a request and its description
    session: aiohttp.ClientSession,
    journal: Journal,
    description: str,
    url: str,
    body: bytes | None,
    headers: dict[str, str],
) -> None:
    """Send a request; record a violation if the answer is a server error other than 503.

    A worker answers 503 while it starts and while its database is unavailable. Other faults of the
    soak cause both, so 503 does not show that the input did harm. Nor does a missing answer: a
    worker that hangs is found by its log, and by the times without requests at the gateway.

    The workers require no authentication, so they process each request.
    """
    method = "GET" if body is None else "POST"
    content_type = {} if body is None else {"Content-Type": "text/csv"}
    try:
        async with session.request(
            method, url, data=body, headers=headers | content_type
        ) as response:
            await response.read()
            status = response.status
    except (aiohttp.ClientError, TimeoutError, OSError):
        return  # the worker was killed, frozen, or is starting
    if status >= HTTPStatus.INTERNAL_SERVER_ERROR and status != HTTPStatus.SERVICE_UNAVAILABLE:
        journal.add_violation(f"{description}: {status}")
