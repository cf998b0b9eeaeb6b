"""Pages of users: list, create, change the role or the password, disable, sign out."""

from typing import Annotated, Any

from litestar import Controller, Request, Response, get, post
from litestar.di import NamedDependency
from litestar.params import Parameter
from litestar.response import Redirect
from litestar.status_codes import HTTP_400_BAD_REQUEST, HTTP_409_CONFLICT
from sqlalchemy.ext.asyncio import AsyncEngine

from mailer.access import service, sessions, users
from mailer.access.credentials import hash_password
from mailer.access.model import Actor
from mailer.access.users import NewPassword, NewRole, NewUser, User, UserNameTakenError
from mailer.admin.form import Form, read_form, validate_password_form
from mailer.admin.listing import EMPTY_PAGE, page_links, read_list_query
from mailer.admin.render import PageContext, redirect_with_flash
from mailer.clock import database_clock
from mailer.errors import FieldError, InvalidError
from mailer.idempotency.do_once import do_once
from mailer.idempotency.model import IdempotencyClaim
from mailer.roles import ROLES
from mailer.validation import MAX_ID, check
from mailer.web.query import PageQuery

PATH = "/users"
NEW_USER_FIELDS = ("name", "role", "password", "repeated_password")
BLANK_PASSWORDS = {"password": "", "repeated_password": ""}
"""Values of the password fields: a form never shows a password that was entered."""

UserId = Annotated[int, Parameter(ge=1, le=MAX_ID)]


def redirect_to_created(user_id: int) -> Redirect:
    """Return the redirect to a user that the form has created."""
    return redirect_with_flash("user-created", f"{PATH}/{user_id}")


class Users(Controller):
    """Management of users, for admins."""

    path = PATH

    @get(required_scope="admin")
    async def list_users(
        self,
        engine: NamedDependency[AsyncEngine],
        context: NamedDependency[PageContext],
        request: Request[Any, Any, Any],
    ) -> Response[str]:
        """List users, the newest first."""
        form, query = read_list_query(request, PageQuery, "limit")
        page = EMPTY_PAGE
        if query is not None:
            async with engine.connect() as connection:
                page = await users.page(connection, query.position)
        return await context.render_page(
            "users/list.html",
            200 if query else 400,
            form=form,
            users=[User(**row._mapping) for row in page.rows],  # noqa: SLF001  # its public name
            count=page.count,
            pages=page_links(page, PATH, form),
        )

    @get("/new", required_scope="admin")
    async def show_empty(self, context: NamedDependency[PageContext]) -> Response[str]:
        """Show the form of a new user."""
        form = Form({"name": "", "role": "viewer"} | BLANK_PASSWORDS)
        return await context.render_page("users/new.html", form=form, roles=ROLES)

    @post("/new", required_scope="admin", creates=redirect_to_created)
    async def create_user(
        self,
        engine: NamedDependency[AsyncEngine],
        context: NamedDependency[PageContext],
        by: NamedDependency[Actor],
        claim: NamedDependency[IdempotencyClaim | None],
        request: Request[Any, Any, Any],
    ) -> Response[Any]:
        """Create a user, or show the form again with its errors."""
        values = await read_form(request, *NEW_USER_FIELDS)
        values["name"] = values["name"].strip()
        form = Form(values | BLANK_PASSWORDS)
        try:
            new = validate_password_form(NewUser, values)
            password_hash = await hash_password(new.password)
            async with engine.begin() as connection:
                done = await do_once(  # a form that is sent twice creates one user
                    connection,
                    claim,
                    lambda: users.create(connection, new.name, new.role, password_hash, by),
                    result_of=lambda user: {"id": user.id},
                )
        except InvalidError as error:
            return await context.render_page(
                "users/new.html", HTTP_400_BAD_REQUEST, form=form.with_errors(error), roles=ROLES
            )
        except UserNameTakenError as error:
            form = form.with_errors(InvalidError([FieldError("name", str(error))]))
            return await context.render_page(
                "users/new.html", HTTP_409_CONFLICT, form=form, roles=ROLES
            )
        return redirect_to_created(done.result["id"])

    @get("/{user_id:int}", required_scope="admin")
    async def show_user(
        self,
        engine: NamedDependency[AsyncEngine],
        context: NamedDependency[PageContext],
        user_id: UserId,
    ) -> Response[str]:
        """Show a user, and the actions on the user."""
        return await _user_page(engine, context, user_id, Form(BLANK_PASSWORDS))

    @post("/{user_id:int}/role", required_scope="admin")
    async def set_role(
        self,
        engine: NamedDependency[AsyncEngine],
        by: NamedDependency[Actor],
        request: Request[Any, Any, Any],
        user_id: UserId,
    ) -> Redirect:
        """Change the role of a user."""
        new = check(NewRole, await read_form(request, "role"), database_clock.now())
        async with engine.begin() as connection:
            await users.set_role(connection, user_id, new.role, by)
        return redirect_with_flash("user-role-changed", f"{PATH}/{user_id}")

    @post("/{user_id:int}/password", required_scope="admin")
    async def set_password(
        self,
        engine: NamedDependency[AsyncEngine],
        context: NamedDependency[PageContext],
        by: NamedDependency[Actor],
        request: Request[Any, Any, Any],
        user_id: UserId,
    ) -> Response[Any]:
        """Change the password of a user, and end all sessions of the user."""
        values = await read_form(request, *BLANK_PASSWORDS)
        try:
            new = validate_password_form(NewPassword, values)
            await service.set_password(engine, user_id, new, by)
        except InvalidError as error:
            form = Form(BLANK_PASSWORDS).with_errors(error)
            return await _user_page(engine, context, user_id, form, HTTP_400_BAD_REQUEST)
        return redirect_with_flash("user-password-changed", f"{PATH}/{user_id}")

    @post("/{user_id:int}/disable", required_scope="admin")
    async def disable(
        self,
        engine: NamedDependency[AsyncEngine],
        by: NamedDependency[Actor],
        user_id: UserId,
    ) -> Redirect:
        """Disable a user and end all sessions of the user."""
        async with engine.begin() as connection:
            await users.disable(connection, user_id, by)
        return redirect_with_flash("user-disabled", f"{PATH}/{user_id}")

    @post("/{user_id:int}/enable", required_scope="admin")
    async def enable(
        self,
        engine: NamedDependency[AsyncEngine],
        by: NamedDependency[Actor],
        user_id: UserId,
    ) -> Redirect:
        """Enable a disabled user."""
        async with engine.begin() as connection:
            await users.enable(connection, user_id, by)
        return redirect_with_flash("user-enabled", f"{PATH}/{user_id}")

    @post("/{user_id:int}/sign-out", required_scope="admin")
    async def sign_out(
        self,
        engine: NamedDependency[AsyncEngine],
        by: NamedDependency[Actor],
        user_id: UserId,
    ) -> Redirect:
        """End all sessions of a user."""
        async with engine.begin() as connection:
            await users.end_sessions(connection, user_id, by)
        return redirect_with_flash("user-signed-out", f"{PATH}/{user_id}")


async def _user_page(
    engine: AsyncEngine, context: PageContext, user_id: int, form: Form, status: int = 200
) -> Response[str]:
    """Return the page of a user; `form` has the fields of the new password."""
    async with engine.connect() as connection:
        user = await users.get(connection, user_id)
        open_sessions = await sessions.list_of_user(connection, user_id)
    return await context.render_page(
        "users/user.html",
        status,
        user=user,
        sessions=open_sessions,
        form=Form({**form.values, "role": user.role}, form.errors),
        roles=ROLES,
    )
