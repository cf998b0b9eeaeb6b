"""Who looks at a page: in which language, on which clock, and with what rights."""

from typing import Any

import msgspec
from litestar import Request

from mailer.access.model import Actor
from mailer.admin.language import choose
from mailer.client.model import known_zones
from mailer.settings import Scope

LANGUAGE, TIME_ZONE = "language", "time_zone"
"""The cookies that keep what was chosen; the second one a script sets on the first visit."""


MOST_LANGUAGES = 20
"""Languages of a browser that are looked at."""


class Viewer(msgspec.Struct, frozen=True):
    """What pages are made for: viewers who are equal see the same."""

    language: str
    time_zone: str
    """An IANA name."""
    scope: Scope | None = None
    """What they may do; None of who is not signed in."""


def viewer_of(request: Request[Any, Any, Any]) -> Viewer:
    """Return who asks: by cookies, else by the browser's languages and in UTC."""
    zone = request.cookies.get(TIME_ZONE, "")
    actor: Actor | None = request.scope.get("user")
    return Viewer(
        choose(request.cookies.get(LANGUAGE), _languages(request)),
        zone if zone in known_zones() else "UTC",
        actor.scope if actor else None,
    )


def _languages(request: Request[Any, Any, Any]) -> list[str]:
    """Return the languages of Accept-Language, the most wanted first (RFC 9110, 12.5.4)."""
    weighed = []
    given = request.headers.get("Accept-Language", "")
    for part in given.split(",", MOST_LANGUAGES)[:MOST_LANGUAGES]:
        name, _, weight = part.partition(";q=")
        try:
            weighed.append((-float(weight or 1), name.strip()))
        except ValueError:
            continue
    return [name for weight, name in sorted(weighed, key=lambda each: each[0]) if weight]
