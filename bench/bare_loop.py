"""The bare loop: a program that posts message bodies with aiohttp and does nothing else.

It has no database, checks no rules and records no results, so it shows what the requests alone
cost. `against_bare.py` runs it in its own process and compares mailer with it; `cost.py` uses its
functions.
"""

import argparse
import asyncio

import aiohttp
import uvloop

import harness
from mailer.sample_data import TEXT


def bare_session(concurrency: int) -> aiohttp.ClientSession:
    """Return an aiohttp session with up to `concurrency` connections and default options."""
    connector = aiohttp.TCPConnector(limit=concurrency)
    headers = {"Authorization": f"Bearer {harness.TOKEN}"}
    return aiohttp.ClientSession(connector=connector, headers=headers)


async def post(session: aiohttp.ClientSession, url: str, number: int) -> None:
    """Post the message with id `number`, as aiohttp's documentation shows.

    Raises `RuntimeError` when the sink does not accept it.
    """
    body = {"id": number, "phone": 79_000_000_000 + number, "text": TEXT}
    async with session.post(f"{url}{number}", json=body) as response:
        if (await response.json())["code"] != 0:
            message = "the sink rejected a message"
            raise RuntimeError(message)


async def main(url: str, messages: int, concurrency: int) -> None:
    """Post `messages` messages to `url`, `concurrency` at once."""
    ids = iter(range(1, messages + 1))  # the tasks share it: each id is posted once
    async with bare_session(concurrency) as session:

        async def work() -> None:
            for number in ids:
                await post(session, url, number)

        async with asyncio.TaskGroup() as tasks:
            for _ in range(concurrency):
                tasks.create_task(work())


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("url")
    parser.add_argument("messages", type=int)
    parser.add_argument("--concurrency", type=int, default=50)
    args = parser.parse_args()
    uvloop.run(main(args.url, args.messages, args.concurrency))
