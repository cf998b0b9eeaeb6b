"""The order in which claimed messages leave the prefetch queue."""

import asyncio
from datetime import UTC, datetime

from hypothesis import given
from hypothesis import strategies as st

from mailer.clock import elapsed
from mailer.dispatch.prefetch import PrefetchQueue
from mailer.message.model import ClaimedMessage

NOW = datetime(2030, 1, 1, tzinfo=UTC)


def claim(message_id: int) -> ClaimedMessage:
    return ClaimedMessage(
        message_id, 1, 1, NOW, "79160000000", "UTC", None, NOW, None, 1, "default"
    )


async def take(queue: PrefetchQueue, count: int) -> list[int]:
    """Return the ids of the next messages."""
    taken = [await queue.get() for _ in range(count)]
    return [message.id for message in taken if message is not None]


async def test_message_whose_moment_has_come_is_sent_before_all_others() -> None:
    queue = PrefetchQueue(initial_size=10)
    queue.put(map(claim, (1, 2, 3)))
    queue.put_at(claim(10), elapsed())
    await asyncio.sleep(0.01)
    assert queue.has_late
    assert await take(queue, 4) == [10, 1, 2, 3]
    assert queue.is_empty


async def test_message_is_not_sent_before_its_moment() -> None:
    queue = PrefetchQueue(initial_size=10)
    moment = elapsed() + 0.05
    queue.put_at(claim(10), moment)
    assert not queue.is_empty
    assert await take(queue, 1) == [10]
    assert elapsed() >= moment - 0.001  # timers may be early by the resolution of the clock


async def test_messages_with_a_moment_take_room_in_the_queue() -> None:
    queue = PrefetchQueue(initial_size=10)
    for message_id in range(5):
        queue.put_at(claim(message_id), elapsed() + 100)
    assert queue.capacity() == 5
    queue.put_at(claim(5), elapsed() + 100)
    assert queue.capacity() == 0  # more than half full


async def test_drained_queue_returns_all_messages_and_ends_its_readers() -> None:
    queue = PrefetchQueue(initial_size=10)
    queue.put(map(claim, (1, 2, 3)))
    queue.put_at(claim(10), elapsed())
    queue.put_at(claim(11), elapsed() + 100)
    await asyncio.sleep(0.01)
    assert await take(queue, 1) == [10]
    drained = queue.drain(readers=2)
    assert sorted(message.id for message in drained) == [1, 2, 3, 11]
    assert await queue.get() is None
    assert await queue.get() is None


@given(steps=st.lists(st.sampled_from(["put", "late", "get"]), max_size=60))
def test_no_message_is_lost_and_those_without_a_moment_keep_their_order(steps: list[str]) -> None:
    async def run() -> None:
        queue = PrefetchQueue(initial_size=10)
        waiting, late, taken = list[int](), list[int](), list[int]()
        for message_id, step in enumerate(steps):
            if step == "put":
                queue.put([claim(message_id)])
                waiting.append(message_id)
            elif step == "late":
                queue.put_at(claim(message_id), elapsed() - 1)
                while queue._timed:  # noqa: SLF001  # until its timer has run
                    await asyncio.sleep(0)
                late.append(message_id)
            elif waiting or late:
                taken += await take(queue, 1)
                expected = late or waiting
                assert taken[-1] == expected.pop(0)
        assert await take(queue, len(late + waiting)) == late + waiting
        assert queue.is_empty

    asyncio.run(run())
