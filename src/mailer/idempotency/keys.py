"""Idempotency keys of requests: the header of an API request, or `once` in the URL of a form."""

import re

from litestar.types import Scope

from mailer.access.middleware import AUTH_METHOD
from mailer.access.model import Actor
from mailer.errors import FieldError, InvalidError

KEY_HEADER = b"idempotency-key"
KEY_PATTERN = re.compile(r'(?!""$)[!-~]{1,255}')
"""A valid value of the header: 1 to 255 visible ASCII characters, but not two quotes alone."""
QUOTED_KEY = re.compile(r'"(.+)"')
"""A value in quotes; its group is the key."""
CREATES = "creates"
"""Name of an option of the routes to which forms that create something are sent.

Its value is a function that takes the id of the created object and returns the redirect to it.
"""
FORM_KEY = re.compile(rb"(?:^|&)once=[0-9a-f]{32}(?:&|$)")
"""The random number of a form, in the query of its URL. It is never stored."""


def key_of(scope: Scope) -> str | None:
    """Return the Idempotency-Key of a POST request to the API; None if it has none.

    Raises `InvalidError` for more than one value, or an invalid one.
    """
    if scope.get("method") != "POST" or scope["route_handler"].opt.get(AUTH_METHOD) != "key":
        return None
    values = [value.decode("latin-1") for name, value in scope["headers"] if name == KEY_HEADER]
    if not values:
        return None
    if len(values) > 1 or not KEY_PATTERN.fullmatch(values[0]):
        rule = "must come once, as 1 to 255 visible ASCII characters"
        raise InvalidError([FieldError("Idempotency-Key", rule)])
    quoted = QUOTED_KEY.fullmatch(values[0])
    return quoted[1] if quoted else values[0]


def is_form_sent_once(scope: Scope) -> bool:
    """Return whether a request sends a form that creates something and has `once` in its URL."""
    is_sent_by_actor = scope.get("method") == "POST" and isinstance(scope.get("user"), Actor)
    return (
        is_sent_by_actor
        and CREATES in scope["route_handler"].opt
        and FORM_KEY.search(scope["query_string"]) is not None
    )
