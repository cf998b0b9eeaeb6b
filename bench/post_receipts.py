"""The caller: posts receipts over kept connections and uses as little processor time as possible.

It runs in its own process, so that a benchmark measures the receiver alone. It reads the ids of the
messages from standard input, one a line, and prints the calls a second.
"""

import argparse
import asyncio
import re
import sys
import time
from collections.abc import Iterator
from typing import cast

import uvloop

REQUEST = (
    "POST {path}{id} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
    'Content-Length: {length}\r\n\r\n{{"id": {id}, "status": "delivered"}}'
)
LENGTH = re.compile(rb"\r\ncontent-length: *([0-9]+)", re.IGNORECASE)
EMPTY_BODY = len('{"id": , "status": "delivered"}')


class Caller(asyncio.Protocol):
    """One connection: sends the next request when the response to the last one has come."""

    def __init__(self, requests: Iterator[bytes], ended: asyncio.Future[None]) -> None:
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
        request = next(self._requests, None)
        if request is None:
            self._transport.close()
            if not self._ended.done():
                self._ended.set_result(None)
        else:
            self._transport.write(request)


async def main(port: int, path: str, connections: int, rate: float) -> None:
    """Post a receipt for each id; at most `rate` a second, or as fast as possible if it is 0."""
    requests = [
        REQUEST.format(path=path, id=id_, length=EMPTY_BODY + len(id_)).encode()
        for id_ in sys.stdin.read().split()
    ]
    loop = asyncio.get_running_loop()
    began = time.monotonic()
    if rate:
        for start in range(0, len(requests), connections):
            delay = began + start / rate - time.monotonic()
            await asyncio.sleep(max(0.0, delay))
            await post(loop, port, requests[start : start + connections], connections)
    else:
        await post(loop, port, requests, connections)
    print(len(requests) / (time.monotonic() - began), flush=True)


async def post(
    loop: asyncio.AbstractEventLoop, port: int, requests: list[bytes], connections: int
) -> None:
    """Post requests over new connections; return when all have a response."""
    remaining = iter(requests)
    ended = [loop.create_future() for _ in range(connections)]
    for each in ended:
        await loop.create_connection(lambda each=each: Caller(remaining, each), "127.0.0.1", port)
    await asyncio.gather(*ended)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("port", type=int)
    parser.add_argument("path", help="path and query, without the id at its end")
    parser.add_argument("--connections", type=int, default=200)
    parser.add_argument("--rate", type=float, default=0.0)
    args = parser.parse_args()
    uvloop.run(main(args.port, args.path, args.connections, args.rate))
