"""The page of the mailing form with its preview, and the page that asks for confirmation."""

from datetime import datetime
from typing import Any
from uuid import uuid4
from zoneinfo import ZoneInfo

import msgspec
from litestar import Response
from litestar.status_codes import HTTP_200_OK, HTTP_409_CONFLICT
from msgspec import UNSET
from sqlalchemy.ext.asyncio import AsyncEngine

from mailer.admin.form import Form
from mailer.admin.mailings import fields
from mailer.admin.mailings.expectation import expect
from mailer.admin.mailings.intent import Intent
from mailer.admin.mailings.preview import build_preview, utc_offset
from mailer.admin.mailings.template_preview import typed_template
from mailer.admin.render import PageContext
from mailer.client.lists import store as lists
from mailer.clock import database_clock
from mailer.contact_cap import ContactCap
from mailer.errors import FieldError, InvalidError
from mailer.gateway import routes
from mailer.gateway.channel import Channels
from mailer.mailing.audience import ensure_lists_exist, segments_read_once
from mailer.mailing.audience_overlap import read_overlap
from mailer.mailing.model import Mailing, NewMailing
from mailer.mailing.text_reach import TextReach

FINGERPRINT_FIELD = "seen"
"""Hidden field with the fingerprint of the mailing that the form was rendered for.

If the mailing has another fingerprint when the form is sent, another user has changed it since.
"""


class MailingFormPage(msgspec.Struct, frozen=True, kw_only=True):
    """The page of the mailing form, with what it needs to be rendered."""

    engine: AsyncEngine
    channels: Channels
    """The gateways that forecasts and costs rest on."""
    context: PageContext
    confirm_above: int
    """Number of clients above which the user must type their number."""
    approval_above: int | None
    """Number of clients above which a second user must launch a mailing; None: never."""
    contact_cap: ContactCap | None = None
    copy_of: int | None = None
    """Id of the mailing that the form copies; None if it copies none."""
    mailing: Mailing | None = None
    """The mailing that the form changes; None if it creates one."""

    async def render(self, form: Form, status: int = HTTP_200_OK) -> Response[str]:
        """Return a response with the whole page."""
        variables = await self._variables(form.values)
        return await self.context.render_page("mailings/form.html", status, form=form, **variables)

    async def render_conflict(self, form: Form, message: str) -> Response[str]:
        """Return a response with the whole page, and an error of the whole form."""
        refusal = InvalidError([FieldError("", message)])
        return await self.render(form.with_errors(refusal), HTTP_409_CONFLICT)

    async def render_confirmation(
        self,
        form: Form,
        new: NewMailing,
        intent: Intent,
        reach: TextReach | None,
        status: int = HTTP_200_OK,
    ) -> Response[str]:
        """Return the page that asks whether to do what the form would do.

        It contains the form in hidden fields. `new` is the mailing as it would be, and `reach` is
        that of its text, if it has placeholders.
        """
        overlap = None
        expected = None
        with segments_read_once():
            if intent.kind != "save" and new.purpose == "marketing":
                async with self.engine.connect() as connection:
                    overlap = await read_overlap(
                        connection,
                        new.client_filter,
                        self.contact_cap,
                        mailing_id=None if self.mailing is None else self.mailing.id,
                        period=(new.datetime_start, new.datetime_end),
                    )
            if intent.kind != "save":
                expected = await expect(self.engine, self.channels, new, reach)
        return await self.context.render_page(
            "mailings/confirm.html",
            status,
            form=form,
            forecast=expected,
            new=new,
            intent=intent,
            reach=reach,
            overlap=overlap,
            contact_cap=self.contact_cap,
            must_type=intent.must_type(self.confirm_above),
            mailing=self.mailing,
            zone=fields.zone_of(form.values),
            now=database_clock.now(),
            kept_fields=(*fields.MAILING_FIELDS, FINGERPRINT_FIELD),
        )

    async def render_preview(self, values: dict[str, str]) -> Response[str]:
        """Return a response with the preview only."""
        return await self.context.render_page(
            "mailings/preview.html", **await self._variables(values)
        )

    def has_started(self, now: datetime) -> bool:
        """Return whether the start of the mailing has passed, so that it is fixed."""
        mailing = self.mailing
        return mailing is not None and not mailing.is_draft and mailing.datetime_start <= now

    async def _variables(self, values: fields.FormValues) -> dict[str, Any]:
        """Return the variables of the templates of the form and of the preview."""
        now, zone = database_clock.now(), fields.zone_of(values)
        typed, typed_errors = fields.read_typed(values, self.mailing, now)
        mailing_text = fields.values_of(self.mailing, zone)["text"] if self.mailing else ""
        template = typed_template(values["text"], self.mailing, mailing_text)
        async with self.engine.connect() as connection:
            list_names = await lists.find_newest_names(connection)
            try:
                await ensure_lists_exist(connection, typed.client_filter)
            except InvalidError as error:
                typed = msgspec.structs.replace(typed, client_filter=UNSET)
                typed_errors["lists"] = error.errors[0].message
        with segments_read_once():
            built_preview = await build_preview(
                self.engine,
                typed,
                values["text"],
                zone,
                self.channels,
                self.mailing,
                template,
                self.contact_cap,
            )
        async with self.engine.connect() as connection:
            gateway_names = await routes.gateway_names(connection)
        intent = built_preview.intent
        test_path = f"/mailings/{'new' if self.mailing is None else f'{self.mailing.id}/edit'}/test"
        needs_approval = intent.kind != "save" and self.approval_above is not None
        return {
            "preview": built_preview,
            "intent": intent,
            "now": now,
            "needs_approval": needs_approval and intent.audience > (self.approval_above or 0),
            "typed_errors": typed_errors,
            "forecast": built_preview.forecast,
            "contact_cap": self.contact_cap,
            "capacity": built_preview.capacity,
            # the form is in its own time zone, even if the viewer chooses another one
            "form_viewer": msgspec.structs.replace(self.context.viewer, time_zone=zone),
            "offset": utc_offset(_offset_at(built_preview.day.mailing_start, zone)),
            "mailing": self.mailing,
            "has_started": self.has_started(now),
            "copy_of": self.copy_of,
            "form_test_url": f"{test_path}?once={uuid4().hex}",
            "gateway_names": gateway_names,
            "list_names": [fields.quoted(name) for name in list_names],
        }


def _offset_at(moment: datetime, zone: str) -> Any:  # noqa: ANN401  # a timedelta, never None
    """Return the offset of a time zone from UTC at a moment."""
    return moment.astimezone(ZoneInfo(zone)).utcoffset()
