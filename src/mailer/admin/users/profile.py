"""The profile of the signed-in user: role, password and sessions."""

from typing import Any

from litestar import Controller, Request, Response, get, post
from litestar.di import NamedDependency
from litestar.status_codes import HTTP_400_BAD_REQUEST, HTTP_429_TOO_MANY_REQUESTS
from sqlalchemy.ext.asyncio import AsyncEngine

from mailer.access import service, sessions, users
from mailer.access.login_throttle import ThrottledError
from mailer.access.model import Actor
from mailer.access.users import NewPassword
from mailer.admin.form import Form, read_form, validate_password_form
from mailer.admin.render import PageContext, redirect_with_flash
from mailer.admin.users.sign_in import redirect_signed_out
from mailer.errors import FieldError, InvalidError

PATH = "/profile"
BLANK_PASSWORD_FORM = Form({"current_password": "", "password": "", "repeated_password": ""})
"""The form that changes the password; it never shows a password that was entered."""


class Profile(Controller):
    """The profile page, for every signed-in user."""

    path = PATH

    @get(required_scope="read")
    async def show_profile(
        self,
        engine: NamedDependency[AsyncEngine],
        context: NamedDependency[PageContext],
        by: NamedDependency[Actor],
    ) -> Response[str]:
        """Show the name, the role and the sessions of the user."""
        return await _profile_page(engine, context, by, BLANK_PASSWORD_FORM)

    @post("/password", required_scope="read")
    async def change_password(
        self,
        engine: NamedDependency[AsyncEngine],
        context: NamedDependency[PageContext],
        by: NamedDependency[Actor],
        request: Request[Any, Any, Any],
    ) -> Response[Any]:
        """Change the user's own password, and end all their other sessions."""
        values = await read_form(request, *BLANK_PASSWORD_FORM.values)
        current_password = values.pop("current_password")
        try:
            new = validate_password_form(NewPassword, values)
            await service.change_own_password(engine, by, current_password, new)
        except InvalidError as error:
            form = BLANK_PASSWORD_FORM.with_errors(error)
            return await _profile_page(engine, context, by, form, HTTP_400_BAD_REQUEST)
        except ThrottledError as error:
            status, seconds = HTTP_429_TOO_MANY_REQUESTS, error.seconds
            response = await _profile_page(
                engine, context, by, BLANK_PASSWORD_FORM, status, retry_after=seconds
            )
            response.headers["Retry-After"] = str(seconds)
            return response
        return redirect_with_flash("password-changed", PATH)

    @post("/sessions", required_scope="read")
    async def end_session(
        self,
        engine: NamedDependency[AsyncEngine],
        by: NamedDependency[Actor],
        request: Request[Any, Any, Any],
    ) -> Response[Any]:
        """End one session of the user, or all of them if the form names none."""
        session = (await read_form(request, "session"))["session"]
        try:
            # the hash of the session's secret; None: all sessions
            digest = bytes.fromhex(session) if session else None
        except ValueError as error:
            raise InvalidError([FieldError("session", "is not known")]) from error
        async with engine.begin() as connection:
            ended_count = await users.end_sessions(connection, by.user_id, by, digest)
        has_ended_this_session = digest is None or digest == by.session
        if has_ended_this_session:
            return redirect_signed_out(request)
        flash = "session-ended" if ended_count else "session-already-ended"
        return redirect_with_flash(flash, PATH)


async def _profile_page(  # noqa: PLR0913, PLR0917  # the parts of the page
    engine: AsyncEngine,
    context: PageContext,
    by: Actor,
    form: Form,
    status: int = 200,
    retry_after: int = 0,
) -> Response[str]:
    """Return the profile page; `retry_after`: seconds to wait after too many wrong passwords."""
    async with engine.connect() as connection:
        user = await users.get(connection, by.user_id)
        open_sessions = await sessions.list_of_user(connection, user.id)
    return await context.render_page(
        "profile.html",
        status,
        user=user,
        sessions=open_sessions,
        current_session=by.session,
        form=form,
        retry_after=retry_after,
    )
