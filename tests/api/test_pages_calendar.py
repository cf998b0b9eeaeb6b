"""The calendar of mailings: what is scheduled and running, and the clients whom mailings share."""

import httpx
import pytest
from tests.api.browser_session import ESCAPED, HOSTILE, get_page
from tests.api.calls import CLIENTS, create_mailing
from tests.api.forms import visible_text

WEEK = "/calendar?date=2030-01-16"
VIP = {
    "name": "Sale",
    "datetime_start": "2030-01-15T09:00:00Z",
    "datetime_end": "2030-01-16T09:00:00Z",
    "send_interval_time_start": "09:00",
    "send_interval_time_end": "21:00",
    "text": "Secret offer",
}
"""A mailing on Tuesday and Wednesday of the week."""


async def test_each_day_names_the_mailings_that_last_on_it(
    api: httpx.AsyncClient, clients: dict[str, int]
) -> None:
    mailing_id = (await create_mailing(api, VIP))["id"]
    page = await get_page(api, WEEK)
    days = page.split("<h3>")[1:8]
    assert ["Sale" in day.split("</td>")[0] for day in days] == [
        *(False, True, True, False),
        *(False, False, False),
    ]
    assert "Tue, 15 Jan" in days[1]
    details = visible_text(page.split('id="details"')[1])
    assert "Scheduled" in details
    assert "09:00 to 21:00 in each client" in details
    assert f"{len(clients)}" in details
    assert f'href="/mailings/{mailing_id}"' in page


async def test_a_month_shows_whole_weeks(api: httpx.AsyncClient) -> None:
    await create_mailing(api, VIP)
    page = await get_page(api, "/calendar?view=month&date=2030-01-31")
    assert page.count("<h3>") == 35
    assert '<h2 id="days">January 2030</h2>' in page
    assert 'href="/calendar?view=month&amp;date=2030-02-01" rel="next"' in page
    assert 'href="/calendar?view=month&amp;date=2029-12-31" rel="prev"' in page


async def test_cancelled_mailings_and_drafts_are_not_in_the_calendar(
    api: httpx.AsyncClient,
) -> None:
    cancelled = (await create_mailing(api, VIP))["id"]
    await api.post(f"/mailings/{cancelled}/cancel")
    await create_mailing(api, VIP | {"draft": True})
    assert "No mailing is scheduled or running on these days." in await get_page(api, WEEK)


async def test_shared_clients_are_counted_on_demand(
    api: httpx.AsyncClient, clients: dict[str, int]
) -> None:
    first = (await create_mailing(api, VIP | {"client_filter": None}))["id"]
    code = CLIENTS[next(iter(clients))]["phone"][1:4]
    other = VIP | {"name": "News", "client_filter": {"operator_codes": [code]}}
    await create_mailing(api, other)
    later = {"datetime_start": "2030-01-17T09:00:00Z", "datetime_end": "2030-01-17T10:00:00Z"}
    await create_mailing(api, VIP | {"name": "Later"} | later)
    page = await get_page(api, WEEK)
    assert "1 pair of mailings lasts at the same time." in page
    assert "Shared clients" not in page

    page = await get_page(api, f"{WEEK}&overlaps=yes")
    table = page.split("Shared clients</th>")[1].split("</table>")[0]
    shared = sum(values["phone"][1:4] == code for values in CLIENTS.values())
    assert f'data-label="Shared clients">{shared}</td>' in table
    assert f'href="/mailings/{first}"' in table
    assert "Later" not in table


async def test_a_day_with_many_mailings_leads_to_the_list(api: httpx.AsyncClient) -> None:
    for number in range(10):
        await create_mailing(api, VIP | {"name": f"Sale {number}"})
    page = await get_page(api, WEEK)
    assert "and 2 more" in page
    link = "/mailings?from=2030-01-15&amp;to=2030-01-15&amp;status=scheduled&amp;status=running"
    assert link in page


@pytest.mark.parametrize("query", ["date=yesterday", "date=9999-01-01", "view=year", "overlaps=no"])
async def test_a_wrong_query_is_named(api: httpx.AsyncClient, query: str) -> None:
    assert "error-summary" in await get_page(api, f"/calendar?{query}", status=400)


async def test_a_name_is_shown_as_text(api: httpx.AsyncClient) -> None:
    await create_mailing(api, VIP | {"name": HOSTILE})
    page = await get_page(api, WEEK)
    assert HOSTILE not in page
    assert ESCAPED in page


async def test_the_list_of_mailings_leads_to_the_calendar(
    api: httpx.AsyncClient,
) -> None:
    assert 'href="/calendar"' in (await get_page(api, "/mailings")).split("<main")[1]
