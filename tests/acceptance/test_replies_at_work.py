"""Replies that a gateway reports to a real mailer process are stored, obeyed and answered."""

from pathlib import Path
from typing import Any

from tests.processes import Gateway, Gateways, MailerProcess, Mailers, until_true

from mailer.sample_data import new_mailing

SECRET = "a-secret-of-20-chars"  # noqa: S105  # of a test
ACKNOWLEDGEMENT = "You get no more advertising."


async def report(mailer: MailerProcess, number: int, phone: str, text: str) -> int:
    """Report a reply as the gateway does; return the status of the response."""
    body = {"reply_id": str(number), "from": phone, "to": "1500", "text": text}
    url = f"{mailer.address}/gateways/main/inbound?secret={SECRET}"
    async with mailer.session.post(url, json=body) as response:
        return response.status


async def until_texts(gateway: Gateway, *texts: str) -> None:
    """Wait until the gateway has received exactly these texts, in any order."""

    async def have_arrived() -> bool:
        received = [each.message.text for each in gateway.received if each.message is not None]
        return sorted(received) == sorted(texts)

    await until_true(have_arrived)


async def test_a_stop_word_ends_marketing_and_a_start_word_brings_it_back(
    start_gateway: Gateways, start_mailer: Mailers, tmp_path: Path
) -> None:
    gateway = await start_gateway()
    file = tmp_path / "gateways.toml"
    file.write_text(
        f'[[gateway]]\nname = "main"\nkind = "json"\nurl = "{gateway.url}"\n'
        f'token = "secret"\ncallback_secret = "{SECRET}"\nreceipts = false\n'
    )
    mailer = await start_mailer(gateways=str(file), opt_out_text=ACKNOWLEDGEMENT)
    [client_id] = await mailer.create_clients(1)
    phone = await mailer.query("SELECT phone FROM client")

    async def send(text: str) -> dict[str, Any]:
        created = await mailer.call("POST", "/mailings", new_mailing(text=text), 201)
        return await mailer.finished(created["id"])

    first = await send("One")
    for _ in range(2):  # a repeat
        assert await report(mailer, 1, phone, "Стоп.") == 200
    assert await report(mailer, 2, phone, "stop") == 200
    await until_texts(gateway, "One", ACKNOWLEDGEMENT)
    [second, reply] = (await mailer.call("GET", "/replies"))["results"]
    assert (reply["client_id"], reply["mailing_id"]) == (client_id, first["id"])
    assert [reply["action"], second["action"]] == ["opted_out", None]
    assert (await send("Two"))["cancelled_messages"] == 1

    assert await report(mailer, 3, phone, "START") == 200
    assert (await send("Three"))["delivered_messages"] == 1
    await mailer.call("POST", f"/replies/{reply['id']}/answer", {"text": "Welcome back."}, 201)
    await until_texts(gateway, "One", ACKNOWLEDGEMENT, "Three", "Welcome back.")
    assert await report(mailer, 4, phone, "x" * 20_000) in {200, 400}
    assert len(set(gateway.ids)) == len(gateway.ids)
