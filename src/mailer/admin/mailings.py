"""The list of mailings: found, filtered, and those that move kept up to date."""

from collections.abc import Sequence
from typing import Annotated, Any

from litestar import Controller, Request, Response, get
from litestar.di import NamedDependency
from litestar.response import ServerSentEvent
from msgspec import UNSET, Meta, UnsetType
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from mailer.admin.listing import NOTHING, asked, pages
from mailer.admin.live import Live, Sections
from mailer.admin.render import Show
from mailer.db.schema import MAILING_STATUSES
from mailer.gateway.breaker import Breaker
from mailer.mailing import store
from mailer.mailing.hold import with_hold
from mailer.mailing.model import ENDED, Mailing
from mailer.mailing.query import MailingQuery
from mailer.mailing.search import MOST_COUNTED
from mailer.report import progress
from mailer.validation import STORABLE, Input
from mailer.web.query import Limit, read


class ListQuery(MailingQuery, frozen=True, kw_only=True):
    """Which mailings to list."""

    limit: Limit = 50
    search: (
        Annotated[
            str,
            Meta(
                max_length=200,
                pattern=STORABLE,
                extra={"rule": "must be at most 200 characters without NUL"},
            ),
        ]
        | UnsetType
    ) = UNSET


class RowsQuery(Input, frozen=True, kw_only=True):
    """Which rows of the list to keep up to date."""

    ids: Annotated[
        str,
        Meta(
            pattern=r"^[1-9][0-9]{0,14}(,[1-9][0-9]{0,14}){0,999}(?!\n)$",
            extra={"rule": "must be ids of mailings, split by commas"},
        ),
    ]


def moving(mailings: Sequence[Mailing]) -> list[int]:
    """Return the ids of those that may still change by themselves."""
    return [
        mailing.id
        for mailing in mailings
        if mailing.status not in ENDED or mailing.scheduled_messages + mailing.sending_messages
    ]


async def find_waits(
    connection: AsyncConnection, mailings: Sequence[Mailing]
) -> dict[int, progress.Wait | None]:
    """Return what each of the mailings that run waits for, by its id."""
    running = [mailing for mailing in mailings if mailing.status == "running"]
    if not running:
        return {}
    found = await progress.of_mailings(connection, running)
    return {made.mailing.id: made.wait for made in found}


class MailingList(Controller):
    """Mailings, newest first."""

    path = "/"

    @get("/mailings", needs="read")
    async def list_mailings(
        self,
        request: Request[Any, Any, Any],
        engine: NamedDependency[AsyncEngine],
        breaker: NamedDependency[Breaker | None],
        show: NamedDependency[Show],
    ) -> Response[str]:
        """List the mailings that are asked for."""
        form, query = asked(request, ListQuery, "search", "status", "limit")
        found, mailings, waits = NOTHING, list[Mailing](), dict[int, progress.Wait | None]()
        if query is not None:
            async with engine.connect() as connection:
                found = await store.page(connection, query.position, **query.equal())
                mailings = [with_hold(store.to_mailing(row), breaker) for row in found.rows]
                waits = await find_waits(connection, mailings)
        return show.page(
            "mailings/list.html",
            200 if query else 400,
            form=form,
            mailings=mailings,
            waits=waits,
            moving=moving(mailings),
            count=found.count,
            most=MOST_COUNTED,
            pages=pages(found, "/mailings", form),
            statuses=MAILING_STATUSES,
        )

    @get("/live/mailings", needs="read", by_itself=True)
    async def watch_mailings(
        self,
        request: Request[Any, Any, Any],
        engine: NamedDependency[AsyncEngine],
        breaker: NamedDependency[Breaker | None],
        show: NamedDependency[Show],
        live: NamedDependency[Live],
    ) -> ServerSentEvent:
        """Keep rows of the list up to date."""
        ids = [int(each) for each in read(request, RowsQuery).ids.split(",")]

        async def sections() -> Sections:
            async with engine.connect() as connection:
                found = await store.of_ids(connection, ids)
                waits = await find_waits(connection, found)
            gone = {
                mailing_id: show.part("mailings/gone-row.html", mailing_id=mailing_id)
                for mailing_id in ids
            }
            rows = {
                mailing.id: show.part(
                    "mailings/row.html", mailing=with_hold(mailing, breaker), waits=waits
                )
                for mailing in found
            }
            return {f"mailing-{mailing_id}": row for mailing_id, row in (gone | rows).items()}

        return live.stream(("mailings", show.viewer, *ids), sections, show.caller)
