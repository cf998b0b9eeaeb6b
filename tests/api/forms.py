"""The form of a mailing: as a browser without scripts sends it, and read from a page."""

import html
import re
from typing import Any

import httpx
from tests.api.browser_session import BROWSER

SITE = "http://mailer"
HOSTILE = "<script>alert(1)</script>\"'&amp;"
"""A text with markup, quotes and an entity, all of which a page must show as they are."""
NEW_FORM = {
    "zone": "Europe/Berlin",
    "text": "Half price.",
    "start": "2040-01-01T09:00",
    "end": "2040-01-02T09:00",
    "opens": "09:00",
    "closes": "21:00",
    "audience": "everybody",
    "on_unknown": "hold",
    "purpose": "marketing",
    "priority": "normal",
}
"""A valid form of a new mailing."""
HTMX = BROWSER | {"HX-Request": "true"}
"""Headers of a script of the page, which requests a part of it."""


async def get_html(api: httpx.AsyncClient, path: str, zone: str = "UTC", status: int = 200) -> str:
    """Return the HTML of a page, for a browser with a time zone."""
    response = await api.get(f"{SITE}{path}", headers=BROWSER | {"Cookie": f"time_zone={zone}"})
    assert response.status_code == status
    return response.text


async def post_form(api: httpx.AsyncClient, path: str, form: dict[str, str]) -> httpx.Response:
    """Submit a form."""
    return await api.post(f"{SITE}{path}", data=form, headers=BROWSER)


async def save_form(api: httpx.AsyncClient, path: str, form: dict[str, str]) -> dict[str, Any]:
    """Submit a valid form, confirm it if asked, and return the mailing, as the API returns it."""
    response = await post_form(api, path, form)
    if response.status_code == 200:
        response = await post_form(api, path, confirmation(response.text))
    assert response.status_code == 303, visible_text(response.text)
    mailing: dict[str, Any] = (await api.get(response.headers["location"])).json()
    return mailing


def confirmation(page: str) -> dict[str, str]:
    """Return what a browser submits if the user confirms what the page asks, without typing."""
    form = page[page.index('id="mailing"') :].split("</form>", maxsplit=1)[0]
    hidden = re.findall(r'<input type="hidden" name="(\w+)" value="([^"]*)"', form)
    return {"then": "send"} | {name: html.unescape(value) for name, value in hidden}


async def preview_form(api: httpx.AsyncClient, form: dict[str, str], query: str = "") -> str:
    """Return the text of the preview of a form."""
    response = await api.post(f"{SITE}/mailings/preview{query}", data=form, headers=HTMX)
    assert response.status_code == 200
    return visible_text(response.text)


def visible_text(page: str) -> str:
    """Return the visible text of a page, without its tags."""
    page = re.sub(r"</?bdi>", "", page)  # does not separate words
    return " ".join(html.unescape(re.sub(r"<[^>]*>", " ", page)).split())


def form_values(page: str) -> dict[str, str]:
    """Return the values that a browser would submit if the user changed nothing.

    The form has inputs, selects and one text area, the text of the mailing.
    """
    form = page[page.index('id="mailing"') :].split("</form>", maxsplit=1)[0]
    hidden = re.findall(r'<input type="hidden" name="(\w+)" value="([^"]*)"', form)
    checked = re.findall(r'<input type="radio" name="(\w+)" value="(\w+)" id="\S+" checked', form)
    values = dict([*hidden, *checked])
    for name, attributes in re.findall(r'<input type="[\w-]+" id="\w+" name="(\w+)"([^>]*)', form):
        value = re.search(r'value="([^"]*)"', attributes)
        values[name] = value[1] if value else ""
    for name, options in re.findall(
        r'<select id="\w+" name="(\w+)".*?>(.*?)</select>', form, re.DOTALL
    ):
        selected = re.search(r'value="([^"]*)" selected', options)
        first = re.search(r'value="([^"]*)"', options)
        assert first is not None
        values[name] = (selected or first)[1]
    text_area = re.search(r"<textarea[^>]*>\n(.*?)</textarea>", form, re.DOTALL)
    assert text_area is not None
    values["text"] = text_area[1]
    return {name: html.unescape(value) for name, value in values.items()}


def form_errors(page: str) -> dict[str, str]:
    """Return the error message beside each wrong field."""
    return {
        name: visible_text(text)
        for name, text in re.findall(r'<p class="error" id="(\w+)-error">(.*?)</p>', page)
    }


async def edit_form_values(
    api: httpx.AsyncClient, mailing: dict[str, Any], zone: str = "UTC"
) -> Any:
    """Return the values in the form that changes a mailing, with times in the zone `zone`."""
    return form_values(await get_html(api, f"/mailings/{mailing['id']}/edit", zone))
