"""The audit log: what is written down of what people do, and that it stays."""

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
from tests.api.calls import DUE, NEW, create
from tests.api.visits import BROWSER, SITE
from tests.asked import inside
from tests.sample import add_messages, execute, value

from mailer.access import audit, audit_log, commands
from mailer.access.model import COMMAND_LINE, Actor
from mailer.app import create_app
from mailer.client import service as clients
from mailer.client.commands import export_file
from mailer.client.model import NewClient
from mailer.db.paging import Position
from mailer.mailing import service as mailings
from mailer.mailing.model import NewMailing
from mailer.settings import Settings

ALL = "SELECT coalesce(string_agg(audit::text, chr(10) ORDER BY id), '') FROM audit"
COUNT = "SELECT count(*) FROM audit"
ANNA = {"phone": "79161234567", "tag": "anna-tag", "time_zone": "Europe/Moscow"}


async def entries(api: httpx.AsyncClient, **asked: Any) -> list[dict[str, Any]]:
    """Return what the API tells, the oldest first."""
    answer = await api.get("/audit", params=asked)
    assert answer.status_code == 200, answer.text
    found: list[dict[str, Any]] = answer.json()["results"]
    return found[::-1]


def changes(found: list[dict[str, Any]]) -> list[tuple[str, int | None, Any, Any]]:
    return [(e["action"], e["target"]["id"], e["before"], e["after"]) for e in found]


# ---- what is written down -------------------------------------------------------------------


async def test_what_is_done_to_a_mailing_is_told_with_what_changed(
    api: httpx.AsyncClient, engine: AsyncEngine
) -> None:
    await api.post("/clients", json=ANNA)
    new = NEW | {"client_filter": {"time_zones": ["Europe/Moscow"]}}
    mailing_id = (await create(api, new))["id"]
    path = f"/mailings/{mailing_id}"
    same = {"text": NEW["text"], "datetime_start": "2040-01-01T10:00:00+01:00"}
    assert (await api.patch(path, json=same)).status_code == 200
    assert (await api.patch(path, json=same | {"text": "Later."})).status_code == 200
    for call in ("pause", "resume", "cancel"):
        assert (await api.post(f"{path}/{call}")).status_code == 200
    assert (await api.delete(path)).status_code == 204

    found = await entries(api, target_kind="mailing")
    created, *later = changes(found)
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
    nobody = {"kind": "anybody", "id": None, "name": "anybody"}
    assert all(e["actor"] == nobody and e["address"] == "127.0.0.1" for e in found)
    assert await value(engine, COUNT) == len(found) + 1


async def test_a_retry_is_told(api: httpx.AsyncClient, engine: AsyncEngine) -> None:
    client_id = (await api.post("/clients", json=ANNA)).json()["id"]
    mailing_id = (await create(api, DUE))["id"]
    await add_messages(engine, mailing_id, [client_id], "undelivered", "rejected_400")
    for status in ("running", "finished"):
        await execute(engine, f"UPDATE mailing SET status = '{status}', audience_until = 9")  # noqa: S608  # ours
        assert (await api.post(f"/mailings/{mailing_id}/retry")).status_code == 200
    assert changes(await entries(api, action="mailing_retried")) == [
        ("mailing_retried", mailing_id, None, None),
        ("mailing_retried", mailing_id, {"status": "finished"}, {"status": "running"}),
    ]


async def test_what_is_done_to_clients_is_told_without_who_they_are(
    api: httpx.AsyncClient,
) -> None:
    client_id = (await api.post("/clients", json=ANNA)).json()["id"]
    path = f"/clients/{client_id}"
    assert (await api.patch(path, json={"tag": "anna-tag"})).status_code == 200  # as it was
    new = {"phone": "79031234599", "tag": None}
    assert (await api.patch(path, json=new)).status_code == 200
    csv = {"content": "phone,tag\n79160000001,x\n1,\n", "headers": {"Content-Type": "text/csv"}}
    assert (await api.post("/clients/import", **csv)).status_code == 200  # type: ignore[arg-type]  # content and headers
    assert (await api.delete(path)).status_code == 204
    counts = {"created": 1, "updated": 0, "unchanged": 0, "rejected": 1}
    facts = {"operator_code": "916", "time_zone": "Europe/Moscow"}
    assert changes(await entries(api)) == [
        ("client_added", client_id, None, facts | {"phone": "***67", "tag": "***"}),
        (
            "client_changed",
            client_id,
            {"phone": "***67", "operator_code": "916", "tag": "***"},
            {"phone": "***99", "operator_code": "903", "tag": None},
        ),
        ("clients_imported", None, None, counts),
        ("client_erased", client_id, None, None),
    ]


async def test_an_export_is_told_when_it_begins_with_the_fields_of_its_filter(
    api: httpx.AsyncClient, engine: AsyncEngine, tmp_path: Path
) -> None:
    await api.post("/clients", json=ANNA)
    asked = f"phone={ANNA['phone']}&tag={ANNA['tag']}"
    for answer in (
        await api.get(f"/clients?{asked}", headers={"Accept": "text/csv"}),
        await api.get(f"{SITE}/clients.csv?{asked}", headers=BROWSER),
        await api.get(f"{SITE}/clients.csv", headers=BROWSER),
    ):
        assert ANNA["phone"] in answer.text
    await export_file(engine, str(tmp_path / "all.csv"), Console(file=StringIO()))
    found = await entries(api, action="clients_exported")
    assert [e["after"]["filter"] for e in found] == [["phone", "tag"], ["phone", "tag"], [], []]
    assert [e["actor"]["kind"] for e in found] == [*["anybody"] * 3, "command"]
    assert found[-1]["address"] is None
    await api.get("/clients", headers={"Accept": "application/json"})
    assert len(await entries(api, action="clients_exported")) == 4


async def test_who_did_it_is_the_key_and_where_it_came_from(engine: AsyncEngine) -> None:
    secret = await commands.make_key(engine, "shop", "admin", 30)
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
        found = await audit_log.page(connection, Position(10))
    revoked, added, made = [audit_log.to_entry(row) for row in found.rows]
    assert (added.actor, added.address) == (audit_log.Who("key", 1, "shop"), "192.0.2.7")
    assert made.target == revoked.target == audit.Target("key", 1)
    assert made.actor == audit_log.Who("command", None, f"{getpass.getuser()} at the command line")
    assert made.after is not None
    assert (made.after["name"], made.after["scope"]) == ("shop", "admin")
    assert made.after["expires_at"] > "2026"
    assert (revoked.before, revoked.after) == ({"name": "shop", "scope": "admin"}, None)


async def test_no_phone_tag_or_secret_ever_stands_there(
    api: httpx.AsyncClient, engine: AsyncEngine
) -> None:
    """Everything that can be done, with values that can be found; texts and filters may stand."""
    phones = [f"7999{n:07}" for n in range(31337, 31342)]
    tag, other = "marked-tag", "another-marked-tag"
    first, second, imported, formed, taken = phones
    by_api = (await api.post("/clients", json={"phone": first, "tag": tag})).json()["id"]
    await api.patch(f"/clients/{by_api}", json={"phone": second, "tag": other})
    await api.post("/clients", json={"phone": second, "tag": tag})  # taken
    csv = f"phone,tag\n{imported},{tag}\n{second},{other}\n{taken}0,{tag}\n"
    await api.post("/clients/import", content=csv, headers={"Content-Type": "text/csv"})
    form = {"phone": formed, "operator_code": "", "tag": tag, "time_zone": ""}
    await api.post(f"{SITE}/clients/new", data=form, headers=BROWSER)
    was = {f"was_{name}": each for name, each in form.items()}
    changed = form | was | {"phone": taken, "tag": other}
    await api.post(f"{SITE}/clients/3", data=changed, headers=BROWSER)
    for csv_of in (f"phone={second}", f"tag={tag}"):
        await api.get(f"/clients?{csv_of}", headers={"Accept": "text/csv"})
        await api.get(f"{SITE}/clients.csv?{csv_of}", headers=BROWSER)
    mailing_id = (await create(api, DUE))["id"]
    for call in ("pause", "resume", "cancel"):
        await api.post(f"/mailings/{mailing_id}/{call}")
    await api.delete(f"/mailings/{mailing_id}")
    await api.delete(f"/clients/{by_api}")
    await api.post(f"{SITE}/clients/2/delete", headers=BROWSER)
    secret = await commands.make_key(engine, "marked", "admin", 3)
    await commands.revoke_key(engine, "marked")

    written = await value(engine, ALL)
    done = set(await value(engine, "SELECT array_agg(DISTINCT action) FROM audit"))
    assert done == {
        *("client_added", "client_changed", "client_erased", "clients_imported"),
        *("clients_exported", "mailing_created", "mailing_paused", "mailing_resumed"),
        *("mailing_cancelled", "mailing_deleted", "key_made", "key_revoked"),
    }
    for hidden in (*phones, *(each[1:] for each in phones), tag, other, secret, secret[7:]):
        assert hidden not in written


async def test_what_fails_is_not_told(api: httpx.AsyncClient, engine: AsyncEngine) -> None:
    client_id = (await api.post("/clients", json=ANNA)).json()["id"]
    mailing_id = (await create(api, NEW))["id"]
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


async def test_what_is_rolled_back_leaves_no_entry(engine: AsyncEngine) -> None:
    async with engine.connect() as connection:
        target = audit.Target("client", 1)
        await audit.record(connection, COMMAND_LINE, "client_added", target)
        await connection.rollback()
    assert await value(engine, COUNT) == 0


async def test_a_change_whose_entry_cannot_be_written_does_not_happen(
    engine: AsyncEngine,
) -> None:
    nameless = Actor("key", None, 1)  # type: ignore[arg-type]  # which the log refuses
    mailing: NewMailing = msgspec.convert(NEW, NewMailing)
    with pytest.raises(DBAPIError):
        await clients.add(engine, NewClient(phone="79160000001"), nameless)
    with pytest.raises(DBAPIError):
        await mailings.create(engine, mailing, nameless)
    for table in ("client", "mailing", "audit"):
        assert await value(engine, f"SELECT count(*) FROM {table}") == 0  # noqa: S608  # ours


# ---- that it stays --------------------------------------------------------------------------


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
async def test_the_database_refuses_every_change(engine: AsyncEngine, statement: str) -> None:
    async with engine.begin() as connection:
        await audit.record(connection, COMMAND_LINE, "key_made", audit.Target("key", 1))
    before = await value(engine, ALL)
    with pytest.raises(DBAPIError, match="what stands in audit stays as it is"):
        await execute(engine, statement)
    assert await value(engine, ALL) == before
