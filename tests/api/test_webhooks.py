"""The API of webhooks: create, read, change, delete, rotate, test, deliver again."""

from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
from sqlalchemy.ext.asyncio import AsyncEngine
from standardwebhooks import Webhook as Verifier
from tests.api.calls import field_errors
from tests.asgi_client import inside
from tests.factories import OPEN, do, execute, rows, value
from tests.webhook_receiver import delivering, receiving, until_attempted

from mailer.app import create_app
from mailer.webhook import store
from mailer.webhook.addresses import AddressPolicy
from mailer.webhook.model import EVENT_TYPES, MAX_WEBHOOKS

NEW = {
    "name": "Shop",
    "url": "https://shop.example/hook?key=1",
    "events": ["messages.finished", "gateway.up"],
}


async def resolve(host: str, _: int) -> list[str]:
    """Resolve the host names of these tests."""
    addresses = {
        "shop.example": ["93.184.216.34", "2606:2800:220:1::1"],
        "inside.example": ["93.184.216.34", "10.0.0.7"],
        "metadata.example": ["169.254.169.254"],
    }
    return addresses.get(host, [host] if host[0].isdigit() or ":" in host else [])


@pytest.fixture
async def api(engine: AsyncEngine) -> AsyncIterator[httpx.AsyncClient]:
    """The API of an application whose host names these tests resolve."""
    app = create_app(engine, settings=OPEN, webhook_addresses=AddressPolicy(resolve=resolve))
    async with httpx.AsyncClient(transport=inside(app), base_url="http://mailer/api/v1") as client:
        yield client


async def create(api: httpx.AsyncClient, **fields: Any) -> dict[str, Any]:
    """Create a webhook and return it."""
    response = await api.post("/webhooks", json=NEW | fields)
    assert response.status_code == 201, response.text
    created: dict[str, Any] = response.json()
    return created


async def audited(engine: AsyncEngine) -> list[str]:
    """Return the actions in the audit log, oldest first."""
    return [row["action"] for row in await rows(engine, "SELECT action FROM audit ORDER BY id")]


# ---- create and read -------------------------------------------------------------------------


async def test_only_creation_and_rotation_show_the_secret(api: httpx.AsyncClient) -> None:
    created = await create(api)
    secret = created.pop("secret")
    Verifier(secret)
    assert secret.startswith("whsec_")
    path = f"/webhooks/{created['id']}"
    assert (await api.get(path)).json() == created
    assert (await api.get("/webhooks")).json() == [created]
    assert created == NEW | {
        "id": created["id"],
        "enabled": True,
        "disabled_at": None,
        "disabled_reason": None,
        "failures": 0,
        "failing_since": None,
        "last_success_at": None,
        "waiting": 0,
        "dropped": 0,
        "previous_secret_until": None,
        "created_at": created["created_at"],
        "updated_at": created["updated_at"],
    }
    rotated = (await api.post(f"{path}/rotate-secret")).json()
    assert rotated["secret"] not in {secret, None}
    assert rotated["previous_secret_until"] is not None
    patched = await api.patch(path, json={"name": "Store"})
    for response in (await api.get(path), await api.get("/webhooks"), patched):
        assert "secret" not in response.text.replace("previous_secret_until", "")


async def test_all_wrong_fields_are_named_at_once(api: httpx.AsyncClient) -> None:
    response = await api.post(
        "/webhooks", json={"name": "", "url": "shop", "events": ["x"], "secret": "mine"}
    )
    assert response.status_code == 400
    assert set(field_errors(response)) == {"name", "url", "events", "secret"}


@pytest.mark.parametrize(
    "url",
    [
        "https://inside.example/",
        "https://metadata.example/latest/meta-data",
        "https://127.0.0.1/",
        "https://10.0.0.1:8443/",
        "https://[::1]/",
        "https://[::ffff:192.168.0.1]/",
        "https://[64:ff9b::a00:1]/",
        "https://[2002:7f00:1::]/",
    ],
)
async def test_a_private_address_is_refused(api: httpx.AsyncClient, url: str) -> None:
    response = await api.post("/webhooks", json=NEW | {"url": url})
    assert response.status_code == 400
    assert "not public" in field_errors(response)["url"]
    created = await create(api)
    response = await api.patch(f"/webhooks/{created['id']}", json={"url": url})
    assert response.status_code == 400
    assert "not public" in field_errors(response)["url"]


async def test_http_and_unknown_hosts_are_refused(api: httpx.AsyncClient) -> None:
    errors = {}
    for url in ("http://shop.example/", "https://unknown.example/"):
        response = await api.post("/webhooks", json=NEW | {"url": url})
        assert response.status_code == 400
        errors[url] = field_errors(response)["url"]
    assert errors["http://shop.example/"] == "must start with https://"
    assert errors["https://unknown.example/"] == "has a host without an address"


async def test_a_setting_allows_private_addresses_and_http(engine: AsyncEngine) -> None:
    app = create_app(engine, settings=OPEN, webhook_addresses=AddressPolicy(allows_private=True))
    async with httpx.AsyncClient(transport=inside(app), base_url="http://mailer/api/v1") as api:
        await create(api, url="http://127.0.0.1:9000/")
        await create(api, url="http://unknown.example/")


async def test_there_are_20_webhooks_at_most(api: httpx.AsyncClient) -> None:
    for number in range(MAX_WEBHOOKS):
        await create(api, name=f"Shop {number}")
    response = await api.post("/webhooks", json=NEW)
    assert response.status_code == 409
    newest = (await api.get("/webhooks")).json()[0]
    assert newest["name"] == f"Shop {MAX_WEBHOOKS - 1}"
    assert (await api.delete(f"/webhooks/{newest['id']}")).status_code == 204
    await create(api)


async def test_a_repeated_creation_creates_one_webhook(
    api: httpx.AsyncClient, engine: AsyncEngine
) -> None:
    headers = {"Idempotency-Key": "once"}
    first = await api.post("/webhooks", json=NEW, headers=headers)
    again = await api.post("/webhooks", json=NEW, headers=headers)
    assert first.status_code == again.status_code == 201
    assert first.json() == again.json()
    assert await value(engine, "SELECT count(*) FROM webhook") == 1


async def test_an_unknown_webhook_is_not_found(api: httpx.AsyncClient) -> None:
    calls = [
        api.get("/webhooks/9"),
        api.patch("/webhooks/9", json={"name": "Shop"}),
        api.delete("/webhooks/9"),
        api.get("/webhooks/9/deliveries"),
        api.post("/webhooks/9/rotate-secret"),
        api.post("/webhooks/9/test"),
        api.post("/webhooks/9/redeliver", json={"delivery_id": 1}),
    ]
    assert [(await call).status_code for call in calls] == [404] * len(calls)


# ---- change and delete -----------------------------------------------------------------------


async def test_changes_are_audited_without_the_query_of_the_url(
    api: httpx.AsyncClient, engine: AsyncEngine
) -> None:
    path = f"/webhooks/{(await create(api))['id']}"
    changed = (
        await api.patch(path, json={"url": "https://shop.example/new?key=2", "name": "Shop"})
    ).json()
    assert changed["url"] == "https://shop.example/new?key=2"
    await api.patch(path, json={"name": "Shop"})  # no change
    await api.post(f"{path}/rotate-secret")
    await api.delete(path)
    assert await audited(engine) == [
        "webhook_created",
        "webhook_changed",
        "webhook_secret_rotated",
        "webhook_deleted",
    ]
    entries = await rows(engine, "SELECT before, after FROM audit ORDER BY id")
    assert entries[0]["after"] == NEW | {"url": "https://shop.example/hook"}
    assert entries[1]["before"] == {"url": "https://shop.example/hook"}
    assert entries[1]["after"] == {"url": "https://shop.example/new"}
    assert entries[2]["after"] is None
    assert "key=" not in str(entries)
    assert "whsec" not in str(entries)


async def test_a_webhook_that_failed_is_enabled_again_and_its_pauses_end(
    api: httpx.AsyncClient, engine: AsyncEngine
) -> None:
    created = await create(api)
    path = f"/webhooks/{created['id']}"
    await do(engine, lambda db: store.add_test(db, created["id"]))
    await execute(
        engine,
        "UPDATE webhook_delivery SET attempts = 1, error = 'timeout', attempt_at = now() + '1 h'",
        "UPDATE webhook SET failures = 3, failing_since = now(), is_enabled = false,"
        " disabled_at = now(), disabled_reason = 'failing'",
    )
    disabled = (await api.get(path)).json()
    assert (disabled["enabled"], disabled["disabled_reason"]) == (False, "failing")
    assert disabled["waiting"] == 1
    enabled = (await api.patch(path, json={"enabled": True})).json()
    assert (enabled["enabled"], enabled["disabled_reason"]) == (True, None)
    assert (enabled["failures"], enabled["failing_since"]) == (0, None)
    assert await value(engine, "SELECT attempt_at <= now() FROM webhook_delivery")
    again = (await api.patch(path, json={"enabled": False})).json()
    assert (again["enabled"], again["disabled_reason"]) == (False, "user")
    assert again["disabled_at"] is not None


async def test_what_waits_for_a_deleted_webhook_is_not_sent(
    api: httpx.AsyncClient, engine: AsyncEngine
) -> None:
    path = f"/webhooks/{(await create(api))['id']}"
    await api.post(f"{path}/test")
    assert (await api.delete(path)).status_code == 204
    assert (await api.get(path)).status_code == 404
    assert await value(engine, "SELECT count(*) FROM webhook_delivery") == 0


# ---- deliveries ------------------------------------------------------------------------------


async def test_a_test_event_is_delivered_and_listed(
    api: httpx.AsyncClient, engine: AsyncEngine
) -> None:
    created = await create(api, events=list(EVENT_TYPES))
    path = f"/webhooks/{created['id']}"
    async with receiving() as receiver:
        await execute(engine, f"UPDATE webhook SET url = '{receiver.url}'")  # noqa: S608  # of the test
        receiver.verifier = Verifier(created["secret"])
        delivery = (await api.post(f"{path}/test")).json()
        assert (delivery["event"], delivery["status"], delivery["attempts"]) == (
            "test",
            "waiting",
            0,
        )
        assert delivery["next_attempt_at"] is not None
        async with delivering(engine):
            await until_attempted(engine)
    [event] = receiver.events
    assert event.id == delivery["event_id"]
    page = (await api.get(f"{path}/deliveries")).json()
    [listed] = page["results"]
    assert page["count"] == 1
    assert (listed["status"], listed["response_status"], listed["error"]) == (
        "delivered",
        204,
        None,
    )
    assert listed["next_attempt_at"] is None
    assert (await api.get(path)).json()["last_success_at"] is not None


async def test_deliveries_are_paged_and_filtered(
    api: httpx.AsyncClient, engine: AsyncEngine
) -> None:
    path = f"/webhooks/{(await create(api))['id']}"
    other = f"/webhooks/{(await create(api))['id']}"
    ids = [(await api.post(f"{path}/test")).json()["id"] for _ in range(3)]
    await api.post(f"{other}/test")
    await execute(
        engine,
        f"UPDATE webhook_delivery SET status = 'failed', error = 'expired' WHERE id = {ids[1]}",  # noqa: S608  # a number
    )
    page = (await api.get(f"{path}/deliveries?limit=2")).json()
    assert [row["id"] for row in page["results"]] == ids[:0:-1]
    older = (await api.get(page["next"])).json()
    assert [row["id"] for row in older["results"]] == ids[:1]
    failed = (await api.get(f"{path}/deliveries?status=failed")).json()
    assert [row["id"] for row in failed["results"]] == [ids[1]]
    assert (await api.get(f"{path}/deliveries?status=lost")).status_code == 400


async def test_one_delivery_or_all_failed_ones_are_delivered_again(
    api: httpx.AsyncClient, engine: AsyncEngine
) -> None:
    path = f"/webhooks/{(await create(api))['id']}"
    ids = [(await api.post(f"{path}/test")).json()["id"] for _ in range(4)]
    await execute(
        engine,
        f"""UPDATE webhook_delivery SET attempts = 10, error = 'timeout',
            status = CASE WHEN id = {ids[0]} THEN 'delivered' ELSE 'failed' END,
            created_at = now() - CASE WHEN id = {ids[3]} THEN interval '2 days' ELSE '0 s' END
        WHERE id <> {ids[1]}""",  # noqa: S608  # numbers
    )
    for delivery_id, number in ((ids[0], 1), (ids[1], 0)):
        response = await api.post(f"{path}/redeliver", json={"delivery_id": delivery_id})
        assert response.json() == {"deliveries": number}
    since = await value(engine, "SELECT now() - interval '1 day'")
    failed_since = {"failed_since": since.isoformat()}
    assert (await api.post(f"{path}/redeliver", json=failed_since)).json() == {"deliveries": 1}
    listed = (await api.get(f"{path}/deliveries?status=waiting")).json()["results"]
    assert [(row["id"], row["attempts"]) for row in listed] == [(id_, 0) for id_ in ids[2::-1]]
    assert (await audited(engine))[-3:] == ["webhook_redelivered"] * 3
    unknown = await api.post(f"{path}/redeliver", json={"delivery_id": 99_999})
    assert unknown.status_code == 404


async def test_a_disabled_webhook_takes_no_test_and_no_redelivery(api: httpx.AsyncClient) -> None:
    path = f"/webhooks/{(await create(api))['id']}"
    delivery_id = (await api.post(f"{path}/test")).json()["id"]
    await api.patch(path, json={"enabled": False})
    assert (await api.post(f"{path}/test")).status_code == 409
    response = await api.post(f"{path}/redeliver", json={"delivery_id": delivery_id})
    assert response.status_code == 409
