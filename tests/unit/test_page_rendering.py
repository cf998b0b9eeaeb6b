"""A page is rendered in parts, between which other tasks may change what it shows."""

import pytest
from tests.factories import NOON, create_channel

from mailer.admin.language import use_language
from mailer.admin.render import PageContext
from mailer.admin.viewer import Viewer
from mailer.gateway.breaker import Breaker
from mailer.gateway.channel import Channel, Channels
from mailer.gateway.protocol import Accepted, Outcome, TemporaryFailure

BREAKER_RESET = 15.0  # seconds after which an open breaker lets a message probe
VIEWER = Viewer("en", "UTC", "write")


def channel_with_open_breaker() -> Channel:
    """Return a channel whose gateway failed at second 0."""
    channel = create_channel(breaker_failures=1, breaker_reset=BREAKER_RESET)
    record_outcome(channel.breaker, TemporaryFailure("http_503"), now=0)
    assert channel.breaker.state == "open"
    return channel


def close(breaker: Breaker) -> None:
    """Close a breaker by a successful probe."""
    record_outcome(breaker, Accepted(), now=BREAKER_RESET)
    assert breaker.state == "closed"


def record_outcome(breaker: Breaker, outcome: Outcome, now: float) -> None:
    """Start a request at a time in seconds, and record its outcome at the same time."""
    generation = breaker.acquire(now)
    assert generation is not None
    breaker.record(generation, outcome, now, at=NOON)


def render_gateway(folder: str, close_after: int | None) -> list[str]:
    """Return the parts of the section of the gateway, whose breaker is open at first.

    The breaker closes when `close_after` parts have been rendered; None: it stays open.
    """
    channel, rendered = channel_with_open_breaker(), []
    context = PageContext(VIEWER, "/", Channels([channel]))
    with use_language(VIEWER.language):
        for part in context.render_parts(f"{folder}/gateway.html"):
            rendered.append(part)
            if len(rendered) == close_after:
                close(channel.breaker)
    return rendered


@pytest.mark.parametrize("folder", ["overview", "system"])
def test_a_page_shows_the_state_of_the_gateway_when_its_rendering_started(folder: str) -> None:
    with_open_breaker = render_gateway(folder, close_after=None)
    assert "card warning" in "".join(with_open_breaker)
    assert len(with_open_breaker) > 5
    for close_after in range(1, len(with_open_breaker) + 1):
        assert render_gateway(folder, close_after) == with_open_breaker
