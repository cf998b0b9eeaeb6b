"""The pages of a user's notices by mail: the user's own, and that of another user for admins."""

from typing import Any

from litestar import Controller, Request, Response, get, post
from litestar.di import NamedDependency
from litestar.status_codes import HTTP_400_BAD_REQUEST, HTTP_409_CONFLICT
from sqlalchemy.ext.asyncio import AsyncEngine

from mailer.access import users
from mailer.access.model import Actor
from mailer.admin.form import Form, read_form, validate
from mailer.admin.render import PageContext, redirect_with_flash
from mailer.admin.users.index import PATH as USERS_PATH
from mailer.admin.users.index import UserId
from mailer.admin.users.profile import PATH as PROFILE_PATH
from mailer.admin.viewer import Viewer
from mailer.admin.webhooks.fields import CHECKED
from mailer.clock import database_clock
from mailer.errors import ConflictError, FieldError, InvalidError
from mailer.notice import recipients
from mailer.notice.model import NOTICE_CHOICES, NoticeRecipient, NoticeSettings
from mailer.settings import Settings

NOTICE_FIELD = "notice-{}"
"""Name of the checkbox of a kind of notice."""
NOTICE_FORM_FIELDS = (
    "mail",
    "kinds",
    "language",
    "time_zone",
    *map(NOTICE_FIELD.format, NOTICE_CHOICES),
)
"""The fields of the form. `kinds` is not sent: errors of the notices belong to it."""


class OwnNotices(Controller):
    """The notices of the signed-in user."""

    path = f"{PROFILE_PATH}/notices"

    @get(required_scope="read")
    async def show_own(
        self,
        engine: NamedDependency[AsyncEngine],
        settings: NamedDependency[Settings],
        context: NamedDependency[PageContext],
        by: NamedDependency[Actor],
    ) -> Response[str]:
        """Show the form of the user's own notices, and how sending to the user goes."""
        return await _show(engine, settings, context, by.user_id)

    @post(required_scope="read")
    async def save_own(
        self,
        engine: NamedDependency[AsyncEngine],
        settings: NamedDependency[Settings],
        context: NamedDependency[PageContext],
        by: NamedDependency[Actor],
        request: Request[Any, Any, Any],
    ) -> Response[Any]:
        """Save the user's own address and notices."""
        return await _save(engine, settings, context, request, by, by.user_id)

    @post("/test", required_scope="read")
    async def test_own(
        self,
        engine: NamedDependency[AsyncEngine],
        settings: NamedDependency[Settings],
        context: NamedDependency[PageContext],
        by: NamedDependency[Actor],
    ) -> Response[Any]:
        """Send a test mail to the user."""
        return await _test(engine, settings, context, by, by.user_id)


class UserNotices(Controller):
    """The notices of a user, for admins."""

    path = f"{USERS_PATH}/{{user_id:int}}/notices"

    @get(required_scope="admin")
    async def show_notices(
        self,
        engine: NamedDependency[AsyncEngine],
        settings: NamedDependency[Settings],
        context: NamedDependency[PageContext],
        user_id: UserId,
    ) -> Response[str]:
        """Show the form of a user's notices, and how sending to the user goes."""
        return await _show(engine, settings, context, user_id)

    @post(required_scope="admin")
    async def save_notices(  # noqa: PLR0913, PLR0917  # the dependencies of the route
        self,
        engine: NamedDependency[AsyncEngine],
        settings: NamedDependency[Settings],
        context: NamedDependency[PageContext],
        by: NamedDependency[Actor],
        request: Request[Any, Any, Any],
        user_id: UserId,
    ) -> Response[Any]:
        """Save the address and the notices of a user."""
        return await _save(engine, settings, context, request, by, user_id)

    @post("/test", required_scope="admin")
    async def test_notices(
        self,
        engine: NamedDependency[AsyncEngine],
        settings: NamedDependency[Settings],
        context: NamedDependency[PageContext],
        by: NamedDependency[Actor],
        user_id: UserId,
    ) -> Response[Any]:
        """Send a test mail to a user."""
        return await _test(engine, settings, context, by, user_id)


def _path_of(context: PageContext, user_id: int) -> str:
    """Return the path of the page that the viewer uses for a user's notices."""
    is_own = context.is_under(PROFILE_PATH)
    return f"{PROFILE_PATH}/notices" if is_own else f"{USERS_PATH}/{user_id}/notices"


async def _save(  # noqa: PLR0913, PLR0917  # the dependencies of the routes
    engine: AsyncEngine,
    settings: Settings,
    context: PageContext,
    request: Request[Any, Any, Any],
    by: Actor,
    user_id: int,
) -> Response[Any]:
    form = Form(await read_form(request, *NOTICE_FORM_FIELDS))
    try:
        wanted = validate(NoticeSettings, _values_of(form), [], database_clock.now())
    except InvalidError as error:
        form = form.with_errors(error)
        return await _show(engine, settings, context, user_id, form, HTTP_400_BAD_REQUEST)
    async with engine.begin() as connection:
        await recipients.save(connection, user_id, wanted, by)
    return redirect_with_flash("notices-saved", _path_of(context, user_id))


async def _test(
    engine: AsyncEngine, settings: Settings, context: PageContext, by: Actor, user_id: int
) -> Response[Any]:
    try:
        async with engine.begin() as connection:
            await recipients.add_test(connection, user_id, by)
    except ConflictError as error:
        wrong = InvalidError([FieldError("", str(error))])
        return await _show(engine, settings, context, user_id, None, HTTP_409_CONFLICT, wrong)
    return redirect_with_flash("notices-tested", _path_of(context, user_id))


async def _show(  # noqa: PLR0913, PLR0917  # the parts of the page
    engine: AsyncEngine,
    settings: Settings,
    context: PageContext,
    user_id: int,
    form: Form | None = None,
    status: int = 200,
    error: InvalidError | None = None,
) -> Response[str]:
    async with engine.connect() as connection:
        user = await users.get(connection, user_id)
        recipient = await recipients.get(connection, user_id)
    form = form or _form_of(recipient, context.viewer)
    return await context.render_page(
        "notices/settings.html",
        status,
        user=user,
        recipient=recipient,
        form=form if error is None else form.with_errors(error),
        choices=NOTICE_CHOICES,
        path=_path_of(context, user_id),
        is_own=context.is_under(PROFILE_PATH),
        can_send=settings.smtp_url is not None,
        has_links=settings.public_url is not None,
    )


def _form_of(recipient: NoticeRecipient | None, viewer: Viewer) -> Form:
    """Return the form of a user's notices; without any, in the viewer's language and time zone."""
    blank = dict.fromkeys(NOTICE_FORM_FIELDS, "")
    if recipient is None:
        return Form(blank | {"language": viewer.language, "time_zone": viewer.time_zone})
    values = {
        "mail": recipient.address,
        "language": recipient.language,
        "time_zone": recipient.time_zone,
    }
    checked = {NOTICE_FIELD.format(kind): CHECKED for kind in recipient.kinds}
    return Form(blank | values | checked)


def _values_of(form: Form) -> dict[str, Any]:
    """Return the values of a form as `NoticeSettings` has them."""
    return {
        "mail": form["mail"].strip(),
        "kinds": [kind for kind in NOTICE_CHOICES if form[NOTICE_FIELD.format(kind)]],
        "language": form["language"],
        "time_zone": form["time_zone"].strip(),
    }
