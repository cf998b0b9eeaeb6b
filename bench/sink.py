"""The sink: a gateway that accepts every message and uses as little processor time as possible.

It runs in its own process, so that a benchmark measures the sender alone. It prints its URL at the
start. For each SIGUSR1 it prints a `SinkReport` as one line of JSON.
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

ACCEPTED = (
    b'HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 10\r\n\r\n{"code":0}'
)
"""The answer to every request."""
LENGTH_HEADER = b"content-length:"


class SinkReport(msgspec.Struct):
    """The requests that the sink has received since the last report."""

    requests: int
    tenth_times: list[float]
    """Unix times in seconds: of the first request, then of the last request of each tenth.

    Eleven times, or none if there were no requests.
    """
    repeats: int
    """Requests with a message id that was seen before, since the sink started."""

    @property
    def rate(self) -> float:
        """Requests a second, from the first to the last request."""
        return (self.requests - 1) / (self.tenth_times[-1] - self.tenth_times[0])

    @property
    def rate_by_tenth(self) -> list[float]:
        """Requests a second in each tenth of the requests."""
        tenth = (self.requests - 1) / 10
        return [tenth / (end - start) for start, end in pairwise(self.tenth_times)]


class SinkConnection(asyncio.Protocol):
    """One connection: answers each complete request `latency` seconds after its arrival.

    Appends the time and the message id of each request to `arrivals` and `ids`.
    """

    def __init__(self, latency: float, arrivals: "array[float]", ids: "array[int]") -> None:
        self._latency = latency
        self._arrivals = arrivals
        self._ids = ids
        self._received = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport for the answers."""
        self._transport = cast("asyncio.WriteTransport", transport)  # uvloop's is not a subclass

    def data_received(self, data: bytes) -> None:
        """Answer if the request is complete now; a client sends one request at a time."""
        self._received += data
        head, head_end, body = self._received.partition(b"\r\n\r\n")
        if not head_end:
            return
        head = head.lower()
        length_start = head.index(LENGTH_HEADER) + len(LENGTH_HEADER)
        body_length = int(head[length_start:].partition(b"\r\n")[0])
        if len(body) < body_length:
            return
        self._received = b""
        self._arrivals.append(time.time())
        path = head[: head.index(b" http/")]
        self._ids.append(int(path.rpartition(b"/")[2]))
        if self._latency:
            asyncio.get_running_loop().call_later(self._latency, self._answer)
        else:
            self._answer()

    def _answer(self) -> None:
        if not self._transport.is_closing():
            self._transport.write(ACCEPTED)


async def main(latency: float) -> None:
    """Serve until SIGTERM; print a report for each SIGUSR1."""
    arrivals, ids = array("d"), array("q")  # of floats, of integers
    loop = asyncio.get_running_loop()
    stopped = asyncio.Event()

    def print_report() -> None:
        last = len(arrivals) - 1
        times = [arrivals[round(tenth * last / 10)] for tenth in range(11)] if arrivals else []
        repeats = len(ids) - len(set(ids))
        report = SinkReport(requests=len(arrivals), tenth_times=times, repeats=repeats)
        print(msgspec.json.encode(report).decode(), flush=True)
        del arrivals[:]

    loop.add_signal_handler(signal.SIGUSR1, print_report)
    loop.add_signal_handler(signal.SIGTERM, stopped.set)
    server = await loop.create_server(
        lambda: SinkConnection(latency, arrivals, ids), "127.0.0.1", 0
    )
    print(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/send/", flush=True)
    await stopped.wait()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--latency", type=float, default=0, help="seconds before each answer")
    uvloop.run(main(parser.parse_args().latency))
