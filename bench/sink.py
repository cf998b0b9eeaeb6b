"""The fastest gateway there is: it takes every message at once, says so, and counts.

A process of its own, so that what sends is measured and nothing else. It prints its URL, and at
SIGUSR1 what it took since the last time: how many requests, and the moments of each tenth; and how
many requests in all came under an id that had come before.
"""

import argparse
import asyncio
import signal
import time
from array import array
from itertools import pairwise
from typing import cast

import msgspec
import uvloop

OK = b'HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 10\r\n\r\n{"code":0}'
LENGTH = b"content-length:"


class Taken(msgspec.Struct):
    """What the sink took, and when, seconds of Unix time, at each tenth of the way."""

    requests: int
    marks: list[float]
    repeats: int
    """Requests of all its life under an id that had come before."""

    @property
    def rate(self) -> float:
        """Requests a second, from the first to the last."""
        return (self.requests - 1) / (self.marks[-1] - self.marks[0])

    @property
    def by_tenth(self) -> list[float]:
        """Requests a second in each tenth of them."""
        tenth = (self.requests - 1) / 10
        return [tenth / (end - start) for start, end in pairwise(self.marks)]


class Sink(asyncio.Protocol):
    """One connection: answers each request that has come in full, after the latency."""

    def __init__(self, latency: float, arrivals: "array[float]", ids: "array[int]") -> None:
        self._latency = latency
        self._arrivals = arrivals
        self._ids = ids
        self._received = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the way back."""
        self._transport = cast("asyncio.WriteTransport", transport)  # uvloop's is no subclass

    def data_received(self, data: bytes) -> None:
        """Answer, if that was the rest of a request; a client sends one at a time."""
        self._received += data
        head, found, body = self._received.partition(b"\r\n\r\n")
        if not found:
            return
        head = head.lower()
        start = head.index(LENGTH) + len(LENGTH)
        if len(body) < int(head[start:].partition(b"\r\n")[0]):
            return
        self._received = b""
        self._arrivals.append(time.time())
        self._ids.append(int(head[: head.index(b" http/")].rpartition(b"/")[2]))
        if self._latency:
            asyncio.get_running_loop().call_later(self._latency, self._answer)
        else:
            self._answer()

    def _answer(self) -> None:
        if not self._transport.is_closing():
            self._transport.write(OK)


async def main(latency: float) -> None:
    """Serve until SIGTERM; tell at SIGUSR1 what came since the last time."""
    arrivals, ids = array("d"), array("q")
    loop = asyncio.get_running_loop()
    stopped = asyncio.Event()

    def tell() -> None:
        last = len(arrivals) - 1
        marks = [arrivals[round(tenth * last / 10)] for tenth in range(11)] if arrivals else []
        taken = Taken(len(arrivals), marks, len(ids) - len(set(ids)))
        print(msgspec.json.encode(taken).decode(), flush=True)
        del arrivals[:]

    loop.add_signal_handler(signal.SIGUSR1, tell)
    loop.add_signal_handler(signal.SIGTERM, stopped.set)
    server = await loop.create_server(lambda: Sink(latency, arrivals, ids), "127.0.0.1", 0)
    print(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/send/", flush=True)
    await stopped.wait()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--latency", type=float, default=0, help="seconds before each answer")
    uvloop.run(main(parser.parse_args().latency))
