"""The API of gateways: their fields, pause and resume, and the release of unknown messages."""

from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
from sqlalchemy.ext.asyncio import AsyncEngine
from tests.asgi_client import inside
from tests.factories import (
    NOON,
    OPEN,
    UnusedGateway,
    add_clients,
    add_due_messages,
    add_mailing,
    add_messages,
    channel_of,
    do,
    execute,
    rows,
    value,
)

from mailer.app import create_app
from mailer.gateway import routes
from mailer.gateway.channel import Channels
from mailer.gateway.protocol import TemporaryFailure
from mailer.gateway_control import service
from mailer.mailing import rerouting
from mailer.settings import Settings

ACTIONS = ("pause", "resume", "release-unknown")


@pytest.fixture
def channels() -> Channels:
    """Two gateways: `main` for all clients, and `spare`, which is used when `main` is out."""
    gateway, settings = UnusedGateway(), Settings()
    return Channels(
        [
            channel_of(gateway, settings, name="main", price=2.5, sender="Acme"),
            channel_of(gateway, settings, name="spare", order=2, operator_codes=["916"], rate=5.0),
        ]
    )


@pytest.fixture
async def api(engine: AsyncEngine, channels: Channels) -> AsyncIterator[httpx.AsyncClient]:
    """The API of an application with these gateways."""
    transport = inside(create_app(engine, channels, settings=OPEN))
    async with httpx.AsyncClient(transport=transport, base_url="http://mailer/api/v1") as client:
        yield client


async def get(api: httpx.AsyncClient, name: str) -> dict[str, Any]:
    """Return a gateway."""
    response = await api.get(f"/gateways/{name}")
    assert response.status_code == 200, response.text
    gateway: dict[str, Any] = response.json()
    return gateway


async def audited(engine: AsyncEngine) -> list[str]:
    """Return the actions in the audit log, oldest first."""
    return [row["action"] for row in await rows(engine, "SELECT action FROM audit ORDER BY id")]


async def add_unknown(engine: AsyncEngine, count: int, gateway: str = "main") -> int:
    """Create a mailing whose messages wait for a gateway alone, because it may have them."""
    await do(engine, lambda db: routes.apply_routes(db, {gateway: None, "spare": None}))
    mailing_id = await add_due_messages(engine, count)
    await execute(
        engine,
        f"""UPDATE message SET unknown_reason = 'timeout', gateway = '{gateway}',
            route = find_route('{{{gateway}}}') WHERE mailing_id = {mailing_id}""",  # noqa: S608  # values of the test
    )
    return mailing_id


async def gateways_of_messages(engine: AsyncEngine) -> list[list[str]]:
    """Return which gateways may send each message."""
    query = "SELECT gateways FROM message JOIN route ON route.id = route ORDER BY message.id"
    return [row["gateways"] for row in await rows(engine, query)]


# ---- fields of a gateway --------------------------------------------------------------------


async def test_gateways_are_listed_in_the_order_of_the_configuration(
    api: httpx.AsyncClient,
) -> None:
    listed = (await api.get("/gateways")).json()
    assert [gateway["name"] for gateway in listed] == ["main", "spare"]
    assert listed == [await get(api, "main"), await get(api, "spare")]
    assert listed[0] == {
        "name": "main",
        "kind": "json",
        "order": 1,
        "weight": None,
        "operator_codes": None,
        "sender": "Acme",
        "price": 2.5,
        "awaits_receipts": False,
        "state": "up",
        "breaker": "closed",
        "held": None,
        "retry_at": None,
        "failures": 0,
        "rate": None,
        "latency": None,
        "requests_in_flight": 0,
        "accepted": 0,
        "delivered": 0,
        "undelivered": 0,
        "unknown": 0,
        "awaiting": 0,
        "no_receipt": 0,
        "delivery_rate": None,
        "delivery_drop": None,
        "parts": 0,
        "cost": 0,
        "errors": [],
    }
    assert listed[1]["rate"] == 5
    assert listed[1]["operator_codes"] == ["916"]


async def test_rate_and_latency_are_those_that_this_worker_has_measured(
    api: httpx.AsyncClient, channels: Channels
) -> None:
    channel = channels.get("main")
    assert channel is not None
    channel.throughput.record(0.5)
    channel.in_flight = 3
    gateway = await get(api, "main")
    assert (gateway["rate"], gateway["latency"]) == (100, 0.5)
    assert gateway["requests_in_flight"] == 3


async def test_outcomes_of_the_last_day_are_counted_by_gateway(
    api: httpx.AsyncClient, engine: AsyncEngine
) -> None:
    clients = await add_clients(engine, 9)
    mailing_id = await add_mailing(engine, clients=9)
    await add_messages(engine, mailing_id, clients, "scheduled")
    first = await value(engine, "SELECT min(id) FROM message")
    results = [
        ("delivered", None, "main", 2, "1 hour"),
        ("delivered", None, "main", 1, "23 hours"),
        ("delivered", None, "main", 1, "25 hours"),
        ("delivered", None, "spare", 1, "1 hour"),
        ("undelivered", "rejected_400", "main", None, "1 hour"),
        ("undelivered", "rejected_400", "main", None, "2 hours"),
        ("unknown", "timeout", "main", None, "0 hours"),
        ("sent", None, "main", 1, "1 hour"),
        ("undelivered", "not_delivered_30003", "main", 3, "1 hour"),
    ]
    for number, (status, reason, gateway, parts, ago) in enumerate(results):
        await execute(
            engine,
            f"""UPDATE message SET status = '{status}', gateway = '{gateway}',
                reason = {f"'{reason}'" if reason else "NULL"}, parts = {parts or "NULL"},
                updated_at = now(),
                sent_at = now() - interval '{ago}' WHERE id = {first + number}""",  # noqa: S608  # values of the test
        )
    main, spare = await get(api, "main"), await get(api, "spare")
    assert main["accepted"] == 4
    assert (main["delivered"], main["undelivered"], main["unknown"]) == (2, 3, 1)
    assert (main["awaiting"], main["no_receipt"]) == (1, 0)
    assert (main["parts"], main["cost"]) == (7, 17.5)
    assert main["errors"] == [
        {"reason": "rejected_400", "messages": 2},
        {"reason": "not_delivered_30003", "messages": 1},
        {"reason": "timeout", "messages": 1},
    ]
    assert (spare["delivered"], spare["parts"], spare["cost"]) == (1, 1, None)


async def test_a_gateway_with_account_trouble_is_out(
    api: httpx.AsyncClient, channels: Channels
) -> None:
    channel = channels.get("main")
    assert channel is not None
    breaker = channel.breaker
    generation = breaker.acquire(0)
    assert generation is not None
    breaker.record(generation, TemporaryFailure("no_credit", affects_all=True), 0, NOON)
    gateway = await get(api, "main")
    assert (gateway["state"], gateway["breaker"], gateway["failures"]) == ("out", "open", 1)
    assert gateway["held"]["reason"] == "no_credit"
    assert (await get(api, "spare"))["state"] == "up"


@pytest.mark.parametrize("name", ["nope", "MAIN", "%00", "%F0%9F%98%80", "a" * 300])
async def test_an_unknown_name_is_404_and_changes_nothing(
    api: httpx.AsyncClient, engine: AsyncEngine, name: str
) -> None:
    assert (await api.get(f"/gateways/{name}")).status_code == 404
    for action in ACTIONS:
        assert (await api.post(f"/gateways/{name}/{action}")).status_code == 404
    assert await audited(engine) == []
    assert await value(engine, "SELECT count(*) FROM gateway_pause") == 0


# ---- pause and resume -----------------------------------------------------------------------


async def test_a_pause_is_shown_at_once_and_resume_ends_it(
    api: httpx.AsyncClient, engine: AsyncEngine
) -> None:
    paused = await api.post("/gateways/main/pause")
    assert paused.status_code == 200
    assert paused.json()["state"] == "paused"
    assert paused.json()["held"]["reason"] == "gateway_paused"
    assert paused.json() == await get(api, "main")
    assert (await get(api, "spare"))["state"] == "up"

    resumed = await api.post("/gateways/main/resume")
    assert resumed.status_code == 200
    assert (resumed.json()["state"], resumed.json()["held"]) == ("up", None)
    assert await audited(engine) == ["gateway_paused", "gateway_resumed"]
    assert await value(engine, "SELECT after ->> 'gateway' FROM audit LIMIT 1") == "main"


async def test_a_repeated_action_changes_nothing_and_is_recorded_once(
    api: httpx.AsyncClient, engine: AsyncEngine
) -> None:
    assert (await api.post("/gateways/main/resume")).status_code == 200
    assert await audited(engine) == []
    first = (await api.post("/gateways/main/pause")).json()
    again = await api.post("/gateways/main/pause")
    assert (again.status_code, again.json()) == (200, first)
    assert await audited(engine) == ["gateway_paused"]


async def test_a_repeated_request_with_a_key_does_not_pause_again(
    api: httpx.AsyncClient, engine: AsyncEngine
) -> None:
    key = {"Idempotency-Key": "pause-1"}
    await api.post("/gateways/main/pause", headers=key)
    await api.post("/gateways/main/resume")
    await api.post("/gateways/main/pause", headers=key)
    assert (await get(api, "main"))["state"] == "up"
    assert await audited(engine) == ["gateway_paused", "gateway_resumed"]


@pytest.mark.parametrize("action", ACTIONS)
async def test_an_action_takes_no_body(
    api: httpx.AsyncClient, engine: AsyncEngine, action: str
) -> None:
    response = await api.post(f"/gateways/main/{action}", json={"name": "spare"})
    assert response.status_code == 400
    assert await audited(engine) == []


# ---- messages whose delivery is unknown -----------------------------------------------------


async def test_released_messages_may_be_sent_by_all_gateways_for_them(
    api: httpx.AsyncClient, engine: AsyncEngine
) -> None:
    await add_unknown(engine, 3)
    assert await gateways_of_messages(engine) == [["main"]] * 3

    response = await api.post("/gateways/main/release-unknown")

    assert (response.status_code, response.json()) == (200, {"messages": 3})
    assert await gateways_of_messages(engine) == [["main", "spare"]] * 3
    assert await value(engine, "SELECT count(unknown_reason) FROM message") == 3
    assert await audited(engine) == ["unknown_released"]
    assert (await api.post("/gateways/main/release-unknown")).json() == {"messages": 0}


async def test_only_messages_with_delivery_unknown_are_released(
    api: httpx.AsyncClient, engine: AsyncEngine
) -> None:
    await add_unknown(engine, 4)
    await execute(
        engine,
        "UPDATE message SET unknown_reason = NULL WHERE id = (SELECT min(id) FROM message)",
        """UPDATE message SET status = 'sending', lease_owner = gen_random_uuid(),
            lease_expires_at = now() + interval '1 min' WHERE id = (SELECT max(id) FROM message)""",
    )
    assert (await api.post("/gateways/main/release-unknown")).json() == {"messages": 2}
    assert await gateways_of_messages(engine) == [
        ["main"],
        ["main", "spare"],
        ["main", "spare"],
        ["main"],
    ]


async def test_messages_of_a_mailing_with_this_gateway_of_its_own_stay_with_it(
    api: httpx.AsyncClient, engine: AsyncEngine
) -> None:
    own, other = await add_unknown(engine, 1), await add_unknown(engine, 1)
    await execute(
        engine,
        f"""UPDATE mailing SET gateway = 'main', route = find_route('{{main}}')
            WHERE id = {own}""",  # noqa: S608  # a number
    )
    assert (await api.post("/gateways/main/release-unknown")).json() == {"messages": 1}
    assert await value(
        engine,
        f"""SELECT gateways FROM message JOIN route ON route.id = message.route
            WHERE mailing_id = {other}""",  # noqa: S608  # a number
    ) == ["main", "spare"]


async def test_messages_of_a_removed_gateway_are_released(
    api: httpx.AsyncClient, engine: AsyncEngine
) -> None:
    await add_unknown(engine, 2, gateway="removed")
    await do(engine, lambda db: routes.apply_routes(db, {"main": None, "spare": None}))
    assert (await api.post("/gateways/removed/release-unknown")).json() == {"messages": 2}
    assert await gateways_of_messages(engine) == [["main", "spare"]] * 2
    assert (await api.get("/gateways/removed")).status_code == 404


async def test_after_a_release_the_configuration_decides_on_the_gateways_again(
    api: httpx.AsyncClient, engine: AsyncEngine
) -> None:
    await add_unknown(engine, 2)
    await api.post("/gateways/main/release-unknown")
    await execute(
        engine,
        """UPDATE message SET route = find_route('{main}')
            WHERE id = (SELECT max(id) FROM message)""",
    )
    await do(engine, lambda db: routes.apply_routes(db, {"spare": None, "third": None}))
    await do(engine, rerouting.reroute_chunk)
    assert await gateways_of_messages(engine) == [["spare", "third"], ["main"]]


async def test_messages_of_several_mailings_are_released_in_chunks(engine: AsyncEngine) -> None:
    for count in (3, 1, 2):
        await add_unknown(engine, count)
    route = await do(engine, lambda db: routes.find_route(db, ["main"]))
    assert await service.release_all(engine, route, batch=2) == 6
    assert await gateways_of_messages(engine) == [["main", "spare"]] * 6


# ---- messages by gateway --------------------------------------------------------------------


async def test_messages_of_a_mailing_are_filtered_by_gateway(
    api: httpx.AsyncClient, engine: AsyncEngine
) -> None:
    mailing_id = await add_due_messages(engine, 4)
    first = await value(engine, "SELECT min(id) FROM message")
    await execute(
        engine,
        "UPDATE message SET status = 'delivered', gateway = 'spare', sent_at = now()",
        f"UPDATE message SET gateway = 'main' WHERE id = {first}",  # noqa: S608  # a number
        f"UPDATE message SET status = 'undelivered', reason = 'x' WHERE id = {first + 1}",  # noqa: S608  # a number
    )
    path = f"/mailings/{mailing_id}/messages"
    of_main = (await api.get(f"{path}?gateway=main")).json()
    assert (of_main["count"], [row["id"] for row in of_main["results"]]) == (1, [first])
    assert (await api.get(f"{path}?gateway=spare")).json()["count"] == 3
    for query in ("status=undelivered", "reason=x", "reason=x&status=undelivered"):
        page = (await api.get(f"{path}?gateway=spare&{query}")).json()
        assert (page["count"], [row["id"] for row in page["results"]]) == (1, [first + 1]), query
    assert (await api.get(f"{path}?gateway=other")).json()["count"] == 0
    assert (await api.get(f"{path}?gateway=No")).status_code == 400
    csv = (await api.get(f"{path}?gateway=main", headers={"Accept": "text/csv"})).text
    assert len(csv.splitlines()) == 2
