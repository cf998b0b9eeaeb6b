"""How long an upload is waited for."""

import asyncio
from collections.abc import AsyncGenerator

import pytest
from tests.virtual_time import in_virtual_time

from mailer.web.body import (
    MIN_BYTES_PER_TIMEOUT,
    LongUploadError,
    StalledUploadError,
    never_stalling,
)


async def dripping(part: bytes, times: int, every: float) -> AsyncGenerator[bytes, None]:
    for _ in range(times):
        await asyncio.sleep(every)
        yield part


async def taken(stream: AsyncGenerator[bytes, None], slowly: float = 0.0) -> int:
    size = 0
    async for part in never_stalling(stream, patience=0.3):
        size += len(part)
        await asyncio.sleep(slowly)
    return size


@in_virtual_time
async def test_an_upload_that_stops_is_given_up() -> None:
    with pytest.raises(StalledUploadError):
        await taken(dripping(b"x", 1, every=5))


@in_virtual_time
async def test_an_upload_that_drips_is_given_up_too() -> None:
    with pytest.raises(StalledUploadError):
        await taken(dripping(b"x", 1000, every=0.05))
    assert asyncio.get_running_loop().time() == pytest.approx(0.3)


@in_virtual_time
async def test_an_upload_that_is_slow_but_steady_is_waited_for() -> None:
    assert (
        await taken(dripping(b"x" * MIN_BYTES_PER_TIMEOUT, 10, every=0.1))
        == 10 * MIN_BYTES_PER_TIMEOUT
    )


@in_virtual_time
async def test_the_time_that_storing_takes_does_not_count() -> None:
    assert await taken(dripping(b"x", 5, every=0.01), slowly=0.1) == 5


@in_virtual_time
async def test_an_upload_at_a_good_pace_ends_in_time_all_the_same() -> None:
    with pytest.raises(LongUploadError):
        async for _ in never_stalling(
            dripping(b"x" * MIN_BYTES_PER_TIMEOUT, 1000, every=0.02), patience=0.3, longest=0.5
        ):
            pass
    assert asyncio.get_running_loop().time() == pytest.approx(0.5)
