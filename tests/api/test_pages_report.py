"""The page of the daily report."""

import html
import re
from datetime import UTC, date, datetime, timedelta
from zoneinfo import ZoneInfo

import httpx
import pytest
from sqlalchemy.ext.asyncio import AsyncEngine
from tests.api.browser_session import (
    BROWSER,
    SITE,
    create_browser,
    get_page,
    signed_in_browser,
)
from tests.factories import HOUR, NOON, add_clients, add_mailing, add_messages, execute

from mailer.daily_report.mail import report_command
from mailer.daily_report.render import render_text
from mailer.daily_report.report import MAX_LISTED, daily_report
from mailer.settings import Settings

DAY = date(2020, 1, 15)
"""The day of `NOON`, when sample messages are sent by default."""
PAGE = f"/reports?date={DAY}"
ZONE = "Asia/Kolkata"
"""A time zone in which the messages of `NOON` are sent at 17:30."""
IN_KOLKATA = Settings(auth="none", report_time_zone=ZONE)


def as_text(page: str) -> str:
    """Return a page without its elements, with every run of blanks as one space."""
    return " ".join(html.unescape(re.sub(r"<[^>]*>", " ", page)).split())


async def main_text(browser: httpx.AsyncClient, path: str, status: int = 200) -> str:
    """Return the text of a page between its header and its footer."""
    return as_text((await get_page(browser, path, status)).split("<main")[1].split("</main")[0])


async def add_day(engine: AsyncEngine) -> int:
    """Create a mailing with 1,002 delivered and two rejected messages, at noon; return its id.

    One of the rejected messages was sent through another gateway than the others.
    """
    clients = await add_clients(engine, 1_004)
    mailing_id = await add_mailing(engine, clients=1_004)
    await add_messages(engine, mailing_id, clients[:1_002], "delivered")
    await add_messages(engine, mailing_id, clients[1_002:], "undelivered", "rejected_400")
    await execute(
        engine,
        "UPDATE message SET gateway = 'main', parts = CASE status WHEN 'delivered' THEN 2 END",
        f"UPDATE message SET gateway = 'spare' WHERE client_id = {clients[-1]}",  # noqa: S608  # a number
    )
    return mailing_id


async def test_the_page_shows_the_numbers_of_the_command(
    api: httpx.AsyncClient, engine: AsyncEngine, shared_database_url: str
) -> None:
    mailing_id = await add_day(engine)
    printed = await report_command(Settings(database_url=shared_database_url), DAY, send=False)
    on_that_day = printed.split("\n\n")[1].splitlines()[1:]
    outcomes = dict(re.split("  +", line.strip()) for line in on_that_day)
    assert outcomes["delivered"] == "1,002"

    page = await main_text(api, PAGE)

    for label, count in outcomes.items():
        assert f" {label} {count} " in page
    assert "Wednesday, 15 January 2020" in page
    assert "12:00 1,002 2 13:00" in page  # by hour
    assert "main 1,002 1 2,004 spare 1 0" in page  # by gateway
    assert "the gateway rejected it with 400 main undelivered 1" in page
    assert "1 mailing 1,004 clients 1,002 delivered 2 undelivered" in page
    assert f"Mailing {mailing_id} Running 15 Jan 2020, 12:00 \u2013 15 Jan 2020, 18:00" in page


async def test_the_text_of_the_page_is_that_of_the_mail(
    api: httpx.AsyncClient, engine: AsyncEngine
) -> None:
    await add_day(engine)
    assert f'href="/reports/text?date={DAY}"' in await get_page(api, PAGE)

    response = await api.get(f"{SITE}/reports/text?date={DAY}", headers=BROWSER)

    assert response.headers["content-type"] == "text/plain; charset=utf-8"
    assert response.headers["cache-control"] == "private, no-store"
    as_of = re.compile("^As of .*$", re.MULTILINE)
    expected = render_text(await daily_report(engine, DAY, "UTC"))
    assert as_of.sub("", response.text) == as_of.sub("", expected)


async def test_the_page_is_in_russian_too(api: httpx.AsyncClient, engine: AsyncEngine) -> None:
    await add_day(engine)

    response = await api.get(f"{SITE}{PAGE}", headers=BROWSER | {"Accept-Language": "ru"})

    page = as_text(response.text)
    assert "Отчёт за день" in page
    assert "Среда, 15 января 2020" in page
    assert "доставлено 1 002" in page
    assert "шлюз отклонил" in page


async def test_bars_are_cells_in_proportion_to_the_outcomes(
    api: httpx.AsyncClient, engine: AsyncEngine
) -> None:
    clients = await add_clients(engine, 4)
    mailing_id = await add_mailing(engine, clients=4)
    await add_messages(engine, mailing_id, clients[:3], "delivered")
    await add_messages(engine, mailing_id, clients[3:], "unknown", "timeout", NOON + HOUR)

    page = await get_page(api, PAGE)

    [noon] = re.findall(r'<th scope="row">12:00</th>(.*?)</tr></table>', page)
    assert '<td class="delivered" width="100.0%"></td>' in noon
    [one] = re.findall(r'<th scope="row">13:00</th>(.*?)</tr></table>', page)
    assert '<td class="unknown" width="34.0%"></td><td width="66.0%"></td>' in one


async def test_days_and_hours_are_those_of_the_time_zone_of_reports(engine: AsyncEngine) -> None:
    await add_day(engine)
    async with create_browser(engine, IN_KOLKATA) as browser:
        page = await main_text(browser, PAGE)
        today = datetime.now(UTC).astimezone(ZoneInfo(ZONE)).date()
        assert f'value="{today}"' in await get_page(browser, "/reports")

    assert f"in the time zone {ZONE}." in page
    assert "17:00 1,002 2 18:00" in page


async def test_without_a_date_the_page_is_of_today_so_far(
    api: httpx.AsyncClient, engine: AsyncEngine
) -> None:
    today = datetime.now(UTC).date()
    text = await main_text(api, "/reports")
    assert "Today so far" in text
    assert "No message has got an outcome today yet." in text
    clients = await add_clients(engine, 1)
    mailing_id = await add_mailing(engine, clients=1, start=datetime.now(UTC))
    await add_messages(engine, mailing_id, clients, "delivered", at=datetime.now(UTC))

    page = await get_page(api, "/reports")

    assert f'href="/reports?date={today - timedelta(days=1)}" rel="prev"' in page
    assert 'rel="next"' not in page
    hours = re.findall(r'<th scope="row">(\d\d):00</th>', page)
    assert len(hours) <= datetime.now(UTC).hour + 1  # no hour that has not begun


async def test_a_past_day_links_to_the_days_beside_it(api: httpx.AsyncClient) -> None:
    page = await get_page(api, PAGE)
    assert 'href="/reports?date=2020-01-14" rel="prev"' in page
    assert 'href="/reports?date=2020-01-16" rel="next"' in page
    assert '<a href="/reports" aria-current="page">Reports</a>' in page


async def test_a_day_without_data_says_so(api: httpx.AsyncClient) -> None:
    page = await main_text(api, PAGE)
    assert "No message got an outcome on this day." in page
    assert "No mailing was active on this day." in page
    assert "By hour" not in page


async def test_the_page_of_a_day_that_a_time_zone_skips_is_empty(engine: AsyncEngine) -> None:
    settings = Settings(auth="none", report_time_zone="Pacific/Apia")
    async with create_browser(engine, settings) as browser:
        page = await main_text(browser, "/reports?date=2011-12-30")
    assert "No message got an outcome on this day." in page


@pytest.mark.parametrize(("days_ago", "says_so"), [(31, True), (30, False)])
async def test_a_day_before_the_retention_period_says_that_messages_are_deleted(
    engine: AsyncEngine, days_ago: int, *, says_so: bool
) -> None:
    day = datetime.now(UTC).date() - timedelta(days=days_ago)
    settings = Settings(auth="none", retention_days=30)
    async with create_browser(engine, settings) as browser:
        page = await main_text(browser, f"/reports?date={day}")
    assert ("Messages are kept for 30 days after their mailing" in page) == says_so


async def test_accepted_messages_without_a_receipt_are_announced(
    api: httpx.AsyncClient, engine: AsyncEngine
) -> None:
    clients = await add_clients(engine, 2)
    mailing_id = await add_mailing(engine, clients=2)
    await add_messages(engine, mailing_id, clients, "sent")
    page = await main_text(api, PAGE)
    assert "2 accepted messages still await their receipts." in page


async def test_a_long_list_of_mailings_says_how_many_are_left_out(
    api: httpx.AsyncClient, engine: AsyncEngine
) -> None:
    for _ in range(MAX_LISTED + 2):
        await add_mailing(engine)
    assert "2 older mailings are not listed." in await main_text(api, PAGE)


@pytest.mark.parametrize(
    ("value", "error"),
    [
        ("2020-1-15", "must be a date"),
        ("yesterday", "must be a date"),
        ("1969-12-31", "must lie between the years 1970 and 9000"),
        ("0001-01-01", "must lie between the years 1970 and 9000"),
        ("8999-01-01", "must not be in the future"),
        ("2020-01-15&date=2020-01-16", "must be a date"),
    ],
)
async def test_a_wrong_date_is_an_error_beside_its_field(
    api: httpx.AsyncClient, value: str, error: str
) -> None:
    page = await get_page(api, f"/reports?date={value}", 400)
    assert f'id="date-error">{error}' in page
    response = await api.get(f"{SITE}/reports/text?date={value}")
    assert response.status_code == 400
    assert response.json()["errors"] == [{"field": "date", "message": error}]


async def test_every_role_sees_reports(engine: AsyncEngine) -> None:
    browser = await signed_in_browser(engine, "viewer")
    for path in ("/reports", "/reports/text"):
        assert (await browser.get(path)).status_code == 200
    async with create_browser(engine) as stranger:
        response = await stranger.get("/reports")
        assert response.headers["location"].startswith("/login")
