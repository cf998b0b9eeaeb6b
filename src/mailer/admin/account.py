"""One's own account: the password, and the browsers that one is signed in with."""

from typing import Any

from litestar import Controller, Request, Response, get, post
from litestar.di import NamedDependency
from litestar.status_codes import HTTP_400_BAD_REQUEST, HTTP_429_TOO_MANY_REQUESTS
from sqlalchemy.ext.asyncio import AsyncEngine

from mailer.access import accounts, service, sessions
from mailer.access.accounts import NewPassword
from mailer.access.model import Actor
from mailer.access.throttle import ThrottledError
from mailer.admin.form import Form, checked_twice, typed
from mailer.admin.render import Show, done
from mailer.admin.sign_in import farewell
from mailer.errors import FieldError, InvalidError

PATH = "/account"
BLANK = Form({"present": "", "password": "", "again": ""})
"""Passwords are never typed back."""


class OwnAccount(Controller):
    """What everybody who is signed in sees of themselves."""

    path = PATH

    @get(needs="read")
    async def show_account(
        self,
        engine: NamedDependency[AsyncEngine],
        show: NamedDependency[Show],
        by: NamedDependency[Actor],
    ) -> Response[str]:
        """Show one's name, role and sessions."""
        return await _page(engine, show, by, BLANK)

    @post("/password", needs="read")
    async def change_password(
        self,
        engine: NamedDependency[AsyncEngine],
        show: NamedDependency[Show],
        by: NamedDependency[Actor],
        request: Request[Any, Any, Any],
    ) -> Response[Any]:
        """Change one's password, and end all other sessions."""
        given = await typed(request, *BLANK.values)
        present = given.pop("present")
        try:
            new = checked_twice(NewPassword, given)
            await service.change_own_password(engine, by, present, new)
        except InvalidError as error:
            return await _page(engine, show, by, BLANK.refused(error), HTTP_400_BAD_REQUEST)
        except ThrottledError as error:
            status = HTTP_429_TOO_MANY_REQUESTS
            answer = await _page(engine, show, by, BLANK, status, wait=error.seconds)
            answer.headers["Retry-After"] = str(error.seconds)
            return answer
        return done("password-changed", PATH)

    @post("/sessions", needs="read")
    async def end_session(
        self,
        engine: NamedDependency[AsyncEngine],
        by: NamedDependency[Actor],
        request: Request[Any, Any, Any],
    ) -> Response[Any]:
        """End one session, or all of them if none is named."""
        given = (await typed(request, "session"))["session"]
        try:
            known = bytes.fromhex(given) if given else None
        except ValueError as error:
            raise InvalidError([FieldError("session", "is not known")]) from error
        async with engine.begin() as connection:
            ended = await accounts.end_sessions(connection, by.account_id, by, known)
        if known in {None, by.session}:
            return farewell(request)
        return done("session-ended" if ended else "session-was-over", PATH)


async def _page(  # noqa: PLR0913, PLR0917  # what a page is made of
    engine: AsyncEngine, show: Show, by: Actor, form: Form, status: int = 200, wait: int = 0
) -> Response[str]:
    async with engine.connect() as connection:
        own = await accounts.get(connection, by.account_id)
        found = await sessions.of_account(connection, own.id)
    return show.page(
        "account.html",
        status,
        account=own,
        sessions=found,
        present=by.session,
        form=form,
        wait=wait,
    )
