"""The form of a mailing: written anew, copied or changed, with what it would do beside it."""

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
from mailer.admin import mailing_fields as fields
from mailer.admin import mailing_preview as preview
from mailer.admin.form import LONG_LIMIT, Form, typed
from mailer.admin.language import marked
from mailer.admin.render import Show, done
from mailer.clock import database_clock
from mailer.errors import FieldError, InvalidError
from mailer.gateway.breaker import Breaker
from mailer.gateway.pace import Pace
from mailer.mailing import service, store
from mailer.mailing.model import ENDED, Mailing, MailingEndedError, MailingStartedError
from mailer.mailing.query import MailingId
from mailer.report.forecast import usable_pace
from mailer.validation import MAX_ID

SEEN = "seen"
"""The field that tells which state of a mailing the form was made from."""
CHANGED_MEANWHILE = marked(
    "Somebody else changed this mailing meanwhile. What you typed is still here: save again, and"
    " it takes the place of theirs."
)
STARTED_MEANWHILE = marked("The mailing has started meanwhile.")
HAS_STARTED = marked("cannot be changed any more: the mailing has started")

Copied = Annotated[int | None, QueryParameter(name="from", ge=1, le=MAX_ID)]
Changed = Annotated[int | None, QueryParameter(name="mailing", ge=1, le=MAX_ID)]


class Sheet(msgspec.Struct, frozen=True, kw_only=True):
    """A form for a mailing, and what it stands on."""

    engine: AsyncEngine
    pace: Pace | None
    show: Show
    copy_of: int | None = None
    mailing: Mailing | None = None
    """The one that it changes."""

    async def page(self, form: Form, status: int = HTTP_200_OK) -> Response[str]:
        """Answer with the form."""
        facts = await self._facts(form.values)
        return self.show.page("mailings/form.html", status, form=form, **facts)

    async def part(self, values: dict[str, str]) -> Response[str]:
        """Answer with the preview alone."""
        return self.show.page("mailings/preview.html", **await self._facts(values))

    async def _facts(self, values: fields.Values) -> dict[str, Any]:
        now, zone = database_clock.now(), fields.zone_of(values)
        draft, wrong = fields.read_draft(values, self.mailing, now)
        seen = await preview.look(self.engine, draft, values["text"], zone, self.pace, self.mailing)
        is_begun = self.mailing is not None and self.mailing.datetime_start <= now
        return {
            "preview": seen,
            "wrong": wrong,
            "forecast": seen.forecast,
            "sharing": seen.sharing,
            "here": msgspec.structs.replace(self.show.viewer, time_zone=zone),
            "offset": preview.utc_offset(_offset(seen.day.start, zone)),
            "mailing": self.mailing,
            "is_begun": is_begun,
            "copy_of": self.copy_of,
        }


def _offset(moment: datetime, zone: str) -> Any:  # noqa: ANN401  # a timedelta: every zone has one
    return moment.astimezone(ZoneInfo(zone)).utcoffset()


def sheet_of(
    engine: NamedDependency[AsyncEngine],
    breaker: NamedDependency[Breaker | None],
    pace: NamedDependency[Pace | None],
    show: NamedDependency[Show],
) -> Sheet:
    """Return the form as it is before it is known for which mailing."""
    return Sheet(engine=engine, pace=usable_pace(pace, breaker), show=show)


class MailingForm(Controller):
    """Where mailings are written."""

    path = "/mailings"
    request_max_body_size = LONG_LIMIT
    dependencies = {"sheet": Provide(sheet_of, sync_to_thread=False)}  # noqa: RUF012  # Litestar's way

    @get("/new", needs="write")
    async def show_new(self, sheet: NamedDependency[Sheet], copied: Copied = None) -> Response[str]:
        """Show the form of a new mailing, or of a copy of one."""
        now, zone = database_clock.now(), sheet.show.viewer.time_zone
        if copied is None:
            return await sheet.page(Form(fields.blank(now, zone) | {SEEN: ""}))
        values = fields.copied(await _mailing(sheet.engine, copied), now, zone)
        sheet = msgspec.structs.replace(sheet, copy_of=copied)
        return await sheet.page(Form(values | {SEEN: ""}))

    @post("/new", needs="write", creates=True)
    async def create(
        self,
        request: Request[Any, Any, Any],
        sheet: NamedDependency[Sheet],
        by: NamedDependency[Actor],
        copied: Copied = None,
    ) -> Response[str] | Redirect:
        """Create a mailing, or show the form again with what is wrong."""
        if by.effect is not None:  # the answer of the attempt that created it was lost
            return done("mailing-created", f"/mailings/{by.effect['id']}")
        form = Form(await typed(request, *fields.FIELDS, SEEN))
        try:
            new = fields.read_new(form.values, database_clock.now())
            mailing = await service.create(sheet.engine, new, by)
        except InvalidError as error:
            sheet = msgspec.structs.replace(sheet, copy_of=copied)
            return await sheet.page(form.refused(error, fields.NAMES), HTTP_400_BAD_REQUEST)
        return done("mailing-created", f"/mailings/{mailing.id}")

    @get("/{mailing_id:int}/edit", needs="write")
    async def show_edit(
        self, sheet: NamedDependency[Sheet], mailing_id: MailingId
    ) -> Response[str]:
        """Show the form of a mailing that has not ended."""
        mailing = await _changeable(sheet.engine, mailing_id)
        values = fields.written(mailing, sheet.show.viewer.time_zone)
        sheet = msgspec.structs.replace(sheet, mailing=mailing)
        return await sheet.page(Form(values | {SEEN: fields.state(mailing)}))

    @post("/{mailing_id:int}/edit", needs="write")
    async def change(
        self,
        request: Request[Any, Any, Any],
        sheet: NamedDependency[Sheet],
        by: NamedDependency[Actor],
        mailing_id: MailingId,
    ) -> Response[str] | Redirect:
        """Change what is different in the form, unless somebody else changed the mailing."""
        mailing = await _changeable(sheet.engine, mailing_id)
        sheet = msgspec.structs.replace(sheet, mailing=mailing)
        values = await typed(request, *fields.FIELDS, SEEN)
        seen, values[SEEN] = values[SEEN], fields.state(mailing)
        form = Form(values)
        if seen != values[SEEN] and _is_saved(values, mailing):
            return done("mailing-changed", f"/mailings/{mailing_id}")
        if seen != values[SEEN]:
            refusal = InvalidError([FieldError("", CHANGED_MEANWHILE)])
            return await sheet.page(form.refused(refusal), HTTP_409_CONFLICT)
        try:
            changes = fields.read_change(values, mailing, database_clock.now())
            await service.change(sheet.engine, mailing_id, changes, by)
        except InvalidError as error:
            return await sheet.page(form.refused(error, fields.NAMES), HTTP_400_BAD_REQUEST)
        except MailingStartedError:
            values["start"] = fields.written(mailing, fields.zone_of(values))["start"]
            refusal = InvalidError(
                [FieldError("", STARTED_MEANWHILE), FieldError("start", HAS_STARTED)]
            )
            return await sheet.page(form.refused(refusal), HTTP_409_CONFLICT)
        return done("mailing-changed", f"/mailings/{mailing_id}")

    @post("/preview", status_code=HTTP_200_OK, needs="write")
    async def show_preview(
        self,
        request: Request[Any, Any, Any],
        sheet: NamedDependency[Sheet],
        changed: Changed = None,
    ) -> Response[str]:
        """Show what a form would do while it is being filled in."""
        if changed is not None:
            mailing = await _mailing(sheet.engine, changed)
            sheet = msgspec.structs.replace(sheet, mailing=mailing)
        return await sheet.part(await typed(request, *fields.FIELDS))


def _is_saved(values: fields.Values, mailing: Mailing) -> bool:
    """Whether a mailing is as a form would make it, as it is when the form is sent twice."""
    try:
        changes = fields.read_change(values, mailing, database_clock.now())
    except InvalidError:
        return False
    return all(getattr(mailing, name) == value for name, value in changes.given().items())


async def _mailing(engine: AsyncEngine, mailing_id: int) -> Mailing:
    async with engine.connect() as connection:
        return await store.get(connection, mailing_id)


async def _changeable(engine: AsyncEngine, mailing_id: int) -> Mailing:
    mailing = await _mailing(engine, mailing_id)
    if mailing.status in ENDED or mailing.datetime_end <= database_clock.now():
        raise MailingEndedError
    return mailing
