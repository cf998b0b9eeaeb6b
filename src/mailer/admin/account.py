"""One's own account: the password, and the browsers that one is signed in with."""

from datetime import UTC, datetime
from typing import Any

from litestar import Controller, Request, Response, get, post
from litestar.di import NamedDependency
from litestar.exceptions import NotFoundException
from litestar.status_codes import HTTP_400_BAD_REQUEST, HTTP_429_TOO_MANY_REQUESTS
from sqlalchemy.ext.asyncio import AsyncEngine

from mailer.access import accounts, service, sessions
from mailer.access.accounts import NewPassword
from mailer.access.model import Actor
from mailer.access.throttle import ThrottledError
from mailer.admin.form import Form, typed
from mailer.admin.render import Show, done
from mailer.admin.sign_in import farewell
from mailer.errors import FieldError, InvalidError
from mailer.validation import check

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
        _own_id(by)
        given = await typed(request, *BLANK.values)
        try:
            new = new_password(given)
            await service.change_own_password(engine, by, given["present"], new)
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
            await accounts.end_sessions(connection, _own_id(by), by, known)
        return farewell(request) if known in {None, by.session} else done("session-ended", PATH)


def new_password(given: dict[str, str]) -> str:
    """Return the password that was typed twice; raises `InvalidError`."""
    new = check(NewPassword, {"password": given["password"]}, datetime.now(UTC))
    if new.password != given["again"]:
        raise InvalidError([FieldError("again", "differs from the password above")])
    return new.password


def _own_id(by: Actor) -> int:
    """Return the account of who is signed in; where nobody is asked there is none."""
    if by.kind != "account" or by.id is None:
        raise NotFoundException
    return by.id


async def _page(  # noqa: PLR0913, PLR0917  # what a page is made of
    engine: AsyncEngine, show: Show, by: Actor, form: Form, status: int = 200, wait: int = 0
) -> Response[str]:
    async with engine.connect() as connection:
        own = await accounts.get(connection, _own_id(by))
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
