"""Keys for programs: listed, made, revoked."""

from datetime import UTC, date, datetime, time, timedelta
from typing import Annotated, Any
from zoneinfo import ZoneInfo

from litestar import Controller, Request, Response, get, post
from litestar.di import NamedDependency
from litestar.params import Parameter, QueryParameter
from litestar.response import Redirect
from litestar.status_codes import (
    HTTP_201_CREATED,
    HTTP_303_SEE_OTHER,
    HTTP_400_BAD_REQUEST,
    HTTP_409_CONFLICT,
)
from sqlalchemy.ext.asyncio import AsyncEngine

from mailer.access import keys
from mailer.access.model import Actor
from mailer.admin.form import Form, checked, typed
from mailer.admin.language import marked
from mailer.admin.render import Show, done
from mailer.clock import database_clock
from mailer.errors import FieldError, InvalidError
from mailer.validation import MAX_ID

PATH = "/keys"
DAYS = {"30": 30, "90": 90, "365": 365}
"""For how many days a key may be good, to choose from."""
BLANK = {"name": "", "scope": "read", "expires": "90", "expires_on": ""}
NOT_A_DAY = marked("must be a date")
NOT_A_CHOICE = marked("must be one of these")

KeyId = Annotated[int, Parameter(ge=1, le=MAX_ID, description="The key's id.")]
Created = Annotated[int | None, QueryParameter(name="created", ge=1, le=MAX_ID)]


class Keys(Controller):
    """Keys, and the form of a new one."""

    path = PATH

    @get(needs="admin")
    async def list_keys(
        self,
        engine: NamedDependency[AsyncEngine],
        show: NamedDependency[Show],
        created: Created = None,
    ) -> Response[str]:
        """List all keys, newest first; above them, if asked for, say that one was created."""
        return await _page(engine, show, Form(BLANK), created=created)

    @post(needs="admin", creates=True)
    async def make_key(
        self,
        engine: NamedDependency[AsyncEngine],
        show: NamedDependency[Show],
        by: NamedDependency[Actor],
        request: Request[Any, Any, Any],
    ) -> Response[str] | Redirect:
        """Create a key and show its secret, this once: nothing keeps the answer.

        A repeat of the form is led to a page that says that the key is there.
        """
        if by.effect is not None:  # the answer of the attempt that created it was lost
            return Redirect(_address(by.effect["id"]), status_code=HTTP_303_SEE_OTHER)
        form = Form(await typed(request, *BLANK))
        try:
            new = read_new(form, show.viewer.time_zone, database_clock.now())
            async with engine.begin() as connection:
                key, secret = await keys.add(connection, new, by)
        except InvalidError as error:
            refused = form.refused(error, {"expires_at": "expires_on"})
            return await _page(engine, show, refused, HTTP_400_BAD_REQUEST)
        except keys.KeyNameTakenError as error:
            refused = form.refused(InvalidError([FieldError("name", str(error))]))
            return await _page(engine, show, refused, HTTP_409_CONFLICT)
        answer = show.page("keys/made.html", HTTP_201_CREATED, key=key, secret=secret)
        answer.headers |= {"Cache-Control": "no-store", "Location": _address(key.id)}
        return answer

    @get("/{key_id:int}/revoke", needs="admin")
    async def ask_to_revoke(
        self, engine: NamedDependency[AsyncEngine], show: NamedDependency[Show], key_id: KeyId
    ) -> Response[str]:
        """Ask whether to revoke a key."""
        async with engine.connect() as connection:
            key = await keys.get(connection, key_id)
        return show.page("keys/revoke.html", key=key)

    @post("/{key_id:int}/revoke", needs="admin")
    async def revoke_key(
        self, engine: NamedDependency[AsyncEngine], by: NamedDependency[Actor], key_id: KeyId
    ) -> Redirect:
        """Revoke a key: it opens nothing from now on."""
        async with engine.begin() as connection:
            await keys.revoke(connection, key_id, by)
        return done("key-revoked", PATH)


def read_new(form: Form, zone: str, now: datetime) -> keys.NewKey:
    """Return the key that a form asks for; raises `InvalidError` naming every wrong field.

    One that expires on a day is good until that day ends on the clocks of `zone`.
    """
    given: dict[str, Any] = {"name": form["name"].strip(), "scope": form["scope"]}
    errors: list[FieldError] = []
    try:
        given["expires_at"] = _expiry(form, zone, now)
    except InvalidError as error:
        errors += error.errors
    return checked(keys.NewKey, given, errors, now)


def _expiry(form: Form, zone: str, now: datetime) -> datetime | None:
    match form["expires"]:
        case "never":
            return None
        case "day":
            try:
                after = date.fromisoformat(form["expires_on"]) + timedelta(days=1)
                return datetime.combine(after, time(), ZoneInfo(zone)).astimezone(UTC)
            except (ValueError, OverflowError) as error:
                raise InvalidError([FieldError("expires_on", NOT_A_DAY)]) from error
        case days if days in DAYS:
            return now + timedelta(days=DAYS[days])
        case _:
            raise InvalidError([FieldError("expires", NOT_A_CHOICE)])


def _address(key_id: int) -> str:
    """Return the address of the page that says that a key was created."""
    return f"{PATH}?created={key_id}"


async def _page(
    engine: AsyncEngine, show: Show, form: Form, status: int = 200, created: int | None = None
) -> Response[str]:
    async with engine.connect() as connection:
        found, left_out = await keys.recent(connection)
    now = database_clock.now()
    return show.page(
        "keys/list.html",
        status,
        form=form,
        keys=found,
        left_out=left_out,
        created=next((key for key in found if key.id == created), None),
        now=now,
        days=DAYS,
    )
