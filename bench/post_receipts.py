"""The caller: posts receipts over kept connections and uses as little processor time as possible.

It runs in its own process, so that a benchmark measures the receiver alone. It reads the ids of the
messages from standard input, one a line, and prints the receipts a second. With `--rate` it posts
at most so many receipts a second, otherwise as many as the receiver answers.
"""

import argparse
import asyncio
import json
import re
import sys
import time
from collections.abc import Iterator
from functools import partial
from typing import cast

import uvloop

REQUEST = (
    "POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
    "Content-Length: {length}\r\n\r\n{body}"
)
LENGTH = re.compile(rb"\r\ncontent-length: *([0-9]+)", re.IGNORECASE)


Due = tuple[float, bytes]
"""A request, and the earliest time at which it is sent, by the clock of the event loop."""


class Caller(asyncio.Protocol):
    """One connection: sends the next request when the response to the last one has come."""

    def __init__(self, requests: Iterator[Due], ended: asyncio.Future[None]) -> None:
        self._loop = asyncio.get_running_loop()
        self._requests = requests
        self._ended = ended
        self._received = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Send the first request."""
        self._transport = cast("asyncio.WriteTransport", transport)  # uvloop's is not a subclass
        self._send()

    def data_received(self, data: bytes) -> None:
        """Send the next request when the whole response has come."""
        self._received += data
        head, head_end, body = self._received.partition(b"\r\n\r\n")
        length = LENGTH.search(head)
        if not head_end or len(body) < int(length[1] if length else 0):
            return
        self._received = b""
        if not head.startswith(b"HTTP/1.1 200 "):
            self._ended.set_exception(RuntimeError(head.decode(errors="replace")))
            self._transport.close()
            return
        self._send()

    def _send(self) -> None:
        due_at, request = next(self._requests, (0, None))
        if request is None:
            self._transport.close()
            if not self._ended.done():
                self._ended.set_result(None)
        elif due_at > self._loop.time():
            self._loop.call_at(due_at, self._transport.write, request)
        else:
            self._transport.write(request)


def bodies(ids: list[str], in_list: int) -> Iterator[str]:
    """Yield the bodies of calls: one receipt each of kind `json`, or a list of kind `infobip`."""
    if not in_list:
        for id_ in ids:
            yield f'{{"id": {id_}, "status": "delivered"}}'
        return
    for start in range(0, len(ids), in_list):
        results = [
            {"callbackData": id_, "messageId": id_, "status": {"groupId": 3, "id": 5}}
            for id_ in ids[start : start + in_list]
        ]
        yield json.dumps({"results": results})


async def main(args: argparse.Namespace) -> None:
    """Post a receipt for each id."""
    requests = [
        REQUEST.format(path=args.path, length=len(body), body=body).encode()
        for body in bodies(sys.stdin.read().split(), args.in_list)
    ]
    in_call = max(1, args.in_list)
    seconds_per_call = in_call / args.rate if args.rate else 0.0
    loop = asyncio.get_running_loop()
    began = time.monotonic()
    starts = loop.time()
    due = [(starts + n * seconds_per_call, request) for n, request in enumerate(requests)]
    await post(loop, args.port, due, args.connections)
    print(len(requests) * in_call / (time.monotonic() - began), flush=True)


async def post(
    loop: asyncio.AbstractEventLoop, port: int, requests: list[Due], connections: int
) -> None:
    """Post requests over new connections; return when all have a response."""
    remaining = iter(requests)
    ended = [loop.create_future() for _ in range(connections)]
    for each in ended:
        await loop.create_connection(partial(Caller, remaining, each), "127.0.0.1", port)
    await asyncio.gather(*ended)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("port", type=int)
    parser.add_argument("path", help="path and query")
    parser.add_argument("--in-list", type=int, default=0, help="receipts in one call")
    parser.add_argument("--connections", type=int, default=200)
    parser.add_argument("--rate", type=float, default=0, help="receipts a second; 0: no limit")
    uvloop.run(main(parser.parse_args()))
