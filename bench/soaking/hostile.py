"""What strangers send to a system under load: files and heads whose cost they choose."""

import asyncio
from http import HTTPStatus

import aiohttp

from soaking.journal import Draw, Journal
from soaking.troubles import Fleet

MEGABYTE = 1_000_000
FILES = {
    "short lines": b"phone\n" + b"x\n" * (3 * MEGABYTE),
    "quotes": b"phone\n" + b'x","' * 150_000,
    "wrong phones": b"phone\n" + b"+8 (916) 123-45-6\n" * (8 * MEGABYTE // 18),
    "one line": b"phone\n" + b"7" * (5 * MEGABYTE),
    "one field after another": b"phone\n" + b"," * (2 * MEGABYTE),
    "bytes of no text": b"phone\n" + b"\xff\xfe\x00\n" * MEGABYTE,
}
"""None of them has a client in it: the directory stays as it is."""
HEADS = {
    "Accept-Language": "," * 31_000,
    "Accept-Encoding": "gzip;q=0.1," * 2_800,
    "Accept": "a/b;q=0.1," * 3_100,
    "Cookie": "a=b;" * 7_700,
    "X-Forwarded-For": "1.2.3.4," * 3_800,
    "If-None-Match": '"a",' * 7_700,
}
PATHS = ("/", "/login", "/api/v1/clients")
STRANGERS = 60
"""Connections at once that send such a head."""
TIMEOUT = aiohttp.ClientTimeout(total=45)


async def trouble_imports(fleet: Fleet, journal: Journal, draw: Draw) -> None:
    """Import a hostile file now and then."""
    async with aiohttp.ClientSession(timeout=TIMEOUT) as session:
        while await journal.rest(draw.uniform(8, 25)):
            name = draw.choice(list(FILES))
            if fleet.addresses:
                url = f"{draw.choice(fleet.addresses)}/api/v1/clients/import"
                with journal.trouble("hostile import"):
                    await _send(session, journal, f"import of {name}", url, FILES[name], {})


async def trouble_heads(fleet: Fleet, journal: Journal, draw: Draw) -> None:
    """Send requests with hostile heads over many connections now and then."""
    connector = aiohttp.TCPConnector(limit=STRANGERS, force_close=True)
    async with aiohttp.ClientSession(timeout=TIMEOUT, connector=connector) as session:
        while await journal.rest(draw.uniform(8, 25)):
            name = draw.choice(list(HEADS))
            if fleet.addresses:
                url = f"{draw.choice(fleet.addresses)}{draw.choice(PATHS)}"
                with journal.trouble("hostile heads"):
                    head = {name: HEADS[name]}
                    asked = (
                        _send(session, journal, f"head with {name}", url, None, head)
                        for _ in range(3 * STRANGERS)
                    )
                    await asyncio.gather(*asked)


async def _send(  # noqa: PLR0913, PLR0917  # a request, and what it is called
    session: aiohttp.ClientSession,
    journal: Journal,
    what: str,
    url: str,
    body: bytes | None,
    headers: dict[str, str],
) -> None:
    """Send a request; complain of an answer that says that mailer has failed."""
    method = "GET" if body is None else "POST"
    kind = {} if body is None else {"Content-Type": "text/csv"}
    try:
        async with session.request(method, url, data=body, headers=headers | kind) as answer:
            await answer.read()
            status = answer.status
    except (aiohttp.ClientError, TimeoutError, OSError):
        return  # killed, or starting anew
    if status >= HTTPStatus.INTERNAL_SERVER_ERROR and status != HTTPStatus.SERVICE_UNAVAILABLE:
        journal.complain(f"{what}: {status}")
