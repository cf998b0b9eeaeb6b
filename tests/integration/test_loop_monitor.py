"""The loop monitor reports what blocks the event loop."""

import asyncio
import inspect
import time

import pytest

from mailer import metrics
from mailer.loop_monitor import Block, LoopMonitor, Steps

PATIENCE = 60


def observed() -> float:
    """How many answers of the loop were counted."""
    return metrics.REGISTRY.get_sample_value("mailer_event_loop_lag_seconds_count") or 0


def keep_the_loop_busy() -> None:
    """Spend half a second of processor time without a turn of the loop."""
    until = time.thread_time() + 0.5
    while time.thread_time() < until:
        pass


async def test_block_of_the_loop_is_reported_with_its_time_and_its_place() -> None:
    blocks: list[Block] = []
    monitor = LoopMonitor(interval=0.01, limit=0.05, report=blocks.append)
    with monitor.running():
        keep_the_loop_busy()
        async with asyncio.timeout(PATIENCE):
            while not any("keep_the_loop_busy" in block.frames for block in blocks):
                await asyncio.sleep(0.01)
    [block] = [block for block in blocks if "keep_the_loop_busy" in block.frames]
    assert block.seconds >= 0.05
    assert 0.05 <= block.step_seconds <= block.cpu_seconds < 1
    assert "tests/integration/test_loop_monitor.py" in block.frames
    assert not block.frames.startswith("/")


async def test_steps_that_follow_one_another_are_told_apart() -> None:
    steps = Steps(asyncio.get_running_loop(), depth=0)

    async def first() -> None:
        steps.sample(inspect.currentframe(), 0.02)

    async def second() -> None:
        steps.sample(inspect.currentframe(), 0.04)
        steps.sample(inspect.currentframe(), 0.07)

    async def third() -> None:
        steps.sample(inspect.currentframe(), 0.08)

    await asyncio.gather(first(), second(), third())
    assert steps.longest == pytest.approx(0.03)
    assert "second" in steps.frames


async def test_callbacks_that_follow_one_another_are_told_apart() -> None:
    loop = asyncio.get_running_loop()
    depths: list[int] = []
    loop.call_soon(lambda: depths.append(len(inspect.stack(0))))
    await asyncio.sleep(0)
    steps = Steps(loop, depths[0])

    def sample(moment: float) -> None:
        steps.sample(inspect.currentframe(), moment)

    for moment in (0.01, 0.02, 0.03):
        loop.call_soon(sample, moment)
    await asyncio.sleep(0)
    assert steps.longest == 0


async def test_every_answer_of_the_loop_is_counted() -> None:
    before = observed()
    with LoopMonitor(interval=0.01).running():
        async with asyncio.timeout(PATIENCE):
            while observed() < before + 3:
                await asyncio.sleep(0.01)


async def test_monitor_of_a_closed_loop_ends(recwarn: pytest.WarningsRecorder) -> None:
    def watch_and_close() -> None:
        async def leave() -> None:
            LoopMonitor(interval=0.01).running().__enter__()

        asyncio.run(leave())

    await asyncio.to_thread(watch_and_close)
    assert not recwarn.list
