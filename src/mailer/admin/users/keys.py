"""Pages of API keys: list, create and revoke."""

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
from mailer.admin.form import Form, read_form, validate
from mailer.admin.language import gettext_noop
from mailer.admin.render import PageContext, redirect_with_flash
from mailer.clock import database_clock
from mailer.errors import FieldError, InvalidError
from mailer.idempotency.do_once import do_once
from mailer.idempotency.model import IdempotencyClaim
from mailer.validation import MAX_ID

PATH = "/keys"
VALIDITY_DAYS = {"30": 30, "90": 90, "365": 365}
"""Choices of the form for how many days a key is valid: value of the radio button, and days."""
BLANK_KEY_FORM = {"name": "", "scope": "read", "expires": "90", "expires_on": ""}
"""The form of a new key: `expires` is a choice, `expires_on` the last day for the choice `day`."""
NOT_A_DATE = gettext_noop("must be a date")
NOT_LISTED = gettext_noop("must be one of the listed values")

KeyId = Annotated[int, Parameter(ge=1, le=MAX_ID, description="The key's id.")]
CreatedId = Annotated[int | None, QueryParameter(name="created", ge=1, le=MAX_ID)]
"""Id of the key that a form created when it was sent for the first time."""


def redirect_to_created(key_id: int) -> Redirect:
    """Return the redirect to the list of keys for a form that is sent again.

    The list has a notice that the key was created when the form was sent for the first time.
    """
    return Redirect(_created_url(key_id), status_code=HTTP_303_SEE_OTHER)


def _created_url(key_id: int) -> str:
    return f"{PATH}?created={key_id}"


class Keys(Controller):
    """The list of keys, and the form of a new key."""

    path = PATH

    @get(required_scope="admin")
    async def list_keys(
        self,
        engine: NamedDependency[AsyncEngine],
        context: NamedDependency[PageContext],
        created_id: CreatedId = None,
    ) -> Response[str]:
        """List all keys, the newest first."""
        return await _keys_page(engine, context, Form(BLANK_KEY_FORM), created_id=created_id)

    @post(required_scope="admin", creates=redirect_to_created)
    async def create_key(
        self,
        engine: NamedDependency[AsyncEngine],
        context: NamedDependency[PageContext],
        by: NamedDependency[Actor],
        claim: NamedDependency[IdempotencyClaim | None],
        request: Request[Any, Any, Any],
    ) -> Response[Any]:
        """Create a key and show its secret, which is not stored and so cannot be shown again.

        A form that is sent again creates nothing, and is redirected to the list.
        """
        form = Form(await read_form(request, *BLANK_KEY_FORM))
        try:
            new = read_new(form, context.viewer.time_zone, database_clock.now())
            async with engine.begin() as connection:
                done = await do_once(
                    connection,
                    claim,
                    lambda: keys.create(connection, new, by),
                    result_of=lambda created: {"id": created[0].id},  # without the secret
                )
        except InvalidError as error:
            form = form.with_errors(error, {"expires_at": "expires_on"})
            return await _keys_page(engine, context, form, HTTP_400_BAD_REQUEST)
        except keys.KeyNameTakenError as error:
            form = form.with_errors(InvalidError([FieldError("name", str(error))]))
            return await _keys_page(engine, context, form, HTTP_409_CONFLICT)
        if done.value is None:  # a form that was sent before
            return redirect_to_created(done.result["id"])
        key, secret = done.value
        response = await context.render_page(
            "keys/created.html", HTTP_201_CREATED, key=key, secret=secret
        )
        response.headers |= {"Cache-Control": "no-store", "Location": _created_url(key.id)}
        return response

    @get("/{key_id:int}/revoke", required_scope="admin")
    async def ask_to_revoke(
        self,
        engine: NamedDependency[AsyncEngine],
        context: NamedDependency[PageContext],
        key_id: KeyId,
    ) -> Response[str]:
        """Ask for confirmation before a key is revoked."""
        async with engine.connect() as connection:
            key = await keys.get(connection, key_id)
        return await context.render_page("keys/revoke.html", key=key)

    @post("/{key_id:int}/revoke", required_scope="admin")
    async def revoke_key(
        self, engine: NamedDependency[AsyncEngine], by: NamedDependency[Actor], key_id: KeyId
    ) -> Redirect:
        """Revoke a key: requests with it are refused from now on."""
        async with engine.begin() as connection:
            await keys.revoke(connection, key_id, by)
        return redirect_with_flash("key-revoked", PATH)


def read_new(form: Form, zone: str, now: datetime) -> keys.NewKey:
    """Return the new key that a form describes; raises `InvalidError` with every wrong field.

    A key with a last day is valid until the end of that day in the time zone `zone`.
    """
    values: dict[str, Any] = {"name": form["name"].strip(), "scope": form["scope"]}
    errors: list[FieldError] = []
    try:
        values["expires_at"] = _expiry(form, zone, now)
    except InvalidError as error:
        errors += error.errors
    return validate(keys.NewKey, values, errors, now)


def _expiry(form: Form, zone: str, now: datetime) -> datetime | None:
    """Return when the new key expires; None if never. Raises `InvalidError`."""
    match form["expires"]:
        case "never":
            return None
        case "day":
            try:
                next_day = date.fromisoformat(form["expires_on"]) + timedelta(days=1)
                return datetime.combine(next_day, time(), ZoneInfo(zone)).astimezone(UTC)
            except (ValueError, OverflowError) as error:
                raise InvalidError([FieldError("expires_on", NOT_A_DATE)]) from error
        case choice if choice in VALIDITY_DAYS:
            return now + timedelta(days=VALIDITY_DAYS[choice])
        case _:
            raise InvalidError([FieldError("expires", NOT_LISTED)])


async def _keys_page(
    engine: AsyncEngine,
    context: PageContext,
    form: Form,
    status: int = 200,
    created_id: int | None = None,
) -> Response[str]:
    """Return the page of all keys; `form` is that of a new key."""
    async with engine.connect() as connection:
        recent_keys, hidden_count = await keys.list_recent(connection)
    now = database_clock.now()
    return await context.render_page(
        "keys/list.html",
        status,
        form=form,
        keys=recent_keys,
        hidden_count=hidden_count,
        created=next((key for key in recent_keys if key.id == created_id), None),
        now=now,
        days=VALIDITY_DAYS,
    )
