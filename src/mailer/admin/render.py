"""Rendering of pages: the context of every page, and the formats of numbers and moments."""

from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
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

from mailer import statuses
from mailer.access.model import Actor
from mailer.admin import labels
from mailer.admin.language import (
    LANGUAGES,
    current_language,
    gettext,
    locale,
    ngettext,
    translate_message,
    use_language,
)
from mailer.admin.viewer import Viewer, viewer_of
from mailer.db import origin
from mailer.gateway.channel import Channel, gateway_status
from mailer.mailing.client_filter import split_terms
from mailer.roles import Scope
from mailer.time_slices import run_in_slices
from mailer.web.assets import asset_url
from mailer.web.origin import SAFE_METHODS
from mailer.web.problems import Problem

ONE_DECIMAL_BELOW, BYTES_PER_KIB = 10, 1024
BYTE_UNITS = ("B", "KiB", "MiB", "GiB", "TiB")
FLASH_COOKIE = "done"
"""Cookie with the confirmation that the next page shows: a key of `flash.html`."""
DATETIME_FORMAT = "d MMM y, HH:mm"
PAGE_CSP = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self';"
    " base-uri 'none'; form-action 'self'; frame-ancestors 'none'"
)
PAGE_HEADERS = {
    "Content-Security-Policy": PAGE_CSP,
    "Cache-Control": "private, no-store",  # after sign-out, Back must not show phones
    "Vary": "Cookie, Accept-Language, HX-Request",
}


class PageContext(msgspec.Struct, frozen=True):
    """The variable `context` of every template."""

    viewer: Viewer
    path: str
    """Path and query of the page: where to redirect to after the language was changed."""
    channel: Channel | None
    actor: Actor | None = None
    """The signed-in user, or the anonymous actor if authentication is off."""
    has_metrics: bool = False
    """Whether metrics and health checks are open without a token."""
    flash: str | None = None
    """The confirmation of the last action: a key of `flash.html`."""
    is_held: bool = False
    """Whether nothing is sent since the database was restored. Read only if the user may write."""
    is_fragment: bool = False
    """Whether a script requested only the content, to show it on the current page."""

    @property
    def user(self) -> Actor | None:
        """The signed-in user; None also if authentication is off."""
        return self.actor if self.actor is not None and self.actor.kind == "user" else None

    @property
    def is_auth_disabled(self) -> bool:
        """Whether the page is shown without authentication, to an anonymous actor."""
        return self.actor is not None and self.actor.kind == "anonymous"

    @property
    def quota_key(self) -> tuple[str, int] | None:
        """The key for limits per user; None for a request without an actor."""
        return self.actor.quota_key if self.actor is not None else None

    def may(self, scope: Scope) -> bool:
        """Return whether the viewer has the permissions of `scope`."""
        return self.actor is not None and self.actor.may(scope)

    @property
    def creation_url(self) -> str:
        """URL of a form that creates one object, even if the form is sent twice."""
        if "once=" in self.path:
            return self.path
        return f"{self.path}{'&' if '?' in self.path else '?'}once={uuid4().hex}"

    def is_under(self, section: str) -> bool:
        """Return whether the page belongs to the section of the site at the path `section`."""
        path = self.path.partition("?")[0]
        return path == section or (section != "/" and path.startswith(f"{section}/"))

    async def render_page(
        self, template: str, status: int = 200, **variables: object
    ) -> Response[str]:
        """Return a response with the page from `template`."""
        return self._respond(await self._render_in_slices(template, **variables), status)

    def _respond(self, content: str, status: int) -> Response[str]:
        cookies = [Cookie(FLASH_COOKIE, path="/", max_age=0)] if self.flash else []
        return Response(
            content,
            status_code=status,
            media_type=MediaType.HTML,
            headers=PAGE_HEADERS,
            cookies=cookies,
        )

    def render_problem(self, template: str, response: Response[Problem]) -> Response[str]:
        """Return a page in place of a problem response."""
        problem = response.content
        retry_after = int(response.headers.get("Retry-After", 0))
        content = self.render(template, problem=problem, retry_after=retry_after)
        page = self._respond(content, problem.status)
        page.headers.update(response.headers)
        return page

    async def render_sections(
        self, folder: str, names: Iterable[str], **variables: object
    ) -> dict[str, str]:
        """Return the HTML of live sections by name, from the templates in `folder`."""
        return {
            name: await self._render_in_slices(f"{folder}/{name}.html", **variables)
            for name in names
        }

    def render(self, template: str, **variables: object) -> str:
        """Return the HTML of a template in the viewer's language."""
        with use_language(self.viewer.language):
            return "".join(self.render_parts(template, **variables))

    async def _render_in_slices(self, template: str, **variables: object) -> str:
        """Return the HTML of a template; other tasks run while it is rendered."""
        with use_language(self.viewer.language):
            return await run_in_slices(_join(self.render_parts(template, **variables)))

    def render_parts(self, template: str, **variables: object) -> Iterator[str]:
        """Return the parts of a template's HTML, each rendered when it is read.

        They are in the current language. The state of the gateway is read once, so that all parts
        show the same.
        """
        gateway = gateway_status(self.channel)
        compiled = _environment().get_template(template)
        return compiled.generate(context=self, viewer=self.viewer, gateway=gateway, **variables)


def _join(parts: Iterable[str]) -> Generator[None, None, str]:
    """Return the parts as one text; yield after each."""
    taken = []
    for part in parts:
        taken.append(part)
        yield
    return "".join(taken)


async def provide_page_context(
    request: Request[Any, Any, Any],
    channel: NamedDependency[Channel | None],
    engine: NamedDependency[AsyncEngine],
) -> PageContext:
    """Return the context of a page for this request."""
    context = create_page_context(request, channel)
    if not context.may("write") or context.is_fragment or request.method not in SAFE_METHODS:
        return context
    async with engine.connect() as connection:
        hold = await origin.get_hold(connection)
    return msgspec.structs.replace(context, is_held=hold is not None)


def create_page_context(request: Request[Any, Any, Any], channel: Channel | None) -> PageContext:
    """Return the context of a page without what is read from the database."""
    query = request.url.query
    return PageContext(
        viewer=viewer_of(request),
        path=f"{request.url.path}?{query}" if query else request.url.path,
        channel=channel,
        actor=request.scope.get("user"),
        has_metrics=request.app.state.has_public_metrics,
        flash=request.cookies.get(FLASH_COOKIE),
        is_fragment="HX-Request" in request.headers,
    )


def redirect_with_flash(flash: str, path: str) -> Redirect:
    """Return a redirect to a page that confirms what was done; `flash` is a key of `flash.html`."""
    cookie = Cookie(FLASH_COOKIE, value=flash, path="/", httponly=True, samesite="lax")
    return Redirect(path, status_code=HTTP_303_SEE_OTHER, cookies=[cookie])


def load_templates() -> None:
    """Compile all templates, and load the date and number formats of each language.

    Done for the first page instead, this would block the event loop for 0.1 to 0.3 s.
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
    environment.globals.update(
        asset_url=asset_url,
        languages=LANGUAGES,
        statuses=statuses,
    )
    environment.filters.update(FILTERS)
    return environment


FORMAT_CACHE_SIZE = 8192
"""Formatted numbers and moments to cache: live pages format the same ones again and again."""


def format_number(value: float) -> str:
    """Return a number in the format of the current language; below ten with up to one decimal."""
    return _format_number(
        value, "#,##0.#" if value < ONE_DECIMAL_BELOW else "#,##0", current_language()
    )


@lru_cache(maxsize=FORMAT_CACHE_SIZE)
def _format_number(value: float, form: str, language: str) -> str:
    return str(format_decimal(value, form, locale(language)))


def format_share(part: int, whole: int) -> str:
    """Return a share in percent: 100 % only for all, 0 % only for none."""
    share = part / whole if whole else 0.0
    if 0 < share < 1:
        share = min(0.999, max(0.001, share))
    return str(
        format_percent(share, "#,##0.#%" if 0 < share < 1 else "#,##0%", locale(current_language()))
    )


def format_local_time(moment: datetime, zone: str, form: str = DATETIME_FORMAT) -> str:
    """Return a moment as local time in a time zone."""
    return str(
        format_datetime(moment, form, tzinfo=ZoneInfo(zone), locale=locale(current_language()))
    )


def format_moment(at: datetime, viewer: Viewer, form: str = DATETIME_FORMAT) -> Markup:
    """Return a moment in the viewer's time zone, as a `<time>` element with UTC in its title."""
    return _format_moment(at, viewer.time_zone, form, current_language())


@lru_cache(maxsize=FORMAT_CACHE_SIZE)
def _format_moment(at: datetime, zone: str, form: str, _language: str) -> Markup:
    exact = at.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    title = f"{format_local_time(at, 'UTC')} UTC"
    text = format_local_time(at, zone, form)
    return Markup('<time datetime="{}" title="{}">{}</time>').format(exact, title, text)


def format_duration(seconds: float) -> str:
    """Return a rounded duration in words."""
    exact = timedelta(seconds=round(seconds))
    return str(format_timedelta(exact, threshold=1.2, locale=locale(current_language())))


def format_bytes(count: int) -> str:
    """Return a number of bytes in the largest unit in which it is at least 1."""
    value, unit = float(count), 0
    while value >= BYTES_PER_KIB and unit < len(BYTE_UNITS) - 1:
        value, unit = value / BYTES_PER_KIB, unit + 1
    return f"{format_number(value)} {BYTE_UNITS[unit]}"


def excerpt(text: str, max_length: int = 80) -> str:
    """Return the beginning of a text on one line, of at most `max_length` characters."""
    line = " ".join(text.split())
    return line if len(line) <= max_length else f"{line[: max_length - 1].rstrip()}…"


FILTERS: Mapping[str, Callable[..., Any]] = {
    "number": format_number,
    "percent": format_share,
    "clock": format_local_time,
    "moment": format_moment,
    "duration": format_duration,
    "bytes": format_bytes,
    "excerpt": excerpt,
    "translate": translate_message,
    "terms": split_terms,
    "reason": labels.reason_label,
    "scope": labels.label_lookup(labels.SCOPE_LABELS),
    "actor": labels.label_lookup(labels.ACTOR_LABELS),
    "target": labels.label_lookup(labels.TARGET_LABELS),
    "action": labels.label_lookup(labels.ACTION_LABELS),
    "field_name": labels.label_lookup(labels.FIELD_LABELS),
    "on_unknown": labels.label_lookup(labels.ON_UNKNOWN_LABELS),
    "role": labels.label_lookup(labels.ROLE_LABELS),
    "browser": labels.browser_name,
    "mailing_status": lambda status: gettext(labels.MAILING_STATUS_LABELS[status]),
    "message_status": lambda status: gettext(statuses.STATUSES[status].label),
}
