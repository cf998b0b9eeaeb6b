"""Rules for every page, and the pages overview and system."""

import contextlib
import itertools
import re
from collections.abc import AsyncIterator
from typing import Any

import pytest
from playwright.async_api import Browser, Page, expect
from tests.browser.accessibility import check_accessibility
from tests.browser.api_data import add_finished_with_failure, add_mailing
from tests.browser.measure import RECORD_CANVAS_TEXTS, collisions, overflows, wire_bytes
from tests.browser.page_errors import PageErrors
from tests.browser.page_states import DESK, NARROW, PHONE, PageState
from tests.processes import Gateway, MailerProcess, mailers

from mailer.gateway.sandbox import Faults
from mailer.statuses import OUTCOMES

MARK_DOCUMENT = "window.isMarked = true"
"""Script that marks the document, so that a test sees whether the page was loaded again."""
REDRAW_CHART = """([buckets, seconds]) => {
    const oldFigure = document.querySelector("[data-chart]");
    const figure = oldFigure.cloneNode(true);
    const body = figure.querySelector("details tbody");
    const row = body.rows[0];
    body.replaceChildren(...Array.from({ length: buckets }, (_, index) => {
        const copy = row.cloneNode(true);
        const moment = new Date(Date.UTC(2030, 0, 15) + index * seconds * 1000);
        copy.querySelector("time").dateTime = moment.toISOString();
        return copy;
    }));
    figure.dataset.seconds = seconds;
    figure.querySelector(".canvas").replaceChildren();
    drawnTexts.length = 0;
    oldFigure.replaceWith(figure);
    document.dispatchEvent(new Event("live"));
}"""
"""Script that replaces a chart by one with another number of buckets, `seconds` long each."""
CHART_RANGES = (
    (1, 1),
    (1, 3600),
    (1, 86400),
    (10, 604800),
    (80, 86400),
    (100, 86400),
    (100, 604800),
)
"""Number of buckets of a chart, and length of a bucket in seconds: 1 second, hour, day or week."""
SMALL_PHONE = PageState(locale="ru-RU", width=360, height=740, phone=True)
NARROWEST = PageState(locale="ru-RU", width=320, height=640, phone=True)
TABLET = PageState(locale="ru-RU", width=768, height=1024)
MAX_PAGE_BYTES = 200_000
"""Maximum size of a page with its scripts and styles, as transferred."""
PAGES = (
    "/",
    "/mailings",
    "/mailings/new",
    "/calendar",
    "/mailings/{coming}",
    "/mailings/{coming}/edit",
    "/mailings/{coming}/cancel",
    "/mailings/{ended}",
    "/mailings/{ended}/retry",
    "/mailings/{ended}/delete",
    "/mailings/{ended}/messages",
    "/mailings/{ended}/messages/{message}",
    "/clients",
    "/clients/new",
    "/clients/import",
    "/clients/{client}",
    "/clients/{client}/opt-out",
    "/clients/{client}/delete",
    "/clients/lists",
    "/clients/lists/new",
    "/opt-outs",
    "/opt-outs/new",
    "/opt-outs/import",
    "/gateways",
    "/gateways/default",
    "/gateways/default/pause",
    "/gateways/default/release-unknown",
    "/reports",
    "/reports?date=2020-01-15",
    "/webhooks",
    "/webhooks/new",
    "/audit",
    "/system",
    "/nothing",
)
"""Paths of pages, with the names of ids in `object_ids`. The last one is the error page."""

NOT_IN_OTHER_FILES = (
    "/",
    "/mailings/{coming}/cancel",
    "/gateways/default/release-unknown",
    "/reports",
    "/system",
    "/nothing",
)
"""Pages that no other test file checks on a desktop."""


class SwitchableGateway:
    """A gateway that can be switched off and on again at the same address."""

    def __init__(self) -> None:
        self.gateway = Gateway(Faults())
        self._running = contextlib.AsyncExitStack()

    async def on(self) -> None:
        """Start the gateway: the first time at any free port, later at the same."""
        port = int(re.findall(r":(\d+)", self.gateway.url)[0]) if self.gateway.url else 0
        running = self.gateway.sandbox.run(port=port)
        self.gateway.url = await self._running.enter_async_context(running)

    async def off(self) -> None:
        await self._running.aclose()


@pytest.fixture(scope="module")
async def switchable_gateway() -> AsyncIterator[SwitchableGateway]:
    """The gateway of the test file, switched on."""
    switchable_gateway = SwitchableGateway()
    await switchable_gateway.on()
    yield switchable_gateway
    await switchable_gateway.off()


@pytest.fixture(scope="module")
async def mailer(
    browser: Browser, shared_database_url: str, switchable_gateway: SwitchableGateway
) -> AsyncIterator[MailerProcess]:
    """A process that sends 4 messages a second; one failure opens its breaker for a second."""
    del browser  # requested so that without a browser no process is started
    sending_settings = {"gateway_rate": "4", "breaker_failures": "1", "breaker_reset": "1"}
    async with mailers(shared_database_url) as start:
        yield await start(**switchable_gateway.gateway.settings, **sending_settings)


@pytest.fixture(scope="module")
async def object_ids(mailer: MailerProcess) -> dict[str, int]:
    """Create the objects of `PAGES`; return their ids."""
    ended = await add_finished_with_failure(mailer, "of pages", 2)
    first_message = "SELECT min(id) FROM message WHERE mailing_id = $1"
    return {
        "ended": ended,
        "message": await mailer.query(first_message, ended),
        "client": await mailer.query("SELECT min(id) FROM client"),
        "coming": await add_mailing(mailer, client_filter="of pages", text="It is to come"),
    }


def expect_not_found(page_errors: PageErrors) -> None:
    """Announce the error page of `PAGES`."""
    page_errors.expect("status", "404 GET at .*/nothing")


async def find_problems(
    page: Page, object_ids: dict[str, int], patterns: tuple[str, ...]
) -> list[str]:
    """Open the pages of `patterns`; return what is wrong with their layout and accessibility."""
    problems = []
    for pattern in patterns:
        await page.goto(pattern.format(**object_ids))
        headings = await page.locator("h1:visible").count()
        problems += [] if headings == 1 else [f"{pattern}: {headings} h1"]
        problems += [f"{pattern}: {wide}" for wide in await overflows(page)]
        try:
            await check_accessibility(page)
        except AssertionError as error:
            problems.append(str(error))
        problems += [f"{pattern}: {text}" for text in await find_misplaced_texts(page)]
    return problems


async def find_misplaced_texts(page: Page) -> list[str]:
    """Expand all collapsed elements of a page; return texts that overlap or overflow."""
    for summary in await page.locator("main summary:visible").all():
        await summary.click()
    return await overflows(page) + await collisions(page)


@pytest.mark.parametrize(
    ("page_state", "patterns"),
    [(DESK, NOT_IN_OTHER_FILES), (NARROW, PAGES)],
    ids=["desktop", "russian on a phone, dark"],
)
async def test_every_page_is_accessible_and_fits(
    page: Page,
    page_errors: PageErrors,
    page_state: PageState,
    patterns: tuple[str, ...],
    object_ids: dict[str, int],
) -> None:
    expect_not_found(page_errors)
    await page.goto("/system")
    await expect(page.locator("html")).to_have_attribute("lang", page_state.locale[:2])
    assert not await find_problems(page, object_ids, patterns)


@pytest.mark.parametrize(
    "page_state",
    [NARROWEST, SMALL_PHONE, TABLET, PHONE, DESK],
    ids=["russian, smallest phone", "russian, small phone", "russian, tablet", "phone", "desktop"],
)
async def test_texts_neither_overlap_nor_leave_the_screen_or_their_boxes(
    page: Page, page_errors: PageErrors, page_state: PageState, object_ids: dict[str, int]
) -> None:
    expect_not_found(page_errors)
    await page.goto("/system")
    await expect(page.locator("html")).to_have_attribute("lang", page_state.locale[:2])
    problems = []
    for pattern in PAGES:
        await page.goto(pattern.format(**object_ids))
        problems += [f"{pattern}: {text}" for text in await find_misplaced_texts(page)]
    assert problems == []


@pytest.mark.parametrize(
    "page_state",
    [NARROWEST, SMALL_PHONE, DESK],
    ids=["russian, smallest phone", "russian, small phone", "desktop"],
)
@pytest.mark.parametrize("path", ["/", "/mailings/{ended}"])
async def test_a_chart_has_values_and_its_time_labels_do_not_overlap(
    page: Page, path: str, object_ids: dict[str, int]
) -> None:
    await page.add_init_script(RECORD_CANVAS_TEXTS)
    await page.goto(path.format(**object_ids))
    await expect(page.locator(".chart canvas")).to_be_visible()

    legend = page.locator(".u-legend .u-value")
    for _ in range(2):
        await expect(legend).to_have_count(1 + len(OUTCOMES))  # the period, too
        for value in await legend.all():
            await expect(value).to_have_text(re.compile(r"\S"))
        await page.evaluate("document.dispatchEvent(new Event('live'))")  # draws it again
    delivered = page.locator(".u-series", has_text=re.compile("delivered|доставлено")).last
    total_in_legend = await delivered.locator(".u-value").inner_text()
    delivered_cells = page.locator(f".chart td:nth-of-type({1 + OUTCOMES.index('delivered')})")
    counts = [
        int(await cell.get_attribute("data-value") or 0) for cell in await delivered_cells.all()
    ]
    assert int(re.sub(r"\D", "", total_in_legend)) == sum(counts) > 0

    check_labels([label["text"] for label in await get_time_labels(page)])


def check_labels(labels: list[str]) -> None:
    """Fail if a chart has the same label twice, except a time of day on another day."""
    days = [label for label in labels if ":" not in label]
    assert len(set(days)) == len(days)
    days_so_far = list(itertools.accumulate(":" not in label for label in labels))
    labels_by_day = list(zip(days_so_far, labels, strict=True))
    assert len(set(labels_by_day)) == len(labels)  # a day has no label twice


@pytest.mark.parametrize("page_state", [NARROW, DESK], ids=["russian, phone", "desktop"])
async def test_charts_of_every_time_span_have_time_labels(page: Page) -> None:
    await page.add_init_script(RECORD_CANVAS_TEXTS)
    await page.goto("/")
    await expect(page.locator(".chart canvas")).to_be_visible()
    for buckets, seconds in CHART_RANGES:
        await page.evaluate(REDRAW_CHART, [buckets, seconds])
        await expect(page.locator(".chart canvas")).to_be_visible()
        labels = await get_time_labels(page)
        assert labels, (buckets, seconds)
        check_labels([label["text"] for label in labels])


async def get_time_labels(page: Page) -> list[dict[str, Any]]:
    """Return the time labels of a chart from left to right; they must not overlap or overflow."""
    drawn_texts = await page.evaluate("drawnTexts")
    has_colon_or_letter = re.compile(r":|[^\W\d_]")  # other texts are counts
    labels = [text for text in drawn_texts if has_colon_or_letter.search(text["text"])]
    assert labels
    assert len({label["y"] for label in labels}) == 1
    labels.sort(key=lambda label: label["left"])
    assert all(one["right"] < other["left"] for one, other in itertools.pairwise(labels))
    assert labels[0]["left"] >= 0
    assert labels[-1]["right"] <= labels[-1]["canvasWidth"]
    return labels


async def test_every_page_is_small(
    page: Page, page_errors: PageErrors, object_ids: dict[str, int]
) -> None:
    expect_not_found(page_errors)
    await page.goto("/system")
    await expect(page.locator("html")).to_have_attribute("data-zone", DESK.time_zone)
    sizes = {path: await wire_bytes(page, path.format(**object_ids)) for path in PAGES}
    assert {path: size for path, size in sizes.items() if size >= MAX_PAGE_BYTES} == {}
    assert min(sizes.values()) > 1_000  # the measurement works


async def test_the_overview_is_updated_while_a_mailing_is_sent(
    page: Page, mailer: MailerProcess, switchable_gateway: SwitchableGateway
) -> None:
    coming = await add_mailing(mailer, 1800, client_filter="watched", text="The next one")
    await mailer.create_clients(400, tags=("watched",))  # sending to them takes 100 seconds
    running = await add_mailing(mailer, -1, client_filter="watched", text="It is being sent")
    await page.goto("/")
    card = page.locator(f"#running-{running}")
    html = page.locator("html")
    await expect(html).to_have_attribute("data-zone", DESK.time_zone)
    await page.evaluate(MARK_DOCUMENT)
    await expect(page.locator("#upcoming").get_by_role("link", name="The next one")).to_be_visible()
    await expect(page.locator(".chart canvas")).to_be_visible()
    await page.get_by_text("As a table").click()
    table = page.get_by_role("table")
    await expect(table).to_be_visible()
    await expect(card).to_contain_text("400 clients")
    await expect(card.locator("rect.delivered")).to_have_count(1)
    count_bar = card.get_by_role("img")
    first_label = await count_bar.get_attribute("aria-label")
    assert first_label is not None
    await expect(count_bar).not_to_have_attribute("aria-label", first_label)  # it is updated
    await check_accessibility(page)

    await switchable_gateway.off()
    try:
        gateway = page.locator("#gateway")
        await expect(gateway).to_contain_text("not accepting messages")
        await expect(gateway).to_contain_text("no messages are lost")
        await check_accessibility(page)
    finally:
        await switchable_gateway.on()
    await expect(gateway.get_by_text("accepting messages", exact=True)).to_be_visible()

    # updates neither close the table nor load the page again
    await expect(table).to_be_visible()
    await expect(page.locator(".chart canvas")).to_have_count(1)
    delivered = table.locator("tbody tr").last.locator("td").nth(OUTCOMES.index("delivered"))
    assert int(await delivered.get_attribute("data-value") or 0) > 0
    await expect(card).to_be_visible()
    assert await page.evaluate("window.isMarked")

    await card.get_by_role("link").click()
    await expect(page).to_have_url(f"{mailer.address}/mailings/{running}")
    await mailer.call("POST", f"/mailings/{running}/cancel")
    await check_links_of_overview(page, mailer, coming)
    await check_recent_failures(page)  # those while the gateway was off


async def check_links_of_overview(page: Page, mailer: MailerProcess, coming: int) -> None:
    """Fail unless the overview links to the mailing `coming`, and to the form of a new one."""
    await page.get_by_role("link", name="Overview").click()
    await page.get_by_role("link", name="The next one").click()
    await expect(page).to_have_url(f"{mailer.address}/mailings/{coming}")
    await page.get_by_role("link", name="mailer", exact=True).click()
    await page.get_by_role("link", name="New mailing").click()
    await expect(page).to_have_url(f"{mailer.address}/mailings/new")


async def check_recent_failures(page: Page) -> None:
    """Fail unless the system page lists failures."""
    await page.get_by_role("link", name="System").click()
    failures = page.get_by_role("region", name="Recent failures of this worker")
    await expect(failures.get_by_role("row").nth(1)).to_be_visible()
    await check_accessibility(page)
    assert await overflows(page) == []


async def test_the_system_page_shows_the_process_but_no_secrets(
    page: Page, mailer: MailerProcess
) -> None:
    await page.goto("/system")
    await expect(page.locator("html")).to_have_attribute("data-zone", DESK.time_zone)
    settings = page.get_by_role("region", name="Current settings")
    rate = settings.get_by_role("row").filter(has_text="MAILER_GATEWAY_RATE")
    await expect(rate.get_by_role("cell")).to_have_text(["4.0", "set"])
    for name in ("MAILER_GATEWAY_TOKEN", "MAILER_DATABASE_URL"):
        row = settings.get_by_role("row").filter(has_text=name)
        await expect(row.get_by_role("cell")).to_have_text(["***", "set"])
    content = await page.content()
    assert "secret" not in content  # the token's value
    assert mailer.database_url not in content

    database = page.get_by_role("region", name="Database")
    await expect(database).to_contain_text("This is the newest migration.")
    await expect(database).to_contain_text(re.compile(r"PostgreSQL\s*\d\d"))
    workers = page.get_by_role("region", name="Active workers").get_by_role("row")
    await expect(workers.filter(has_text=str(mailer.process.pid))).to_have_count(1)
    await expect(page.get_by_role("heading", name="Recent failures of this worker")).to_be_visible()
    links = page.get_by_role("region", name="More").get_by_role("link")
    for path in [await link.get_attribute("href") for link in await links.all()]:
        response = await page.request.get(f"{path}")
        assert response.status == 200, path


async def test_the_chosen_language_and_time_zone_are_kept(
    page: Page, mailer: MailerProcess
) -> None:
    address = f"{mailer.address}/mailings?status=scheduled"
    await page.goto(address)
    html = page.locator("html")
    await expect(html).to_have_attribute("data-zone", DESK.time_zone)
    zone = page.get_by_label("Time zone")
    await zone.fill("Asia/Omsk")
    assert await page.locator("#zones option").count() > 300
    await page.get_by_label("Language").select_option("Русский")
    await page.get_by_role("button", name="Apply").click()
    await expect(html).to_have_attribute("lang", "ru")
    await expect(html).to_have_attribute("data-zone", "Asia/Omsk")
    await expect(page).to_have_url(address)
    await expect(page.locator("[name=time_zone]")).to_have_value("Asia/Omsk")
    await page.locator("body > header nav a").last.click()
    await expect(page).to_have_url(f"{mailer.address}/system")
    await expect(html).to_have_attribute("lang", "ru")
    await expect(html).to_have_attribute("data-zone", "Asia/Omsk")


async def test_the_time_zone_of_the_browser_is_used_on_the_first_visit(page: Page) -> None:
    loaded_urls: list[str] = []
    page.on("domcontentloaded", lambda loaded_page: loaded_urls.append(loaded_page.url))
    await page.goto("/clients")
    await expect(page.locator("html")).to_have_attribute("data-zone", DESK.time_zone)
    await page.wait_for_timeout(400)  # milliseconds: a repeated reload would come sooner
    assert len(loaded_urls) <= 2  # a script sets the time zone and loads the page again, once
    await page.goto("/system")
    await expect(page.locator("html")).to_have_attribute("data-zone", DESK.time_zone)
    assert len(loaded_urls) <= 3


async def test_an_unknown_time_zone_changes_nothing(page: Page) -> None:
    await page.goto("/clients")
    html = page.locator("html")
    await expect(html).to_have_attribute("data-zone", DESK.time_zone)
    zone = page.get_by_role("contentinfo").get_by_label("Time zone")
    await zone.fill("Moscow")
    await page.keyboard.press("Enter")
    await expect(zone).to_have_value(DESK.time_zone)
    await expect(html).to_have_attribute("data-zone", DESK.time_zone)


async def test_the_first_tab_stop_leads_to_the_content(page: Page) -> None:
    await page.goto("/system")
    await expect(page.locator("html")).to_have_attribute("data-zone", DESK.time_zone)
    await page.keyboard.press("Tab")
    skip = page.get_by_role("link", name="Skip to content")
    await expect(skip).to_be_focused()
    await expect(skip).to_be_in_viewport()
    await expect(skip).to_have_css("outline-style", "solid")
    await page.keyboard.press("Enter")
    await expect(page.locator("#main")).to_be_focused()
    await page.keyboard.press("Tab")
    focused = page.locator("main :focus")
    await expect(focused).to_have_count(1)
    await expect(focused).to_have_css("outline-style", "solid")
