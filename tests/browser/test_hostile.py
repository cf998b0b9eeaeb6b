"""Scripts and markup in every displayed field are shown as text."""

from urllib.parse import quote

import pytest
from playwright.async_api import FilePayload, Page, expect
from tests.browser.api_data import add_mailing
from tests.browser.hostile import MARKUP, OVERRIDE, SHORT_MARKUP, TEXT_MARKUP, find_effects
from tests.browser.page_errors import PageErrors
from tests.browser.page_states import DESK, RUSSIAN
from tests.processes import MailerProcess, until

PHONE = "79160000000"
# as if the gateway had rejected the message of the mailing $1 with the reason $2
REJECT_MESSAGE = """
    UPDATE message SET status = 'undelivered', reason = $2::text, attempts = 1,
        failures = jsonb_build_array(jsonb_build_object('attempt', 1,
            'claimed_at', now(), 'ended_at', now(), 'reason', $2::text))
    WHERE mailing_id = $1 AND status = 'scheduled' RETURNING id"""
PAGES = (
    "/",
    "/mailings",
    f"/mailings?search={quote(MARKUP)}",
    "/mailings/{coming}",
    "/mailings/{coming}/edit",
    "/mailings/{coming}/cancel",
    "/mailings/{coming}/delete",
    "/mailings/{listed}",
    "/mailings/{listed}/edit",
    "/mailings/new?from={listed}",
    "/mailings/{running}",
    "/mailings/{running}/messages",
    f"/mailings/{{running}}/messages?reason={quote(SHORT_MARKUP)}",
    "/mailings/{running}/messages/{message}",
    "/clients",
    f"/clients?tag={quote(SHORT_MARKUP)}",
    "/clients/{client}",
    "/clients/{client}/delete",
    "/system",
)
"""Paths of pages, with the names of ids in `object_ids`."""
PAGES_WITHOUT_OVERRIDE = ["/clients", "/clients/{client}/delete", "/system"]
"""Pages that show at most a stored tag, from which mailer has removed the override."""
INVALID_PATHS = (
    f"/{quote(MARKUP)}",
    f"/mailings/{quote(MARKUP)}",
    f"/mailings?{quote(MARKUP)}=1",
    f"/mailings?status={quote(MARKUP)}",
    f"/mailings/{{running}}/messages?phone={quote(MARKUP)}",
    f"/clients?phone={quote(MARKUP)}&time_zone={quote(MARKUP)}&tag={quote(2 * MARKUP)}",
    f"/clients?{quote(MARKUP)}=1",
)
"""Invalid requests whose error page names the invalid value."""

both_languages = pytest.mark.parametrize("page_state", [DESK, RUSSIAN], ids=["english", "russian"])


@pytest.fixture(scope="module")
async def object_ids(mailer: MailerProcess) -> dict[str, int]:
    """Create clients, mailings and a message with hostile texts; return ids for `PAGES`."""
    client = await mailer.call("POST", "/clients", {"phone": PHONE, "tag": SHORT_MARKUP}, 201)
    lists = {"tags": [SHORT_MARKUP, "vip"], "operator_codes": ["916"]}
    terms = f"{SHORT_MARKUP}, 916"
    running = await add_mailing(mailer, 0.5, client_filter=terms, text=TEXT_MARKUP)
    await mailer.call("POST", f"/mailings/{running}/pause")

    async def reject_message() -> int | None:
        # None while there is no message yet: then `until` asks again
        message_id: int | None = await mailer.query(
            REJECT_MESSAGE, running, SHORT_MARKUP.removeprefix(OVERRIDE)
        )
        return message_id

    return {
        "client": client["id"],
        "coming": await add_mailing(mailer, client_filter=terms, text=TEXT_MARKUP),
        "listed": await add_mailing(mailer, client_filter=lists, text=TEXT_MARKUP),
        "running": running,
        "message": await until(reject_message),
    }


@both_languages
async def test_every_page_shows_hostile_texts_escaped(
    page: Page, object_ids: dict[str, int]
) -> None:
    effects, pages_without_override = [], []
    for pattern in PAGES:
        await page.goto(pattern.format(**object_ids))
        effects += await find_effects(page)
        html = await page.content() + await field_values(page)
        pages_without_override += [pattern] if OVERRIDE not in html else []
    assert effects == []
    assert pages_without_override == PAGES_WITHOUT_OVERRIDE  # all others did show a hostile text


async def field_values(page: Page) -> str:
    """Return the values of all form fields."""
    values: list[str] = await page.evaluate(
        "[...document.querySelectorAll('input, textarea')].map(field => field.value)"
    )
    return "\n".join(values)


@both_languages
async def test_error_pages_show_hostile_values_escaped(
    page: Page, page_errors: PageErrors, object_ids: dict[str, int]
) -> None:
    page_errors.expect("status", "40[04] GET")
    effects = []
    for pattern in INVALID_PATHS:
        response = await page.goto(pattern.format(**object_ids))
        assert response is not None
        assert response.status in {400, 404}, pattern
        effects += await find_effects(page)
    assert effects == []


@both_languages
async def test_a_dialog_shows_hostile_texts_escaped(page: Page, object_ids: dict[str, int]) -> None:
    await page.goto(f"/mailings/{object_ids['coming']}")
    await page.locator(f"a[hx-get='/mailings/{object_ids['coming']}/cancel']").click()
    await expect(page.locator("#dialog")).to_contain_text("${7*7}")
    assert await find_effects(page) == []


@pytest.mark.parametrize("path", ["/clients/new", "/clients/{client}"])
async def test_invalid_fields_of_a_client_keep_their_typed_values(
    page: Page, page_errors: PageErrors, object_ids: dict[str, int], path: str
) -> None:
    page_errors.expect("status", "400 POST")
    await page.goto(path.format(**object_ids))
    fields = page.locator("#client input:not([type=hidden]):not([hidden])")
    count = await fields.count()
    typed = []
    for n in range(count):
        length = int(await fields.nth(n).get_attribute("maxlength") or len(MARKUP))
        typed.append(MARKUP[:length])
        await fields.nth(n).fill(typed[n])
    await page.locator("#client button").first.click()
    await expect(page.get_by_role("alert")).to_be_focused()
    assert count >= 4
    for n in range(count):
        await expect(fields.nth(n)).to_have_value(typed[n])
    assert await find_effects(page) == []


async def test_invalid_fields_of_a_mailing_keep_their_typed_values(
    page: Page, page_errors: PageErrors
) -> None:
    page_errors.expect("status", "400 POST")
    await page.goto("/mailings/new")
    form = page.locator("#mailing")
    for kind in ("terms", "lists"):
        await form.locator(f"input[name=audience][value={kind}]").check()
        fields = form.locator("textarea:visible, input[type=text]:visible")
        for n in range(await fields.count()):
            await fields.nth(n).fill(MARKUP)
    await expect(page.locator("#preview-text")).to_be_visible()
    await page.wait_for_load_state("networkidle")
    assert await find_effects(page) == []
    await form.locator("button.primary").click()
    await expect(page.get_by_role("alert")).to_be_focused()
    await expect(form.locator("textarea[name=text]")).to_have_value(MARKUP)
    assert await find_effects(page) == []


@both_languages
async def test_a_preview_shows_tags_escaped(page: Page, object_ids: dict[str, int]) -> None:
    await page.goto(f"/mailings/new?from={object_ids['listed']}")
    await expect(page.locator("#preview-audience .sample")).to_contain_text("<img")
    assert await find_effects(page) == []


async def test_live_updates_show_hostile_texts_escaped(page: Page, mailer: MailerProcess) -> None:
    await page.goto("/")
    await expect(page.locator("html")).to_have_attribute("data-zone", DESK.time_zone)
    coming = await add_mailing(mailer, 1800, client_filter=SHORT_MARKUP, text=TEXT_MARKUP)
    link = page.locator(f"#upcoming a[href='/mailings/{coming}']")
    await expect(link).to_contain_text("<script>alert")
    assert await find_effects(page) == []
    await page.goto(f"/mailings/{coming}")
    change = {"text": f"Changed {TEXT_MARKUP}", "client_filter": {"tags": [f"x{SHORT_MARKUP}"]}}
    await mailer.call("PATCH", f"/mailings/{coming}", change)
    await expect(page.locator("#details .text")).to_have_text(f"Changed {TEXT_MARKUP}")
    await expect(page.locator("#details dd").first).to_contain_text(f"x{SHORT_MARKUP}")
    assert await find_effects(page) == []
    await mailer.call("DELETE", f"/mailings/{coming}", status=204)


@both_languages
async def test_the_preview_of_an_import_shows_names_and_wrong_values_escaped(page: Page) -> None:
    cell = '"' + SHORT_MARKUP.replace('"', '""') + '"'
    for content in (f"phone,{cell}\n1,2\n", f"phone,tag,time_zone\n{cell},{cell},{cell}\n"):
        await page.goto("/clients/import")
        file = FilePayload(name=f"{SHORT_MARKUP}.csv", mimeType="text/csv", buffer=content.encode())
        await page.locator("#file").set_input_files(file)
        await page.locator("#import button").click()
        await expect(page.locator("#report-title")).to_be_focused()
        assert await find_effects(page) == []
