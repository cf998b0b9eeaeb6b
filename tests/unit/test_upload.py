"""Timeouts of uploads."""

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


async def send_chunks(chunk: bytes, times: int, every: float) -> AsyncGenerator[bytes, None]:
    for _ in range(times):
        await asyncio.sleep(every)
        yield chunk


async def read_all(stream: AsyncGenerator[bytes, None], pause: float = 0.0) -> int:
    """Read a stream, with a pause after each chunk; return the number of bytes."""
    size = 0
    async for chunk in read_with_stall_timeout(stream, stall_timeout=0.3):
        size += len(chunk)
        await asyncio.sleep(pause)
    return size


@in_virtual_time
async def test_stalled_upload_times_out() -> None:
    with pytest.raises(StalledUploadError):
        await read_all(send_chunks(b"x", 1, every=5))


@in_virtual_time
async def test_upload_of_single_bytes_times_out() -> None:
    with pytest.raises(StalledUploadError):
        await read_all(send_chunks(b"x", 1000, every=0.05))
    assert asyncio.get_running_loop().time() == pytest.approx(0.3)


@in_virtual_time
async def test_slow_but_steady_upload_is_read() -> None:
    assert (
        await read_all(send_chunks(b"x" * MIN_BYTES_PER_TIMEOUT, 10, every=0.1))
        == 10 * MIN_BYTES_PER_TIMEOUT
    )


@in_virtual_time
async def test_time_between_reads_does_not_count_as_a_stall() -> None:
    assert await read_all(send_chunks(b"x", 5, every=0.01), pause=0.1) == 5


@in_virtual_time
async def test_fast_upload_is_limited_by_the_total_timeout() -> None:
    with pytest.raises(LongUploadError):
        async for _ in read_with_stall_timeout(
            send_chunks(b"x" * MIN_BYTES_PER_TIMEOUT, 1000, every=0.02),
            stall_timeout=0.3,
            total_timeout=0.5,
        ):
            pass
    assert asyncio.get_running_loop().time() == pytest.approx(0.5)
