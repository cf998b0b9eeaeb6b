"""The form of a webhook: its fields, and their values as the API has them."""

from collections.abc import Mapping
from typing import Any

from litestar import Request

from mailer.admin.form import Form, read_form
from mailer.webhook.model import EVENT_TYPES, Webhook

EVENT_FIELD = "event-{}"
"""Name of the checkbox of an event."""
BLANK_FORM = {"name": "", "url": "", "events": ""} | {
    EVENT_FIELD.format(event): "" for event in EVENT_TYPES
}
"""The form of a new webhook. The field `events` is not sent: errors of the events belong to it."""
CHECKED = "on"
"""Value of a checkbox that is checked."""


def form_of(webhook: Webhook) -> Form:
    """Return the form of an existing webhook."""
    checked = {EVENT_FIELD.format(event): CHECKED for event in webhook.events}
    return Form(BLANK_FORM | {"name": webhook.name, "url": webhook.url} | checked)


async def read_webhook_form(request: Request[Any, Any, Any]) -> Form:
    """Return the form that was sent."""
    values = await read_form(request, *BLANK_FORM)
    return Form(values | {name: values[name].strip() for name in ("name", "url")})


def values_of(form: Form) -> Mapping[str, Any]:
    """Return the values of a form as fields of the API."""
    events = [event for event in EVENT_TYPES if form[EVENT_FIELD.format(event)]]
    return {"name": form["name"], "url": form["url"], "events": events}
