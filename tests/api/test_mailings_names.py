"""Names and labels of mailings: their rules, and where they are shown."""

from datetime import UTC, datetime
from typing import Any

import httpx
import pytest
from sqlalchemy.ext.asyncio import AsyncEngine
from tests.api.browser_session import ESCAPED, HOSTILE, create_running_mailing, get_page
from tests.api.calls import DUE, NEW, create_mailing, field_errors
from tests.api.forms import NEW_FORM, edit_form_values, form_errors, post_form, save_form
from tests.factories import value

from mailer.daily_report.render import render_html, render_text
from mailer.daily_report.report import daily_report


async def change(api: httpx.AsyncClient, mailing_id: int, **fields: Any) -> httpx.Response:
    return await api.patch(f"/mailings/{mailing_id}", json=fields)


# ---- the API --------------------------------------------------------------------------------


async def test_a_mailing_has_no_name_and_no_labels_unless_they_are_given(
    api: httpx.AsyncClient,
) -> None:
    created = await create_mailing(api, NEW)
    assert (created["name"], created["labels"]) == (None, [])


@pytest.mark.parametrize(
    ("given", "stored"),
    [
        ("x" * 100, "x" * 100),
        ("  Spring \t sale\n", "Spring sale"),
        ("Cafe\u0301 \u200b\x07", "Caf\u00e9"),
        ("<b>&\u202e", "<b>&"),
        (None, None),
    ],
)
async def test_a_name_is_stored_without_blanks_around_it_and_invisible_characters(
    api: httpx.AsyncClient, given: str | None, stored: str | None
) -> None:
    created = await create_mailing(api, NEW | {"name": given})
    assert created["name"] == stored


@pytest.mark.parametrize("name", ["", " ", "\u200b", "x" * 101, "a\0", "\u2800", 1, ["a"], {}])
async def test_an_invalid_name_is_refused(api: httpx.AsyncClient, name: object) -> None:
    rule = {"name": "must be 1 to 100 characters, or null"}
    assert field_errors(await api.post("/mailings", json=NEW | {"name": name})) == rule
    mailing_id = (await create_mailing(api, NEW | {"name": "Good"}))["id"]
    assert field_errors(await change(api, mailing_id, name=name)) == rule
    assert (await api.get(f"/mailings/{mailing_id}")).json()["name"] == "Good"


@pytest.mark.parametrize(
    ("given", "stored"),
    [
        (["b", "A", "c"], ["A", "b", "c"]),
        (["vip", "VIP", " Vip "], ["vip"]),
        (["Stra\u00dfe", "STRASSE"], ["Stra\u00dfe"]),
        (["x" * 32], ["x" * 32]),
        (["two  words", "a,b", "'", "\\"], ["'", "\\", "a,b", "two words"]),
        ([f"{n}" for n in range(10)], [f"{n}" for n in range(10)]),
    ],
)
async def test_labels_are_sorted_and_each_is_stored_once_regardless_of_case(
    api: httpx.AsyncClient, given: list[str], stored: list[str]
) -> None:
    created = await create_mailing(api, NEW | {"labels": given})
    assert created["labels"] == stored
    found = (await api.get("/mailings", params={"label": given[0].upper()})).json()["results"]
    assert found == [created]


@pytest.mark.parametrize(
    "labels",
    [
        [""],
        ["good", " "],
        ["x" * 33],
        ["a\0"],
        [f"{n}" for n in range(11)],
        ["a"] * 1_001,
        [None],
        [1],
        [["a"]],
        "a",
        None,
        {"a": 1},
    ],
)
async def test_invalid_labels_are_refused(api: httpx.AsyncClient, labels: object) -> None:
    assert field_errors(await api.post("/mailings", json=NEW | {"labels": labels})).keys() == {
        "labels"
    }
    mailing_id = (await create_mailing(api, NEW | {"labels": ["good"]}))["id"]
    assert field_errors(await change(api, mailing_id, labels=labels)).keys() == {"labels"}
    assert (await api.get(f"/mailings/{mailing_id}")).json()["labels"] == ["good"]


async def test_name_and_labels_change_while_the_mailing_runs_without_planning_its_messages_anew(
    api: httpx.AsyncClient, engine: AsyncEngine
) -> None:
    mailing_id = await create_running_mailing(api, engine)
    changed = (await change(api, mailing_id, name="Orders", labels=["vip", "A"])).json()
    assert (changed["name"], changed["labels"]) == ("Orders", ["A", "vip"])
    assert changed["status"] == "running"
    assert await value(engine, "SELECT is_replanning FROM mailing") is False
    kept = (await change(api, mailing_id, text="Hello")).json()
    assert (kept["name"], kept["labels"]) == ("Orders", ["A", "vip"])
    removed = (await change(api, mailing_id, name=None, labels=[])).json()
    assert (removed["name"], removed["labels"]) == (None, [])


async def test_name_and_labels_of_an_ended_mailing_do_not_change(api: httpx.AsyncClient) -> None:
    mailing_id = (await create_mailing(api, NEW))["id"]
    await api.post(f"/mailings/{mailing_id}/cancel")
    assert (await change(api, mailing_id, name="Late")).status_code == 409


async def test_the_audit_log_records_changes_of_name_and_labels(api: httpx.AsyncClient) -> None:
    mailing_id = (await create_mailing(api, NEW | {"name": HOSTILE, "labels": ["old"]}))["id"]
    await change(api, mailing_id, name="Orders", labels=["OLD", "new"])
    [entry, created] = (await api.get("/audit?target_kind=mailing")).json()["results"]
    assert created["after"].items() >= {"name": HOSTILE, "labels": ["old"]}.items()
    assert entry["before"] == {"name": HOSTILE, "labels": ["old"]}
    assert entry["after"] == {"name": "Orders", "labels": ["new", "OLD"]}
    page = await get_page(api, "/audit?target_kind=mailing")
    assert f"<del>{ESCAPED}" in page.replace('<span class="text">', "")
    assert "new, OLD" in page


# ---- pages ----------------------------------------------------------------------------------


async def test_a_name_is_the_title_of_the_page_and_of_the_row(api: httpx.AsyncClient) -> None:
    named = (await create_mailing(api, NEW | {"name": HOSTILE, "labels": ["<i>", "a b&c"]}))["id"]
    unnamed = (await create_mailing(api, NEW))["id"]
    page = await get_page(api, f"/mailings/{named}")
    assert f"<title>{ESCAPED} - mailer</title>" in page
    assert f"<h1>{ESCAPED}</h1>" in page
    assert f"Mailing {named}" in page
    assert '<a href="/mailings?label=a%20b%26c">a b&amp;c</a>' in page
    assert "<i>" not in page
    assert f"<h1>Mailing {unnamed}</h1>" in await get_page(api, f"/mailings/{unnamed}")
    for path in ("/mailings", "/"):
        listed = await get_page(api, path)
        assert f'<a href="/mailings/{named}">{ESCAPED}</a>' in listed
        assert f'<a href="/mailings/{unnamed}">Your order is ready.</a>' in listed
    messages = await get_page(api, f"/mailings/{named}/messages")
    assert ESCAPED in messages
    assert ESCAPED in await get_page(api, f"/mailings/{named}/cancel")


async def test_the_form_saves_shows_and_copies_name_and_labels(api: httpx.AsyncClient) -> None:
    form = NEW_FORM | {"name": " Orders ", "labels": 'vip, "a,b", VIP,'}
    created = await save_form(api, "/mailings/new", form)
    assert (created["name"], created["labels"]) == ("Orders", ["a,b", "vip"])
    shown = await edit_form_values(api, created)
    assert (shown["name"], shown["labels"]) == ("Orders", '"a,b", vip')
    changed = await save_form(
        api, f"/mailings/{created['id']}/edit", shown | {"name": "", "labels": ""}
    )
    assert (changed["name"], changed["labels"]) == (None, [])
    assert changed["text"] == created["text"]


async def test_the_form_names_a_wrong_name_and_wrong_labels(api: httpx.AsyncClient) -> None:
    form = NEW_FORM | {"name": "x" * 101, "labels": "x" * 33}
    answer = await post_form(api, "/mailings/new", form)
    assert answer.status_code == 400
    assert form_errors(answer.text).keys() == {"name", "labels"}


async def test_the_daily_report_names_its_mailings(
    api: httpx.AsyncClient, engine: AsyncEngine
) -> None:
    await create_mailing(api, DUE | {"name": "Orders of January"})
    report = await daily_report(engine, datetime.now(UTC).date(), "UTC")
    assert [mailing.name for mailing in report.mailings] == ["Orders of January"]
    assert "Orders of January" in render_text(report)
    assert "Orders of January" in render_html(report)
