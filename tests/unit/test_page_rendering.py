"""Pages that are rendered in slices, while other tasks change what they show."""

from collections.abc import Generator
from datetime import UTC, datetime

import pytest
from tests.factories import make_channel

from mailer.admin import render
from mailer.admin.render import PageContext
from mailer.admin.viewer import Viewer
from mailer.gateway.breaker import Breaker
from mailer.gateway.channel import Channel
from mailer.gateway.protocol import Accepted, TemporaryFailure

NOON = datetime(2026, 3, 4, 12, tzinfo=UTC)
RESET = 15.0  # seconds
VIEWER = Viewer("en", "UTC", "write")


def channel_with_open_breaker() -> Channel:
    channel = make_channel(breaker_failures=1, breaker_reset=RESET)
    breaker = channel.breaker
    breaker.record(breaker.acquire(0) or 0, TemporaryFailure("http_503"), 0, NOON)
    assert breaker.state == "open"
    return channel


def close(breaker: Breaker) -> None:
    breaker.record(breaker.acquire(RESET) or 0, Accepted(), RESET, NOON)
    assert breaker.state == "closed"


@pytest.mark.parametrize("folder", ["overview", "system"])
async def test_a_page_shows_one_state_of_the_gateway(
    folder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The breaker closes after each number of parts of the page."""

    async def render_gateway(close_after: int) -> tuple[str, int]:
        channel, steps = channel_with_open_breaker(), 0

        async def run_steps(parts: Generator[None, None, str]) -> str:
            nonlocal steps
            while True:
                if steps == close_after:
                    close(channel.breaker)
                try:
                    next(parts)
                except StopIteration as stop:
                    return str(stop.value)
                steps += 1

        monkeypatch.setattr(render, "run_in_slices", run_steps)
        context = PageContext(VIEWER, "/", channel)
        return (await context.render_sections(folder, ["gateway"]))["gateway"], steps

    before, steps = await render_gateway(-1)
    assert "card warning" in before
    assert steps > 5
    for close_after in range(1, steps + 1):
        assert await render_gateway(close_after) == (before, steps)
