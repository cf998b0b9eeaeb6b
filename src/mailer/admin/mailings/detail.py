"""The page of one mailing: its progress, and the actions on it."""

from collections.abc import Awaitable, Callable, Mapping
from datetime import datetime, timedelta
from typing import Any, NamedTuple
from uuid import uuid4

from litestar import Controller, Request, Response, get, post
from litestar.di import NamedDependency
from litestar.exceptions import NotFoundException
from litestar.params import FromPath
from litestar.response import Redirect, ServerSentEvent
from litestar.status_codes import HTTP_409_CONFLICT, HTTP_503_SERVICE_UNAVAILABLE
from sqlalchemy.ext.asyncio import AsyncEngine

from mailer.access.model import Actor
from mailer.admin.form import Form
from mailer.admin.language import gettext_noop
from mailer.admin.live import LiveUpdates, Sections
from mailer.admin.mailings.intent import launch_intent
from mailer.admin.mailings.mailing_text import read_expected_cost, read_text_variables
from mailer.admin.redirects import referring_path
from mailer.admin.render import PageContext, redirect_with_flash
from mailer.clock import database_clock
from mailer.db.engine import snapshot
from mailer.errors import ConflictError
from mailer.forecast import service as forecast
from mailer.forecast.throughput import usable_gateways
from mailer.gateway.channel import Channels
from mailer.gateway.sms_parts import count_parts
from mailer.mailing import activity, audience, service, store, texts
from mailer.mailing.actions import allowed_actions
from mailer.mailing.activity import with_holds
from mailer.mailing.api import MailingId
from mailer.mailing.errors import MailingNotFoundError, StopTimeoutError
from mailer.mailing.text_reach import recent_text_reach
from mailer.reply.reading import list_recent
from mailer.settings import Settings
from mailer.statistics import progress
from mailer.statistics import service as statistics
from mailer.statistics.model import MailingStatistics
from mailer.statistics.top_n import top_n


class MailingAction(NamedTuple):
    """An action on a mailing, such as to pause it."""

    call: Callable[[AsyncEngine, int, Actor], Awaitable[Any]]
    """Carries it out. Receives the id of the mailing, and who acts."""
    flash: str
    """The confirmation on the next page: a key of `flash.html`."""
    asks: bool = True
    """Whether a page asks for confirmation before the action."""


ACTIONS: Mapping[str, MailingAction] = {
    "pause": MailingAction(service.pause, "mailing-paused", asks=False),
    "resume": MailingAction(service.resume, "mailing-resumed", asks=False),
    "retry": MailingAction(service.retry, "mailing-retried"),
    "cancel": MailingAction(service.cancel, "mailing-cancelled"),
    "delete": MailingAction(service.delete, "mailing-deleted"),
}
"""The actions by their verb in the URL. Those that ask for confirmation have a template with their
effects, `{verb}.html`. The others can be undone at once.

`launching.py` has those that send: to launch a draft and to start a mailing now."""
MAX_CHART_BARS, MAX_TABLE_ROWS = 100, 20
"""Maximum bars of a chart and rows of a table: live updates send them repeatedly."""
SECTIONS = (
    "heading",
    "state",
    "controls",
    "details",
    "counts",
    "forecast",
    "over-time",
    "reasons",
    "breakdown",
)
"""The sections that are updated live: the names of their templates, and their ids in the HTML."""
MAX_MAILING_REPLIES = 5
"""Replies that the page shows: the newest."""


class AwaitedReceipts(NamedTuple):
    """The messages of a mailing that await a receipt."""

    messages: int
    until: datetime
    """When none of them does any more, even if no receipt comes."""


def find_awaited_receipts(counts: MailingStatistics, receipt_wait: float) -> AwaitedReceipts | None:
    """Return the messages of a mailing that await a receipt for `receipt_wait` seconds, if any."""
    messages = sum(
        row.messages for row in counts.reasons if row.status == "sent" and row.reason is None
    )
    if not messages or counts.last_sent_at is None:
        return None
    return AwaitedReceipts(messages, counts.last_sent_at + timedelta(seconds=receipt_wait))


async def read_mailing_page(
    engine: AsyncEngine, channels: Channels, mailing_id: int, receipt_wait: float
) -> dict[str, Any]:
    """Return the template variables of a mailing's page; all counts are of the same moment.

    `receipt_wait` is how many seconds a receipt is awaited. Raises `MailingNotFoundError`.
    """
    async with snapshot(engine) as connection:
        mailing = await store.get(connection, mailing_id)
        [mailing] = await with_holds(connection, [mailing], channels)
        background_work = await activity.get_background_work(connection, mailing_id)
        capacity = await forecast.read_capacity(connection, usable_gateways(channels), mailing)
        [forecast_basis] = await forecast.read_current(connection, [mailing], channels)
        [mailing_progress] = await progress.get_progress(connection, [mailing])
        counts = await statistics.count_in_detail(
            connection, mailing_progress, max_buckets=MAX_CHART_BARS, channels=channels
        )
        is_upcoming = not background_work.is_started and not mailing.has_ended
        expected_cost = None
        if is_upcoming and not mailing.placeholders:  # else `read_text_variables` has it
            parts = count_parts(mailing.text).parts
            expected_cost = await read_expected_cost(connection, mailing, channels, parts)
        audience_now = (
            await audience.count(connection, mailing.client_filter)
            if is_upcoming and not mailing.is_draft
            else None
        )
        text_versions = (
            await texts.list_versions(connection, mailing_id, MAX_TABLE_ROWS)
            if mailing.text_version > 1
            else []
        )
        recent_replies = await list_recent(connection, MAX_MAILING_REPLIES, mailing_id=mailing_id)
    reach = None
    if is_upcoming and (template := mailing.template) is not None:
        reach = await recent_text_reach(engine, template, mailing.client_filter, mailing.purpose)
    now = database_clock.now()
    return {
        "forecast": await forecast.compute(forecast_basis, reach),
        "reach": reach,
        "capacity": capacity,
        "mailing": mailing,
        "audience_now": audience_now,
        "background_work": background_work,
        "counts": counts,
        "text_versions": text_versions,
        "awaited_receipts": find_awaited_receipts(counts, receipt_wait),
        "expected_cost": expected_cost,
        "recent_replies": recent_replies,
        "replies_url": f"/replies?mailing_id={mailing_id}",
        "actions": allowed_actions(mailing, now),
        "intent": launch_intent(mailing, now),
        "now": now,
        "is_over": mailing.datetime_end <= now,
        "time_zones": top_n(
            ((row.time_zone, row.messages) for row in counts.time_zones), MAX_TABLE_ROWS
        ),
        "operator_codes": top_n(
            ((row.operator_code, row.messages) for row in counts.operator_codes), MAX_TABLE_ROWS
        ),
    }


def new_test_variables(mailing_id: int) -> dict[str, Any]:
    """Return the template variables of a form for a new test.

    Sending it twice sends the messages once, because its URL has a random number.
    """
    return {
        "form": Form({"phones": ""}),
        "test_url": f"/mailings/{mailing_id}/test?once={uuid4().hex}",
        "test_results": [],
    }


class MailingPage(Controller):
    """The page of a mailing, and the confirmation pages of its actions."""

    path = "/"

    @get("/mailings/{mailing_id:int}", required_scope="read")
    async def show_mailing(
        self,
        engine: NamedDependency[AsyncEngine],
        channels: NamedDependency[Channels],
        context: NamedDependency[PageContext],
        settings: NamedDependency[Settings],
        mailing_id: MailingId,
    ) -> Response[str]:
        """Show a mailing."""
        variables = await read_mailing_page(engine, channels, mailing_id, settings.receipt_wait)
        variables |= await read_text_variables(engine, channels, variables)
        return await context.render_page(
            "mailings/mailing.html", **variables, **new_test_variables(mailing_id)
        )

    @get("/live/mailings/{mailing_id:int}", required_scope="read", is_polled=True)
    async def watch_mailing(  # noqa: PLR0913, PLR0917  # Litestar passes its dependencies so
        self,
        engine: NamedDependency[AsyncEngine],
        channels: NamedDependency[Channels],
        context: NamedDependency[PageContext],
        live: NamedDependency[LiveUpdates],
        settings: NamedDependency[Settings],
        mailing_id: MailingId,
    ) -> ServerSentEvent:
        """Stream the sections of a mailing's page whenever they change."""

        async def sections() -> Sections:
            try:
                variables = await read_mailing_page(
                    engine, channels, mailing_id, settings.receipt_wait
                )
            except MailingNotFoundError:  # deleted since: say so, and remove the buttons
                changed = ("state", "controls")
                return {name: context.render(f"mailings/deleted-{name}.html") for name in changed}
            sections = await context.render_sections("mailings", SECTIONS, **variables)
            return sections | await context.render_sections("replies", ("recent",), **variables)

        return live.stream(("mailing", context.viewer, mailing_id), sections, context.quota_key)

    @get("/mailings/{mailing_id:int}/{verb:str}", required_scope="write")
    async def ask(
        self,
        engine: NamedDependency[AsyncEngine],
        context: NamedDependency[PageContext],
        mailing_id: MailingId,
        verb: FromPath[str],
    ) -> Response[str]:
        """Ask for confirmation before an action, and describe its effects with numbers."""
        if verb not in ACTIONS or not ACTIONS[verb].asks:
            raise NotFoundException
        async with engine.connect() as connection:
            mailing = await store.get(connection, mailing_id)
            background_work = await activity.get_background_work(connection, mailing_id)
        if verb not in allowed_actions(mailing, database_clock.now()):
            error = gettext_noop("The mailing's current status does not allow this.")
            return await render_refusal(
                context, HTTP_409_CONFLICT, error, f"/mailings/{mailing_id}"
            )
        return await context.render_page(
            f"mailings/{verb}.html",
            mailing=mailing,
            background_work=background_work,
            unsent=mailing.count_unsent(),
        )

    @post("/mailings/{mailing_id:int}/{verb:str}", required_scope="write")
    async def act(  # noqa: PLR0913, PLR0917  # Litestar passes its dependencies so
        self,
        request: Request[Any, Any, Any],
        engine: NamedDependency[AsyncEngine],
        context: NamedDependency[PageContext],
        by: NamedDependency[Actor],
        mailing_id: MailingId,
        verb: FromPath[str],
    ) -> Response[str] | Redirect:
        """Carry out an action. If it is refused or not finished yet, show why."""
        if verb not in ACTIONS:
            raise NotFoundException
        action = ACTIONS[verb]
        return_path = _return_path(request, verb, mailing_id)
        try:
            await action.call(engine, mailing_id, by)
        except ConflictError as error:
            status, message = HTTP_409_CONFLICT, str(error)
        except StopTimeoutError as error:  # saved, but a worker may still send
            status, message = HTTP_503_SERVICE_UNAVAILABLE, str(error)
        else:
            return redirect_with_flash(action.flash, return_path, mailing_id)
        return await render_refusal(context, status, message, return_path)


def _return_path(request: Request[Any, Any, Any], verb: str, mailing_id: int) -> str:
    """Return the path of the page that follows an action: the mailing's, or the list.

    The list keeps its filters if the button was there.
    """
    if verb == "delete":
        return "/mailings"
    came_from = referring_path(request)
    is_from_list = came_from.partition("?")[0] == "/mailings"
    return came_from if is_from_list else f"/mailings/{mailing_id}"


async def render_refusal(
    context: PageContext, status: int, error: str, return_path: str
) -> Response[str]:
    """Return the page that says why an action is refused (409) or is not finished yet (503)."""
    return await context.render_page(
        "mailings/refused.html", status, status_code=status, error=error, return_path=return_path
    )
