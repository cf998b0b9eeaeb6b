"""Forms of pages take what they are sent as text, or refuse it, and show it as text again.

Pages are found in the router, and their forms in the pages: a new one is among them.
"""

import itertools
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from litestar.routes import HTTPRoute
from markupsafe import escape
from sqlalchemy.ext.asyncio import AsyncEngine
from tests.api.hostile.conftest import one_of_each
from tests.api.hostile.forms import Found, forms_of
from tests.api.hostile.surface import APP
from tests.api.visits import BROWSER, signed_in
from tests.sample import execute

SITE = "http://mailer"
FORM = {"Content-Type": "application/x-www-form-urlencoded"}
MARKUP = "\"'></textarea></option></title><script>alert(1)</script>{{7*7654321}}"
HOSTILE = {
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
BROKEN = ("%ED%A0%80", "%ff", "%C0%80")
OTHERS = ("/api", "/live", "/static", "/docs", "/redoc", "/openapi.json", "/metrics", "/health")
VERBS = ("pause", "cancel", "resume", "retry", "delete")
NAMES = ("before", "after", "limit", "from", "status", "seen", "ids")
"""Parameters that pages take."""
UNDO = "UPDATE mailing SET status = 'scheduled', is_settled = false"


def pages() -> Iterator[str]:
    """Give the path of every page, with places for ids."""
    for route in APP.routes:
        if not isinstance(route, HTTPRoute) or "GET" not in route.methods:
            continue
        path = route.path_format
        if path.startswith(OTHERS) or path.endswith(".csv") or "{message_id}" in path:
            continue
        yield from [path.replace("{verb}", verb) for verb in VERBS] if "{verb}" in path else [path]


PAGES = sorted(pages())


@pytest.fixture(scope="module")
async def api(engine: AsyncEngine) -> httpx.AsyncClient:
    """A browser in which an admin is signed in, who sees every page."""
    return await signed_in(engine, "admin")


@pytest.fixture(scope="module")
async def ids(engine: AsyncEngine, application: httpx.AsyncClient) -> dict[str, int]:
    """One of each to aim at."""
    return await one_of_each(engine, application)


@pytest.fixture(scope="module")
async def forms(api: httpx.AsyncClient, ids: dict[str, int]) -> dict[tuple[str, str], Found]:
    """Every form that has fields, by its method and action; parts of filled pages among them."""
    found: dict[tuple[str, str], Found] = {}
    for path in PAGES:
        answer = await api.get(SITE + path.format(**ids), headers=BROWSER)
        for form in forms_of(path.format(**ids), answer.text):
            found.setdefault((form.method, form.action), form)
    return found


def test_pages_are_found() -> None:
    assert {"/", "/clients", "/clients/new", "/mailings/new", "/system"} <= set(PAGES)
    assert len(PAGES) > 15


def test_forms_and_their_fields_are_found(
    forms: dict[tuple[str, str], Found], ids: dict[str, int]
) -> None:
    assert forms["POST", "/preferences"].values.keys() == {"back", "language", "time_zone"}
    assert forms["POST", "/clients/new"].values.keys() >= {"phone", "tag", "time_zone"}
    changed = forms["POST", f"/mailings/{ids['mailing_id']}/edit"]
    assert changed.values["text"] == "Hello"
    assert {("POST", "/keys"), ("POST", "/people/new"), ("POST", "/account/password")} <= set(forms)
    assert {method for method, _ in forms} == {"GET", "POST"}
    assert len(forms) >= 8


def assert_harmless(answer: httpx.Response) -> None:
    assert answer.status_code < 500, answer.text[:300]
    assert "hostile" not in str(answer.headers.get_list("set-cookie"))
    location = answer.headers.get("location", "/")
    assert location.startswith("/")
    assert not location.startswith("//")
    assert "<script>alert" not in answer.text
    assert str(7 * 7654321) not in answer.text
    assert len(answer.text) < 5_000_000


async def test_no_field_of_a_form_breaks_anything(
    api: httpx.AsyncClient, forms: dict[tuple[str, str], Found], engine: AsyncEngine
) -> None:
    for (method, action), form in forms.items():
        for field in form.values:
            for name, value in HOSTILE.items():
                if method == "GET" and len(value) > 60_000:
                    continue  # servers take no such address
                answer = await fill(api, form, {field: value})
                assert_harmless(answer)
                if answer.status_code == 400 and name == "markup" and field in form.typed:
                    assert str(escape(value)) in answer.text, (action, field)
    await execute(engine, UNDO)


async def fill(api: httpx.AsyncClient, form: Found, given: dict[str, str]) -> httpx.Response:
    values: Any = form.values | given
    if form.method == "GET":
        return await api.get(SITE + form.action, params=values, headers=BROWSER)
    return await api.post(SITE + form.action, data=values, headers=BROWSER)


async def test_broken_utf8_in_a_form_is_refused(
    api: httpx.AsyncClient, forms: dict[tuple[str, str], Found]
) -> None:
    for (method, action), form in forms.items():
        for field in form.values:
            for broken in BROKEN:
                content = f"{field}={broken}"
                if method == "GET":
                    answer = await api.get(f"{SITE}{action}?{content}", headers=BROWSER)
                else:
                    answer = await api.post(SITE + action, content=content, headers=BROWSER | FORM)
                assert answer.status_code == 400, (action, field, broken)


@pytest.mark.parametrize("path", PAGES)
async def test_a_page_with_a_query_of_anything_stays_whole(
    api: httpx.AsyncClient, ids: dict[str, int], path: str
) -> None:
    queries = [(MARKUP, MARKUP), *itertools.product(NAMES, HOSTILE.values())]
    for name, value in queries:
        if len(value) < 60_000:
            address = SITE + path.format(**ids)
            answer = await api.get(address, params={name: value}, headers=BROWSER)
            assert_harmless(answer)
