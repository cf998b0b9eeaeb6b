"""The viewer of a page: language, time zone and permissions, as far as pages depend on them."""

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
    """Whom a page is rendered for. Viewers that are equal can share one rendering."""

    language: str
    """A code of `LANGUAGES`."""
    time_zone: str
    """An IANA name, such as Europe/Moscow."""
    scope: Scope | None = None
    """What the viewer may do; None if not signed in."""


def viewer_of(request: Request[Any, Any, Any]) -> Viewer:
    """Return the viewer of a request.

    Language and time zone are those of the cookies, else the language that the browser prefers,
    and UTC.
    """
    zone = request.cookies.get(TIME_ZONE_COOKIE, "")
    actor: Actor | None = request.scope.get("user")
    return Viewer(
        choose_language(request.cookies.get(LANGUAGE_COOKIE), _accepted_languages(request)),
        zone if zone in known_zones() else "UTC",
        actor.scope if actor else None,
    )


def _accepted_languages(request: Request[Any, Any, Any]) -> list[str]:
    """Return the languages of Accept-Language, the most preferred first (RFC 9110, 12.5.4).

    In `de, ru;q=0.8, en;q=0`, the weight of `de` is 1, and `en` is not accepted.
    """
    weighted = []
    header = request.headers.get("Accept-Language", "")
    for part in header.split(",", MAX_ACCEPTED_LANGUAGES)[:MAX_ACCEPTED_LANGUAGES]:
        name, _, weight = part.partition(";q=")
        try:
            weighted.append((float(weight or 1), name.strip()))
        except ValueError:
            continue  # not a language with a weight
    by_weight = sorted(weighted, key=lambda item: item[0], reverse=True)
    return [name for weight, name in by_weight if weight]
