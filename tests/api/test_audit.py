"""The audit log: which actions it records, with which details, and that entries never change."""

import getpass
from io import StringIO
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest
from rich.console import Console
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncEngine
from tests.api.browser_session import BROWSER, SITE
from tests.api.calls import DUE, NEW, create_mailing
from tests.asgi_client import inside
from tests.factories import add_messages, execute, value

from mailer.access import audit, audit_log, commands, keys
from mailer.access.model import COMMAND_LINE, Actor
from mailer.app import create_app
from mailer.client import service as clients
from mailer.client.commands import export_file
from mailer.client.model import NewClient
from mailer.db.paging import Cursor
from mailer.mailing import service as mailings
from mailer.mailing.model import NewMailing
from mailer.settings import Settings

WHOLE_LOG = "SELECT coalesce(string_agg(audit::text, chr(10) ORDER BY id), '') FROM audit"
COUNT_ENTRIES = "SELECT count(*) FROM audit"
ANNA = {"phone": "79161234567", "tag": "anna-tag", "time_zone": "Europe/Moscow"}


async def entries(api: httpx.AsyncClient, **query: Any) -> list[dict[str, Any]]:
    """Return the entries that the API returns for a query, oldest first."""
    answer = await api.get("/audit", params=query)
    assert answer.status_code == 200, answer.text
    newest_first: list[dict[str, Any]] = answer.json()["results"]
    return newest_first[::-1]


def changes(entry_list: list[dict[str, Any]]) -> list[tuple[str, int | None, Any, Any]]:
    """Return action, target id, and the fields before and after, of each entry."""
    return [
        (entry["action"], entry["target"]["id"], entry["before"], entry["after"])
        for entry in entry_list
    ]


# ---- what is recorded -----------------------------------------------------------------------


async def test_actions_on_a_mailing_are_recorded_with_the_changed_fields(
    api: httpx.AsyncClient, engine: AsyncEngine
) -> None:
    await api.post("/clients", json=ANNA)
    new = NEW | {"client_filter": {"time_zones": ["Europe/Moscow"]}}
    mailing_id = (await create_mailing(api, new))["id"]
    path = f"/mailings/{mailing_id}"
    no_change = {"text": NEW["text"], "datetime_start": "2040-01-01T10:00:00+01:00"}
    assert (await api.patch(path, json=no_change)).status_code == 200
    assert (await api.patch(path, json=no_change | {"text": "Later."})).status_code == 200
    for call in ("pause", "resume", "cancel"):
        assert (await api.post(f"{path}/{call}")).status_code == 200
    assert (await api.delete(path)).status_code == 204

    entry_list = await entries(api, target_kind="mailing")
    all_fields: dict[str, Any] = {
        **new,
        "name": None,
        "labels": [],
        "send_interval_time_start": None,
        "send_interval_time_end": None,
        "on_unknown": "retry",
        "purpose": "marketing",
        "priority": "normal",
        "rate": None,
        "gateway": None,
        "sender": None,
    }
    at_deletion = all_fields | {"text": "Later.", "status": "cancelled"}
    assert changes(entry_list) == [
        ("mailing_created", mailing_id, None, all_fields),
        ("mailing_changed", mailing_id, {"text": NEW["text"]}, {"text": "Later."}),
        ("mailing_paused", mailing_id, {"status": "scheduled"}, {"status": "paused"}),
        ("mailing_resumed", mailing_id, {"status": "paused"}, {"status": "scheduled"}),
        ("mailing_cancelled", mailing_id, {"status": "scheduled"}, {"status": "cancelled"}),
        ("mailing_deleted", mailing_id, at_deletion, None),
    ]
    anonymous = {"kind": "anonymous", "id": None, "name": "anonymous"}
    assert all(entry["actor"] == anonymous for entry in entry_list)
    assert all(entry["address"] == "127.0.0.1" for entry in entry_list)
    # the other entry is that of the client
    assert await value(engine, COUNT_ENTRIES) == len(entry_list) + 1


async def test_a_retry_is_recorded(api: httpx.AsyncClient, engine: AsyncEngine) -> None:
    client_id = (await api.post("/clients", json=ANNA)).json()["id"]
    mailing_id = (await create_mailing(api, DUE))["id"]
    await add_messages(engine, mailing_id, [client_id], "undelivered", "rejected_400")
    for status in ("running", "finished"):  # only a finished mailing changes its status
        await execute(engine, f"UPDATE mailing SET status = '{status}', audience_until = 9")  # noqa: S608  # a status above
        assert (await api.post(f"/mailings/{mailing_id}/retry")).status_code == 200
    assert changes(await entries(api, action="mailing_retried")) == [
        ("mailing_retried", mailing_id, None, None),
        ("mailing_retried", mailing_id, {"status": "finished"}, {"status": "running"}),
    ]


async def test_actions_on_clients_are_recorded_without_personal_data(
    api: httpx.AsyncClient,
) -> None:
    client_id = (await api.post("/clients", json=ANNA)).json()["id"]
    path = f"/clients/{client_id}"
    no_change = {"tag": "anna-tag"}
    assert (await api.patch(path, json=no_change)).status_code == 200
    change = {"phone": "79031234599", "tag": None}
    assert (await api.patch(path, json=change)).status_code == 200
    rows = "phone,tag\n79160000001,x\n1,\n"  # the last phone is invalid
    answer = await api.post("/clients/import", content=rows, headers={"Content-Type": "text/csv"})
    assert answer.status_code == 200
    assert (await api.delete(path)).status_code == 204

    counts = {"created": 1, "updated": 0, "unchanged": 0, "rejected": 1}
    not_masked = {"operator_code": "916", "time_zone": "Europe/Moscow"}
    assert changes(await entries(api)) == [
        ("client_created", client_id, None, not_masked | {"phone": "***67", "tag": "***"}),
        (
            "client_changed",
            client_id,
            {"phone": "***67", "operator_code": "916", "tag": "***"},
            {"phone": "***99", "operator_code": "903", "tag": None},
        ),
        ("clients_imported", None, None, counts),
        ("client_erased", client_id, None, None),
    ]


async def test_an_export_is_recorded_at_its_start_with_the_names_of_its_filter_fields(
    api: httpx.AsyncClient, engine: AsyncEngine, tmp_path: Path
) -> None:
    await api.post("/clients", json=ANNA)
    query = f"phone={ANNA['phone']}&tag={ANNA['tag']}"
    for answer in (
        await api.get(f"/clients?{query}", headers={"Accept": "text/csv"}),
        await api.get(f"{SITE}/clients.csv?{query}", headers=BROWSER),
        await api.get(f"{SITE}/clients.csv", headers=BROWSER),
    ):
        assert ANNA["phone"] in answer.text
    await export_file(engine, str(tmp_path / "all.csv"), Console(file=StringIO()))

    entry_list = await entries(api, action="clients_exported")
    by_api, by_page, all_by_page, all_by_command = entry_list
    assert by_api["after"]["filter"] == by_page["after"]["filter"] == ["phone", "tag"]
    assert all_by_page["after"]["filter"] == all_by_command["after"]["filter"] == []
    for by_request in (by_api, by_page, all_by_page):
        assert by_request["actor"]["kind"] == "anonymous"
    assert (all_by_command["actor"]["kind"], all_by_command["address"]) == ("command", None)

    await api.get("/clients", headers={"Accept": "application/json"})  # a list is no export
    assert len(await entries(api, action="clients_exported")) == 4


async def test_an_entry_names_the_key_and_the_address_of_the_request(engine: AsyncEngine) -> None:
    secret = await commands.create_key(engine, "shop", "admin", 30)
    transport = inside(
        create_app(engine, settings=Settings()),
        client=("192.0.2.7", 4711),
    )
    async with httpx.AsyncClient(transport=transport, base_url="http://mailer/api/v1") as api:
        api.headers["Authorization"] = f"Bearer {secret}"
        await api.post("/clients", json=ANNA)
        await commands.revoke_key(engine, "shop")
        refused = await api.post("/clients", json={"phone": "79160000001"})
        assert refused.status_code == 401
    async with engine.connect() as connection:
        page = await audit_log.page(connection, Cursor(10))
    # the newest first
    key_revoked, client_created, key_created = [audit_log.to_entry(row) for row in page.rows]
    assert client_created.actor == audit_log.AuditedActor("key", 1, "shop")
    assert client_created.address == "192.0.2.7"
    assert key_created.target == key_revoked.target == audit.Target("key", 1)
    command = audit_log.AuditedActor("command", None, f"{getpass.getuser()} at the command line")
    assert key_created.actor == key_revoked.actor == command
    assert key_created.after is not None
    assert (key_created.after["name"], key_created.after["scope"]) == ("shop", "admin")
    assert key_created.after["expires_at"] > "2026"
    assert (key_revoked.before, key_revoked.after) == ({"name": "shop", "scope": "admin"}, None)


async def test_no_phone_tag_or_secret_is_ever_recorded(
    api: httpx.AsyncClient, engine: AsyncEngine
) -> None:
    """Perform all actions with values that are easy to find; texts and filters may be recorded."""
    phones = [f"7999{n:07}" for n in range(31337, 31342)]
    first, second, imported, by_form, changed_to = phones
    tag, other_tag = "marked-tag", "another-marked-tag"
    # by the API: create, change, a failure (the phone is used), and an import with an invalid row
    client_id = (await api.post("/clients", json={"phone": first, "tag": tag})).json()["id"]
    await api.patch(f"/clients/{client_id}", json={"phone": second, "tag": other_tag})
    await api.post("/clients", json={"phone": second, "tag": tag})
    rows = f"phone,tag\n{imported},{tag}\n{second},{other_tag}\n{changed_to}0,{tag}\n"
    await api.post("/clients/import", content=rows, headers={"Content-Type": "text/csv"})
    # on the pages: create and change; a form also contains the values when it was opened
    form = {"phone": by_form, "operator_code": "", "tag": tag, "time_zone": ""}
    await api.post(f"{SITE}/clients/new", data=form, headers=BROWSER)
    opened_values = {f"was_{name}": content for name, content in form.items()}
    changed_form = form | opened_values | {"phone": changed_to, "tag": other_tag}
    await api.post(f"{SITE}/clients/3", data=changed_form, headers=BROWSER)  # 2 is the imported one
    # exports, mailings, deletions and keys
    for query in (f"phone={second}", f"tag={tag}"):
        await api.get(f"/clients?{query}", headers={"Accept": "text/csv"})
        await api.get(f"{SITE}/clients.csv?{query}", headers=BROWSER)
    mailing_id = (await create_mailing(api, DUE))["id"]
    for call in ("pause", "resume", "cancel"):
        await api.post(f"/mailings/{mailing_id}/{call}")
    await api.delete(f"/mailings/{mailing_id}")
    await api.delete(f"/clients/{client_id}")
    await api.post(f"{SITE}/clients/2/delete", headers=BROWSER)
    secret = await commands.create_key(engine, "marked", "admin", 3)
    await commands.revoke_key(engine, "marked")

    whole_log = await value(engine, WHOLE_LOG)
    actions = set(await value(engine, "SELECT array_agg(DISTINCT action) FROM audit"))
    assert actions == {
        *("client_created", "client_changed", "client_erased", "clients_imported"),
        *("clients_exported", "mailing_created", "mailing_paused", "mailing_resumed"),
        *("mailing_cancelled", "mailing_deleted", "key_created", "key_revoked"),
    }
    phones_without_country_code = [phone[1:] for phone in phones]
    secret_without_prefix = secret.removeprefix(keys.KEY_PREFIX)
    tags = (tag, other_tag)
    for hidden in (*phones_without_country_code, *tags, secret_without_prefix):
        assert hidden not in whole_log


async def test_failed_actions_are_not_recorded(api: httpx.AsyncClient, engine: AsyncEngine) -> None:
    client_id = (await api.post("/clients", json=ANNA)).json()["id"]
    mailing_id = (await create_mailing(api, NEW))["id"]
    mailing = f"/mailings/{mailing_id}"
    log_before = await value(engine, WHOLE_LOG)
    answers = [
        await api.post("/clients", json=ANNA),
        await api.post("/clients", json=ANNA | {"phone": "x"}),
        await api.patch(f"/clients/{client_id}", json={"time_zone": "Nowhere"}),
        await api.patch(f"/clients/{client_id + 1}", json={"tag": "x"}),
        await api.delete(f"/clients/{client_id + 1}"),
        await api.post("/clients/import", content="x\n", headers={"Content-Type": "text/csv"}),
        await api.get("/clients?phone=x", headers={"Accept": "text/csv"}),
        await api.post("/mailings", json=NEW | {"text": ""}),
        await api.patch(mailing, json={"datetime_end": "2039-01-01T00:00:00Z"}),
        await api.patch(f"/mailings/{mailing_id + 1}", json={"text": "x"}),
        await api.post(f"{mailing}/resume"),
        await api.post(f"{mailing}/retry"),
        await api.delete(f"/mailings/{mailing_id + 1}"),
        await api.post(f"{SITE}/keys", data={"name": ""}, headers=BROWSER),
        await api.post(f"{SITE}/keys/1/revoke", headers=BROWSER),
    ]
    assert [answer.status_code for answer in answers if answer.status_code < 400] == []
    assert await value(engine, WHOLE_LOG) == log_before


async def test_a_rolled_back_transaction_leaves_no_entry(engine: AsyncEngine) -> None:
    async with engine.connect() as connection:
        target = audit.Target("client", 1)
        await audit.record(connection, COMMAND_LINE, "client_created", target)
        await connection.rollback()
    assert await value(engine, COUNT_ENTRIES) == 0


async def test_a_change_is_rolled_back_when_its_entry_cannot_be_written(
    engine: AsyncEngine,
) -> None:
    nameless = Actor("key", None, 1)  # type: ignore[arg-type]  # no name: the log refuses it
    mailing: NewMailing = msgspec.convert(NEW, NewMailing)
    with pytest.raises(DBAPIError):
        await clients.create(engine, NewClient(phone="79160000001"), nameless)
    with pytest.raises(DBAPIError):
        await mailings.create(engine, mailing, nameless)
    for table in ("client", "mailing", "audit"):
        assert await value(engine, f"SELECT count(*) FROM {table}") == 0  # noqa: S608  # a name above


# ---- entries never change -------------------------------------------------------------------


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE audit SET action = 'nothing'",
        "UPDATE audit SET id = DEFAULT WHERE false",
        "DELETE FROM audit",
        "DELETE FROM audit WHERE false",
        "TRUNCATE audit",
        """INSERT INTO audit OVERRIDING SYSTEM VALUE SELECT * FROM audit
            ON CONFLICT (id) DO UPDATE SET action = 'nothing'""",
    ],
)
async def test_the_database_refuses_every_change_of_entries(
    engine: AsyncEngine, statement: str
) -> None:
    async with engine.begin() as connection:
        await audit.record(connection, COMMAND_LINE, "key_created", audit.Target("key", 1))
    log_before = await value(engine, WHOLE_LOG)
    with pytest.raises(DBAPIError, match="rows of audit cannot be changed"):
        await execute(engine, statement)
    assert await value(engine, WHOLE_LOG) == log_before
