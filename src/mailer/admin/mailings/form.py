"""The form that creates, copies or changes a mailing, with a preview beside it."""

from typing import Annotated, Any

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
from mailer.admin.mailings.form_page import FINGERPRINT_FIELD, MailingFormPage
from mailer.admin.mailings.intent import INTENT_FIELDS, read_intent
from mailer.admin.mailings.template_preview import typed_template
from mailer.admin.mailings.testing import PHONES_FIELD
from mailer.admin.render import PageContext, redirect_with_flash
from mailer.client.lists import store as lists
from mailer.clock import database_clock
from mailer.errors import FieldError, InvalidError
from mailer.gateway.channel import Channels
from mailer.idempotency.model import IdempotencyClaim
from mailer.mailing import launching, service, store
from mailer.mailing.actions import ensure_allowed
from mailer.mailing.api import MailingId
from mailer.mailing.audience import ensure_lists_exist
from mailer.mailing.errors import (
    ApprovalRequiredError,
    MailingChangedError,
    MailingStartedError,
    PurposeFixedError,
)
from mailer.mailing.model import Mailing, MailingChange, NewMailing
from mailer.mailing.text_reach import read_text_reach
from mailer.settings import Settings
from mailer.validation import MAX_ID

BUTTON_FIELD = "then"
"""Name of the buttons. Their values: `draft` saves a draft, `edit` shows the form again, any other
does what the button says: the intent."""
FORM_FIELDS = (
    *fields.MAILING_FIELDS,
    FINGERPRINT_FIELD,
    BUTTON_FIELD,
    PHONES_FIELD,
    *INTENT_FIELDS,
)
CHANGED_MEANWHILE = gettext_noop(
    "Another user changed this mailing in the meantime. Your input is still here: save again to"
    " replace their changes."
)
LAUNCHED_MEANWHILE = gettext_noop(
    "The mailing is not a draft any more: another user has launched it in the meantime."
)
STARTED_MEANWHILE = gettext_noop("The mailing has started in the meantime.")
HAS_STARTED = gettext_noop("cannot be changed: the mailing has started")

CopiedId = Annotated[int | None, QueryParameter(name="from", ge=1, le=MAX_ID)]
"""Id of the mailing that a form copies, as in `/mailings/new?from=1`."""
ChangedId = Annotated[int | None, QueryParameter(name="mailing", ge=1, le=MAX_ID)]
"""Id of the mailing that a form changes, as in `/mailings/preview?mailing=1`."""


def provide_form_page(
    engine: NamedDependency[AsyncEngine],
    channels: NamedDependency[Channels],
    context: NamedDependency[PageContext],
    settings: NamedDependency[Settings],
) -> MailingFormPage:
    """Return the page of the form for a new mailing."""
    return MailingFormPage(
        engine=engine,
        channels=channels,
        context=context,
        confirm_above=settings.confirm_above,
        approval_above=settings.approval_above,
        contact_cap=settings.parsed_contact_cap,
    )


def redirect_to_created(mailing_id: int) -> Redirect:
    """Return the redirect to a mailing that the form has created."""
    return redirect_with_flash("mailing-created", f"/mailings/{mailing_id}")


ListChoiceId = Annotated[int | None, QueryParameter(name="list", ge=1, le=MAX_ID)]
"""Id of the list of clients that a new mailing is for, as in `/mailings/new?list=1`."""


class MailingForm(Controller):
    """The form of a new or existing mailing, and its preview."""

    path = "/mailings"
    request_max_body_size = MAX_LONG_FORM_BYTES
    dependencies = {"form_page": Provide(provide_form_page, sync_to_thread=False)}  # noqa: RUF012  # Litestar's way

    @get("/new", required_scope="write")
    async def show_new(
        self,
        form_page: NamedDependency[MailingFormPage],
        copied_id: CopiedId = None,
        list_id: ListChoiceId = None,
    ) -> Response[str]:
        """Show the form of a new mailing, for a list of clients if one is given, or of a copy."""
        now, zone = database_clock.now(), form_page.context.viewer.time_zone
        if copied_id is None:
            values = fields.blank_values(now, zone)
            if list_id is not None:
                values |= fields.values_for_list(await _get_list_name(form_page.engine, list_id))
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
        """Create a mailing or a draft, ask for confirmation, or show the form with its errors."""
        form_page = msgspec.structs.replace(form_page, copy_of=copied_id)
        values = await read_form(request, *FORM_FIELDS)
        form, is_draft = Form(values), values[BUTTON_FIELD] == "draft"
        if values[BUTTON_FIELD] == "edit":
            return await form_page.render(form)
        try:
            new = fields.read_new(values, database_clock.now(), is_draft=is_draft)
            if not is_draft and (question := await _ask(form_page, form, new)):
                return question
            mailing = await service.create(
                form_page.engine, new, by, claim, approval_above=form_page.approval_above
            )
        except InvalidError as error:
            return await form_page.render(
                form.with_errors(error, fields.MAIN_FIELD_BY_NAME), HTTP_400_BAD_REQUEST
            )
        except ApprovalRequiredError as error:
            return await form_page.render_conflict(form, str(error))
        return redirect_to_created(mailing.id)

    @get("/{mailing_id:int}/edit", required_scope="write")
    async def show_edit(
        self, form_page: NamedDependency[MailingFormPage], mailing_id: MailingId
    ) -> Response[str]:
        """Show the form that changes a mailing."""
        mailing = await get_changeable(form_page.engine, mailing_id)
        values = fields.values_of(mailing, form_page.context.viewer.time_zone)
        form_page = msgspec.structs.replace(form_page, mailing=mailing)
        return await form_page.render(Form(values | {FINGERPRINT_FIELD: mailing.content_digest}))

    @post("/{mailing_id:int}/edit", required_scope="write")
    async def change(
        self,
        request: Request[Any, Any, Any],
        form_page: NamedDependency[MailingFormPage],
        by: NamedDependency[Actor],
        mailing_id: MailingId,
    ) -> Response[str] | Redirect:
        """Save the changes in the form, unless another user has changed the mailing meanwhile.

        A draft is launched, too, unless the button saves a draft.
        """
        mailing = await get_changeable(form_page.engine, mailing_id)
        form_page = msgspec.structs.replace(form_page, mailing=mailing)
        values = await read_form(request, *FORM_FIELDS)
        current_fingerprint = mailing.content_digest
        is_outdated = values[FINGERPRINT_FIELD] != current_fingerprint
        values[FINGERPRINT_FIELD] = current_fingerprint  # the form is saved if it is sent again
        form, is_draft = Form(values), values[BUTTON_FIELD] == "draft"
        if values[BUTTON_FIELD] == "edit":
            return await form_page.render(form)
        is_done = is_draft or not mailing.is_draft  # a launch is done only if it is no draft now
        if is_outdated and is_done and _is_saved(values, mailing, is_draft=is_draft):  # sent twice
            return redirect_with_flash("mailing-changed", f"/mailings/{mailing_id}")
        if is_outdated or (is_draft and not mailing.is_draft):
            conflict = CHANGED_MEANWHILE if is_outdated else LAUNCHED_MEANWHILE
            return await form_page.render_conflict(form, conflict)
        return await _save_or_refuse(form_page, mailing, form, by, is_draft=is_draft)

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


async def _ask(form_page: MailingFormPage, form: Form, new: NewMailing) -> Response[str] | None:
    """Return the page that asks for confirmation; None if the user has agreed already.

    `new` is the mailing as it would be. Raises `InvalidError` for a wrong gateway or list, so that
    nobody is asked in vain.
    """
    mailing = form_page.mailing
    async with form_page.engine.connect() as connection:
        await ensure_lists_exist(connection, new.client_filter)
        if mailing is None or new.gateway != mailing.gateway:
            await service.route_columns(connection, {"gateway": new.gateway})
    reach = None
    mailing_text = "" if mailing is None else mailing.text
    if (template := typed_template(new.text, mailing, mailing_text)) is not None:
        reach = await read_text_reach(form_page.engine, template, new.client_filter, new.purpose)
    async with form_page.engine.connect() as connection:
        intent = await read_intent(
            connection,
            mailing,
            new.client_filter,
            new.purpose,
            new.datetime_start,
            database_clock.now(),
            reach,
        )
    try:
        if intent.is_agreed(form.values, form_page.confirm_above):
            return None
    except InvalidError as error:
        form = form.with_errors(error)
        return await form_page.render_confirmation(form, new, intent, reach, HTTP_400_BAD_REQUEST)
    return await form_page.render_confirmation(form, new, intent, reach)


async def _save_or_refuse(
    form_page: MailingFormPage, mailing: Mailing, form: Form, by: Actor, *, is_draft: bool
) -> Response[str] | Redirect:
    """Do what `_save` does, or show the form again with its errors."""
    try:
        return await _save(form_page, mailing, form, by, is_draft=is_draft)
    except InvalidError as error:
        return await form_page.render(
            form.with_errors(error, fields.MAIN_FIELD_BY_NAME), HTTP_400_BAD_REQUEST
        )
    except (MailingStartedError, PurposeFixedError) as error:
        # show the values that cannot be changed any more
        fixed_values = fields.values_of(mailing, fields.zone_of(form.values))
        fixed = {name: fixed_values[name] for name in ("start", "purpose")}
        wrong_field = "start" if isinstance(error, MailingStartedError) else "purpose"
        refusal = InvalidError(
            [FieldError("", STARTED_MEANWHILE), FieldError(wrong_field, HAS_STARTED)]
        )
        form = Form({**form.values, **fixed}).with_errors(refusal)
        return await form_page.render(form, HTTP_409_CONFLICT)
    except (ApprovalRequiredError, MailingChangedError) as error:
        return await form_page.render_conflict(form, str(error))


async def _save(
    form_page: MailingFormPage, mailing: Mailing, form: Form, by: Actor, *, is_draft: bool
) -> Response[str] | Redirect:
    """Save the changes in the form; unless `is_draft`, also launch a draft. Or ask before."""
    changes = fields.read_change(form.values, mailing, database_clock.now(), is_draft=is_draft)
    if not is_draft:
        changed = {
            name: getattr(mailing, name) for name in MailingChange.__struct_fields__
        } | changes.provided_values()
        if question := await _ask(form_page, form, NewMailing(**changed)):
            return question
    saved = await service.change(
        form_page.engine, mailing.id, changes, by, approval_above=form_page.approval_above
    )
    if mailing.is_draft and not is_draft:
        await launching.launch(
            form_page.engine,
            mailing.id,
            by,
            approval_above=form_page.approval_above,
            content_digest=saved.content_digest,
        )
        return redirect_with_flash("mailing-launched", f"/mailings/{mailing.id}")
    return redirect_with_flash("mailing-changed", f"/mailings/{mailing.id}")


def _is_saved(values: fields.FormValues, mailing: Mailing, *, is_draft: bool) -> bool:
    """Return whether the mailing already has all values of the form."""
    try:
        changes = fields.read_change(values, mailing, database_clock.now(), is_draft=is_draft)
    except InvalidError:
        return False
    return all(getattr(mailing, name) == value for name, value in changes.provided_values().items())


async def _get_mailing(engine: AsyncEngine, mailing_id: int) -> Mailing:
    async with engine.connect() as connection:
        return await store.get(connection, mailing_id)


async def _get_list_name(engine: AsyncEngine, list_id: int) -> str:
    async with engine.connect() as connection:
        return (await lists.get(connection, list_id)).name


async def get_changeable(engine: AsyncEngine, mailing_id: int) -> Mailing:
    """Return a mailing; raises a `ConflictError` if it has ended and cannot be changed."""
    mailing = await _get_mailing(engine, mailing_id)
    ensure_allowed("change", mailing, database_clock.now())
    return mailing
