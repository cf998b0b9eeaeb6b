"""People: who has an account, what each may do, and ways to change that."""

from typing import Annotated, Any

from litestar import Controller, Request, Response, get, post
from litestar.di import NamedDependency
from litestar.params import Parameter
from litestar.response import Redirect
from litestar.status_codes import HTTP_400_BAD_REQUEST, HTTP_409_CONFLICT
from sqlalchemy.ext.asyncio import AsyncEngine

from mailer.access import accounts, service, sessions
from mailer.access.accounts import Account, AccountNameTakenError, NewAccount, NewPassword, NewRole
from mailer.access.model import SCOPE_OF, Actor
from mailer.admin.form import Form, checked_twice, typed
from mailer.admin.listing import NOTHING, asked, pages
from mailer.admin.render import Show, done
from mailer.clock import database_clock
from mailer.errors import FieldError, InvalidError
from mailer.validation import MAX_ID, check
from mailer.web.query import PageQuery

PATH = "/people"
ROLES = tuple(SCOPE_OF)
NEW = ("name", "role", "password", "again")
PASSWORDS = {"password": "", "again": ""}
"""Passwords are never typed back."""

AccountId = Annotated[int, Parameter(ge=1, le=MAX_ID)]


class People(Controller):
    """Accounts, for admins."""

    path = PATH

    @get(needs="admin")
    async def list_people(
        self,
        engine: NamedDependency[AsyncEngine],
        show: NamedDependency[Show],
        request: Request[Any, Any, Any],
    ) -> Response[str]:
        """List accounts, the newest first."""
        form, query = asked(request, PageQuery, "limit")
        found = NOTHING
        if query is not None:
            async with engine.connect() as connection:
                found = await accounts.page(connection, query.position)
        return show.page(
            "people/list.html",
            200 if query else 400,
            form=form,
            accounts=[Account(**row._mapping) for row in found.rows],  # noqa: SLF001  # its public name
            count=found.count,
            pages=pages(found, PATH, form),
        )

    @get("/new", needs="admin")
    async def show_empty(self, show: NamedDependency[Show]) -> Response[str]:
        """Show the form of a new account."""
        form = Form({"name": "", "role": "viewer"} | PASSWORDS)
        return show.page("people/new.html", form=form, roles=ROLES)

    @post("/new", needs="admin", creates=True)
    async def add_account(
        self,
        engine: NamedDependency[AsyncEngine],
        show: NamedDependency[Show],
        by: NamedDependency[Actor],
        request: Request[Any, Any, Any],
    ) -> Response[Any]:
        """Add an account, or show the form again with what is wrong."""
        if by.effect is not None:  # the answer of the attempt that added it was lost
            return done("account-made", f"{PATH}/{by.effect['id']}")
        given = await typed(request, *NEW)
        given["name"] = given["name"].strip()
        form = Form(given | PASSWORDS)
        try:
            new = checked_twice(NewAccount, given)
            added = await service.add_account(engine, new, by)
        except InvalidError as error:
            refused, status = form.refused(error), HTTP_400_BAD_REQUEST
            return show.page("people/new.html", status, form=refused, roles=ROLES)
        except AccountNameTakenError as error:
            refused = form.refused(InvalidError([FieldError("name", str(error))]))
            return show.page("people/new.html", HTTP_409_CONFLICT, form=refused, roles=ROLES)
        return done("account-made", f"{PATH}/{added.id}")

    @get("/{account_id:int}", needs="admin")
    async def show_person(
        self,
        engine: NamedDependency[AsyncEngine],
        show: NamedDependency[Show],
        account_id: AccountId,
    ) -> Response[str]:
        """Show an account, and what may be done with it."""
        return await _person(engine, show, account_id, Form(PASSWORDS))

    @post("/{account_id:int}/role", needs="admin")
    async def set_role(
        self,
        engine: NamedDependency[AsyncEngine],
        by: NamedDependency[Actor],
        request: Request[Any, Any, Any],
        account_id: AccountId,
    ) -> Redirect:
        """Give an account another role."""
        new = check(NewRole, await typed(request, "role"), database_clock.now())
        async with engine.begin() as connection:
            await accounts.set_role(connection, account_id, new.role, by)
        return done("role-changed", f"{PATH}/{account_id}")

    @post("/{account_id:int}/password", needs="admin")
    async def set_password(
        self,
        engine: NamedDependency[AsyncEngine],
        show: NamedDependency[Show],
        by: NamedDependency[Actor],
        request: Request[Any, Any, Any],
        account_id: AccountId,
    ) -> Response[Any]:
        """Give an account another password, and end its sessions."""
        given = await typed(request, *PASSWORDS)
        try:
            new = checked_twice(NewPassword, given)
            await service.set_password(engine, account_id, new, by)
        except InvalidError as error:
            form = Form(PASSWORDS).refused(error)
            return await _person(engine, show, account_id, form, HTTP_400_BAD_REQUEST)
        return done("password-set", f"{PATH}/{account_id}")

    @post("/{account_id:int}/disable", needs="admin")
    async def disable(
        self,
        engine: NamedDependency[AsyncEngine],
        by: NamedDependency[Actor],
        account_id: AccountId,
    ) -> Redirect:
        """Keep somebody out."""
        async with engine.begin() as connection:
            await accounts.disable(connection, account_id, by)
        return done("account-disabled", f"{PATH}/{account_id}")

    @post("/{account_id:int}/enable", needs="admin")
    async def enable(
        self,
        engine: NamedDependency[AsyncEngine],
        by: NamedDependency[Actor],
        account_id: AccountId,
    ) -> Redirect:
        """Let somebody in again."""
        async with engine.begin() as connection:
            await accounts.enable(connection, account_id, by)
        return done("account-enabled", f"{PATH}/{account_id}")

    @post("/{account_id:int}/sign-out", needs="admin")
    async def sign_out(
        self,
        engine: NamedDependency[AsyncEngine],
        by: NamedDependency[Actor],
        account_id: AccountId,
    ) -> Redirect:
        """Sign somebody out everywhere."""
        async with engine.begin() as connection:
            await accounts.end_sessions(connection, account_id, by)
        return done("signed-out", f"{PATH}/{account_id}")


async def _person(
    engine: AsyncEngine, show: Show, account_id: int, form: Form, status: int = 200
) -> Response[str]:
    async with engine.connect() as connection:
        known = await accounts.get(connection, account_id)
        open_sessions = await sessions.of_account(connection, account_id)
    return show.page(
        "people/person.html",
        status,
        account=known,
        sessions=open_sessions,
        form=Form({**form.values, "role": known.role}, form.errors),
        roles=ROLES,
    )
