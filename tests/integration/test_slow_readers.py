"""Clients that read slowly or not at all, and the slots of downloads and imports."""

import asyncio
import contextlib
from collections.abc import AsyncGenerator
from functools import partial
from typing import Any

import pytest
from sqlalchemy.ext.asyncio import AsyncEngine
from tests.event_timeout import EVENT_TIMEOUT
from tests.factories import OPEN, add_clients, do, execute
from tests.integration.small_app import LARGE, small_app, streaming
from tests.served import GET, listening, served_normally, talk, talks

from mailer.access import keys
from mailer.access.model import COMMAND_LINE
from mailer.app import create_app
from mailer.client import upload
from mailer.client.upload import MAX_CONCURRENT_IMPORTS
from mailer.db.csv_export import CsvPart
from mailer.limits import BusyError, ConcurrencyLimiter
from mailer.web.asgi_wrappers import wrap_asgi
from mailer.web.download import csv_answer
from mailer.web.server.connection import ConnectionLimits

LAST_CHUNK = b"\r\n0\r\n\r\n"
"""The end of a body with Transfer-Encoding: chunked."""


async def test_a_client_that_reads_nothing_is_disconnected() -> None:
    limits = ConnectionLimits(reader=0.5)
    async with listening(small_app(), limits) as port, talk(port, takes_little=True) as stuck:
        await stuck.say(b"GET /large HTTP/1.1\r\nHost: x\r\n\r\n")
        async with asyncio.timeout(EVENT_TIMEOUT):
            while not streaming:
                await asyncio.sleep(0.01)
            await served_normally(port)
            while streaming:  # until the disconnect cancels the response
                await asyncio.sleep(0.01)


@pytest.mark.parametrize("path", ["/large", "/at-once"])
async def test_a_client_that_reads_slowly_receives_the_whole_response(path: str) -> None:
    limits = ConnectionLimits(head=0.2, reader=5)
    async with listening(small_app(), limits, keep_alive=1) as port, talk(port) as slow:
        await slow.say(f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
        received, next_pause = 0, LARGE / 10
        while received < LARGE:
            part = await slow.reader.read(LARGE // 20)
            assert part, f"the connection ended after {received} bytes"
            received += len(part)
            if received > next_pause:
                next_pause += LARGE / 10
                await asyncio.sleep(0.2)  # ten pauses, together longer than limits.head


async def test_the_unsent_rest_of_a_complete_response_is_discarded_after_the_timeout() -> None:
    """The rest fits into uvicorn's write buffer, but not into that of the socket.

    So the application has sent everything, and uvicorn does not wait for the client.
    """
    sent_bytes = 0

    async def app(scope: Any, receive: Any, send: Any) -> None:
        nonlocal sent_bytes
        del scope
        headers = [(b"connection", b"close")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        transport = receive.__self__.transport  # `receive` is a method of uvicorn's request cycle
        while not transport.get_write_buffer_size():  # until the socket takes no more
            sent_bytes += 4096
            await send({"type": "http.response.body", "body": b"x" * 4096, "more_body": True})
        await send({"type": "http.response.body"})

    limits = ConnectionLimits(head=0.3, reader=0.3)
    async with listening(app, limits) as port, talk(port, takes_little=True) as stuck:
        await stuck.say(GET)
        await asyncio.sleep(1.5)  # longer than both timeouts
        received_bytes = 0
        with contextlib.suppress(ConnectionError):
            while part := await stuck.reader.read(1_000_000):
                received_bytes += part.count(b"x")
        assert received_bytes < sent_bytes


async def test_event_streams_outlast_every_timeout() -> None:
    limits = ConnectionLimits(head=0.2, body=0.2, reader=0.2)
    async with listening(small_app(), limits, keep_alive=1) as port, talk(port) as watching:
        await watching.say(b"GET /events HTTP/1.1\r\nHost: x\r\n\r\n")
        await watching.reader.readuntil(b"data: 6")  # after 1.8 seconds


async def test_stuck_downloads_hold_no_database_connection_and_delay_no_other_client(
    engine: AsyncEngine,
) -> None:
    await add_clients(engine, 60_000)
    await execute(engine, "UPDATE client SET tag = repeat('x', 64)")  # megabytes of CSV
    app = wrap_asgi(create_app(engine, settings=OPEN), trusted_proxies=[], is_auth_enabled=True)
    request = b"GET /api/v1/clients HTTP/1.1\r\nHost: x\r\nAccept: text/csv\r\n\r\n"
    async with (
        listening(app, ConnectionLimits(reader=4)) as port,
        talks(port, 40, takes_little=True) as stuck,
    ):
        for connection in stuck:
            await connection.say(request)
        async with asyncio.timeout(EVENT_TIMEOUT):
            for are_connections_used in (True, False):  # rows are read, then nothing is read
                while bool(engine.pool.checkedout()) != are_connections_used:  # type: ignore[attr-defined]  # of the pool's class
                    await asyncio.sleep(0.001)
        await served_normally(port, path="/api/v1/clients?limit=1")
        async with asyncio.timeout(EVENT_TIMEOUT):
            while not await has_downloaded(port, request):  # until stuck downloads have timed out
                await asyncio.sleep(0.1)


async def has_downloaded(port: int, request: bytes) -> bool:
    """Download everything; return False when no slot is free because stuck downloads hold them."""
    async with talk(port) as patient:
        await patient.say(request)
        status, _, _ = await patient.answer()
        if status == 503:
            return False
        end = b""
        while not end.endswith(LAST_CHUNK):
            part = await patient.reader.read(1_000_000)
            assert part
            end = (end + part)[-100:]
        return True


async def test_waiting_too_long_for_an_import_slot_is_503_with_retry_after(
    engine: AsyncEngine,
) -> None:
    async with contextlib.AsyncExitStack() as stack:
        for _ in range(MAX_CONCURRENT_IMPORTS):
            await stack.enter_async_context(upload.IMPORT_LIMITER.slot(None))
        async with listening(create_app(engine, settings=OPEN)) as port, talk(port) as late:
            await late.say(
                b"POST /api/v1/clients/import HTTP/1.1\r\nHost: x\r\nContent-Type: text/csv\r\n"
                b"Content-Length: 6\r\n\r\nphone\n"
            )
            status, headers, _ = await late.answer()
    assert (status, headers["retry-after"]) == (503, "30")


async def test_a_download_frees_its_slot_however_it_ends() -> None:
    async def endless() -> AsyncGenerator[CsvPart, None]:
        while True:
            yield CsvPart(b"x", 1)

    limiter = ConcurrencyLimiter(1, per_owner=1, timeout=0.1)
    download = await csv_answer("x.csv", endless(), None, limiter)
    with pytest.raises(BusyError):
        await csv_answer("x.csv", endless(), None, limiter)

    async def receive_disconnect() -> Any:
        return {"type": "http.disconnect"}

    async def fail_to_send(message: Any) -> None:
        raise ConnectionResetError(str(message["type"]))

    respond = download.to_asgi_response(None, None)
    with pytest.raises(ConnectionResetError):
        await respond({"type": "http"}, receive_disconnect, fail_to_send)  # type: ignore[arg-type]  # an incomplete scope
    await csv_answer("x.csv", endless(), None, limiter)  # does not raise: the slot is free


async def test_one_owner_holds_at_most_its_own_number_of_slots() -> None:
    first_key, second_key, third_key = ("key", 1), ("key", 2), ("key", 3)
    limiter = ConcurrencyLimiter(3, per_owner=2, timeout=0.1)
    async with contextlib.AsyncExitStack() as stack:
        for _ in range(2):
            await stack.enter_async_context(limiter.slot(first_key))
        waiting = [asyncio.create_task(is_too_busy(limiter, first_key)) for _ in range(5)]
        await asyncio.sleep(0.01)
        # tasks that wait for their owner's slots block no other owner
        async with limiter.slot(second_key):
            assert all(await asyncio.gather(*waiting))
            assert await is_too_busy(limiter, third_key)  # all three slots are held
    for _ in range(5):  # all slots are free again
        assert not await is_too_busy(limiter, first_key)


async def is_too_busy(limiter: ConcurrencyLimiter, owner: tuple[str, int]) -> bool:
    """Return whether no slot becomes free for `owner` in time."""
    try:
        async with limiter.slot(owner):
            return False
    except BusyError:
        return True


async def test_each_api_key_runs_one_import_at_a_time(engine: AsyncEngine) -> None:
    upload_head = (
        "POST /api/v1/clients/import HTTP/1.1\r\nHost: x\r\nContent-Type: text/csv\r\n"
        "Authorization: Bearer {}\r\nContent-Length: {}\r\n\r\nphone\n"
    )
    secrets = []
    for name in ("a", "b"):
        new_key = keys.NewKey(name=name, scope="write")
        _, secret = await do(engine, partial(keys.create, new=new_key, by=COMMAND_LINE))
        secrets.append(secret)
    first_secret, second_secret = secrets
    async with listening(create_app(engine)) as port, talks(port, count=3) as connections:
        unfinished, of_same_key, of_other_key = connections
        await unfinished.say(upload_head.format(first_secret, 100).encode())
        async with asyncio.timeout(EVENT_TIMEOUT):
            first_key = ("key", 1)  # as the limiter knows the owner of `first_secret`
            while not await is_too_busy(upload.IMPORT_LIMITER, first_key):
                await asyncio.sleep(0.01)

        await of_same_key.say(upload_head.format(first_secret, len("phone\n")).encode())
        await of_other_key.say(upload_head.format(second_secret, len("phone\n")).encode())

        assert (await of_other_key.answer()).status == 200
        status, headers, _ = await of_same_key.answer()
    assert (status, headers["retry-after"]) == (503, "30")
