"""One mailing: what became of it so far, and what may be done with it."""

from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from litestar import Controller, Response, get, post
from litestar.di import NamedDependency
from litestar.exceptions import NotFoundException
from litestar.params import FromPath
from litestar.response import Redirect, ServerSentEvent
from litestar.status_codes import HTTP_409_CONFLICT, HTTP_503_SERVICE_UNAVAILABLE
from sqlalchemy.ext.asyncio import AsyncEngine

from mailer.access.model import Actor
from mailer.admin.language import marked
from mailer.admin.live import Live, Sections
from mailer.admin.render import Show, done
from mailer.clock import database_clock
from mailer.errors import ConflictError
from mailer.gateway.breaker import Breaker
from mailer.gateway.pace import Pace
from mailer.mailing import service, steps, store
from mailer.mailing.controls import controls, waiting
from mailer.mailing.hold import with_hold
from mailer.mailing.model import MailingNotFoundError, StillStoppingError
from mailer.mailing.query import MailingId
from mailer.report import forecast, progress, statistics
from mailer.report.largest import largest
from mailer.report.snapshot import snapshot

VERBS: Mapping[str, tuple[Callable[[AsyncEngine, int, Actor], Awaitable[Any]], str]] = {
    "pause": (service.pause, "mailing-paused"),
    "resume": (service.resume, "mailing-resumed"),
    "retry": (service.retry, "mailing-retried"),
    "cancel": (service.cancel, "mailing-cancelled"),
    "delete": (service.delete, "mailing-deleted"),
}
"""What may be done with a mailing, and what is said when it is."""
BARS, ROWS = 100, 20
"""How many bars a chart and how many rows a table may have: they are sent again and again."""
SECTIONS = ("state", "controls", "what", "ledger", "forecast", "over-time", "reasons", "spread")


async def look(
    engine: AsyncEngine, breaker: Breaker | None, pace: Pace | None, mailing_id: int
) -> dict[str, Any]:
    """Return what is shown of a mailing, by name, its counts as they are at one moment."""
    async with snapshot(engine) as connection:
        mailing = with_hold(await store.get(connection, mailing_id), breaker)
        stands = await steps.look(connection, mailing_id)
        sharing = await forecast.sharing(connection, pace, mailing)
        usable = forecast.usable_pace(pace, breaker)
        basis = await forecast.read(connection, mailing, usable, sharing.processes)
        [made] = await progress.of_mailings(connection, [mailing])
        counts = await statistics.in_detail(connection, made, most_buckets=BARS)
    now = database_clock.now()
    return {
        "forecast": await forecast.compute(basis),
        "sharing": sharing,
        "mailing": mailing,
        "wait": made.wait,
        "steps": stands,
        "counts": counts,
        "controls": controls(mailing, now),
        "is_over": mailing.datetime_end <= now,
        "time_zones": largest(((c.time_zone, c.messages) for c in counts.time_zones), ROWS),
        "operator_codes": largest(
            ((c.operator_code, c.messages) for c in counts.operator_codes), ROWS
        ),
    }


class MailingPage(Controller):
    """A mailing, and the questions before something is done with it."""

    path = "/"

    @get("/mailings/{mailing_id:int}", needs="read")
    async def show_mailing(
        self,
        engine: NamedDependency[AsyncEngine],
        breaker: NamedDependency[Breaker | None],
        pace: NamedDependency[Pace | None],
        show: NamedDependency[Show],
        mailing_id: MailingId,
    ) -> Response[str]:
        """Show a mailing."""
        return show.page("mailings/mailing.html", **await look(engine, breaker, pace, mailing_id))

    @get("/live/mailings/{mailing_id:int}", needs="read", by_itself=True)
    async def watch_mailing(  # noqa: PLR0913, PLR0917  # what Litestar gives
        self,
        engine: NamedDependency[AsyncEngine],
        breaker: NamedDependency[Breaker | None],
        pace: NamedDependency[Pace | None],
        show: NamedDependency[Show],
        live: NamedDependency[Live],
        mailing_id: MailingId,
    ) -> ServerSentEvent:
        """Keep a mailing's page up to date."""

        async def sections() -> Sections:
            try:
                facts = await look(engine, breaker, pace, mailing_id)
            except MailingNotFoundError:
                gone = ("state", "controls")
                return {name: show.part(f"mailings/gone-{name}.html") for name in gone}
            return show.sections("mailings", SECTIONS, **facts)

        return live.stream(("mailing", show.viewer, mailing_id), sections, show.caller)

    @get("/mailings/{mailing_id:int}/{verb:str}", needs="write")
    async def ask(
        self,
        engine: NamedDependency[AsyncEngine],
        show: NamedDependency[Show],
        mailing_id: MailingId,
        verb: FromPath[str],
    ) -> Response[str]:
        """Ask before something is done, with the numbers of this moment."""
        if verb not in VERBS:
            raise NotFoundException
        async with engine.connect() as connection:
            mailing = await store.get(connection, mailing_id)
            stands = await steps.look(connection, mailing_id)
        if verb not in controls(mailing, database_clock.now()):
            error = marked("The mailing is in a state in which this makes no sense.")
            return _refused(show, HTTP_409_CONFLICT, error, f"/mailings/{mailing_id}")
        return show.page(
            f"mailings/{verb}.html", mailing=mailing, steps=stands, waiting=waiting(mailing)
        )

    @post("/mailings/{mailing_id:int}/{verb:str}", needs="write")
    async def act(
        self,
        engine: NamedDependency[AsyncEngine],
        show: NamedDependency[Show],
        by: NamedDependency[Actor],
        mailing_id: MailingId,
        verb: FromPath[str],
    ) -> Response[str] | Redirect:
        """Do it; what cannot be done, or is not done yet, is said on a page that leads back."""
        if verb not in VERBS:
            raise NotFoundException
        act, said = VERBS[verb]
        back = "/mailings" if verb == "delete" else f"/mailings/{mailing_id}"
        try:
            await act(engine, mailing_id, by)
        except ConflictError as error:
            return _refused(show, HTTP_409_CONFLICT, str(error), back)
        except StillStoppingError as error:
            return _refused(show, HTTP_503_SERVICE_UNAVAILABLE, str(error), back)
        return done(said, back)


def _refused(show: Show, status: int, error: str, back: str) -> Response[str]:
    return show.page("mailings/refused.html", status, code=status, error=error, back=back)
