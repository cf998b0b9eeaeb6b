"""The whole process delivers mailings to a real gateway."""

from datetime import UTC, datetime, timedelta
from typing import Any

from tests.acceptance.conftest import Gateways, MailerProcess, Mailers


def a_mailing(*, starts_in: float = 0, lasts: float = 3600, **fields: Any) -> dict[str, Any]:
    start = datetime.now(UTC) + timedelta(seconds=starts_in)
    return {
        "datetime_start": start.isoformat(),
        "datetime_end": (start + timedelta(seconds=lasts)).isoformat(),
        "text": "Your order is ready.",
        **fields,
    }


async def add_clients(mailer: MailerProcess, count: int, **fields: str) -> None:
    for number in range(count):
        await mailer.call("POST", "/clients", {"phone": f"7916{number:07}", **fields}, 201)


async def test_due_mailing_is_delivered_to_its_audience(
    start_gateway: Gateways, start_mailer: Mailers
) -> None:
    gateway = await start_gateway()
    mailer = await start_mailer(**gateway.settings)
    await add_clients(mailer, 20, tag="vip")
    await mailer.call("POST", "/clients", {"phone": "79990000000"}, 201)

    created = await mailer.call("POST", "/mailings", a_mailing(client_filter="vip"), 201)
    assert created["clients_count"] == 20

    mailing = await mailer.finished(created["id"])
    assert mailing["delivered_messages"] == 20
    assert sorted(gateway.ids) == sorted(
        message["id"] for message in mailing["mailing_messages"]
    )
