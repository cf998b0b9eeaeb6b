"""Lists: what a form in the address asks for, and the addresses of the pages beside one."""

from typing import Any
from urllib.parse import urlencode

import msgspec
from litestar import Request

from mailer.admin.form import Form
from mailer.db.paging import Slice
from mailer.errors import InvalidError
from mailer.validation import Given
from mailer.web.query import read

NOTHING = Slice([], 0, has_older=False, has_newer=False)
"""What is found where it is known that there is nothing."""


class Pages(msgspec.Struct, frozen=True):
    """The addresses of the pages beside one; None where there is none."""

    newer: str | None
    older: str | None


def asked(
    request: Request[Any, Any, Any], model: type[Given], *fields: str
) -> tuple[Form, Given | None]:
    """Return a list's form as it was sent, and what it asks for; None if something is wrong."""
    form = Form({name: request.query_params.get(name, "") for name in fields})
    try:
        return form, read(request, model, blank_is_absent=True)
    except InvalidError as error:
        return form.refused(error), None


def address(path: str, form: Form, **more: object) -> str:
    """Return the address of a list with the form's filters, and what else is given."""
    given = {name: value for name, value in form.values.items() if value} | more
    return f"{path}?{urlencode(given)}" if given else path


def pages(found: Slice, path: str, form: Form) -> Pages:
    """Return the addresses of the pages beside what was found."""
    return Pages(
        address(path, form, after=found.rows[0].id) if found.has_newer else None,
        address(path, form, before=found.rows[-1].id) if found.has_older else None,
    )
