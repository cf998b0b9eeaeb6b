"""Rendering of pages: the context of every page, its response, and the template environment."""

import re
from collections.abc import Generator, Iterable, Iterator
from functools import cache
from typing import Any
from uuid import uuid4

import msgspec
from jinja2 import Environment, PackageLoader, StrictUndefined
from litestar import MediaType, Request, Response
from litestar.datastructures import Cookie
from litestar.di import NamedDependency
from litestar.response import Redirect
from litestar.status_codes import HTTP_303_SEE_OTHER
from sqlalchemy.ext.asyncio import AsyncEngine

from mailer import statuses
from mailer.access.model import Actor
from mailer.admin.formats import FILTERS, load_formats
from mailer.admin.language import LANGUAGES, gettext, ngettext, use_language
from mailer.admin.viewer import Viewer, viewer_of
from mailer.db import origin
from mailer.gateway.channel import Channels
from mailer.gateway.status import list_statuses
from mailer.reply import reading
from mailer.roles import Scope
from mailer.time_slices import run_in_slices
from mailer.web.assets import asset_url
from mailer.web.origin import SAFE_METHODS
from mailer.web.problems import Problem

FLASH_COOKIE = "done"
"""Cookie with the confirmation that the next page shows: a key of `flash.html`, and the id of an
object behind a dot if the confirmation names it."""
FLASH_ID = re.compile("[1-9][0-9]{0,15}")
GATEWAY_NOTICE = "gateway-notice"
"""Id in the HTML of the notice that names the gateways that are not used."""
PAGE_CSP = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self';"
    " base-uri 'none'; form-action 'self'; frame-ancestors 'none'"
)
"""Content-Security-Policy: a page runs and loads only files of this site, and is in no frame."""
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
    channels: Channels
    """The channels of the gateways, whose state pages show."""
    actor: Actor | None = None
    """The signed-in user, or the anonymous actor if authentication is off."""
    has_metrics: bool = False
    """Whether metrics and health checks are open without a token."""
    flash: str | None = None
    """The confirmation of the last action: a key of `flash.html`."""
    flash_id: int = 0
    """Id of the object of that action; 0 if the confirmation does not name it."""
    is_held: bool = False
    """Whether nothing is sent because the database was restored. Only for viewers who may write."""
    unread_replies: int = 0
    """Number of unread replies, which the navigation shows; at most `MAX_COUNTED_UNREAD`."""
    is_fragment: bool = False
    """Whether a script requested the content without header and footer, to show it in a dialog."""

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
        """URL for a form that creates an object, so that it creates only one if it is sent twice.

        The random value of the parameter `once` identifies the form; the middleware of idempotency
        keys recognizes it. A form that is shown again keeps it.
        """
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
        """Return a response with a page, which deletes the cookie of a confirmation shown on it."""
        cookies = [Cookie(FLASH_COOKIE, path="/", max_age=0)] if self.flash else []
        return Response(
            content,
            status_code=status,
            media_type=MediaType.HTML,
            headers=PAGE_HEADERS,
            cookies=cookies,
        )

    def render_problem(self, template: str, response: Response[Problem]) -> Response[str]:
        """Return a page in place of a problem response, with its status and headers."""
        problem = response.content
        retry_after = int(response.headers.get("Retry-After", 0))
        content = self.render(template, problem=problem, retry_after=retry_after)
        page = self._respond(content, problem.status)
        page.headers.update(response.headers)
        return page

    async def render_sections(
        self, folder: str, names: Iterable[str], **variables: object
    ) -> dict[str, str]:
        """Return the HTML of live sections by name, from the templates in `folder`.

        The notice about gateways, which most pages have, is one of the sections.
        """
        templates = {name: f"{folder}/{name}.html" for name in names}
        templates[GATEWAY_NOTICE] = "gateways/notice.html"
        return {
            name: await self._render_in_slices(template, **variables)
            for name, template in templates.items()
        }

    def render(self, template: str, **variables: object) -> str:
        """Return the HTML of a short template in the viewer's language, rendered at once."""
        with use_language(self.viewer.language):
            return "".join(self.render_parts(template, **variables))

    async def _render_in_slices(self, template: str, **variables: object) -> str:
        """Return the HTML of a template in the viewer's language; meanwhile other tasks run."""
        with use_language(self.viewer.language):
            return await run_in_slices(_join(self.render_parts(template, **variables)))

    def render_parts(self, template: str, **variables: object) -> Iterator[str]:
        """Return the parts of a template's HTML, each of which is rendered when it is read.

        The caller reads them in a `use_language` block. The status of the gateways is read once, so
        that all parts show the same one.
        """
        statuses = list_statuses(self.channels)
        compiled = _environment().get_template(template)
        values = {"context": self, "viewer": self.viewer, "gateway_statuses": statuses, **variables}
        return compiled.generate(values)


def _join(parts: Iterable[str]) -> Generator[None, None, str]:
    """Return the parts as one text. Yields after each part, so that other tasks can run."""
    rendered = []
    for part in parts:
        rendered.append(part)
        yield
    return "".join(rendered)


async def provide_page_context(
    request: Request[Any, Any, Any],
    channels: NamedDependency[Channels],
    engine: NamedDependency[AsyncEngine],
) -> PageContext:
    """Return the context of a page for this request.

    `is_held` and `unread_replies` are read only for pages that show them.
    """
    context = create_page_context(request, channels)
    is_part_of_page = context.is_fragment or request.url.path.startswith("/live/")
    if not context.may("read") or is_part_of_page:
        return context
    shows_hold = context.may("write") and request.method in SAFE_METHODS
    async with engine.connect() as connection:
        hold = await origin.get_hold(connection) if shows_hold else None
        unread_replies = await reading.count_unread(connection)
    return msgspec.structs.replace(context, is_held=hold is not None, unread_replies=unread_replies)


def create_page_context(request: Request[Any, Any, Any], channels: Channels) -> PageContext:
    """Return the context of a page without `is_held`, which is in the database."""
    query = request.url.query
    flash, _, flash_id = request.cookies.get(FLASH_COOKIE, "").partition(".")
    return PageContext(
        viewer=viewer_of(request),
        path=f"{request.url.path}?{query}" if query else request.url.path,
        channels=channels,
        actor=request.scope.get("user"),
        has_metrics=request.app.state.has_public_metrics,
        flash=flash or None,
        flash_id=int(flash_id) if FLASH_ID.fullmatch(flash_id) else 0,
        is_fragment="HX-Request" in request.headers,
    )


def redirect_with_flash(flash: str, path: str, flash_id: int | None = None) -> Redirect:
    """Return a redirect to a page that confirms what was done; `flash` is a key of `flash.html`.

    `flash_id` is the id of the object, if the confirmation names it.
    """
    value = flash if flash_id is None else f"{flash}.{flash_id}"
    cookie = Cookie(FLASH_COOKIE, value=value, path="/", httponly=True, samesite="lax")
    return Redirect(path, status_code=HTTP_303_SEE_OTHER, cookies=[cookie])


def render_template(template: str, **variables: object) -> str:
    """Return a short text that is no page, such as a mail, in the current language."""
    return _environment().get_template(template).render(variables)


def load_templates() -> None:
    """Compile all templates, and load the date and number formats of each language.

    Done for the first page instead, this would block the event loop for 0.1 to 0.3 s.
    """
    environment = _environment()
    for name in environment.list_templates():
        environment.get_template(name)
    load_formats()


@cache
def _environment() -> Environment:
    """Return the environment of all templates: their filters, global variables and texts."""
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
