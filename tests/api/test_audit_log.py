"""How the audit log is read: by the API and on its page."""

import ast
import re
from pathlib import Path

import httpx
import pytest
from sqlalchemy.ext.asyncio import AsyncEngine
from tests.api.calls import NEW, create
from tests.api.visits import BROWSER, ESCAPED, HOSTILE, SITE, page
from tests.sample import execute

import mailer
from mailer.access import audit_log, commands
from mailer.admin import words

SOURCE = Path(mailer.__file__).parent
ANNA = {"phone": "79161234567", "tag": "anna-tag", "time_zone": "Europe/Moscow"}


async def add_entries(engine: AsyncEngine, count: int) -> None:
    await execute(
        engine,
        f"""INSERT INTO audit (actor_kind, actor_id, actor, action, target_kind, target_id)
            SELECT 'key', n % 3 + 1, 'key', CASE WHEN n % 2 = 0 THEN 'client_added'
                ELSE 'client_erased' END, 'client', n FROM generate_series(1, {count}) AS n""",  # noqa: S608  # a number
    )


# ---- the API --------------------------------------------------------------------------------


async def test_entries_are_found_by_who_and_what_and_in_pages(
    api: httpx.AsyncClient, engine: AsyncEngine
) -> None:
    await add_entries(engine, 12)
    counts = {
        "": 12,
        "actor_kind=key": 12,
        "actor_kind=key&actor_id=2": 4,
        "actor_kind=account": 0,
        "action=client_added": 6,
        "action=nothing": 0,
        "target_kind=client&target_id=5": 1,
        "target_kind=client&action=client_erased&actor_kind=key&actor_id=1": 2,
        "target_kind=key": 0,
    }
    for query, count in counts.items():
        answer = (await api.get(f"/audit?{query}")).json()
        assert (query, answer["count"], len(answer["results"])) == (query, count, count)
    first = (await api.get("/audit?action=client_added&limit=4")).json()
    assert [entry["id"] for entry in first["results"]] == [12, 10, 8, 6]
    assert first["previous"] is None
    second = (await api.get(first["next"])).json()
    assert [entry["id"] for entry in second["results"]] == [4, 2]
    assert second["next"] is None
    assert (await api.get(second["previous"])).json()["results"] == first["results"]


@pytest.mark.parametrize(
    ("query", "field", "said"),
    [
        ("actor_id=1", "actor_id", "must come together with its kind"),
        ("target_id=1", "target_id", "must come together with its kind"),
        ("target_kind=mailing&target_id=0", "target_id", "must be a number from 1"),
        ("actor_kind=nobody", "actor_kind", "invalid enum value"),
        ("target_kind=phone", "target_kind", "invalid enum value"),
        ("action=", "action", "must be 1 to 64 characters"),
        ("action=%00", "action", "must be 1 to 64 characters"),
        ("before=1&after=1", "after", "cannot be given together with before"),
        ("address=x", "address", "is not a known field"),
    ],
)
async def test_a_wrong_question_is_refused(
    api: httpx.AsyncClient, query: str, field: str, said: str
) -> None:
    answer = await api.get(f"/audit?{query}")
    assert answer.status_code == 400
    [error] = answer.json()["errors"]
    assert error["field"] == field
    assert error["message"].startswith(said)


async def test_no_more_is_counted_than_is_worth_it(
    api: httpx.AsyncClient, engine: AsyncEngine
) -> None:
    await add_entries(engine, audit_log.MOST_COUNTED)
    assert (await api.get("/audit?limit=1")).json()["count"] == audit_log.MOST_COUNTED
    assert "10,000 entries" in await page(api, "/audit")
    await add_entries(engine, 5)
    assert (await api.get("/audit?limit=1")).json()["count"] == audit_log.MOST_COUNTED + 1
    assert "More than 10,000 entries" in await page(api, "/audit")


# ---- the page -------------------------------------------------------------------------------


async def test_the_page_tells_who_did_what_in_words_and_leads_to_it(
    api: httpx.AsyncClient, engine: AsyncEngine
) -> None:
    mailing_id = (await create(api, NEW | {"text": HOSTILE}))["id"]
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
    await commands.make_key(engine, "shop", "read", None)
    await execute(
        engine,
        """INSERT INTO audit (actor_kind, actor_id, actor, address, action, target_kind, after)
            VALUES ('account', 3, '<b>ann', '192.0.2.7', 'of_later', 'account', '{"x": [1]}')""",
    )
    shown = await page(api, "/audit")
    for said in (
        "Mailing created",
        "Mailing changed",
        "Key made",
        "<del>Scheduled</del><ins>Paused</ins>",
        "the tag is vip",
        f'<a href="/mailings/{mailing_id}">Mailing {mailing_id}</a>',
        "<del>send again</del><ins>do not send again</ins>",
        "Look at clients, mailings and messages",
        "of_later",
        "from 192.0.2.7",
        "&lt;b&gt;ann",
        '<a href="/audit?actor_kind=account&amp;actor_id=3">',
        "Command line",
    ):
        assert said in shown, said
    assert HOSTILE not in shown
    assert ESCAPED in shown
    in_russian = await api.get(f"{SITE}/audit", headers=BROWSER | {"Cookie": "language=ru"})
    assert "Рассылка приостановлена" in in_russian.text


async def test_what_is_gone_is_not_led_to(api: httpx.AsyncClient) -> None:
    client_id = (await api.post("/clients", json=ANNA)).json()["id"]
    await api.delete(f"/clients/{client_id}")
    shown = await page(api, "/audit?action=client_erased")
    assert f"Client {client_id}" in shown
    assert f'"/clients/{client_id}"' not in shown


async def test_pages_of_things_lead_admins_to_their_history(api: httpx.AsyncClient) -> None:
    client_id = (await api.post("/clients", json=ANNA)).json()["id"]
    mailing_id = (await create(api, NEW))["id"]
    for kind, path, action in (
        ("client", f"/clients/{client_id}", "Client added"),
        ("mailing", f"/mailings/{mailing_id}", "Mailing created"),
    ):
        shown = await page(api, path)
        [history] = re.findall(r'href="(/audit[^"]*)"', shown.partition("<main")[2])
        assert f"target_kind={kind}" in history
        listed = (await page(api, history.replace("&amp;", "&"))).partition("<tbody>")[2]
        assert listed.count("<tr>") == 1
        assert action in listed


async def test_the_page_has_a_filter_and_pages(api: httpx.AsyncClient, engine: AsyncEngine) -> None:
    await add_entries(engine, 60)
    shown = await page(api, "/audit?action=client_added&limit=10")
    assert shown.partition("<tbody>")[2].count('<th scope="row"') == 10
    older = re.findall(r'<a href="([^"]+)" rel="next"', shown)
    assert older == ["/audit?action=client_added&amp;limit=10&amp;before=42"]
    assert "Nothing like that was done." in await page(api, "/audit?action=key_made")
    wrong = await page(api, "/audit?actor_kind=&actor_id=7", 400)
    assert "must come together with its kind" in wrong


def is_audit(function: str) -> bool:
    """Whether what is called writes an entry; an object's own method writes something else."""
    return function.endswith("record") and not function.startswith("self.")


def test_everything_that_is_written_down_has_words() -> None:
    done = set()
    for file in SOURCE.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Call) and is_audit(ast.unparse(node.func)):
                texts = (each.value for each in node.args if isinstance(each, ast.Constant))
                done |= {each for each in texts if isinstance(each, str)}
    assert {"mailing_paused", "clients_exported", "key_made"} <= done
    assert done <= words.ACTIONS.keys()
