"""The form on the page of a mailing that sends it to a few phones as a test."""

import re
from typing import Any

from litestar import Controller, Request, Response, get, post
from litestar.di import NamedDependency
from litestar.response import Redirect
from litestar.status_codes import HTTP_201_CREATED, HTTP_303_SEE_OTHER, HTTP_400_BAD_REQUEST
from sqlalchemy.ext.asyncio import AsyncEngine

from mailer.access.model import Actor
from mailer.admin.form import MAX_SMALL_FORM_BYTES, Form, read_form, validate
from mailer.admin.mailings.detail import new_test_variables, read_mailing_page
from mailer.admin.mailings.mailing_text import read_text_variables
from mailer.admin.render import PageContext
from mailer.client.phone import normalize_phone
from mailer.clock import database_clock
from mailer.errors import InvalidError
from mailer.gateway.channel import Channels
from mailer.gateway_control.api import check_test_rate
from mailer.gateway_control.testing import send_mailing_test
from mailer.gateway_control.testing_model import MailingTest
from mailer.idempotency.model import IdempotencyClaim
from mailer.limits import RateLimiter
from mailer.mailing.api import MailingId
from mailer.settings import Settings

PHONES_FIELD = "phones"
"""Field of the forms with the phones of a test."""
SEPARATORS = re.compile(r"[,;\n]")
"""What stands between two phones; blanks and dashes may be parts of a phone."""


def split_phones(text: str) -> list[str]:
    """Return the phones in a text, in the stored form as far as they are phones."""
    return [normalize_phone(part) for part in SEPARATORS.split(text) if part.strip()]


def read_test(text: str) -> MailingTest:
    """Return the test to the phones in a text; raises `InvalidError` if they are wrong."""
    return validate(MailingTest, {"phones": split_phones(text)}, [], database_clock.now())


async def send_test(  # noqa: PLR0913, PLR0917  # the test, what the page shows, and who asks for it
    engine: AsyncEngine,
    channels: Channels,
    context: PageContext,
    mailing_id: int,
    receipt_wait: float,
    test: MailingTest,
    by: Actor,
    claim: IdempotencyClaim | None,
) -> Response[Any]:
    """Send the test of a mailing; return its page with a result for each phone.

    `receipt_wait` is how many seconds a receipt is awaited. If the form was sent before, the
    response is a redirect.
    """
    results = await send_mailing_test(engine, channels, mailing_id, test.phones, by, claim)
    if results is None:
        return redirect_to_mailing(mailing_id)
    by_phone = list(zip(test.phones, results, strict=True))
    page = await read_mailing_page(engine, channels, mailing_id, receipt_wait)
    page |= await read_text_variables(engine, channels, page)
    shown = new_test_variables(mailing_id) | {"test_results": by_phone}
    response = await context.render_page("mailings/mailing.html", HTTP_201_CREATED, **page, **shown)
    response.headers["Location"] = f"/mailings/{mailing_id}"
    return response


def redirect_to_mailing(mailing_id: int) -> Redirect:
    """Return the redirect for a form that was sent before."""
    return Redirect(f"/mailings/{mailing_id}", status_code=HTTP_303_SEE_OTHER)


class MailingTestForm(Controller):
    """Sends a mailing to a few phones as a test."""

    path = "/mailings/{mailing_id:int}/test"

    @get(required_scope="write")
    async def show_again(self, mailing_id: MailingId) -> Redirect:
        """Redirect to the mailing, for example after the language was changed on a result."""
        return redirect_to_mailing(mailing_id)

    @post(
        required_scope="write",
        request_max_body_size=MAX_SMALL_FORM_BYTES,
        creates=redirect_to_mailing,
    )
    async def send_test(  # noqa: PLR0913, PLR0917  # the form, and what the page shows
        self,
        request: Request[Any, Any, Any],
        engine: NamedDependency[AsyncEngine],
        channels: NamedDependency[Channels],
        settings: NamedDependency[Settings],
        context: NamedDependency[PageContext],
        by: NamedDependency[Actor],
        claim: NamedDependency[IdempotencyClaim | None],
        test_rate: NamedDependency[RateLimiter],
        mailing_id: MailingId,
    ) -> Response[Any]:
        """Send the messages and show the results, or show the form again with its errors."""
        form = Form(await read_form(request, PHONES_FIELD))
        try:
            test = read_test(form[PHONES_FIELD])
        except InvalidError as error:
            page = await read_mailing_page(engine, channels, mailing_id, settings.receipt_wait)
            page |= await read_text_variables(engine, channels, page)
            shown = {
                "form": form.with_errors(error),
                "test_url": context.path,
                "test_results": [],
            }
            return await context.render_page(
                "mailings/mailing.html", HTTP_400_BAD_REQUEST, **page, **shown
            )
        check_test_rate(test_rate, by)
        return await send_test(
            engine, channels, context, mailing_id, settings.receipt_wait, test, by, claim
        )
