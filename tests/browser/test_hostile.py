"""Scripts and markup in every field that a page shows are shown as the text they are."""

from urllib.parse import quote

import pytest
from playwright.async_api import FilePayload, Page, expect
from tests.browser.hostile import MARKUP, OVERRIDE, SHORT, harm
from tests.browser.looks import DESK, RUSSIAN
from tests.browser.making import add_mailing
from tests.browser.watch import Watch
from tests.processes import MailerProcess, until

PHONE = "79160000000"
FAIL = """
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
    "/mailings/{coming}/pause",
    "/mailings/{coming}/cancel",
    "/mailings/{coming}/delete",
    "/mailings/{listed}",
    "/mailings/{listed}/edit",
    "/mailings/new?from={listed}",
    "/mailings/{under_way}",
    "/mailings/{under_way}/messages",
    f"/mailings/{{under_way}}/messages?reason={quote(SHORT)}",
    "/mailings/{under_way}/messages/{message}",
    "/clients",
    f"/clients?tag={quote(SHORT)}",
    "/clients/{client}",
    "/clients/{client}/delete",
    "/system",
)
WRONG = (
    f"/{quote(MARKUP)}",
    f"/mailings/{quote(MARKUP)}",
    f"/mailings?{quote(MARKUP)}=1",
    f"/mailings?status={quote(MARKUP)}",
    f"/mailings/{{under_way}}/messages?phone={quote(MARKUP)}",
    f"/clients?phone={quote(MARKUP)}&time_zone={quote(MARKUP)}&tag={quote(2 * MARKUP)}",
    f"/clients?{quote(MARKUP)}=1",
)
"""What is answered as wrong, and says what."""

both_languages = pytest.mark.parametrize("look", [DESK, RUSSIAN], ids=["english", "russian"])


@pytest.fixture(scope="module")
async def places(mailer: MailerProcess) -> dict[str, int]:
    """Clients, mailings and a message in whose every text somebody tries something."""
    client = await mailer.call("POST", "/clients", {"phone": PHONE, "tag": SHORT}, 201)
    lists = {"tags": [SHORT, "vip"], "operator_codes": ["916"]}
    terms = f"{SHORT}, 916"
    under_way = await add_mailing(mailer, 0.5, client_filter=terms, text=MARKUP)
    await mailer.call("POST", f"/mailings/{under_way}/pause")

    async def message() -> int | None:
        found: int | None = await mailer.query(FAIL, under_way, SHORT.removeprefix(OVERRIDE))
        return found

    return {
        "client": client["id"],
        "coming": await add_mailing(mailer, client_filter=terms, text=MARKUP),
        "listed": await add_mailing(mailer, client_filter=lists, text=MARKUP),
        "under_way": under_way,
        "message": await until(message),
    }


@both_languages
async def test_every_page_shows_it_as_text(page: Page, places: dict[str, int]) -> None:
    harmed, silent = [], []
    for pattern in PAGES:
        await page.goto(pattern.format(**places))
        harmed += await harm(page)
        shown = await page.content() + await values(page)
        silent += [pattern] if OVERRIDE not in shown else []
    assert harmed == []
    # the others show nothing of it, or a tag alone
    assert silent == ["/clients", "/clients/{client}", "/clients/{client}/delete", "/system"]


async def values(page: Page) -> str:
    """Return what stands in the fields of a page's forms."""
    found: list[str] = await page.evaluate(
        "[...document.querySelectorAll('input, textarea')].map(field => field.value)"
    )
    return "\n".join(found)


@both_languages
async def test_what_is_refused_is_told_as_text(
    page: Page, watch: Watch, places: dict[str, int]
) -> None:
    watch.expect("answer", "40[04] GET")
    harmed = []
    for pattern in WRONG:
        answer = await page.goto(pattern.format(**places))
        assert answer is not None
        assert answer.status in {400, 404}, pattern
        harmed += await harm(page)
    assert harmed == []


@both_languages
async def test_a_dialog_asks_about_it_as_text(page: Page, places: dict[str, int]) -> None:
    await page.goto(f"/mailings/{places['coming']}")
    await page.locator(f"a[hx-get='/mailings/{places['coming']}/cancel']").click()
    await expect(page.locator("#dialog")).to_contain_text("{{7*7}}")
    assert await harm(page) == []


@pytest.mark.parametrize("path", ["/clients/new", "/clients/{client}"])
async def test_fields_of_a_client_come_back_as_they_were_typed(
    page: Page, watch: Watch, places: dict[str, int], path: str
) -> None:
    watch.expect("answer", "400 POST")
    await page.goto(path.format(**places))
    fields = page.locator("#client input:not([type=hidden]):not([hidden])")
    count = await fields.count()
    for n in range(count):
        await fields.nth(n).fill(MARKUP)
    await page.locator("#client button").first.click()
    await expect(page.get_by_role("alert")).to_be_focused()
    assert count >= 4
    for n in range(count):
        await expect(fields.nth(n)).to_have_value(MARKUP)
    assert await harm(page) == []


async def test_fields_of_a_mailing_come_back_as_they_were_typed(page: Page, watch: Watch) -> None:
    watch.expect("answer", "400 POST")
    await page.goto("/mailings/new")
    form = page.locator("#mailing")
    for kind in ("terms", "lists"):
        await form.locator(f"input[name=audience][value={kind}]").check()
        fields = form.locator("textarea:visible, input[type=text]:visible")
        for n in range(await fields.count()):
            await fields.nth(n).fill(MARKUP)
    await expect(page.locator("#preview-text")).to_be_visible()
    await page.wait_for_load_state("networkidle")
    assert await harm(page) == []
    await form.locator("button.primary").click()
    await expect(page.get_by_role("alert")).to_be_focused()
    await expect(form.locator("textarea[name=text]")).to_have_value(MARKUP)
    assert await harm(page) == []


@both_languages
async def test_a_preview_shows_tags_as_text(page: Page, places: dict[str, int]) -> None:
    await page.goto(f"/mailings/new?from={places['listed']}")
    await expect(page.locator("#preview-audience .sample")).to_contain_text("<img")
    assert await harm(page) == []


async def test_what_comes_while_one_looks_is_shown_as_text(
    page: Page, mailer: MailerProcess
) -> None:
    await page.goto("/")
    await expect(page.locator("html")).to_have_attribute("data-zone", DESK.time_zone)
    coming = await add_mailing(mailer, 1800, client_filter=SHORT, text=MARKUP)
    link = page.locator(f"#next a[href='/mailings/{coming}']")
    await expect(link).to_contain_text("<script>alert")
    assert await harm(page) == []
    await page.goto(f"/mailings/{coming}")
    change = {"text": f"Changed {MARKUP}", "client_filter": {"tags": [f"x{SHORT}"]}}
    await mailer.call("PATCH", f"/mailings/{coming}", change)
    await expect(page.locator("#what .text")).to_have_text(f"Changed {MARKUP}")
    await expect(page.locator("#what dd").first).to_contain_text(f"x{SHORT}")
    assert await harm(page) == []
    await mailer.call("DELETE", f"/mailings/{coming}", status=204)


@both_languages
async def test_an_import_names_what_is_wrong_as_text(page: Page, watch: Watch) -> None:
    watch.expect("answer", "400 POST at .*/clients/import")
    cell = '"' + SHORT.replace('"', '""') + '"'
    for content in (f"phone,{cell}\n1,2\n", f"phone,tag,time_zone\n{cell},{cell},{cell}\n"):
        await page.goto("/clients/import")
        file = FilePayload(name=f"{SHORT}.csv", mimeType="text/csv", buffer=content.encode())
        await page.locator("#file").set_input_files(file)
        await page.locator("#import button").click()
        await expect(page.locator("#report-title")).to_be_focused()
        assert await harm(page) == []
