"""Forms accept hostile values as text or refuse them, and show them escaped.

Pages are found in the router and forms in the pages, so that new ones are included.
"""

import itertools
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from litestar.routes import HTTPRoute
from markupsafe import escape
from sqlalchemy.ext.asyncio import AsyncEngine
from tests.api.browser_session import BROWSER, signed_in_browser
from tests.factories import execute
from tests.hostile.conftest import create_objects
from tests.hostile.forms import Form, forms_of
from tests.hostile.surface import APP

SITE = "http://mailer"
FORM = {"Content-Type": "application/x-www-form-urlencoded"}
MAX_URL_VALUE_LENGTH = 60_000
"""Characters of a value that still fits into a URL."""
MARKUP = "\"'></textarea></option></title><script>alert(1)</script>{{7*7654321}}"
HOSTILE_VALUES = {
    "markup": MARKUP,
    "sql": "'; DROP TABLE client; --",
    "format": "%s%(x)s{0.__class__}",
    "header": "/x\r\nSet-Cookie: hostile=1",
    "elsewhere": "//evil.example/x",
    "scheme": "javascript:alert(1)",
    "override": "\u202eabc",
    "nul": "a\0b",
    "long": "x" * 900_000,
    "number": "9" * 5_000,
}
BROKEN_UTF8 = ("%ED%A0%80", "%ff", "%C0%80")
"""A surrogate, a byte that no character has, and an overlong NUL."""
NOT_PAGES = ("/api", "/live", "/static", "/docs", "/redoc", "/openapi.json", "/metrics", "/health")
"""Prefixes of paths that are no pages."""
VERBS = ("pause", "cancel", "resume", "retry", "delete")
"""Actions on a mailing, each with a page that asks for confirmation."""
QUERY_PARAMETERS = ("before", "after", "limit", "from", "status", "seen", "ids")
"""Query parameters of pages."""
UNDO_CHANGES_OF_MAILING = (
    "UPDATE mailing SET status = 'scheduled', is_closed = false, is_settled = false"
)


def pages() -> Iterator[str]:
    """Yield the path of every page, with placeholders for ids."""
    for route in APP.routes:
        if not isinstance(route, HTTPRoute) or "GET" not in route.methods:
            continue
        path = route.path_format
        if path.startswith(NOT_PAGES) or path.endswith(".csv") or "{message_id}" in path:
            continue
        yield from [path.replace("{verb}", verb) for verb in VERBS] if "{verb}" in path else [path]


PAGES = sorted(pages())


@pytest.fixture(scope="module")
async def api(engine: AsyncEngine) -> httpx.AsyncClient:
    """A browser in which an admin is signed in, who can open every page."""
    return await signed_in_browser(engine, "admin")


@pytest.fixture(scope="module")
async def ids(engine: AsyncEngine, application: httpx.AsyncClient) -> dict[str, int | str]:
    """The ids of one object of each type."""
    return await create_objects(engine, application)


@pytest.fixture(scope="module")
async def forms(api: httpx.AsyncClient, ids: dict[str, int | str]) -> dict[tuple[str, str], Form]:
    """Every form with fields by method and URL, including forms that need existing objects."""
    forms_by_target: dict[tuple[str, str], Form] = {}
    for path in PAGES:
        response = await api.get(SITE + path.format(**ids), headers=BROWSER)
        for form in forms_of(path.format(**ids), response.text):
            forms_by_target.setdefault((form.method, form.action), form)
    return forms_by_target


def test_the_pages_are_found() -> None:
    assert {"/", "/clients", "/clients/new", "/mailings/new", "/system"} <= set(PAGES)
    assert len(PAGES) > 15  # there are more; far fewer would mean that the search is broken


def test_the_forms_and_their_fields_are_found(
    forms: dict[tuple[str, str], Form], ids: dict[str, int | str]
) -> None:
    assert forms["POST", "/preferences"].values.keys() == {"return_path", "language", "time_zone"}
    assert forms["POST", "/clients/new"].values.keys() >= {"phone", "tag", "time_zone"}
    edit_form = forms["POST", f"/mailings/{ids['mailing_id']}/edit"]
    assert edit_form.values["text"] == "Hello"
    assert {("POST", "/keys"), ("POST", "/users/new"), ("POST", "/profile/password")} <= set(forms)
    assert {method for method, _ in forms} == {"GET", "POST"}
    assert len(forms) >= 8


def assert_harmless(response: httpx.Response) -> None:
    """Assert that a response runs no code, sets no header and redirects to no other site."""
    assert response.status_code < 500, response.text[:300]
    assert "hostile" not in str(response.headers.get_list("set-cookie"))
    location = response.headers.get("location", "/")
    assert location.startswith("/")
    assert not location.startswith("//")
    assert "<script>alert" not in response.text
    assert str(7 * 7654321) not in response.text  # no template was evaluated
    assert len(response.text) < 5_000_000


async def test_hostile_values_in_every_field_of_every_form_are_harmless(
    api: httpx.AsyncClient, forms: dict[tuple[str, str], Form], engine: AsyncEngine
) -> None:
    for (method, action), form in forms.items():
        for field in form.values:
            for name, value in HOSTILE_VALUES.items():
                if method == "GET" and len(value) > MAX_URL_VALUE_LENGTH:
                    continue
                response = await submit_form(api, form, {field: value})
                assert_harmless(response)
                if response.status_code == 400 and name == "markup" and field in form.typed:
                    assert str(escape(value)) in response.text, (action, field)
    await execute(engine, UNDO_CHANGES_OF_MAILING)


async def submit_form(
    api: httpx.AsyncClient, form: Form, changes: dict[str, str]
) -> httpx.Response:
    values: Any = form.values | changes
    if form.method == "GET":
        return await api.get(SITE + form.action, params=values, headers=BROWSER)
    return await api.post(SITE + form.action, data=values, headers=BROWSER)


async def test_broken_utf8_in_a_form_is_refused(
    api: httpx.AsyncClient, forms: dict[tuple[str, str], Form]
) -> None:
    for (method, action), form in forms.items():
        for field in form.values:
            for broken in BROKEN_UTF8:
                content = f"{field}={broken}"
                if method == "GET":
                    response = await api.get(f"{SITE}{action}?{content}", headers=BROWSER)
                else:
                    headers = BROWSER | FORM
                    response = await api.post(SITE + action, content=content, headers=headers)
                assert response.status_code == 400, (action, field, broken)


@pytest.mark.parametrize("path", PAGES)
async def test_hostile_query_parameters_of_every_page_are_harmless(
    api: httpx.AsyncClient, ids: dict[str, int | str], path: str
) -> None:
    queries = [(MARKUP, MARKUP), *itertools.product(QUERY_PARAMETERS, HOSTILE_VALUES.values())]
    for name, value in queries:
        if len(value) <= MAX_URL_VALUE_LENGTH:
            address = SITE + path.format(**ids)
            response = await api.get(address, params={name: value}, headers=BROWSER)
            assert_harmless(response)
