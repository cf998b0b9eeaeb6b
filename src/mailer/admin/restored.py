"""A restored database: what it would send, and the question whether it may."""

from datetime import datetime
from typing import Any

from litestar import Controller, Request, Response, get, post
from litestar.di import NamedDependency
from litestar.response import Redirect
from sqlalchemy.ext.asyncio import AsyncEngine

from mailer.access.model import Actor
from mailer.admin.form import typed
from mailer.admin.render import Show, done
from mailer.errors import FieldError, InvalidError
from mailer.mailing import restore

PATH = "/restored"


class RestoredDatabase(Controller):
    """Nothing is sent from a restored database until an admin agrees."""

    path = PATH

    @get(needs="write")
    async def show_restored(
        self, engine: NamedDependency[AsyncEngine], show: NamedDependency[Show]
    ) -> Response[str]:
        """Show what would be sent, and ask."""
        async with engine.connect() as connection:
            restored = await restore.find_restored(connection)
        return show.page("restored.html", restored=restored)

    @post(needs="admin")
    async def resume(
        self,
        engine: NamedDependency[AsyncEngine],
        by: NamedDependency[Actor],
        request: Request[Any, Any, Any],
    ) -> Redirect:
        """Let it send; the form names the restore that it was shown for."""
        given = (await typed(request, "held_since"))["held_since"]
        try:
            held_since = datetime.fromisoformat(given)
            held_since.astimezone()  # OverflowError at the ends of the calendar
        except (ValueError, OverflowError) as error:
            raise InvalidError([FieldError("held_since", "is not known")]) from error
        if held_since.tzinfo is None:
            raise InvalidError([FieldError("held_since", "is not known")])
        await restore.resume(engine, held_since, by)
        return done("sending-resumed", PATH)
