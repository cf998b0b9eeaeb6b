"""The form of a mailing, as a browser without scripts sends it."""

import html
import re
from typing import Any

import httpx
from tests.api.visits import BROWSER

SITE = "http://mailer"
HOSTILE = "<script>alert(1)</script>\"'&amp;"
NEW_FORM = {
    "zone": "Europe/Berlin",
    "text": "Half price.",
    "start": "2040-01-01T09:00",
    "end": "2040-01-02T09:00",
    "opens": "09:00",
    "closes": "21:00",
    "audience": "everybody",
    "on_unknown": "hold",
}
HTMX = BROWSER | {"HX-Request": "true"}


async def shown(api: httpx.AsyncClient, path: str, zone: str = "UTC", status: int = 200) -> str:
    answer = await api.get(f"{SITE}{path}", headers=BROWSER | {"Cookie": f"time_zone={zone}"})
    assert answer.status_code == status
    return answer.text


async def sent(api: httpx.AsyncClient, path: str, form: dict[str, str]) -> httpx.Response:
    return await api.post(f"{SITE}{path}", data=form, headers=BROWSER)


async def saved(api: httpx.AsyncClient, path: str, form: dict[str, str]) -> dict[str, Any]:
    """Send a form that is right and return the mailing as it is then."""
    answer = await sent(api, path, form)
    assert answer.status_code == 303, said(answer.text)
    mailing: dict[str, Any] = (await api.get(answer.headers["location"])).json()
    return mailing


async def previewed(api: httpx.AsyncClient, form: dict[str, str], query: str = "") -> str:
    answer = await api.post(f"{SITE}/mailings/preview{query}", data=form, headers=HTMX)
    assert answer.status_code == 200
    return said(answer.text)


def said(page: str) -> str:
    """Return what a page says, without its marks."""
    page = re.sub(r"</?bdi>", "", page)  # these part no words
    return " ".join(html.unescape(re.sub(r"<[^>]*>", " ", page)).split())


def fields(page: str) -> dict[str, str]:
    """Return what a browser would send of the form as it stands."""
    form = page[page.index('id="mailing"') :].split("</form>", maxsplit=1)[0]
    found = dict(re.findall(r'<input type="hidden" name="(\w+)" value="([^"]*)"', form))
    found |= re.findall(r'<input type="radio" name="(\w+)" value="(\w+)" id="\S+" checked', form)
    for name, attributes in re.findall(r'<input type="[\w-]+" id="\w+" name="(\w+)"([^>]*)', form):
        value = re.search(r'value="([^"]*)"', attributes)
        found[name] = value[1] if value else ""
    text = re.search(r"<textarea[^>]*>\n(.*?)</textarea>", form, re.DOTALL)
    assert text is not None
    return {name: html.unescape(value) for name, value in (found | {"text": text[1]}).items()}


def errors(page: str) -> dict[str, str]:
    """Return what stands beside the fields as wrong."""
    return {
        name: said(text)
        for name, text in re.findall(r'<p class="error" id="(\w+)-error">(.*?)</p>', page)
    }


async def edited(api: httpx.AsyncClient, mailing: dict[str, Any], zone: str = "UTC") -> Any:
    return fields(await shown(api, f"/mailings/{mailing['id']}/edit", zone))
