"""The form of a mailing in a browser."""

import re
from datetime import UTC, datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from playwright.async_api import Locator, Page, expect
from sqlalchemy.ext.asyncio import AsyncEngine
from tests.browser.accessibility import check_accessibility
from tests.browser.measure import overflows
from tests.browser.page_errors import PageErrors
from tests.browser.page_states import PageState, every_page_state
from tests.factories import add_clients, execute
from tests.processes import Gateway, MailerProcess

MOSCOW = ZoneInfo("Europe/Moscow")
NEW_YORK = PageState(time_zone="America/New_York")


@pytest.fixture(autouse=True)
async def clients(engine: AsyncEngine) -> None:
    """Create 52 clients of two operators in three time zones, three of them with a tag."""
    await add_clients(engine, 40, "916", "Europe/Moscow")
    await add_clients(engine, 9, "912", "Asia/Kamchatka")
    await add_clients(engine, 3, "912", "Europe/Kaliningrad")
    await execute(engine, "UPDATE client SET tag = 'vip' WHERE id IN (1, 2, 41)")


def local_time(time: datetime) -> str:
    """Return a moment as a field of the form shows it in Moscow."""
    return time.astimezone(MOSCOW).strftime("%Y-%m-%dT%H:%M")


def at(hour: int, days: int = 3) -> datetime:
    """Return an hour of the day in Moscow, `days` from today."""
    return datetime.now(MOSCOW).replace(hour=hour, minute=0, second=0, microsecond=0) + timedelta(
        days=days
    )


def preview_section(page: Page, name: str) -> Locator:
    """Return a section of the preview."""
    return page.get_by_role("region", name=name)


async def fill_form(page: Page, text: str, start: datetime, end: datetime) -> None:
    await page.get_by_label("Text").fill(text)
    await page.get_by_label("Start").fill(local_time(start))
    await page.get_by_label("End", exact=True).fill(local_time(end))


async def only_mailing(mailer: MailerProcess) -> dict[str, Any]:
    """Return the only mailing."""
    page = await mailer.call("GET", "/mailings")
    assert page["count"] == 1
    mailing: dict[str, Any] = page["results"][0]
    return mailing


async def test_a_mailing_is_created_with_the_form(page: Page, mailer: MailerProcess) -> None:
    await page.goto("/")
    await page.get_by_role("link", name="New mailing").click()
    await expect(page.get_by_role("heading", level=1)).to_have_text("New mailing")
    await expect(page.get_by_text("In the time zone Europe/Moscow (UTC+3).")).to_be_visible()
    await expect(page.get_by_label("Window opens")).to_have_value("09:00")
    await expect(page.get_by_label("All clients")).not_to_be_checked()
    await fill_form(page, "Come by until nine.", at(10), at(20))
    await page.get_by_label("All clients").check()
    await expect(preview_section(page, "Audience")).to_contain_text("52 clients")
    await page.get_by_label("Clients with one of these operator codes or tags").check()
    await expect(preview_section(page, "Audience")).to_contain_text(
        "enter a list, a code, a tag or a time zone"
    )
    await page.get_by_role("textbox", name="Codes or tags").press_sequentially("vip")
    await expect(preview_section(page, "Audience")).to_contain_text("3 clients")
    await expect(preview_section(page, "Audience").get_by_role("listitem")).to_have_count(3)
    await expect(preview_section(page, "When")).to_contain_text("07:00 UTC")
    await page.get_by_label("Do not send it again").check()
    await check_accessibility(page)
    button = page.get_by_role("button", name="Schedule for")
    await expect(button).to_have_text(re.compile(r"^Schedule for .*, 10:00 for 3 clients$"))
    await button.dblclick()  # creates one mailing
    await page.wait_for_url(re.compile(r"/mailings/\d+$"))
    created = await only_mailing(mailer)
    assert created["datetime_start"] == at(10).astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    assert (created["text"], created["client_filter"]) == ("Come by until nine.", "vip")
    assert (created["on_unknown"], created["clients_count"]) == ("hold", 3)


async def test_fields_of_clients_are_inserted_into_the_text(
    page: Page, mailer: MailerProcess, engine: AsyncEngine
) -> None:
    await execute(engine, """UPDATE client SET fields = '{"name": "Anna"}' WHERE id > 2""")
    await page.goto("/mailings/new")
    await page.get_by_label("All clients").check()
    text, sms = page.get_by_label("Text"), preview_section(page, "As SMS")
    await text.fill("Dear , hello")
    await text.evaluate("field => field.setSelectionRange(5, 5)")
    await page.get_by_role("button", name="{{ name }}").click()
    await expect(text).to_have_value("Dear {{ name }}, hello")
    await expect(text).to_be_focused()
    await expect(sms).to_contain_text(re.compile(r"1 part\s*50 clients"))
    await expect(sms).to_contain_text(
        "2 clients lack a field of the text and will not get it: name."
    )
    examples = preview_section(page, "Examples")
    await expect(examples.get_by_role("listitem")).to_have_count(5)
    await expect(examples).to_contain_text("Dear Anna, hello")
    await check_accessibility(page)
    await page.set_viewport_size({"width": 360, "height": 800})
    assert await overflows(page) == []
    await text.fill("Dear {{ name")
    await expect(sms).to_contain_text("opening braces without closing ones at character 6")
    await text.fill("Dear {{ name | friend }}, hello")
    await expect(sms).to_contain_text(re.compile(r"1 part\s*52 clients"))
    await fill_form(page, "Dear {{ name | friend }}", at(10), at(20))
    await page.get_by_role("button", name="Save draft").click()
    await page.wait_for_url(re.compile(r"/mailings/\d+$"))
    assert (await only_mailing(mailer))["placeholders"] == ["name"]
    await check_accessibility(page)
    assert await overflows(page) == []


async def test_the_form_sends_a_test(
    page: Page, page_errors: PageErrors, mailer: MailerProcess, gateway: Gateway
) -> None:
    received = len(gateway.received)
    await page.set_viewport_size({"width": 360, "height": 800})
    await page.goto("/mailings/new")
    await page.get_by_label("All clients").check()
    await fill_form(page, "Come by until nine.", at(10), at(20))
    panel, button = (
        page.get_by_role("region", name="Send a test"),
        page.get_by_role("button", name="Save the draft and send a test"),
    )
    assert await overflows(page) == []
    page_errors.expect("status", "400 POST at .*/mailings/new/test")
    await button.click()  # without a phone
    await expect(panel).to_contain_text("must be 1 to 5 phones, such as 79161234567")
    await expect(page.get_by_label("Text")).to_have_value("Come by until nine.")
    await check_accessibility(page)
    await panel.get_by_label("Phones").fill("8 916 123-45-67")
    await button.dblclick()
    await expect(page.get_by_text("79161234567: The gateway accepted the message.")).to_be_visible()
    assert (await only_mailing(mailer))["status"] == "draft"
    [record] = gateway.received[received:]
    assert record.message is not None
    assert record.message.text == "TEST: Come by until nine."
    assert await overflows(page) == []


async def test_parts_of_the_text_are_counted_while_typing(page: Page) -> None:
    await page.goto("/mailings/new")
    await page.get_by_label("All clients").check()
    sms, text = preview_section(page, "As SMS"), page.get_by_label("Text")
    await text.fill("a" * 150)
    await expect(sms).to_contain_text("160 characters a part")
    await expect(sms).to_contain_text(re.compile(r"left in the last part\s*10"))
    await text.press_sequentially(" ж")
    await expect(sms).to_contain_text(
        "“ж” (U+0436 CYRILLIC SMALL LETTER ZHE) at position 152 requires Unicode (UCS-2)"
    )
    # 152 characters in three parts of 67; three parts to each of 52 clients
    await expect(sms).to_contain_text(re.compile(r"parts\s*3\s*left in the last part\s*49"))
    await expect(sms).to_contain_text(re.compile(r"parts in total\s*156"))
    await expect(text).to_be_focused()
    await expect(text).to_have_value("a" * 150 + " ж")
    await text.fill("\N{THUMBS UP SIGN}")
    await expect(sms).to_contain_text("(U+1F44D THUMBS UP SIGN) at position 1 requires")
    await expect(sms).to_contain_text(re.compile(r"characters\s*1\s*counted as\s*2\s*parts\s*1"))
    await expect(sms).to_contain_text(re.compile(r"left in the last part\s*68"))  # of 70


async def test_the_preview_shows_clients_that_will_not_be_reached_and_the_remedy_works(
    page: Page,
) -> None:
    await page.goto("/mailings/new")
    await fill_form(page, "Half price.", at(13), at(20))
    await page.get_by_label("All clients").check()
    forecast, status = preview_section(page, "Forecast"), page.get_by_role("status").last
    await expect(forecast).to_contain_text("9 of 52 clients will not get it")
    await expect(forecast).to_contain_text(
        "9 in Asia/Kamchatka: the mailing ends before the sending window opens"
    )
    await expect(forecast).to_contain_text(
        "Set a later end or a wider sending window to reach them."
    )
    await expect(status).to_contain_text("9 of 52 clients will not get it.")
    window_row = page.get_by_role("row", name="Asia/Kamchatka")
    await expect(window_row).to_contain_text("UTC+12, 9 clients")
    await expect(window_row).to_contain_text("00:00\u201312:00")
    await expect(window_row.locator("rect.open")).to_have_count(1)
    await expect(window_row.locator("rect.sending-time")).to_have_count(0)
    await expect(
        page.get_by_role("row", name="Europe/Moscow").locator("rect.sending-time")
    ).to_have_count(1)
    await check_accessibility(page)
    await page.get_by_label("Window opens").fill("")
    await page.get_by_label("Window closes").fill("")
    await expect(forecast).not_to_contain_text("will not get it")
    await expect(status).to_have_text("52 clients will get it.")
    await page.get_by_label(
        "Clients that match everything filled in: lists, operator codes, tags, time zones"
    ).check()
    await page.get_by_role("textbox", name="Operator codes").fill("916")
    await page.get_by_label("Time zones", exact=True).fill("Asia/Kamchatka")
    await expect(status).to_contain_text("nobody will get this mailing")
    await page.get_by_role("textbox", name="Operator codes").fill("912")
    await expect(preview_section(page, "Audience")).to_contain_text("9 clients")


async def test_errors_are_beside_their_fields_and_typed_values_are_kept(
    page: Page, page_errors: PageErrors, mailer: MailerProcess
) -> None:
    page_errors.expect("status", r"400 POST at .*/mailings/new\?once=")
    await page.goto("/mailings/new")
    await fill_form(page, "", at(20), at(10))
    await page.get_by_label("Clients with one of these operator codes or tags").check()
    await page.get_by_label("Window closes").fill("")
    await page.locator("#save").click()
    summary = page.get_by_role("alert")
    await expect(summary).to_be_focused()
    await expect(summary.get_by_role("listitem")).to_have_count(4)
    await expect(page.get_by_label("Text")).to_have_accessible_description(
        re.compile("must have 1 to 1,600 characters")
    )
    await expect(page.get_by_label("End", exact=True)).to_have_accessible_description(
        "must be after the start"
    )
    await expect(page.get_by_label("End", exact=True)).to_have_value(local_time(at(10)))
    await check_accessibility(page)
    await summary.get_by_role("link", name="Codes or tags").click()
    await expect(page.get_by_role("textbox", name="Codes or tags")).to_be_focused()
    await page.get_by_role("textbox", name="Codes or tags").fill("912")
    await page.get_by_label("Window closes").fill("22:00")
    await fill_form(page, "<script>alert(1)</script>", at(10), at(20))
    await expect(page.locator("#save")).to_have_text(re.compile("10:00 for 12 clients"))
    await page.locator("#save").click()
    await page.wait_for_url(re.compile(r"/mailings/\d+$"))
    created = await only_mailing(mailer)
    assert (created["text"], created["send_interval_time_end"]) == (
        "<script>alert(1)</script>",
        "22:00",
    )


async def test_a_copy_is_labelled_as_a_copy(page: Page, mailer: MailerProcess) -> None:
    start = at(10, days=-3)
    payload = {"datetime_start": start, "datetime_end": start + timedelta(days=9), "text": "Half."}
    payload |= {"client_filter": {"tags": ["vip"]}}
    created = await mailer.call("POST", "/mailings", _json(payload), status=201)
    await page.goto(f"/mailings/new?from={created['id']}")
    await expect(page.get_by_role("heading", level=1)).to_have_text(
        f"Copy of mailing #{created['id']}"
    )
    await expect(page.get_by_text("This is a copy. Nothing is saved yet")).to_be_visible()
    await expect(page.get_by_role("textbox", name="Tags")).to_have_value("vip")
    await expect(page.get_by_role("textbox", name="Codes or tags")).to_be_hidden()
    await page.get_by_role("button", name="for 3 clients").click()
    await page.wait_for_url(re.compile(r"/mailings/\d+$"))
    copy = (await mailer.call("GET", "/mailings"))["results"][0]
    assert copy["id"] != created["id"]
    assert (copy["text"], copy["client_filter"]) == ("Half.", {"tags": ["vip"]})
    assert datetime.fromisoformat(copy["datetime_start"]) > datetime.now(UTC)


async def test_a_mailing_can_be_changed_before_and_after_its_start(
    page: Page, mailer: MailerProcess
) -> None:
    payload = {
        "datetime_start": at(10),
        "datetime_end": at(20),
        "text": "Half.",
        "client_filter": "912",
    }
    created = await mailer.call("POST", "/mailings", _json(payload), 201)
    await page.goto(f"/mailings/{created['id']}/edit")
    await expect(page.get_by_role("textbox", name="Codes or tags")).to_have_value("912")
    await page.get_by_label("Start").fill(local_time(at(11)))
    await page.get_by_label("All clients").check()
    await page.get_by_role("button", name="11:00 for 52 clients").click()
    await page.wait_for_url(re.compile(r"/mailings/\d+$"))
    changed = await only_mailing(mailer)
    assert (changed["client_filter"], changed["clients_count"]) == (None, 52)

    # paused, so that the messages are not sent when the mailing starts
    await mailer.call("POST", f"/mailings/{created['id']}/pause")
    await mailer.call(
        "PATCH", f"/mailings/{created['id']}", {"datetime_start": "2020-01-01T00:00:00Z"}
    )
    await page.goto(f"/mailings/{created['id']}/edit")
    await expect(page.get_by_text("This mailing has started.")).to_be_visible()
    await expect(page.get_by_label("Start")).not_to_be_editable()
    await expect(preview_section(page, "Forecast")).to_contain_text(
        "The sending windows of all clients open in time"
    )
    await check_accessibility(page)
    await page.get_by_label("Text").fill("Half price.")
    await page.get_by_label("End", exact=True).fill(local_time(at(21)))
    await page.get_by_role("button", name="Save changes").click()
    await page.wait_for_url(re.compile(r"/mailings/\d+$"))
    changed = await only_mailing(mailer)
    assert (changed["text"], changed["datetime_start"]) == ("Half price.", "2020-01-01T00:00:00Z")


@pytest.mark.parametrize("page_state", [NEW_YORK], ids=["new york"])
async def test_the_form_is_in_the_time_zone_of_the_browser(
    page: Page, page_errors: PageErrors, page_state: PageState
) -> None:
    page_errors.expect("status", r"400 POST at .*/mailings/new\?once=")
    del page_state  # used by the fixture `page`
    await page.goto("/mailings/new")
    await expect(page.get_by_text("In the time zone America/New_York")).to_be_visible()
    await page.get_by_label("Text").fill("Half price.")
    await page.get_by_label("Start").fill("2040-03-11T02:30")  # the clocks skip this time
    await page.get_by_label("End", exact=True).fill("2040-11-04T01:30")  # the clocks repeat it
    await expect(preview_section(page, "When")).to_contain_text(
        "4 Nov 2040, 01:30 4 Nov 2040, 05:30 UTC"
    )
    # as if the time zone were changed in another tab
    await page.context.add_cookies([{"name": "time_zone", "value": "Asia/Tokyo", "url": page.url}])
    await page.locator("#save").click()
    await expect(page.get_by_label("Start")).to_have_accessible_description(
        re.compile("does not exist on that day: the clocks go forward")
    )
    await expect(page.get_by_text("In the time zone America/New_York")).to_be_visible()
    await page.get_by_label("Start").fill("2040-03-11T03:30")
    await expect(preview_section(page, "When")).to_contain_text("11 Mar 2040, 07:30 UTC")


async def test_a_draft_is_saved_by_the_enter_key_and_launched_in_a_dialog(
    page: Page, mailer: MailerProcess
) -> None:
    await page.goto("/mailings/new")
    await fill_form(page, "Half price.", at(10), at(20))
    await page.get_by_label("All clients").check()
    await page.get_by_label("Sender").press("Enter")
    await page.wait_for_url(re.compile(r"/mailings/\d+$"))
    assert (await only_mailing(mailer))["status"] == "draft"
    await expect(page.locator("#state")).to_contain_text("Nothing is sent until it is launched.")
    await check_accessibility(page)
    await page.get_by_role("link", name="Schedule for").click()
    dialog = page.get_by_role("dialog")
    await expect(dialog).to_contain_text(re.compile(r"10:00 for 52 clients\?"))
    await check_accessibility(page)
    await dialog.get_by_role("button", name="10:00 for 52 clients").click()
    await expect(page.locator("#state")).to_contain_text("It starts automatically")
    assert (await only_mailing(mailer))["status"] == "scheduled"


@every_page_state
async def test_the_question_before_sending_fits_and_is_accessible(
    page: Page, page_state: PageState, engine: AsyncEngine
) -> None:
    del page_state  # used by the fixture `page`
    await add_clients(engine, 1_000, "999")
    await page.goto("/mailings/new")
    await page.locator("#text").fill("w" * 200)
    await page.locator("#start").fill("2020-01-01T10:00")
    await page.locator("#audience-everybody").check()
    await expect(page.locator("#save")).to_contain_text("052")
    await page.locator("#save").click()
    await expect(page.locator("#typed")).to_be_visible()
    assert await overflows(page) == []
    await check_accessibility(page)


@every_page_state
async def test_the_form_fits_and_is_accessible(page: Page, page_state: PageState) -> None:
    await page.goto("/mailings/new")
    await page.wait_for_load_state()
    await page.locator("#audience-lists").check()
    await page.locator("#time_zones").fill("Asia/Kamchatka")
    await page.locator("#text").fill("w" * 200)
    await expect(page.locator("#preview-audience li")).to_have_count(5)
    await expect(page.locator("#preview-hours tbody tr")).to_have_count(1)
    assert await overflows(page) == []
    await check_accessibility(page)
    preview = await page.locator(".preview").bounding_box()
    form = await page.locator("#on_unknown").bounding_box()
    assert preview is not None
    assert form is not None
    is_below = preview["y"] > form["y"]  # else beside the form
    assert is_below == page_state.phone


def _json(payload: dict[str, Any]) -> dict[str, Any]:
    """Return a payload with moments as texts."""
    return {
        name: value.isoformat() if isinstance(value, datetime) else value
        for name, value in payload.items()
    }
