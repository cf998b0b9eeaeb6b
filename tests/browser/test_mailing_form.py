"""The form of a mailing, filled in by hand."""

import re
from datetime import UTC, datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from playwright.async_api import Locator, Page, expect
from sqlalchemy.ext.asyncio import AsyncEngine
from tests.browser.audit import audit
from tests.browser.looks import Look, every_look
from tests.browser.measure import overflows
from tests.browser.watch import Watch
from tests.processes import MailerProcess
from tests.sample import add_clients, execute

MOSCOW = ZoneInfo("Europe/Moscow")
NEW_YORK = Look(time_zone="America/New_York")


@pytest.fixture(autouse=True)
async def directory(engine: AsyncEngine) -> None:
    """Clients of two operators in three time zones, some with a tag."""
    await add_clients(engine, 40, "916", "Europe/Moscow")
    await add_clients(engine, 9, "912", "Asia/Kamchatka")
    await add_clients(engine, 3, "912", "Europe/Kaliningrad")
    await execute(engine, "UPDATE client SET tag = 'vip' WHERE id IN (1, 2, 41)")


def wall(moment: datetime) -> str:
    return moment.astimezone(MOSCOW).strftime("%Y-%m-%dT%H:%M")


def at(hour: int, days: int = 3) -> datetime:
    """Return an hour of Moscow in some days."""
    return datetime.now(MOSCOW).replace(hour=hour, minute=0, second=0, microsecond=0) + timedelta(
        days=days
    )


def part(page: Page, name: str) -> Locator:
    """Return a part of the preview."""
    return page.get_by_role("region", name=name)


async def fill(page: Page, text: str, start: datetime, end: datetime) -> None:
    await page.get_by_label("Text").fill(text)
    await page.get_by_label("Start").fill(wall(start))
    await page.get_by_label("End", exact=True).fill(wall(end))


async def only(mailer: MailerProcess) -> dict[str, Any]:
    """Return the one mailing that there is."""
    found = await mailer.call("GET", "/mailings")
    assert found["count"] == 1
    mailing: dict[str, Any] = found["results"][0]
    return mailing


async def test_a_mailing_is_written_by_hand(page: Page, mailer: MailerProcess) -> None:
    await page.goto("/")
    await page.get_by_role("link", name="New mailing").click()
    await expect(page.get_by_role("heading", level=1)).to_have_text("New mailing")
    await expect(page.get_by_text("On the clock of Europe/Moscow (UTC+3).")).to_be_visible()
    await expect(page.get_by_label("Not before")).to_have_value("09:00")
    await expect(page.get_by_label("Everybody")).to_be_checked()
    await fill(page, "Come by until nine.", at(10), at(20))
    await expect(part(page, "Who gets it")).to_contain_text("52 clients")
    await page.get_by_label("Those with any of these codes or tags").check()
    await expect(part(page, "Who gets it")).to_contain_text("Name a code, a tag or a time zone")
    await page.get_by_role("textbox", name="Codes or tags").press_sequentially("vip")
    await expect(part(page, "Who gets it")).to_contain_text("3 clients")
    await expect(part(page, "Who gets it").get_by_role("listitem")).to_have_count(3)
    await expect(part(page, "When")).to_contain_text("07:00 UTC")
    await page.get_by_label("Leave it, and tell me").check()
    await audit(page)
    await page.get_by_role("button", name="Save the mailing").dblclick()  # saves it once
    await page.wait_for_url(re.compile(r"/mailings/\d+$"))
    made = await only(mailer)
    assert made["datetime_start"] == at(10).astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    assert (made["text"], made["client_filter"]) == ("Come by until nine.", "vip")
    assert (made["on_unknown"], made["clients_count"]) == ("hold", 3)


async def test_the_text_is_counted_as_it_is_typed(page: Page) -> None:
    await page.goto("/mailings/new")
    sms, text = part(page, "As SMS"), page.get_by_label("Text")
    await text.fill("a" * 150)
    await expect(sms).to_contain_text("160 characters a part")
    await expect(sms).to_contain_text(re.compile(r"left in the last part\s*10"))
    await text.press_sequentially(" ж")
    await expect(sms).to_contain_text(
        "“ж” (U+0436 CYRILLIC SMALL LETTER ZHE) at character 152 makes this Unicode (UCS-2)"
    )
    await expect(sms).to_contain_text(re.compile(r"parts\s*3\s*left in the last part\s*49"))
    await expect(sms).to_contain_text(re.compile(r"parts in all\s*156"))
    await expect(text).to_be_focused()
    await expect(text).to_have_value("a" * 150 + " ж")
    await text.fill("\N{THUMBS UP SIGN}")
    await expect(sms).to_contain_text("(U+1F44D THUMBS UP SIGN) at character 1")
    await expect(sms).to_contain_text(re.compile(r"characters\s*1\s*counted as\s*2\s*parts\s*1"))
    await expect(sms).to_contain_text(re.compile(r"left in the last part\s*68"))


async def test_who_would_be_missed_is_told_and_what_helps_helps(page: Page) -> None:
    await page.goto("/mailings/new")
    await fill(page, "Half price.", at(13), at(20))
    expected, said = part(page, "What to expect"), page.get_by_role("status").last
    await expect(expected).to_contain_text("9 of 52 will not be reached")
    await expect(expected).to_contain_text("9 in Asia/Kamchatka, where the hours open after")
    await expect(expected).to_contain_text("A later end or wider hours would reach them.")
    await expect(said).to_contain_text("9 of 52 clients will not be reached.")
    hours = page.get_by_role("row", name="Asia/Kamchatka")
    await expect(hours).to_contain_text("UTC+12, 9 clients")
    await expect(hours).to_contain_text("00:00\u201312:00")
    await expect(hours.locator("rect.open")).to_have_count(1)
    await expect(hours.locator("rect.used")).to_have_count(0)
    await expect(page.get_by_role("row", name="Europe/Moscow").locator("rect.used")).to_have_count(
        1
    )
    await audit(page)
    await page.get_by_label("Not before").fill("")
    await page.get_by_label("Not after").fill("")
    await expect(expected).not_to_contain_text("will not be reached")
    await expect(said).to_have_text("52 clients get it.")
    await page.get_by_label("Those who are in every list that is filled in").check()
    await page.get_by_label("Operator codes").fill("916")
    await page.get_by_label("Time zones").fill("Asia/Kamchatka")
    await expect(said).to_contain_text("this mailing reaches nobody")
    await page.get_by_label("Operator codes").fill("912")
    await expect(part(page, "Who gets it")).to_contain_text("9 clients")


async def test_errors_stand_beside_fields_and_what_was_typed_stays(
    page: Page, watch: Watch, mailer: MailerProcess
) -> None:
    watch.expect("answer", r"400 POST at .*/mailings/new\?once=")
    await page.goto("/mailings/new")
    await fill(page, "", at(20), at(10))
    await page.get_by_label("Those with any of these codes or tags").check()
    await page.get_by_label("Not after").fill("")
    await page.get_by_role("button", name="Save the mailing").click()
    summary = page.get_by_role("alert")
    await expect(summary).to_be_focused()
    await expect(summary.get_by_role("listitem")).to_have_count(4)
    await expect(page.get_by_label("Text")).to_have_accessible_description(
        re.compile("must have 1 to 1,600 characters")
    )
    await expect(page.get_by_label("End", exact=True)).to_have_accessible_description(
        "must be after the start"
    )
    await expect(page.get_by_label("End", exact=True)).to_have_value(wall(at(10)))
    await audit(page)
    await summary.get_by_role("link", name="Codes or tags").click()
    await expect(page.get_by_role("textbox", name="Codes or tags")).to_be_focused()
    await page.get_by_role("textbox", name="Codes or tags").fill("912")
    await page.get_by_label("Not after").fill("22:00")
    await fill(page, "<script>alert(1)</script>", at(10), at(20))
    await page.get_by_role("button", name="Save the mailing").click()
    await page.wait_for_url(re.compile(r"/mailings/\d+$"))
    made = await only(mailer)
    assert (made["text"], made["send_interval_time_end"]) == ("<script>alert(1)</script>", "22:00")


async def test_a_copy_says_that_it_is_one(page: Page, mailer: MailerProcess) -> None:
    start = at(10, days=-3)
    first = {"datetime_start": start, "datetime_end": start + timedelta(days=9), "text": "Half."}
    first |= {"client_filter": {"tags": ["vip"]}}
    made = await mailer.call("POST", "/mailings", _json(first), status=201)
    await page.goto(f"/mailings/new?from={made['id']}")
    await expect(page.get_by_role("heading", level=1)).to_have_text(
        f"Copy of mailing #{made['id']}"
    )
    await expect(page.get_by_text("This is a copy: nothing is saved yet")).to_be_visible()
    await expect(page.get_by_role("textbox", name="Tags")).to_have_value("vip")
    await expect(page.get_by_role("textbox", name="Codes or tags")).to_be_hidden()
    await page.get_by_role("button", name="Save the mailing").click()
    await page.wait_for_url(re.compile(r"/mailings/\d+$"))
    copy = (await mailer.call("GET", "/mailings"))["results"][0]
    assert copy["id"] != made["id"]
    assert (copy["text"], copy["client_filter"]) == ("Half.", {"tags": ["vip"]})
    assert datetime.fromisoformat(copy["datetime_start"]) > datetime.now(UTC)


async def test_a_mailing_is_changed_before_its_start_and_after(
    page: Page, mailer: MailerProcess
) -> None:
    given = {"datetime_start": at(10), "datetime_end": at(20), "text": "Half.", "client_filter": ""}
    made = await mailer.call("POST", "/mailings", _json(given | {"client_filter": "912"}), 201)
    await page.goto(f"/mailings/{made['id']}/edit")
    await expect(page.get_by_role("textbox", name="Codes or tags")).to_have_value("912")
    await page.get_by_label("Start").fill(wall(at(11)))
    await page.get_by_label("Everybody").check()
    await expect(part(page, "Who gets it")).to_contain_text("52 clients")
    await page.get_by_role("button", name="Save the changes").click()
    await page.wait_for_url(re.compile(r"/mailings/\d+$"))
    changed = await only(mailer)
    assert (changed["client_filter"], changed["clients_count"]) == (None, 52)
    await mailer.call("POST", f"/mailings/{made['id']}/pause")
    await mailer.call(
        "PATCH", f"/mailings/{made['id']}", {"datetime_start": "2020-01-01T00:00:00Z"}
    )
    await page.goto(f"/mailings/{made['id']}/edit")
    await expect(page.get_by_text("This mailing has begun.")).to_be_visible()
    await expect(page.get_by_label("Start")).not_to_be_editable()
    await expect(part(page, "What to expect")).to_contain_text(
        "The sending windows of all clients open in time"
    )
    await audit(page)
    await page.get_by_label("Text").fill("Half price.")
    await page.get_by_label("End", exact=True).fill(wall(at(21)))
    await page.get_by_role("button", name="Save the changes").click()
    await page.wait_for_url(re.compile(r"/mailings/\d+$"))
    changed = await only(mailer)
    assert (changed["text"], changed["datetime_start"]) == ("Half price.", "2020-01-01T00:00:00Z")


@pytest.mark.parametrize("look", [NEW_YORK], ids=["new york"])
async def test_the_form_is_on_the_clock_of_who_looks(page: Page, watch: Watch, look: Look) -> None:
    watch.expect("answer", r"400 POST at .*/mailings/new\?once=")
    del look  # the page's
    await page.goto("/mailings/new")
    await expect(page.get_by_text("On the clock of America/New_York")).to_be_visible()
    await page.get_by_label("Text").fill("Half price.")
    await page.get_by_label("Start").fill("2040-03-11T02:30")  # the clock goes from 2 to 3
    await page.get_by_label("End", exact=True).fill("2040-11-04T01:30")  # which comes twice
    await expect(part(page, "When")).to_contain_text("4 Nov 2040, 01:30 4 Nov 2040, 05:30 UTC")
    await page.context.add_cookies(
        [{"name": "time_zone", "value": "Asia/Tokyo", "url": page.url}]
    )  # in another tab
    await page.get_by_role("button", name="Save the mailing").click()
    await expect(page.get_by_label("Start")).to_have_accessible_description(
        re.compile("does not exist on that day: the clocks go forward")
    )
    await expect(page.get_by_text("On the clock of America/New_York")).to_be_visible()
    await page.get_by_label("Start").fill("2040-03-11T03:30")
    await expect(part(page, "When")).to_contain_text("11 Mar 2040, 07:30 UTC")


@every_look
async def test_the_form_fits_and_is_accessible(page: Page, look: Look) -> None:
    await page.goto("/mailings/new")
    await page.wait_for_load_state()
    await page.locator("#audience-lists").check()
    await page.locator("#time_zones").fill("Asia/Kamchatka")
    await page.locator("#text").fill("w" * 200)
    await expect(page.locator("#preview-audience li")).to_have_count(5)
    await expect(page.locator("#preview-hours tbody tr")).to_have_count(1)
    assert await overflows(page) == []
    await audit(page)
    below = await page.locator(".preview").bounding_box()
    form = await page.locator("#on_unknown").bounding_box()
    assert below is not None
    assert form is not None
    assert (below["y"] > form["y"]) == look.phone


def _json(given: dict[str, Any]) -> dict[str, Any]:
    return {
        name: value.isoformat() if isinstance(value, datetime) else value
        for name, value in given.items()
    }
