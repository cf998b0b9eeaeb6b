"""The viewer of a page: language, time zone and permissions."""

from typing import Any

import msgspec
from litestar import Request

from mailer.access.model import Actor
from mailer.admin.language import choose_language
from mailer.client.model import known_zones
from mailer.roles import Scope

LANGUAGE_COOKIE, TIME_ZONE_COOKIE = "language", "time_zone"
"""Cookies with the viewer's choices. A script sets the time zone on the first visit."""

MAX_ACCEPTED_LANGUAGES = 20
"""Maximum number of languages read from Accept-Language."""


class Viewer(msgspec.Struct, frozen=True):
    """The settings that a page is rendered for. Pages for equal viewers are equal."""

    language: str
    time_zone: str
    """An IANA name."""
    scope: Scope | None = None
    """The scope of the viewer; None if not signed in."""


def viewer_of(request: Request[Any, Any, Any]) -> Viewer:
    """Return the viewer: by cookies, else by the browser's languages and in UTC."""
    zone = request.cookies.get(TIME_ZONE_COOKIE, "")
    actor: Actor | None = request.scope.get("user")
    return Viewer(
        choose_language(request.cookies.get(LANGUAGE_COOKIE), _languages(request)),
        zone if zone in known_zones() else "UTC",
        actor.scope if actor else None,
    )


def _languages(request: Request[Any, Any, Any]) -> list[str]:
    """Return the languages of Accept-Language, the most preferred first (RFC 9110, 12.5.4)."""
    weighted = []
    header = request.headers.get("Accept-Language", "")
    for part in header.split(",", MAX_ACCEPTED_LANGUAGES)[:MAX_ACCEPTED_LANGUAGES]:
        name, _, weight = part.partition(";q=")
        try:
            weighted.append((-float(weight or 1), name.strip()))
        except ValueError:
            continue
    return [name for weight, name in sorted(weighted, key=lambda item: item[0]) if weight]
