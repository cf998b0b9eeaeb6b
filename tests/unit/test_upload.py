"""Timeouts of uploads, in virtual time: sleeping takes none."""

import asyncio
from collections.abc import AsyncGenerator

import pytest
from tests.virtual_time import in_virtual_time

from mailer.web.body import (
    MIN_BYTES_PER_TIMEOUT,
    LongUploadError,
    StalledUploadError,
    read_with_stall_timeout,
)

STALL_TIMEOUT = 0.3
"""Seconds in which `MIN_BYTES_PER_TIMEOUT` must arrive."""


async def send_chunks(chunk: bytes, count: int, interval: float) -> AsyncGenerator[bytes, None]:
    """Yield `count` chunks, each after `interval` seconds."""
    for _ in range(count):
        await asyncio.sleep(interval)
        yield chunk


async def read_all(stream: AsyncGenerator[bytes, None], pause: float = 0.0) -> int:
    """Read a stream, with a pause in seconds after each chunk; return the number of bytes."""
    size = 0
    async for chunk in read_with_stall_timeout(stream, stall_timeout=STALL_TIMEOUT):
        size += len(chunk)
        await asyncio.sleep(pause)
    return size


@in_virtual_time
async def test_stalled_upload_times_out() -> None:
    with pytest.raises(StalledUploadError):
        await read_all(send_chunks(b"x", count=1, interval=5))


@in_virtual_time
async def test_upload_of_single_bytes_times_out() -> None:
    with pytest.raises(StalledUploadError):
        await read_all(send_chunks(b"x", count=1000, interval=0.05))
    assert asyncio.get_running_loop().time() == pytest.approx(STALL_TIMEOUT)


@in_virtual_time
async def test_slow_but_steady_upload_is_read() -> None:
    chunks = send_chunks(b"x" * MIN_BYTES_PER_TIMEOUT, count=10, interval=0.1)
    assert await read_all(chunks) == 10 * MIN_BYTES_PER_TIMEOUT


@in_virtual_time
async def test_time_between_reads_does_not_count_as_a_stall() -> None:
    chunks = send_chunks(b"x", count=5, interval=0.01)
    assert await read_all(chunks, pause=0.1) == 5  # half a second in all


@in_virtual_time
async def test_fast_upload_is_limited_by_the_total_timeout() -> None:
    chunks = send_chunks(b"x" * MIN_BYTES_PER_TIMEOUT, count=1000, interval=0.02)
    with pytest.raises(LongUploadError):
        async for _ in read_with_stall_timeout(chunks, STALL_TIMEOUT, total_timeout=0.5):
            pass
    assert asyncio.get_running_loop().time() == pytest.approx(0.5)
