"""The loop monitor reports code that blocks the event loop."""

import asyncio
import inspect
import time

import pytest

from mailer import metrics
from mailer.loop_monitor import Block, LoopMonitor, Steps

TIMEOUT = 60  # seconds


def count_observations() -> float:
    """Return how many measurements of the loop's lag were counted."""
    return metrics.REGISTRY.get_sample_value("mailer_event_loop_lag_seconds_count") or 0


def block_the_loop() -> None:
    """Use half a second of CPU time without returning to the loop."""
    end = time.thread_time() + 0.5
    while time.thread_time() < end:
        pass


async def test_a_block_of_the_loop_is_reported_with_its_duration_and_stack() -> None:
    blocks: list[Block] = []
    monitor = LoopMonitor(interval=0.01, limit=0.05, report=blocks.append)
    with monitor.running():
        block_the_loop()
        async with asyncio.timeout(TIMEOUT):
            while not any("block_the_loop" in block.frames for block in blocks):
                await asyncio.sleep(0.01)
    [block] = [block for block in blocks if "block_the_loop" in block.frames]
    assert block.seconds >= 0.05
    assert 0.05 <= block.step_seconds <= block.cpu_seconds < 1
    assert "tests/integration/test_loop_monitor.py" in block.frames
    assert not block.frames.startswith("/")


async def test_consecutive_tasks_are_separate_steps() -> None:
    """The numbers are the CPU time of the thread at each sample, in seconds."""
    steps = Steps(asyncio.get_running_loop(), callback_depth=0)

    async def first() -> None:
        steps.sample(inspect.currentframe(), 0.02)

    async def second() -> None:
        steps.sample(inspect.currentframe(), 0.04)
        steps.sample(inspect.currentframe(), 0.07)

    async def third() -> None:
        steps.sample(inspect.currentframe(), 0.08)

    await asyncio.gather(first(), second(), third())
    assert steps.longest == pytest.approx(0.03)  # of the second task: from 0.04 to 0.07
    assert "second" in steps.frames


async def test_consecutive_callbacks_are_separate_steps() -> None:
    loop = asyncio.get_running_loop()
    depths: list[int] = []
    loop.call_soon(lambda: depths.append(len(inspect.stack(0))))
    await asyncio.sleep(0)  # runs the callback
    steps = Steps(loop, callback_depth=depths[0])

    def sample(cpu_time: float) -> None:
        steps.sample(inspect.currentframe(), cpu_time)

    for cpu_time in (0.01, 0.02, 0.03):
        loop.call_soon(sample, cpu_time)
    await asyncio.sleep(0)
    assert steps.longest == 0  # a step with one sample has no known duration


async def test_every_measurement_of_the_loop_is_counted() -> None:
    before = count_observations()
    with LoopMonitor(interval=0.01).running():
        async with asyncio.timeout(TIMEOUT):
            while count_observations() < before + 3:
                await asyncio.sleep(0.01)


async def test_the_monitor_of_a_closed_loop_ends(recwarn: pytest.WarningsRecorder) -> None:
    """An exception in the monitor's thread would cause a warning of pytest."""

    def monitor_a_loop_and_close_it() -> None:
        async def start_monitor() -> None:
            LoopMonitor(interval=0.01).running().__enter__()  # without the end of a `with` block

        asyncio.run(start_monitor())

    await asyncio.to_thread(monitor_a_loop_and_close_it)
    assert not recwarn.list
