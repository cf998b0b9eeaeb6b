"""The address under which the gateways of the soak reach mailer, whichever worker runs.

It forwards each connection to a worker that serves, as a load balancer does. Without one, and when
the worker ends, the connection is closed: the gateway must call again.
"""

import asyncio
import contextlib
from collections.abc import Callable, Sequence
from typing import Self
from urllib.parse import urlsplit

from soaking.journal import RandomSource

CHUNK = 65_536
"""Bytes that are forwarded at once, at most."""


class Forwarder:
    """Forwards TCP connections to random workers. `port` is its own port."""

    def __init__(self, port: int, rng: RandomSource) -> None:
        self.url = f"http://127.0.0.1:{port}"
        self.addresses: Callable[[], Sequence[str]] = tuple
        """Returns the URLs of the workers that serve at this moment."""
        self._port = port
        self._rng = rng
        self._connections: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", self._port)
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        for task in list(self._connections):
            task.cancel()
        if self._connections:
            await asyncio.wait(self._connections)

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.create_task(self._forward(reader, writer))
        self._connections.add(task)
        task.add_done_callback(self._connections.discard)

    async def _forward(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Forward one connection in both directions, until one side closes it."""
        with contextlib.suppress(OSError), contextlib.closing(writer):
            if not (addresses := self.addresses()):
                return
            target = urlsplit(self._rng.choice(addresses))
            answers, calls = await asyncio.open_connection(target.hostname, target.port)
            with contextlib.closing(calls):
                copies = {
                    asyncio.create_task(_copy(reader, calls)),
                    asyncio.create_task(_copy(answers, writer)),
                }
                try:
                    await asyncio.wait(copies, return_when=asyncio.FIRST_COMPLETED)
                finally:
                    for copy in copies:
                        copy.cancel()


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Copy bytes until one of the connections is closed."""
    with contextlib.suppress(OSError):
        while data := await reader.read(CHUNK):
            writer.write(data)
            await writer.drain()
