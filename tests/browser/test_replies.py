"""The pages of replies in a browser: unread first, answers, live updates, hostile texts."""

from datetime import UTC, datetime

import pytest
from playwright.async_api import Page, expect
from sqlalchemy.ext.asyncio import AsyncEngine
from tests.browser.accessibility import check_accessibility
from tests.browser.hostile import MARKUP, OVERRIDE, find_effects
from tests.browser.measure import overflows
from tests.browser.page_errors import PageErrors
from tests.browser.page_states import every_page_state
from tests.factories import do
from tests.processes import Gateway, MailerProcess

from mailer.gateway.callback import Reply
from mailer.reply import store
from mailer.reply.rules import ReplyRules
from mailer.settings import Settings

RULES = ReplyRules.of(Settings())
ANNA, STRANGER = "79160000001", "79990000000"
HOSTILE_TEXTS = (
    MARKUP,
    "\u202e\u2067" + "متن" * 20,
    "x" * 10_000,
    "e" + "\u0301" * 200,
    "\x01\x02\x1b[31m\x7f\ufeff",
    "😀👩\u200d👩\u200d👧" * 50,
    "line\n" * 100,
    "",
)


async def add(engine: AsyncEngine, *texts: str, phone: str = ANNA) -> None:
    """Add replies of one phone through the gateway `default`."""
    replies = [Reply(phone, text) for text in texts]
    now = datetime.now(UTC)
    await do(engine, lambda db: store.add_replies(db, "default", replies, now, RULES))


@pytest.fixture(autouse=True)
async def anna_id(engine: AsyncEngine, mailer: MailerProcess) -> int:
    """Create Anna, who has replied twice."""
    anna = await mailer.call("POST", "/clients", {"phone": ANNA}, 201)
    await add(engine, "When do you open?", "Stop")
    return int(anna["id"])


@every_page_state
async def test_every_page_is_accessible_and_fits(
    page: Page, engine: AsyncEngine, anna_id: int, mailer: MailerProcess
) -> None:
    await add(engine, "Who is this?", phone=STRANGER)
    await mailer.call("POST", "/replies/3/answer", {"text": "We are the shop."}, 201)
    for path in (
        "/replies",
        "/replies?search=nothing",
        f"/replies?client_id={anna_id}",
        "/replies/1",
        "/replies/2",
        "/replies/3",
        f"/clients/{anna_id}",
    ):
        await page.goto(path)
        await check_accessibility(page)
        assert await overflows(page) == [], path


async def test_a_reply_is_read_and_unread(page: Page) -> None:
    await page.goto("/replies")
    badge = page.locator("#unread-replies")
    await expect(badge).to_contain_text("2")
    await page.locator("#reply-1").get_by_role("button", name="Mark as read").click()
    await expect(page.get_by_text("The reply is marked as read.")).to_be_visible()
    await expect(badge).to_contain_text("1")
    await expect(page.locator("tbody tr").first).to_have_id("reply-2")  # unread first
    await page.get_by_role("link", name="When do you open?").click()
    await page.get_by_role("button", name="Mark as unread").click()
    await expect(page.get_by_text("The reply is marked as unread.")).to_be_visible()
    await expect(badge).to_contain_text("2")


async def test_an_answer_is_sent_once_and_its_result_appears(page: Page, gateway: Gateway) -> None:
    received = len(gateway.received)
    await page.goto("/replies")
    await page.get_by_role("link", name="When do you open?").click()
    await page.get_by_role("textbox", name="Text").fill("Магазин открыт до пяти. " * 5)
    await expect(page.locator("#size")).to_contain_text("2 parts")
    await check_accessibility(page)
    await page.get_by_role("button", name="Send", exact=True).dblclick()
    await expect(page.get_by_text("The answer is sent in a moment.")).to_be_visible()
    await expect(page.locator("#answers")).to_contain_text("accepted")
    await expect(page.locator("#answers")).to_contain_text("Магазин открыт до пяти.")
    await check_accessibility(page)
    assert len(gateway.received) == received + 1


async def test_an_answer_without_a_text_is_refused(page: Page, page_errors: PageErrors) -> None:
    page_errors.expect("status", "400 POST")
    await page.goto("/replies/1")
    await page.get_by_role("button", name="Send", exact=True).click()
    await expect(page.get_by_role("textbox", name="Text")).to_have_attribute("aria-invalid", "true")
    await check_accessibility(page)


async def test_new_replies_appear_on_the_open_list_and_in_the_badge(
    page: Page, engine: AsyncEngine, mailer: MailerProcess
) -> None:
    await page.goto("/replies")
    await add(engine, "A new reply", MARKUP, phone=STRANGER)
    await expect(page.locator("#reply-3")).to_contain_text("A new reply")
    await expect(page.locator("#reply-4")).to_contain_text("<script>")
    await expect(page.locator("#unread-replies")).to_contain_text("4")
    assert await find_effects(page) == []
    await mailer.call("POST", "/replies/3/read")
    await expect(page.locator("#unread-replies")).to_contain_text("3")


async def test_a_reply_is_found_by_its_words(page: Page) -> None:
    await page.goto("/replies")
    await page.get_by_role("searchbox", name="Text or phone").fill("open when")
    await page.get_by_role("button", name="Find").click()
    await expect(page.locator("tbody tr")).to_have_count(1)
    await page.get_by_role("searchbox", name="Text or phone").fill("8 916 000-00-01")
    await page.get_by_role("button", name="Find").click()
    await expect(page.locator("tbody tr")).to_have_count(2)


@every_page_state
async def test_hostile_texts_are_shown_as_text(page: Page, engine: AsyncEngine) -> None:
    await add(engine, *HOSTILE_TEXTS, phone=f"{OVERRIDE}<b>")
    await page.goto("/replies")
    effects = await find_effects(page)
    assert await overflows(page) == []
    await expect(page.locator("#reply-3")).to_contain_text("<script>")
    for reply_id in range(3, 3 + len(HOSTILE_TEXTS)):
        await page.goto(f"/replies/{reply_id}")
        effects += await find_effects(page)
        assert await overflows(page) == [], reply_id
    assert effects == []
