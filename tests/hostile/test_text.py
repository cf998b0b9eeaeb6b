"""Hostile text is stored, normalized as `mailer/text.py` describes, or refused.

The response to a refused text names its field or query parameter, unless the body cannot be read.
"""

import json
import re
from typing import Any

import httpx
import pytest
from sqlalchemy.ext.asyncio import AsyncEngine
from tests.hostile.surface import FIELDS, QUERIES, WRITES, Field
from tests.hostile.trace import Contents, assert_is_problem, contents, wrong_fields

from mailer.access.model import FORBIDDEN_CHARACTERS
from mailer.text import clean_label, compose, fold_label, is_blank

JSON = {"Content-Type": "application/json"}
STORABLE_TEXTS = {
    "sql": "'; DROP TABLE client; --",
    "sql with a comment": "vip' OR 1=1 /*",
    "script": "<script>alert(1)</script>",
    "attribute": "\"' onmouseover='alert(1)",
    "template": "{{7*7}}${7*7}#{7*7}<%= 7*7 %>",
    "format": "%s%n%(x)s{0.__class__}$1",
    "formula": "=cmd|'/c calc'!A1",
    "plus": "+1",
    "minus": "-1",
    "at": "@SUM(1)",
    "tab": "\t=1",
    "carriage return": "\r=1",
    "header": "x\r\nSet-Cookie: hostile=1\r\n\r\nx",
    "override": "\u202eabc\u2066",
    "invisible": "\u200b\ufeff\u2060",
    "no character": "\ufffe\uffff\U0010ffff",
    "emoji": "👩\u200d👩\u200d👧" * 3,
    "combining": "e" + "\u0301" * 50,
    "escape": "\x1b[31m\x07\x7f\x80",
    "path": "../../../etc/passwd",
    "null": "null",
    "escaped": "\\u0000\\x00%00",
    "word": "NaN",
}
"""Text for fields that accept any text. They refuse only text without a visible character."""
REFUSED_TEXTS = {
    "nul": "a\0b",
    "only nul": "\0",
    "surrogate": "\ud800",
    "surrogate within": "a\udc00b",
    "surrogates the wrong way round": "\udc00\ud800",
    "megabyte": "x" * 1_000_000,
    "megabyte of others": "я" * 500_000,
}
"""Text that no field accepts."""
BROKEN_UTF8 = [b'"\xed\xa0\x80"', b'"\xff"', b'"\xc0\x80"', b'"\xf0\x9f"', b'"\xf5\x80\x80\x80"']
"""Strings of JSON with bytes that are not UTF-8."""
FREE_TEXT_PLACES = {("tag",), ("text",), ("client_filter",), ("client_filter", "tags", "*")}
"""The places (`Field.place`) of the fields that accept any text. `client_filter` is one of them: it
may be a string of operator codes and tags."""

MAX_NAME_LENGTH = 64
MAX_LENGTH_OF_LABELS = {("name",): 100, ("labels", "*"): 32}
"""The places of the labels of mailings and lists in the sense of `clean_label`, and their maximum
lengths."""
SENDER = re.compile("[!-~]([ -~]{0,18}[!-~])?")
"""A sender: up to 20 printable characters of ASCII."""

every_field = pytest.mark.parametrize("field", FIELDS, ids=str)
every_query = pytest.mark.parametrize(("path", "name"), QUERIES)


@pytest.fixture
async def before(engine: AsyncEngine, ids: dict[str, int | str]) -> Contents:
    """Every row of every table before the test, for the fixture `unchanged`.

    It replaces the fixture of `conftest.py`, which reads the rows once for all tests of a file: in
    this file some tests store values.
    """
    assert ids  # asked for, so that its objects exist before the rows are read
    return await contents(engine)


def test_every_string_field_is_tested() -> None:
    """The fields are found in the schema; this test fails if one was not found."""
    assert {field.name for field in FIELDS} == {
        *("phone", "operator_code", "tag", "time_zone"),
        *("datetime_start", "datetime_end", "send_interval_time_start", "send_interval_time_end"),
        *(
            "text",
            "on_unknown",
            "purpose",
            "priority",
            "client_filter",
            "client_filter.operator_codes",
        ),
        *("client_filter.tags", "client_filter.time_zones", "client_filter.lists"),
        *("gateway", "sender"),
        *("name", "labels", "url", "events", "failed_since", "phones"),
    }
    single = {"failed_since"}  # the others are fields of a POST and of a PATCH
    fields = [field.name for field in FIELDS]
    assert [name for name in set(fields) - single if fields.count(name) < 2] == []


async def send_value(
    api: httpx.AsyncClient, ids: dict[str, int | str], field: Field, value: object
) -> httpx.Response:
    """Send a body with `value` in a field, and valid values in the other required fields."""
    content = json.dumps(field.body(value)).encode()  # surrogates as \uXXXX
    path = field.path.format(**ids)
    return await api.request(field.method, path, content=content, headers=JSON)


@every_field
async def test_text_is_stored_normalized_or_refused_with_the_name_of_its_field(
    api: httpx.AsyncClient, engine: AsyncEngine, ids: dict[str, int | str], field: Field
) -> None:
    before = await contents(engine)
    for name, value in STORABLE_TEXTS.items():
        response = await send_value(api, ids, field, value)
        assert "set-cookie" not in response.headers
        if is_accepted(field, value):
            assert response.status_code in {200, 201}, name
            await assert_is_stored(api, field, value, response.json())
        else:
            assert_is_problem(response, 400)
            assert wrong_fields(response) == {field.name}, name
    if not any(is_accepted(field, value) for value in STORABLE_TEXTS.values()):
        assert await contents(engine) == before


def is_accepted(field: Field, value: str) -> bool:
    """Return whether a field accepts a text of `STORABLE_TEXTS`."""
    if field.place == ("sender",):
        return SENDER.fullmatch(value) is not None
    is_label = "/mailings" in field.path or field.path == "/lists"
    if "/mailings" in field.path and field.place == ("text",) and "{{" in value:
        return False  # looks like a placeholder
    if is_label and field.place in MAX_LENGTH_OF_LABELS:
        return not is_blank(value) and len(clean_label(value)) <= MAX_LENGTH_OF_LABELS[field.place]
    if field.place == ("name",):
        is_clean = re.search(f"[{FORBIDDEN_CHARACTERS}]", value) is None
        return is_clean and not is_blank(value) and len(clean_label(value)) <= MAX_NAME_LENGTH
    return field.place in FREE_TEXT_PLACES and not is_blank(value)


async def assert_is_stored(
    api: httpx.AsyncClient, field: Field, value: str, created: dict[str, Any]
) -> None:
    """Assert that the response and a later GET show a value as it must be stored.

    A tag is stored in the form of `clean_label`, a text in the form of `compose`, and a filter as
    it was sent. An object that a POST created is deleted: the next POST has the same phone number.
    The text of an answer is shown with its reply alone.
    """
    place = field.place[0]
    if "reply_id" in created:
        reply = (await api.get(f"/replies/{created['reply_id']}")).json()
        assert reply["answers"][-1]["text"] == compose(value)
        return
    address = f"/{field.path.split('/')[1]}/{created['id']}"
    stored = (await api.get(address)).json()
    normalize = {"text": compose} | dict.fromkeys(("tag", "name", "labels"), clean_label)
    expected = normalize.get(place, str)(value)
    assert created[place] == stored[place] == field.body(expected)[place]
    if field.method == "POST":
        assert (await api.delete(address)).status_code == 204


@every_field
@pytest.mark.usefixtures("unchanged")
async def test_invalid_unicode_and_too_long_text_is_refused(
    api: httpx.AsyncClient, ids: dict[str, int | str], field: Field
) -> None:
    # Two refusals name no field, because the body is not read: a lone surrogate makes it invalid
    # JSON, and a body of more than 1 MiB gets a 413.
    for name, value in REFUSED_TEXTS.items():
        response = await send_value(api, ids, field, value)
        assert_is_problem(response, 400, 413)
        if "surrogate" not in name and response.status_code == 400:
            assert wrong_fields(response) == {field.name}, name
        assert len(response.content) < 1_000  # does not repeat the value


@every_field
@pytest.mark.usefixtures("unchanged")
async def test_broken_utf8_is_refused(
    api: httpx.AsyncClient, ids: dict[str, int | str], field: Field
) -> None:
    # the response names no field, because such a body is not JSON
    content = json.dumps(field.body("HERE")).encode()
    for broken in BROKEN_UTF8:
        response = await api.request(
            field.method,
            field.path.format(**ids),
            content=content.replace(b'"HERE"', broken),
            headers=JSON,
        )
        assert_is_problem(response, 400)


@every_field
@pytest.mark.usefixtures("unchanged")
async def test_a_value_that_is_not_a_string_is_refused_with_the_name_of_its_field(
    api: httpx.AsyncClient, ids: dict[str, int | str], field: Field
) -> None:
    values: list[Any] = [0, -0.0, 10**400, 1e308, True, [[]], {"x": "x"}]
    for value in values:
        response = await send_value(api, ids, field, value)
        assert_is_problem(response, 400)
        assert any(name.startswith(field.place[0]) for name in wrong_fields(response)), value


@every_field
@pytest.mark.usefixtures("unchanged")
async def test_nan_and_infinity_are_refused_because_they_are_not_json(
    api: httpx.AsyncClient, ids: dict[str, int | str], field: Field
) -> None:
    for value in (float("nan"), float("inf")):
        assert_is_problem(await send_value(api, ids, field, value), 400)


@pytest.mark.parametrize(("method", "path"), WRITES)
@pytest.mark.usefixtures("unchanged")
async def test_an_unknown_field_is_refused_and_named(
    api: httpx.AsyncClient, ids: dict[str, int | str], method: str, path: str
) -> None:
    for name in ("a\0b", "<script>", "__proto__", "__class__", "", "x" * 100_000):
        response = await api.request(method, path.format(**ids), json={name: 1})
        assert_is_problem(response, 400)
        shown_name = name if len(name) <= 64 else f"{name[:63]}…"
        assert shown_name in wrong_fields(response)


async def test_of_a_field_that_is_in_a_body_twice_the_last_one_counts(
    api: httpx.AsyncClient, ids: dict[str, int | str]
) -> None:
    path = f"/clients/{ids['client_id']}"
    response = await api.patch(path, content=b'{"tag": "", "tag": "last"}', headers=JSON)
    assert response.json()["tag"] == "last"
    response = await api.patch(path, content=b'{"tag": "last", "tag": ""}', headers=JSON)
    assert_is_problem(response, 400)
    assert wrong_fields(response) == {"tag"}


# ---- queries --------------------------------------------------------------------------------


def is_empty_list(response: httpx.Response) -> bool:
    """Return whether a list has no rows: as CSV it is the header alone."""
    if response.headers["content-type"].startswith("text/csv"):
        return response.text.count("\n") == 1
    return bool(response.json()["count"] == 0)


@every_query
@pytest.mark.usefixtures("unchanged")
async def test_a_hostile_query_matches_nothing_or_is_refused_with_the_name_of_its_parameter(
    api: httpx.AsyncClient, ids: dict[str, int | str], path: str, name: str
) -> None:
    # an earlier test may have stored one of the values, which matches then: as the client's tag, or
    # as a label or words of the mailing
    client_tag = (await api.get(f"/clients/{ids['client_id']}")).json()["tag"] or ""
    for value in STORABLE_TEXTS.values():
        for accept in ("application/json", "text/csv"):
            headers = {"Accept": accept}
            response = await api.get(path.format(**ids), params={name: value}, headers=headers)
            assert "hostile" not in str(response.headers)
            if response.status_code != 200:
                assert_is_problem(response, 400)
                assert wrong_fields(response) == {name}
            elif name not in {"search", "label"} and (
                name != "tag" or fold_label(value) != fold_label(client_tag)
            ):
                assert is_empty_list(response)


@every_query
@pytest.mark.usefixtures("unchanged")
async def test_nul_and_broken_utf8_in_a_query_are_refused_with_the_name_of_the_parameter(
    api: httpx.AsyncClient, ids: dict[str, int | str], path: str, name: str
) -> None:
    for value in ("%00", "a%00b", "%ff", "%c0%80", "%ed%a0%80", "%F0%9F"):
        response = await api.get(f"{path.format(**ids)}?{name}={value}")
        assert_is_problem(response, 400)
        assert wrong_fields(response) == {name}


@every_query
@pytest.mark.usefixtures("unchanged")
async def test_too_long_and_duplicate_query_parameters_are_refused(
    api: httpx.AsyncClient, ids: dict[str, int | str], path: str, name: str
) -> None:
    for query in (f"{name}={'9' * 60_000}", f"{name}=1&{name}=2"):
        response = await api.get(f"{path.format(**ids)}?{query}")
        assert_is_problem(response, 400)
        assert wrong_fields(response) == {name}
