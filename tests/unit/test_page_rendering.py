"""Pages that are rendered in parts, while other tasks change what they show."""

import pytest
from tests.factories import NOON, create_channel

from mailer.admin.language import use_language
from mailer.admin.render import PageContext
from mailer.admin.viewer import Viewer
from mailer.gateway.breaker import Breaker
from mailer.gateway.channel import Channel
from mailer.gateway.protocol import Accepted, TemporaryFailure

RESET = 15.0  # seconds after which an open breaker lets a message probe
VIEWER = Viewer("en", "UTC", "write")


def channel_with_open_breaker() -> Channel:
    channel = create_channel(breaker_failures=1, breaker_reset=RESET)
    breaker = channel.breaker
    breaker.record(breaker.acquire(0) or 0, TemporaryFailure("http_503"), 0, NOON)
    assert breaker.state == "open"
    return channel


def close(breaker: Breaker) -> None:
    breaker.record(breaker.acquire(RESET) or 0, Accepted(), RESET, NOON)
    assert breaker.state == "closed"


def render_gateway(folder: str, close_after: int) -> list[str]:
    """Return the parts of the section; close the breaker after `close_after` parts (0: never)."""
    channel, rendered = channel_with_open_breaker(), []
    with use_language(VIEWER.language):
        for part in PageContext(VIEWER, "/", channel).render_parts(f"{folder}/gateway.html"):
            rendered.append(part)
            if len(rendered) == close_after:
                close(channel.breaker)
    return rendered


@pytest.mark.parametrize("folder", ["overview", "system"])
def test_a_page_shows_one_state_of_the_gateway(folder: str) -> None:
    before = render_gateway(folder, 0)
    assert "card warning" in "".join(before)
    assert len(before) > 5
    for close_after in range(1, len(before) + 1):
        assert render_gateway(folder, close_after) == before
