"""The test from the form of a mailing: saves the draft as typed, and sends it to a few phones.

So the text, the gateway and the sender are those in the form. The page of the draft shows the
results.
"""

from collections.abc import Callable
from typing import Any, TypeVar

import msgspec
from litestar import Controller, Request, Response, get, post
from litestar.di import NamedDependency, Provide
from litestar.response import Redirect
from litestar.status_codes import HTTP_303_SEE_OTHER, HTTP_400_BAD_REQUEST

from mailer.access.model import Actor
from mailer.admin.form import MAX_LONG_FORM_BYTES, Form, read_form
from mailer.admin.mailings import fields
from mailer.admin.mailings.form import (
    CHANGED_MEANWHILE,
    FORM_FIELDS,
    LAUNCHED_MEANWHILE,
    get_changeable,
    provide_form_page,
)
from mailer.admin.mailings.form_page import FINGERPRINT_FIELD, MailingFormPage
from mailer.admin.mailings.testing import (
    PHONES_FIELD,
    read_test,
    redirect_to_mailing,
    send_test,
)
from mailer.clock import database_clock
from mailer.errors import FieldError, InvalidError
from mailer.gateway_control.api import check_test_rate
from mailer.gateway_control.testing_model import MailingTest
from mailer.idempotency.model import IdempotencyClaim
from mailer.limits import RateLimiter
from mailer.mailing import service
from mailer.mailing.api import MailingId
from mailer.settings import Settings

Read = TypeVar("Read")


class FormTest(Controller):
    """Saves the form of a draft, and sends the draft as a test."""

    path = "/mailings"
    request_max_body_size = MAX_LONG_FORM_BYTES
    dependencies = {"form_page": Provide(provide_form_page, sync_to_thread=False)}  # noqa: RUF012  # Litestar's way

    @get("/new/test", required_scope="write")
    async def show_new_again(self) -> Redirect:
        """Redirect to the form, for example after the language was changed on a result."""
        return Redirect("/mailings/new", status_code=HTTP_303_SEE_OTHER)

    @get("/{mailing_id:int}/edit/test", required_scope="write")
    async def show_edit_again(self, mailing_id: MailingId) -> Redirect:
        """Redirect to the form of a draft."""
        return Redirect(f"/mailings/{mailing_id}/edit", status_code=HTTP_303_SEE_OTHER)

    @post("/new/test", required_scope="write", creates=redirect_to_mailing)
    async def test_new(  # noqa: PLR0913, PLR0917  # Litestar passes its dependencies so
        self,
        request: Request[Any, Any, Any],
        form_page: NamedDependency[MailingFormPage],
        settings: NamedDependency[Settings],
        by: NamedDependency[Actor],
        claim: NamedDependency[IdempotencyClaim | None],
        test_rate: NamedDependency[RateLimiter],
    ) -> Response[Any]:
        """Create a draft and send it as a test, or show the form again with its errors.

        If the form is sent twice, the second request is redirected to the draft.
        """
        values = await read_form(request, *FORM_FIELDS)
        form_page, now = _at_path(form_page, "/mailings/new"), database_clock.now()
        try:
            new, test = _read(values, lambda: fields.read_new(values, now, is_draft=True))
            check_test_rate(test_rate, by)
            draft = await service.create(form_page.engine, new, by, claim)
        except InvalidError as error:
            return await _render_errors(form_page, values, error)
        return await _send(form_page, draft.id, test, by, None, settings.receipt_wait)

    @post("/{mailing_id:int}/edit/test", required_scope="write", creates=redirect_to_mailing)
    async def test_changed(  # noqa: PLR0913, PLR0917  # Litestar passes its dependencies so
        self,
        request: Request[Any, Any, Any],
        form_page: NamedDependency[MailingFormPage],
        settings: NamedDependency[Settings],
        by: NamedDependency[Actor],
        claim: NamedDependency[IdempotencyClaim | None],
        test_rate: NamedDependency[RateLimiter],
        mailing_id: MailingId,
    ) -> Response[Any]:
        """Change a draft and send it as a test, unless another user has changed it meanwhile."""
        draft = await get_changeable(form_page.engine, mailing_id)
        form_page = _at_path(form_page, f"/mailings/{mailing_id}/edit")
        form_page = msgspec.structs.replace(form_page, mailing=draft)
        values, now = await read_form(request, *FORM_FIELDS), database_clock.now()
        is_outdated = values[FINGERPRINT_FIELD] != draft.content_digest
        values[FINGERPRINT_FIELD] = draft.content_digest  # it is saved if it is sent again
        if is_outdated or not draft.is_draft:
            conflict = CHANGED_MEANWHILE if is_outdated else LAUNCHED_MEANWHILE
            return await form_page.render_conflict(Form(values), conflict)
        try:
            changes, test = _read(
                values, lambda: fields.read_change(values, draft, now, is_draft=True)
            )
            check_test_rate(test_rate, by)
            await service.change(
                form_page.engine, mailing_id, changes, by, approval_above=form_page.approval_above
            )
        except InvalidError as error:
            return await _render_errors(form_page, values, error)
        return await _send(form_page, mailing_id, test, by, claim, settings.receipt_wait)


def _at_path(form_page: MailingFormPage, path: str) -> MailingFormPage:
    """Return the page as it is shown at `path`, so that its other buttons do what they do there."""
    context = msgspec.structs.replace(form_page.context, path=path)
    return msgspec.structs.replace(form_page, context=context)


def _read(values: fields.FormValues, read_mailing: Callable[[], Read]) -> tuple[Read, MailingTest]:
    """Return the mailing in a form, and the test; raises `InvalidError` with every wrong field."""
    errors = list[FieldError]()
    try:
        test = read_test(values[PHONES_FIELD])
    except InvalidError as error:
        errors += error.errors
    try:
        mailing = read_mailing()
    except InvalidError as error:
        raise InvalidError([*error.errors, *errors]) from error
    if errors:
        raise InvalidError(errors)
    return mailing, test


async def _render_errors(
    form_page: MailingFormPage, values: fields.FormValues, error: InvalidError
) -> Response[str]:
    form = Form(values).with_errors(error, fields.MAIN_FIELD_BY_NAME)
    return await form_page.render(form, HTTP_400_BAD_REQUEST)


async def _send(  # noqa: PLR0913, PLR0917  # the page, and the parts of a change that is made once
    form_page: MailingFormPage,
    mailing_id: int,
    test: MailingTest,
    by: Actor,
    claim: IdempotencyClaim | None,
    receipt_wait: float,
) -> Response[Any]:
    """Send the test of a saved draft, and show its page with the results."""
    engine, channels = form_page.engine, form_page.channels
    context = _at_path(form_page, f"/mailings/{mailing_id}").context
    return await send_test(engine, channels, context, mailing_id, receipt_wait, test, by, claim)
