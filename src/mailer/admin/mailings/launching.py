"""The actions that send: to launch a draft, and to start a mailing now. Each asks before."""

from typing import Any, Literal, NamedTuple

import msgspec
from litestar import Controller, Request, Response, get, post
from litestar.di import NamedDependency, Provide
from litestar.response import Redirect
from litestar.status_codes import HTTP_200_OK, HTTP_400_BAD_REQUEST, HTTP_409_CONFLICT
from sqlalchemy.ext.asyncio import AsyncEngine

from mailer.access.model import Actor
from mailer.admin.form import Form, read_form
from mailer.admin.language import gettext_noop
from mailer.admin.mailings.detail import render_refusal
from mailer.admin.mailings.expectation import expect
from mailer.admin.mailings.intent import (
    AGREED_FIELD,
    INTENT_FIELDS,
    SHOWN_FIELD,
    Intent,
    count_getting,
    launch_intent,
)
from mailer.admin.render import PageContext, redirect_with_flash
from mailer.clock import database_clock
from mailer.errors import ConflictError, InvalidError
from mailer.gateway.channel import Channels
from mailer.mailing import launching, store
from mailer.mailing.actions import allowed_actions
from mailer.mailing.api import MailingId
from mailer.mailing.audience import segments_read_once
from mailer.mailing.audience_overlap import AudienceOverlap, read_overlap
from mailer.mailing.model import Mailing
from mailer.mailing.text_reach import TextReach, read_text_reach
from mailer.settings import Settings

Verb = Literal["launch", "start"]
"""An action; also the last part of its URL."""
NOT_ALLOWED = gettext_noop("The mailing's current status does not allow this.")
END_HAS_PASSED = gettext_noop("The end has passed. Set a later end first.")


class Launch(NamedTuple):
    """A mailing and what an action does with it."""

    mailing: Mailing
    intent: Intent
    reach: TextReach | None
    """That of the text; None if it has no placeholders."""


class LaunchQuestion(msgspec.Struct, frozen=True):
    """Asks before a mailing is launched or started now, and knows whether the user has agreed."""

    engine: AsyncEngine
    channels: Channels
    """The gateways that the forecast rests on."""
    context: PageContext
    settings: Settings

    async def ask(self, verb: Verb, mailing_id: int) -> Response[str]:
        """Return the page that asks for confirmation."""
        with segments_read_once():
            question = await self._read(verb, mailing_id)
            return await self._render(verb, question, Form({}))

    async def ask_again(
        self, verb: Verb, mailing_id: int, values: dict[str, str]
    ) -> Response[str] | None:
        """Return the page that asks for confirmation; None if the user has agreed in `values`."""
        question = await self._read(verb, mailing_id)
        form, status = Form(values), HTTP_200_OK
        try:
            if question.intent.is_agreed(values, self.settings.confirm_above):
                return None
        except InvalidError as error:
            form, status = form.with_errors(error), HTTP_400_BAD_REQUEST
        return await self._render(verb, question, form, status)

    async def _read(self, verb: Verb, mailing_id: int) -> Launch:
        """Return a mailing, and what the action does."""
        async with self.engine.connect() as connection:
            mailing = await store.get(connection, mailing_id)
        client_filter, purpose, reach = mailing.client_filter, mailing.purpose, None
        if (template := mailing.template) is not None:
            reach = await read_text_reach(self.engine, template, client_filter, purpose)
        async with self.engine.connect() as connection:
            clients = await count_getting(connection, client_filter, purpose, reach)
        if verb == "start":
            digest = mailing.content_digest
            intent = Intent(kind="send", clients=clients, content_digest=digest)
        else:
            intent = launch_intent(mailing, database_clock.now(), clients)
        return Launch(mailing, intent, reach)

    async def _read_overlap(self, mailing: Mailing) -> AudienceOverlap | None:
        """Return how a mailing overlaps with others; None unless it is marketing."""
        if mailing.purpose != "marketing":
            return None
        async with self.engine.connect() as connection:
            return await read_overlap(
                connection,
                mailing.client_filter,
                self.settings.parsed_contact_cap,
                mailing_id=mailing.id,
                period=(mailing.datetime_start, mailing.datetime_end),
            )

    async def _render(
        self, verb: Verb, question: Launch, form: Form, status: int = HTTP_200_OK
    ) -> Response[str]:
        """Return the page that asks, or the one that says why the action is refused."""
        mailing, intent, reach = question
        now = database_clock.now()
        is_allowed = verb in allowed_actions(mailing, now)
        if not is_allowed or mailing.datetime_end <= now:
            error = END_HAS_PASSED if is_allowed else NOT_ALLOWED
            path = f"/mailings/{mailing.id}"
            return await render_refusal(self.context, HTTP_409_CONFLICT, error, path)
        start = {"datetime_start": now} if verb == "start" else None
        return await self.context.render_page(
            "mailings/launch.html",
            status,
            mailing=mailing,
            forecast=await expect(self.engine, self.channels, mailing, reach, start),
            verb=verb,
            intent=intent,
            reach=reach,
            form=form,
            overlap=await self._read_overlap(mailing),
            contact_cap=self.settings.parsed_contact_cap,
            must_type=intent.must_type(self.settings.confirm_above),
            now=now,
        )


def provide_question(
    engine: NamedDependency[AsyncEngine],
    channels: NamedDependency[Channels],
    context: NamedDependency[PageContext],
    settings: NamedDependency[Settings],
) -> LaunchQuestion:
    """Return the question that the actions ask."""
    return LaunchQuestion(engine, channels, context, settings)


class MailingLaunch(Controller):
    """The confirmation pages of the actions that send, and the actions."""

    path = "/mailings/{mailing_id:int}"
    dependencies = {"question": Provide(provide_question, sync_to_thread=False)}  # noqa: RUF012  # Litestar's way

    @get("/launch", required_scope="write")
    async def ask_to_launch(
        self, question: NamedDependency[LaunchQuestion], mailing_id: MailingId
    ) -> Response[str]:
        """Ask before a draft is launched."""
        return await question.ask("launch", mailing_id)

    @get("/start", required_scope="write")
    async def ask_to_start(
        self, question: NamedDependency[LaunchQuestion], mailing_id: MailingId
    ) -> Response[str]:
        """Ask before a mailing is started now."""
        return await question.ask("start", mailing_id)

    @post("/launch", required_scope="write")
    async def launch(
        self,
        request: Request[Any, Any, Any],
        question: NamedDependency[LaunchQuestion],
        by: NamedDependency[Actor],
        mailing_id: MailingId,
    ) -> Response[str] | Redirect:
        """Launch a draft."""
        return await _act(request, question, by, "launch", mailing_id)

    @post("/start", required_scope="write")
    async def start(
        self,
        request: Request[Any, Any, Any],
        question: NamedDependency[LaunchQuestion],
        by: NamedDependency[Actor],
        mailing_id: MailingId,
    ) -> Response[str] | Redirect:
        """Start a mailing now; launch a draft."""
        return await _act(request, question, by, "start", mailing_id)


async def _act(
    request: Request[Any, Any, Any],
    question: LaunchQuestion,
    by: Actor,
    verb: Verb,
    mailing_id: int,
) -> Response[str] | Redirect:
    """Carry out an action if the user has agreed; else ask again. If it is refused, show why."""
    values = await read_form(request, *INTENT_FIELDS)
    if (page := await question.ask_again(verb, mailing_id, values)) is not None:
        return page
    path = f"/mailings/{mailing_id}"
    options: dict[str, Any] = {
        "approval_above": question.settings.approval_above,
        # at the end of the intent to which the user has agreed
        "content_digest": (values[AGREED_FIELD] or values[SHOWN_FIELD]).rpartition(" ")[2],
    }
    try:
        if verb == "start":
            await launching.start_now(question.engine, mailing_id, by, **options)
            return redirect_with_flash("mailing-started", path)
        await launching.launch(question.engine, mailing_id, by, **options)
        return redirect_with_flash("mailing-launched", path)
    except ConflictError as error:
        return await render_refusal(question.context, HTTP_409_CONFLICT, str(error), path)
