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

from mailer.access import audit, audit_log, commands
from mailer.access.model import COMMAND_LINE, Actor
from mailer.app import create_app
from mailer.client import service as clients
from mailer.client.commands import export_file
from mailer.client.model import NewClient
from mailer.db.paging import Cursor
from mailer.mailing import service as mailings
from mailer.mailing.model import NewMailing
from mailer.settings import Settings

ALL = "SELECT coalesce(string_agg(audit::text, chr(10) ORDER BY id), '') FROM audit"
COUNT = "SELECT count(*) FROM audit"
ANNA = {"phone": "79161234567", "tag": "anna-tag", "time_zone": "Europe/Moscow"}


async def entries(api: httpx.AsyncClient, **query: Any) -> list[dict[str, Any]]:
    """Return the entries that the API returns, oldest first."""
    answer = await api.get("/audit", params=query)
    assert answer.status_code == 200, answer.text
    rows: list[dict[str, Any]] = answer.json()["results"]
    return rows[::-1]


def changes(entry_list: list[dict[str, Any]]) -> list[tuple[str, int | None, Any, Any]]:
    return [(e["action"], e["target"]["id"], e["before"], e["after"]) for e in entry_list]


# ---- what is recorded -----------------------------------------------------------------------


async def test_actions_on_a_mailing_are_recorded_with_the_changed_fields(
    api: httpx.AsyncClient, engine: AsyncEngine
) -> None:
    await api.post("/clients", json=ANNA)
    new = NEW | {"client_filter": {"time_zones": ["Europe/Moscow"]}}
    mailing_id = (await create_mailing(api, new))["id"]
    path = f"/mailings/{mailing_id}"
    same = {"text": NEW["text"], "datetime_start": "2040-01-01T10:00:00+01:00"}
    assert (await api.patch(path, json=same)).status_code == 200
    assert (await api.patch(path, json=same | {"text": "Later."})).status_code == 200
    for call in ("pause", "resume", "cancel"):
        assert (await api.post(f"{path}/{call}")).status_code == 200
    assert (await api.delete(path)).status_code == 204

    entry_list = await entries(api, target_kind="mailing")
    created, *later = changes(entry_list)
    assert created[:3] == ("mailing_created", mailing_id, None)
    assert created[3] == {
        **new,
        "send_interval_time_start": None,
        "send_interval_time_end": None,
        "on_unknown": "retry",
    }
    assert later[:-1] == [
        ("mailing_changed", mailing_id, {"text": NEW["text"]}, {"text": "Later."}),
        ("mailing_paused", mailing_id, {"status": "scheduled"}, {"status": "paused"}),
        ("mailing_resumed", mailing_id, {"status": "paused"}, {"status": "scheduled"}),
        ("mailing_cancelled", mailing_id, {"status": "scheduled"}, {"status": "cancelled"}),
    ]
    deleted = created[3] | {"text": "Later.", "status": "cancelled"}
    assert later[-1] == ("mailing_deleted", mailing_id, deleted, None)
    anonymous = {"kind": "anonymous", "id": None, "name": "anonymous"}
    assert all(e["actor"] == anonymous and e["address"] == "127.0.0.1" for e in entry_list)
    assert await value(engine, COUNT) == len(entry_list) + 1


async def test_a_retry_is_recorded(api: httpx.AsyncClient, engine: AsyncEngine) -> None:
    client_id = (await api.post("/clients", json=ANNA)).json()["id"]
    mailing_id = (await create_mailing(api, DUE))["id"]
    await add_messages(engine, mailing_id, [client_id], "undelivered", "rejected_400")
    for status in ("running", "finished"):
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
    assert (await api.patch(path, json={"tag": "anna-tag"})).status_code == 200  # no change
    new = {"phone": "79031234599", "tag": None}
    assert (await api.patch(path, json=new)).status_code == 200
    csv = {"content": "phone,tag\n79160000001,x\n1,\n", "headers": {"Content-Type": "text/csv"}}
    assert (await api.post("/clients/import", **csv)).status_code == 200  # type: ignore[arg-type]  # content and headers
    assert (await api.delete(path)).status_code == 204
    counts = {"created": 1, "updated": 0, "unchanged": 0, "rejected": 1}
    public = {"operator_code": "916", "time_zone": "Europe/Moscow"}
    assert changes(await entries(api)) == [
        ("client_created", client_id, None, public | {"phone": "***67", "tag": "***"}),
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
    assert [e["after"]["filter"] for e in entry_list] == [
        ["phone", "tag"],
        ["phone", "tag"],
        [],
        [],
    ]
    assert [e["actor"]["kind"] for e in entry_list] == [*["anonymous"] * 3, "command"]
    assert entry_list[-1]["address"] is None
    await api.get("/clients", headers={"Accept": "application/json"})
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
        assert (await api.post("/clients", json={"phone": "79160000001"})).status_code == 401
    async with engine.connect() as connection:
        page = await audit_log.page(connection, Cursor(10))
    revoked, added_client, created = [audit_log.to_entry(row) for row in page.rows]
    assert (added_client.actor, added_client.address) == (
        audit_log.AuditedActor("key", 1, "shop"),
        "192.0.2.7",
    )
    assert created.target == revoked.target == audit.Target("key", 1)
    assert created.actor == audit_log.AuditedActor(
        "command", None, f"{getpass.getuser()} at the command line"
    )
    assert created.after is not None
    assert (created.after["name"], created.after["scope"]) == ("shop", "admin")
    assert created.after["expires_at"] > "2026"
    assert (revoked.before, revoked.after) == ({"name": "shop", "scope": "admin"}, None)


async def test_no_phone_tag_or_secret_is_ever_recorded(
    api: httpx.AsyncClient, engine: AsyncEngine
) -> None:
    """Perform all actions with values that are easy to find; texts and filters may be recorded."""
    phones = [f"7999{n:07}" for n in range(31337, 31342)]
    tag, other = "marked-tag", "another-marked-tag"
    first, second, imported, by_form, taken = phones
    by_api = (await api.post("/clients", json={"phone": first, "tag": tag})).json()["id"]
    await api.patch(f"/clients/{by_api}", json={"phone": second, "tag": other})
    await api.post("/clients", json={"phone": second, "tag": tag})  # the phone is used
    csv = f"phone,tag\n{imported},{tag}\n{second},{other}\n{taken}0,{tag}\n"
    await api.post("/clients/import", content=csv, headers={"Content-Type": "text/csv"})
    form = {"phone": by_form, "operator_code": "", "tag": tag, "time_zone": ""}
    await api.post(f"{SITE}/clients/new", data=form, headers=BROWSER)
    previous = {f"was_{name}": each for name, each in form.items()}
    changed = form | previous | {"phone": taken, "tag": other}
    await api.post(f"{SITE}/clients/3", data=changed, headers=BROWSER)
    for query in (f"phone={second}", f"tag={tag}"):
        await api.get(f"/clients?{query}", headers={"Accept": "text/csv"})
        await api.get(f"{SITE}/clients.csv?{query}", headers=BROWSER)
    mailing_id = (await create_mailing(api, DUE))["id"]
    for call in ("pause", "resume", "cancel"):
        await api.post(f"/mailings/{mailing_id}/{call}")
    await api.delete(f"/mailings/{mailing_id}")
    await api.delete(f"/clients/{by_api}")
    await api.post(f"{SITE}/clients/2/delete", headers=BROWSER)
    secret = await commands.create_key(engine, "marked", "admin", 3)
    await commands.revoke_key(engine, "marked")

    recorded = await value(engine, ALL)
    actions = set(await value(engine, "SELECT array_agg(DISTINCT action) FROM audit"))
    assert actions == {
        *("client_created", "client_changed", "client_erased", "clients_imported"),
        *("clients_exported", "mailing_created", "mailing_paused", "mailing_resumed"),
        *("mailing_cancelled", "mailing_deleted", "key_created", "key_revoked"),
    }
    for hidden in (*phones, *(each[1:] for each in phones), tag, other, secret, secret[7:]):
        assert hidden not in recorded


async def test_failed_actions_are_not_recorded(api: httpx.AsyncClient, engine: AsyncEngine) -> None:
    client_id = (await api.post("/clients", json=ANNA)).json()["id"]
    mailing_id = (await create_mailing(api, NEW))["id"]
    mailing = f"/mailings/{mailing_id}"
    before = await value(engine, ALL)
    failed = [
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
    assert [each.status_code for each in failed if each.status_code < 400] == []
    assert await value(engine, ALL) == before


async def test_a_rolled_back_transaction_leaves_no_entry(engine: AsyncEngine) -> None:
    async with engine.connect() as connection:
        target = audit.Target("client", 1)
        await audit.record(connection, COMMAND_LINE, "client_created", target)
        await connection.rollback()
    assert await value(engine, COUNT) == 0


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
    before = await value(engine, ALL)
    with pytest.raises(DBAPIError, match="rows of audit cannot be changed"):
        await execute(engine, statement)
    assert await value(engine, ALL) == before
