"""The page of a database that was restored from a backup: what it would send if it were allowed.

Messages that were sent after the backup would be sent again. So nothing is sent from a restored
database until an admin allows it here or on the command line.
"""

from datetime import datetime
from typing import Any

from litestar import Controller, Request, Response, get, post
from litestar.di import NamedDependency
from litestar.response import Redirect
from sqlalchemy.ext.asyncio import AsyncEngine

from mailer.access.model import Actor
from mailer.admin.form import read_form
from mailer.admin.render import PageContext, redirect_with_flash
from mailer.errors import FieldError, InvalidError
from mailer.mailing import restore

PATH = "/restored"


class RestoredDatabase(Controller):
    """The page, and the action that allows sending."""

    path = PATH

    @get(required_scope="write")
    async def show_restored(
        self, engine: NamedDependency[AsyncEngine], context: NamedDependency[PageContext]
    ) -> Response[str]:
        """Show the messages that would be sent, and ask for permission."""
        async with engine.connect() as connection:
            restored = await restore.find_restored(connection)
        return await context.render_page("restored.html", restored=restored)

    @post(required_scope="admin")
    async def resume(
        self,
        engine: NamedDependency[AsyncEngine],
        by: NamedDependency[Actor],
        request: Request[Any, Any, Any],
    ) -> Redirect:
        """Allow sending after the restore that the page described, and after no later one.

        The form has the moment of that restore in its field `held_since`.
        """
        text = (await read_form(request, "held_since"))["held_since"]
        try:
            held_since = datetime.fromisoformat(text)
            held_since.astimezone()  # OverflowError at the ends of the calendar
        except (ValueError, OverflowError) as error:
            raise InvalidError([FieldError("held_since", "is not known")]) from error
        if held_since.tzinfo is None:
            raise InvalidError([FieldError("held_since", "is not known")])
        await restore.resume(engine, held_since, by)
        return redirect_with_flash("sending-resumed", PATH)
