"""The audit log through the API and on its page."""

import ast
import re
from pathlib import Path

import httpx
import pytest
from sqlalchemy.ext.asyncio import AsyncEngine
from tests.api.browser_session import BROWSER, ESCAPED, HOSTILE, SITE, get_page
from tests.api.calls import NEW, create_mailing
from tests.factories import execute

import mailer
from mailer.access import audit_log, commands
from mailer.admin import labels

SOURCE = Path(mailer.__file__).parent
ANNA = {"phone": "79161234567", "tag": "anna-tag", "time_zone": "Europe/Moscow"}


INSERT_ENTRIES = """
    INSERT INTO audit (actor_kind, actor_id, actor, action, target_kind, target_id)
    SELECT 'key', n % 3 + 1, 'key', CASE WHEN n % 2 = 0 THEN 'client_created'
        ELSE 'client_erased' END, 'client', n FROM generate_series(1, {}) AS n"""


async def add_entries(engine: AsyncEngine, count: int) -> None:
    """Insert entries of three keys in turn, for clients that are created and erased in turn."""
    await execute(engine, INSERT_ENTRIES.format(count))


# ---- the API --------------------------------------------------------------------------------


async def test_entries_are_filtered_by_actor_action_and_target(
    api: httpx.AsyncClient, engine: AsyncEngine
) -> None:
    await add_entries(engine, 12)
    count_by_query = {
        "": 12,
        "actor_kind=key": 12,
        "actor_kind=key&actor_id=2": 4,
        "actor_kind=user": 0,
        "action=client_created": 6,
        "action=nothing": 0,
        "target_kind=client&target_id=5": 1,
        "target_kind=client&action=client_erased&actor_kind=key&actor_id=1": 2,
        "target_kind=key": 0,
    }
    for query, count in count_by_query.items():
        page = (await api.get(f"/audit?{query}")).json()
        assert (query, page["count"], len(page["results"])) == (query, count, count)


async def test_pages_of_entries_are_linked_newest_first(
    api: httpx.AsyncClient, engine: AsyncEngine
) -> None:
    await add_entries(engine, 12)
    first = (await api.get("/audit?action=client_created&limit=4")).json()
    assert [entry["id"] for entry in first["results"]] == [12, 10, 8, 6]
    assert first["previous"] is None
    second = (await api.get(first["next"])).json()
    assert [entry["id"] for entry in second["results"]] == [4, 2]
    assert second["next"] is None
    assert (await api.get(second["previous"])).json()["results"] == first["results"]


@pytest.mark.parametrize(
    ("query", "field", "message"),
    [
        ("actor_id=1", "actor_id", "requires the parameter of its kind"),
        ("target_id=1", "target_id", "requires the parameter of its kind"),
        ("target_kind=mailing&target_id=0", "target_id", "must be a number from 1"),
        ("actor_kind=nobody", "actor_kind", "invalid enum value"),
        ("target_kind=phone", "target_kind", "invalid enum value"),
        ("action=", "action", "must be 1 to 64 characters"),
        ("action=%00", "action", "must be 1 to 64 characters"),
        ("before=1&after=1", "after", "cannot be given together with before"),
        ("address=x", "address", "is not a known field"),
    ],
)
async def test_an_invalid_query_is_refused(
    api: httpx.AsyncClient, query: str, field: str, message: str
) -> None:
    answer = await api.get(f"/audit?{query}")
    assert answer.status_code == 400
    [error] = answer.json()["errors"]
    assert error["field"] == field
    assert error["message"].startswith(message)


async def test_counting_stops_at_a_maximum(api: httpx.AsyncClient, engine: AsyncEngine) -> None:
    maximum = audit_log.MAX_COUNTED_ENTRIES
    await add_entries(engine, maximum)
    assert (await api.get("/audit?limit=1")).json()["count"] == maximum
    assert "10,000 entries" in await get_page(api, "/audit")

    await add_entries(engine, 5)
    assert (await api.get("/audit?limit=1")).json()["count"] == maximum + 1
    assert "More than 10,000 entries" in await get_page(api, "/audit")


# ---- the page -------------------------------------------------------------------------------


async def test_the_page_shows_actors_actions_and_changes_with_links(
    api: httpx.AsyncClient, engine: AsyncEngine
) -> None:
    mailing_id = (await create_mailing(api, NEW | {"text": HOSTILE}))["id"]
    change = {
        "text": f"Later {HOSTILE} {'long ' * 100}",
        "client_filter": {"tags": ["vip"]},
        "send_interval_time_start": "09:00",
        "send_interval_time_end": "21:00",
        "datetime_end": "2040-01-03T09:00:00Z",
        "on_unknown": "hold",
    }
    await api.patch(f"/mailings/{mailing_id}", json=change)
    await api.post(f"/mailings/{mailing_id}/pause")
    await commands.create_key(engine, "shop", "read", None)
    await execute(
        engine,
        # an action that this version does not know, by a user with a hostile name
        """INSERT INTO audit (actor_kind, actor_id, actor, address, action, target_kind, after)
            VALUES ('user', 3, '<b>ann', '192.0.2.7', 'of_later', 'user', '{"x": [1]}')""",
    )
    html = await get_page(api, "/audit")
    for expected in (
        "Mailing created",
        "Mailing changed",
        "API key created",
        "<del>Scheduled</del><ins>Paused</ins>",
        "the tag is vip",
        f'<a href="/mailings/{mailing_id}">Mailing {mailing_id}</a>',
        "<del>send again</del><ins>do not send again</ins>",
        "Read clients, mailings and messages",
        "of_later",
        "from 192.0.2.7",
        "&lt;b&gt;ann",
        '<a href="/audit?actor_kind=user&amp;actor_id=3">',
        "Command line",
    ):
        assert expected in html, expected
    assert HOSTILE not in html
    assert ESCAPED in html
    in_russian = await api.get(f"{SITE}/audit", headers=BROWSER | {"Cookie": "language=ru"})
    assert "Рассылка приостановлена" in in_russian.text


async def test_a_deleted_target_is_not_a_link(api: httpx.AsyncClient) -> None:
    client_id = (await api.post("/clients", json=ANNA)).json()["id"]
    await api.delete(f"/clients/{client_id}")
    html = await get_page(api, "/audit?action=client_erased")
    assert f"Client {client_id}" in html
    assert f'"/clients/{client_id}"' not in html


async def test_pages_of_clients_and_mailings_link_admins_to_their_history(
    api: httpx.AsyncClient,
) -> None:
    client_id = (await api.post("/clients", json=ANNA)).json()["id"]
    mailing_id = (await create_mailing(api, NEW))["id"]
    for kind, path, action in (
        ("client", f"/clients/{client_id}", "Client created"),
        ("mailing", f"/mailings/{mailing_id}", "Mailing created"),
    ):
        html = await get_page(api, path)
        [history] = re.findall(r'href="(/audit[^"]*)"', html.partition("<main")[2])
        assert f"target_kind={kind}" in history
        rows = (await get_page(api, history.replace("&amp;", "&"))).partition("<tbody>")[2]
        assert rows.count("<tr>") == 1
        assert action in rows


async def test_the_page_is_filtered_and_paginated(
    api: httpx.AsyncClient, engine: AsyncEngine
) -> None:
    await add_entries(engine, 60)
    html = await get_page(api, "/audit?action=client_created&limit=10")
    assert html.partition("<tbody>")[2].count('<th scope="row"') == 10
    older = re.findall(r'<a href="([^"]+)" rel="next"', html)
    assert older == ["/audit?action=client_created&amp;limit=10&amp;before=42"]
    assert "No entries match." in await get_page(api, "/audit?action=key_created")
    error_page = await get_page(api, "/audit?actor_kind=&actor_id=7", 400)
    assert "requires the parameter of its kind" in error_page


# ---- labels of actions ----------------------------------------------------------------------


def writes_entry(function: str) -> bool:
    """Return whether a call of a function writes an audit entry, by the function's name.

    Methods of `self` with such a name write something else.
    """
    is_audit_function = function.endswith(
        ("record", "audit_entry", "change_state", "stream_audited")
    )
    return is_audit_function and not function.startswith("self.")


def test_every_recorded_action_has_a_label() -> None:
    actions = set()
    for file in SOURCE.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Call) and writes_entry(ast.unparse(node.func)):
                constants = [each.value for each in node.args if isinstance(each, ast.Constant)]
                actions |= {constant for constant in constants if isinstance(constant, str)}
    # some known actions, which show that the search works
    assert {"mailing_paused", "clients_exported", "key_created"} <= actions
    assert actions <= labels.ACTION_LABELS.keys()
