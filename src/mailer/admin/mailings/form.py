"""The form that creates, copies or changes a mailing, with a preview beside it."""

from datetime import datetime
from typing import Annotated, Any
from zoneinfo import ZoneInfo

import msgspec
from litestar import Controller, Request, Response, get, post
from litestar.di import NamedDependency, Provide
from litestar.params import QueryParameter
from litestar.response import Redirect
from litestar.status_codes import HTTP_200_OK, HTTP_400_BAD_REQUEST, HTTP_409_CONFLICT
from sqlalchemy.ext.asyncio import AsyncEngine

from mailer.access.model import Actor
from mailer.admin.form import MAX_LONG_FORM_BYTES, Form, read_form
from mailer.admin.language import gettext_noop
from mailer.admin.mailings import fields
from mailer.admin.mailings.preview import build_preview, utc_offset
from mailer.admin.render import PageContext, redirect_with_flash
from mailer.clock import database_clock
from mailer.errors import FieldError, InvalidError
from mailer.gateway import routes
from mailer.gateway.channel import Channels
from mailer.idempotency.model import IdempotencyClaim
from mailer.mailing import service, store
from mailer.mailing.actions import ensure_allowed
from mailer.mailing.api import MailingId
from mailer.mailing.model import Mailing, MailingStartedError, PurposeFixedError
from mailer.validation import MAX_ID

FINGERPRINT_FIELD = "seen"
"""Hidden field with the fingerprint of the mailing that the form was rendered for.

If the mailing has another fingerprint when the form is sent, another user has changed it since.
"""
CHANGED_MEANWHILE = gettext_noop(
    "Another user changed this mailing in the meantime. Your input is still here: save again to"
    " replace their changes."
)
STARTED_MEANWHILE = gettext_noop("The mailing has started in the meantime.")
HAS_STARTED = gettext_noop("cannot be changed: the mailing has started")

CopiedId = Annotated[int | None, QueryParameter(name="from", ge=1, le=MAX_ID)]
"""Id of the mailing that a form copies, as in `/mailings/new?from=1`."""
ChangedId = Annotated[int | None, QueryParameter(name="mailing", ge=1, le=MAX_ID)]
"""Id of the mailing that a form changes, as in `/mailings/preview?mailing=1`."""


class MailingFormPage(msgspec.Struct, frozen=True, kw_only=True):
    """The page of the mailing form, with what it needs to be rendered."""

    engine: AsyncEngine
    channels: Channels
    """The gateways that forecasts and costs rest on."""
    context: PageContext
    copy_of: int | None = None
    """Id of the mailing that the form copies; None if it copies none."""
    mailing: Mailing | None = None
    """The mailing that the form changes; None if it creates one."""

    async def render(self, form: Form, status: int = HTTP_200_OK) -> Response[str]:
        """Return a response with the whole page."""
        variables = await self._variables(form.values)
        return await self.context.render_page("mailings/form.html", status, form=form, **variables)

    async def render_preview(self, values: dict[str, str]) -> Response[str]:
        """Return a response with the preview only."""
        return await self.context.render_page(
            "mailings/preview.html", **await self._variables(values)
        )

    async def _variables(self, values: fields.FormValues) -> dict[str, Any]:
        """Return the variables of the templates of the form and of the preview."""
        now, zone = database_clock.now(), fields.zone_of(values)
        draft, draft_errors = fields.read_draft(values, self.mailing, now)
        built_preview = await build_preview(
            self.engine, draft, values["text"], zone, self.channels, self.mailing
        )
        async with self.engine.connect() as connection:
            gateway_names = await routes.gateway_names(connection)
        has_started = self.mailing is not None and self.mailing.datetime_start <= now
        return {
            "preview": built_preview,
            "draft_errors": draft_errors,
            "forecast": built_preview.forecast,
            "capacity": built_preview.capacity,
            # the form is in its own time zone, even if the viewer chooses another one
            "form_viewer": msgspec.structs.replace(self.context.viewer, time_zone=zone),
            "offset": utc_offset(_offset_at(built_preview.day.mailing_start, zone)),
            "mailing": self.mailing,
            "has_started": has_started,
            "copy_of": self.copy_of,
            "gateway_names": gateway_names,
        }


def _offset_at(moment: datetime, zone: str) -> Any:  # noqa: ANN401  # a timedelta, never None
    """Return the offset of a time zone from UTC at a moment."""
    return moment.astimezone(ZoneInfo(zone)).utcoffset()


def provide_form_page(
    engine: NamedDependency[AsyncEngine],
    channels: NamedDependency[Channels],
    context: NamedDependency[PageContext],
) -> MailingFormPage:
    """Return the page of the form for a new mailing."""
    return MailingFormPage(engine=engine, channels=channels, context=context)


def redirect_to_created(mailing_id: int) -> Redirect:
    """Return the redirect to a mailing that the form has created."""
    return redirect_with_flash("mailing-created", f"/mailings/{mailing_id}")


class MailingForm(Controller):
    """The form of a new or existing mailing, and its preview."""

    path = "/mailings"
    request_max_body_size = MAX_LONG_FORM_BYTES
    dependencies = {"form_page": Provide(provide_form_page, sync_to_thread=False)}  # noqa: RUF012  # Litestar's way

    @get("/new", required_scope="write")
    async def show_new(
        self, form_page: NamedDependency[MailingFormPage], copied_id: CopiedId = None
    ) -> Response[str]:
        """Show the form of a new mailing, or of a copy of one."""
        now, zone = database_clock.now(), form_page.context.viewer.time_zone
        if copied_id is None:
            values = fields.blank_values(now, zone)
        else:
            original = await _get_mailing(form_page.engine, copied_id)
            values = fields.copied_values(original, now, zone)
            form_page = msgspec.structs.replace(form_page, copy_of=copied_id)
        return await form_page.render(Form(values | {FINGERPRINT_FIELD: ""}))

    @post("/new", required_scope="write", creates=redirect_to_created)
    async def create(
        self,
        request: Request[Any, Any, Any],
        form_page: NamedDependency[MailingFormPage],
        by: NamedDependency[Actor],
        claim: NamedDependency[IdempotencyClaim | None],
        copied_id: CopiedId = None,
    ) -> Response[str] | Redirect:
        """Create a mailing, or show the form again with its errors."""
        form = Form(await read_form(request, *fields.MAILING_FIELDS, FINGERPRINT_FIELD))
        try:
            new = fields.read_new(form.values, database_clock.now())
            mailing = await service.create(form_page.engine, new, by, claim)
        except InvalidError as error:
            form_page = msgspec.structs.replace(form_page, copy_of=copied_id)
            return await form_page.render(
                form.with_errors(error, fields.MAIN_FIELD_BY_NAME), HTTP_400_BAD_REQUEST
            )
        return redirect_to_created(mailing.id)

    @get("/{mailing_id:int}/edit", required_scope="write")
    async def show_edit(
        self, form_page: NamedDependency[MailingFormPage], mailing_id: MailingId
    ) -> Response[str]:
        """Show the form that changes a mailing."""
        mailing = await _get_changeable(form_page.engine, mailing_id)
        values = fields.values_of(mailing, form_page.context.viewer.time_zone)
        form_page = msgspec.structs.replace(form_page, mailing=mailing)
        return await form_page.render(
            Form(values | {FINGERPRINT_FIELD: fields.fingerprint(mailing)})
        )

    @post("/{mailing_id:int}/edit", required_scope="write")
    async def change(
        self,
        request: Request[Any, Any, Any],
        form_page: NamedDependency[MailingFormPage],
        by: NamedDependency[Actor],
        mailing_id: MailingId,
    ) -> Response[str] | Redirect:
        """Save the changes in the form, unless another user has changed the mailing meanwhile."""
        mailing = await _get_changeable(form_page.engine, mailing_id)
        form_page = msgspec.structs.replace(form_page, mailing=mailing)
        values = await read_form(request, *fields.MAILING_FIELDS, FINGERPRINT_FIELD)
        current_fingerprint = fields.fingerprint(mailing)
        is_outdated = values[FINGERPRINT_FIELD] != current_fingerprint
        values[FINGERPRINT_FIELD] = current_fingerprint  # the form is saved if it is sent again
        form = Form(values)
        if is_outdated and _is_saved(values, mailing):  # the form was sent twice
            return redirect_with_flash("mailing-changed", f"/mailings/{mailing_id}")
        if is_outdated:
            refusal = InvalidError([FieldError("", CHANGED_MEANWHILE)])
            return await form_page.render(form.with_errors(refusal), HTTP_409_CONFLICT)
        try:
            changes = fields.read_change(values, mailing, database_clock.now())
            await service.change(form_page.engine, mailing_id, changes, by)
        except InvalidError as error:
            return await form_page.render(
                form.with_errors(error, fields.MAIN_FIELD_BY_NAME), HTTP_400_BAD_REQUEST
            )
        except (MailingStartedError, PurposeFixedError) as error:
            # show the values that cannot be changed any more
            fixed_values = fields.values_of(mailing, fields.zone_of(values))
            values |= {name: fixed_values[name] for name in ("start", "purpose")}
            wrong_field = "start" if isinstance(error, MailingStartedError) else "purpose"
            refusal = InvalidError(
                [FieldError("", STARTED_MEANWHILE), FieldError(wrong_field, HAS_STARTED)]
            )
            return await form_page.render(form.with_errors(refusal), HTTP_409_CONFLICT)
        return redirect_with_flash("mailing-changed", f"/mailings/{mailing_id}")

    @post("/preview", status_code=HTTP_200_OK, required_scope="write")
    async def show_preview(
        self,
        request: Request[Any, Any, Any],
        form_page: NamedDependency[MailingFormPage],
        changed_id: ChangedId = None,
    ) -> Response[str]:
        """Show the preview of a form that is being filled in."""
        if changed_id is not None:
            mailing = await _get_mailing(form_page.engine, changed_id)
            form_page = msgspec.structs.replace(form_page, mailing=mailing)
        return await form_page.render_preview(await read_form(request, *fields.MAILING_FIELDS))


def _is_saved(values: fields.FormValues, mailing: Mailing) -> bool:
    """Return whether the mailing already has all values of the form."""
    try:
        changes = fields.read_change(values, mailing, database_clock.now())
    except InvalidError:
        return False
    return all(getattr(mailing, name) == value for name, value in changes.provided_values().items())


async def _get_mailing(engine: AsyncEngine, mailing_id: int) -> Mailing:
    async with engine.connect() as connection:
        return await store.get(connection, mailing_id)


async def _get_changeable(engine: AsyncEngine, mailing_id: int) -> Mailing:
    """Return a mailing; raises a `ConflictError` if it has ended and cannot be changed."""
    mailing = await _get_mailing(engine, mailing_id)
    ensure_allowed("change", mailing, database_clock.now())
    return mailing
