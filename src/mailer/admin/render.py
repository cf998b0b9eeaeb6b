"""Pages from their templates: what every page shows, and how moments and numbers are written."""

from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime, timedelta
from functools import cache, lru_cache
from typing import Any
from uuid import uuid4
from zoneinfo import ZoneInfo

import msgspec
from babel.dates import format_datetime, format_timedelta
from babel.numbers import format_decimal, format_percent
from jinja2 import Environment, PackageLoader, StrictUndefined
from litestar import MediaType, Request, Response
from litestar.datastructures import Cookie
from litestar.di import NamedDependency
from litestar.response import Redirect
from litestar.status_codes import HTTP_303_SEE_OTHER
from markupsafe import Markup
from sqlalchemy.ext.asyncio import AsyncEngine

from mailer.access.model import Actor
from mailer.admin import words
from mailer.admin.language import LANGUAGES, gettext, locale, ngettext, say, speaking, spoken
from mailer.admin.viewer import Viewer, viewer_of
from mailer.db import origin
from mailer.gateway.breaker import Breaker, GatewayStatus
from mailer.mailing.model import terms_of
from mailer.settings import Scope
from mailer.web.assets import asset_url
from mailer.web.origin import SAFE
from mailer.web.problems import Problem

TEN, KIBI = 10, 1024
UNITS = ("B", "KiB", "MiB", "GiB", "TiB")
DONE = "done"
"""The cookie that tells the next page what was done: a name that `said.html` knows."""
DAY, MINUTE = "d MMM y, HH:mm", "HH:mm"
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self';"
    " base-uri 'none'; form-action 'self'; frame-ancestors 'none'"
)
HEADERS = {
    "Content-Security-Policy": POLICY,
    "Cache-Control": "private, no-store",  # Back shows nobody's phones to who sits there next
    "Vary": "Cookie, Accept-Language, HX-Request",
}


class Show(msgspec.Struct, frozen=True):
    """What a page is made with, whatever it shows."""

    viewer: Viewer
    path: str
    """The address of the page, with its query: where one is after choosing a language."""
    breaker: Breaker | None
    actor: Actor | None = None
    """Who is signed in, or anybody where nobody is asked."""
    has_metrics: bool = False
    """Whether metrics and health are shown to who has no token for them."""
    done: str | None = None
    is_held: bool = False
    """Whether nothing is sent since the database was restored; known to operators and admins."""
    is_part: bool = False
    """Whether a script asks, for a part of the page that is there."""

    @property
    def gateway(self) -> GatewayStatus:
        """How it goes with the gateway at this moment."""
        return GatewayStatus(is_set=False) if self.breaker is None else self.breaker.status()

    @property
    def person(self) -> Actor | None:
        """Who is signed in; None also where nobody is asked."""
        return self.actor if self.actor is not None and self.actor.kind == "account" else None

    @property
    def caller(self) -> tuple[str, int] | None:
        """What counts as one where something is shared out; None where nobody is asked."""
        return self.actor.caller if self.actor is not None else None

    def may(self, needed: Scope) -> bool:
        """Whether who looks may do what needs a scope."""
        return self.actor is not None and self.actor.may(needed)

    @property
    def once(self) -> str:
        """The address of the page for a form that creates something: sent twice, it makes one."""
        if "once=" in self.path:
            return self.path
        return f"{self.path}{'&' if '?' in self.path else '?'}once={uuid4().hex}"

    def is_under(self, address: str) -> bool:
        """Whether the page belongs to the part of the site at an address."""
        path = self.path.partition("?")[0]
        return path == address or (address != "/" and path.startswith(f"{address}/"))

    def page(self, template: str, status: int = 200, **facts: object) -> Response[str]:
        """Answer with a page."""
        content = self.part(template, **facts)
        cookies = [Cookie(DONE, path="/", max_age=0)] if self.done else []
        return Response(
            content,
            status_code=status,
            media_type=MediaType.HTML,
            headers=HEADERS,
            cookies=cookies,
        )

    def problem(self, template: str, answer: Response[Problem]) -> Response[str]:
        """Answer with a page what would be answered with a problem."""
        problem = answer.content
        wait = int(answer.headers.get("Retry-After", 0))
        page = self.page(template, problem.status, problem=problem, wait=wait)
        page.headers.update(answer.headers)
        return page

    def sections(self, room: str, names: Iterable[str], **facts: object) -> dict[str, str]:
        """Return the HTML of the live sections of a room, by their names."""
        return {name: self.part(f"{room}/{name}.html", **facts) for name in names}

    def part(self, template: str, **facts: object) -> str:
        """Return the HTML of a template."""
        with speaking(self.viewer.language):
            made = _environment().get_template(template)
            return made.render(show=self, viewer=self.viewer, **facts)


async def show_page(
    request: Request[Any, Any, Any],
    breaker: NamedDependency[Breaker | None],
    engine: NamedDependency[AsyncEngine],
) -> Show:
    """Return what a page for this request is made with."""
    show = show_of(request, breaker)
    if not show.may("write") or show.is_part or request.method not in SAFE:
        return show
    async with engine.connect() as connection:
        hold = await origin.hold(connection)
    return msgspec.structs.replace(show, is_held=hold is not None)


def show_of(request: Request[Any, Any, Any], breaker: Breaker | None) -> Show:
    """Return what a page is made with that looks at no database."""
    query = request.url.query
    return Show(
        viewer=viewer_of(request),
        path=f"{request.url.path}?{query}" if query else request.url.path,
        breaker=breaker,
        actor=request.scope.get("user"),
        has_metrics=request.app.state.settings.monitoring_token is None,
        done=request.cookies.get(DONE),
        is_part="HX-Request" in request.headers,
    )


def done(what: str, path: str) -> Redirect:
    """Go on to a page, which then says what was done."""
    said = Cookie(DONE, value=what, path="/", httponly=True, samesite="lax")
    return Redirect(path, status_code=HTTP_303_SEE_OTHER, cookies=[said])


def load_templates() -> None:
    """Compile all templates, and read how each language writes dates and numbers.

    At a first page this would keep the event loop 0.1 to 0.3 s.
    """
    environment = _environment()
    for name in environment.list_templates():
        environment.get_template(name)
    for language in LANGUAGES:
        format_datetime(locale=locale(language))
        format_decimal(0, locale=locale(language))


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("mailer.admin"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        extensions=["jinja2.ext.i18n"],
    )
    environment.install_gettext_callables(gettext, ngettext, newstyle=True)  # type: ignore[attr-defined]  # the extension's
    environment.globals.update(asset_url=asset_url, languages=LANGUAGES)
    environment.filters.update(FILTERS)
    return environment


# A live page says the same numbers and moments again and again: what is written is kept.
KEPT = 8192


def number(value: float) -> str:
    """Return a number as the reader writes it; a fraction below ten with one decimal."""
    return _number(value, "#,##0.#" if value < TEN else "#,##0", spoken())


@lru_cache(maxsize=KEPT)
def _number(value: float, form: str, language: str) -> str:
    return str(format_decimal(value, form, locale(language)))


def percent(part: int, whole: int) -> str:
    """Return a share; 100 % only of all, 0 % only of nothing."""
    share = part / whole if whole else 0.0
    if 0 < share < 1:
        share = min(0.999, max(0.001, share))
    return str(format_percent(share, "#,##0.#%" if 0 < share < 1 else "#,##0%", locale(spoken())))


def clock(moment: datetime, zone: str, form: str = DAY) -> str:
    """Return what the clocks of a zone show at a moment."""
    return str(format_datetime(moment, form, tzinfo=ZoneInfo(zone), locale=locale(spoken())))


def moment(at: datetime, viewer: Viewer, form: str = DAY) -> Markup:
    """Return a moment on the viewer's clock, which tells UTC too."""
    return _moment(at, viewer.time_zone, form, spoken())


@lru_cache(maxsize=KEPT)
def _moment(at: datetime, zone: str, form: str, _language: str) -> Markup:
    exact = at.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    title = f"{clock(at, 'UTC')} UTC"
    text = clock(at, zone, form)
    return Markup('<time datetime="{}" title="{}">{}</time>').format(exact, title, text)


def duration(seconds: float) -> str:
    """Return how long something takes, roughly."""
    exact = timedelta(seconds=round(seconds))
    return str(format_timedelta(exact, threshold=1.2, locale=locale(spoken())))


def size(count: int) -> str:
    """Return a number of bytes in the largest unit that leaves something before the point."""
    value, unit = float(count), 0
    while value >= KIBI and unit < len(UNITS) - 1:
        value, unit = value / KIBI, unit + 1
    return f"{number(value)} {UNITS[unit]}"


def excerpt(text: str, longest: int = 80) -> str:
    """Return the beginning of a text, on one line."""
    line = " ".join(text.split())
    return line if len(line) <= longest else f"{line[: longest - 1].rstrip()}…"


FILTERS: Mapping[str, Callable[..., Any]] = {
    "number": number,
    "percent": percent,
    "clock": clock,
    "moment": moment,
    "duration": duration,
    "bytes": size,
    "excerpt": excerpt,
    "say": say,
    "terms": terms_of,
    "reason": words.reason,
    "scope": words.known(words.SCOPES),
    "actor": words.known(words.ACTORS),
    "thing": words.known(words.THINGS),
    "action": words.known(words.ACTIONS),
    "fact": words.known(words.FACTS),
    "on_unknown": words.known(words.ON_UNKNOWN),
    "role": words.known(words.ROLES),
    "browser": words.browser,
    "mailing_status": lambda status: gettext(words.MAILING_STATUSES[status]),
    "message_status": lambda status: gettext(words.MESSAGE_STATUSES[status]),
}
