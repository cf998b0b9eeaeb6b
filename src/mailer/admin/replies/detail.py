"""The page of a reply: its text, its answers, and the form of a new answer."""

from typing import Any
from uuid import uuid4

from litestar import Controller, Request, Response, get, post
from litestar.di import NamedDependency
from litestar.response import Redirect, ServerSentEvent
from litestar.status_codes import (
    HTTP_200_OK,
    HTTP_303_SEE_OTHER,
    HTTP_400_BAD_REQUEST,
    HTTP_409_CONFLICT,
)
from sqlalchemy.ext.asyncio import AsyncEngine

from mailer.access.model import Actor
from mailer.admin.form import MAX_SMALL_FORM_BYTES, Form, read_form, validate
from mailer.admin.live import LiveUpdates, Sections
from mailer.admin.mailings.text_preview import preview_text
from mailer.admin.redirects import own_path
from mailer.admin.render import PageContext, redirect_with_flash
from mailer.client import store as clients
from mailer.clock import database_clock
from mailer.errors import ConflictError, FieldError, InvalidError
from mailer.gateway.channel import Channels
from mailer.idempotency.model import IdempotencyClaim
from mailer.mailing import store as mailings
from mailer.mailing.errors import MailingNotFoundError
from mailer.reply import reading, service
from mailer.reply.api import ReplyId
from mailer.reply.model import NewAnswer

SECTIONS = ("details", "answers")
"""The sections that are updated live: the names of their templates, and their ids in the HTML."""


async def read_reply(engine: AsyncEngine, channels: Channels, reply_id: int) -> dict[str, Any]:
    """Return the template variables of a reply's sections; raises `ReplyNotFoundError`."""
    async with engine.connect() as connection:
        reply = await reading.get_detail(connection, reply_id)
        mailing = None
        if reply.mailing_id is not None:
            try:
                mailing = await mailings.get(connection, reply.mailing_id)
            except MailingNotFoundError:  # deleted since
                mailing = None
        phones = {}
        if reply.client_id is not None:
            phones = await clients.get_phones(connection, [reply.client_id])
    return {
        "reply": reply,
        "mailing": mailing,
        "has_client": phones.get(reply.client_id or 0) is not None,
        "has_gateway": channels.get(reply.gateway) is not None,
    }


def new_answer_variables(reply_id: int) -> dict[str, Any]:
    """Return the template variables of a form for a new answer.

    Sending it twice sends one answer, because its URL has a random number.
    """
    return form_variables(Form({"text": ""}), f"/replies/{reply_id}/answer?once={uuid4().hex}")


def form_variables(form: Form, answer_url: str) -> dict[str, Any]:
    """Return the template variables of a form for an answer, with the size of its text."""
    return {"form": form, "answer_url": answer_url, "preview": preview_text(form["text"])}


def redirect_to_reply(reply_id: int) -> Redirect:
    """Return the redirect to a reply after it was answered."""
    return redirect_with_flash("reply-answered", f"/replies/{reply_id}")


class ReplyPage(Controller):
    """The page of a reply, and the actions on it."""

    path = "/"

    @get("/replies/{reply_id:int}", required_scope="read")
    async def show_reply(
        self,
        engine: NamedDependency[AsyncEngine],
        channels: NamedDependency[Channels],
        context: NamedDependency[PageContext],
        reply_id: ReplyId,
    ) -> Response[str]:
        """Show a reply."""
        variables = await read_reply(engine, channels, reply_id) | new_answer_variables(reply_id)
        return await context.render_page("replies/reply.html", **variables)

    @get("/live/replies/{reply_id:int}", required_scope="read", is_polled=True)
    async def watch_reply(
        self,
        engine: NamedDependency[AsyncEngine],
        channels: NamedDependency[Channels],
        context: NamedDependency[PageContext],
        live: NamedDependency[LiveUpdates],
        reply_id: ReplyId,
    ) -> ServerSentEvent:
        """Stream the sections of a reply's page whenever they change."""

        async def sections() -> Sections:
            variables = await read_reply(engine, channels, reply_id)
            return await context.render_sections("replies", SECTIONS, **variables)

        key = ("reply", context.viewer, context.may("write"), reply_id)
        return live.stream(key, sections, context.quota_key)

    @post(
        "/replies/{reply_id:int}/read",
        required_scope="write",
        request_max_body_size=MAX_SMALL_FORM_BYTES,
    )
    async def mark_as_read(
        self,
        request: Request[Any, Any, Any],
        engine: NamedDependency[AsyncEngine],
        reply_id: ReplyId,
    ) -> Redirect:
        """Mark a reply as read, and redirect back to the page with the button."""
        return_path = own_path((await read_form(request, "return_path"))["return_path"])
        await service.mark_as_read(engine, reply_id)
        return redirect_with_flash("reply-read", return_path)

    @post(
        "/replies/{reply_id:int}/unread",
        required_scope="write",
        request_max_body_size=MAX_SMALL_FORM_BYTES,
    )
    async def mark_as_unread(
        self,
        request: Request[Any, Any, Any],
        engine: NamedDependency[AsyncEngine],
        reply_id: ReplyId,
    ) -> Redirect:
        """Mark a reply as unread, and redirect back to the page with the button."""
        return_path = own_path((await read_form(request, "return_path"))["return_path"])
        await service.mark_as_unread(engine, reply_id)
        return redirect_with_flash("reply-unread", return_path)

    @post("/replies/preview", status_code=HTTP_200_OK, required_scope="write")
    async def preview_answer(
        self, request: Request[Any, Any, Any], context: NamedDependency[PageContext]
    ) -> Response[str]:
        """Show the size of an answer that is being written."""
        values = await read_form(request, "text")
        return await context.render_page("replies/size.html", preview=preview_text(values["text"]))

    @get("/replies/{reply_id:int}/answer", required_scope="write")
    async def show_again(self, reply_id: ReplyId) -> Redirect:
        """Redirect to the reply, for example after the language was changed on a refused form."""
        return Redirect(f"/replies/{reply_id}", status_code=HTTP_303_SEE_OTHER)

    @post("/replies/{reply_id:int}/answer", required_scope="write", creates=redirect_to_reply)
    async def answer(  # noqa: PLR0913, PLR0917  # the form, and what the page shows
        self,
        request: Request[Any, Any, Any],
        engine: NamedDependency[AsyncEngine],
        channels: NamedDependency[Channels],
        context: NamedDependency[PageContext],
        by: NamedDependency[Actor],
        claim: NamedDependency[IdempotencyClaim | None],
        reply_id: ReplyId,
    ) -> Response[Any]:
        """Answer a reply, or show the form again with its errors."""
        form = Form(await read_form(request, "text"))
        try:
            new = validate(NewAnswer, form.values, [], database_clock.now())
            await service.create_answer(engine, channels, reply_id, new, by, claim)
        except InvalidError as error:
            status, form = HTTP_400_BAD_REQUEST, form.with_errors(error)
        except ConflictError as error:
            refusal = InvalidError([FieldError("", str(error))])
            status, form = HTTP_409_CONFLICT, form.with_errors(refusal)
        else:
            return redirect_to_reply(reply_id)
        variables = await read_reply(engine, channels, reply_id)
        variables |= form_variables(form, context.path)
        return await context.render_page("replies/reply.html", status, **variables)
