"""A real Kannel: texts arrive as written, receipts and replies come back, and STOP is obeyed."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from tests.daemons import free_port
from tests.kannel import Kannel, kannel
from tests.message_parts import until_complete
from tests.processes import MailerProcess, Mailers, mailers, until, until_true

from mailer.sample_data import new_mailing

CLIENTS_PER_TEXT = 125
TEXTS = [
    "Your order 100% is ready & waiting: {0} costs €5 [today]",
    "Ваш заказ готов, приходите до 20:00!",
    "It's a long text of several parts. " * 12,
    "Это длинный текст из нескольких частей и эмодзи 😀. " * 6,
]
COUNT_BY_RECEIPT = """
SELECT count(*) FROM message
WHERE status = 'delivered' AND receipts @> '[{"status": "delivered", "gateway": "kannel"}]'
"""
IS_OPTED_OUT = "SELECT opted_out_at IS NOT NULL FROM client WHERE phone = $1"


@pytest.fixture
async def start_mailer(database_url: str) -> AsyncIterator[Mailers]:
    async with mailers(database_url) as start:
        yield start


@pytest.fixture
async def mailer_and_kannel(
    start_mailer: Mailers, tmp_path: Path
) -> AsyncIterator[tuple[MailerProcess, Kannel]]:
    """Run mailer with Kannel as its only gateway; each of them can call the other."""
    port = free_port()
    public_url = f"http://127.0.0.1:{port}"
    async with kannel(tmp_path, f"{public_url}/gateways/kannel/inbound") as server:
        file = tmp_path / "gateways.toml"
        file.write_text(server.config())
        mailer = await start_mailer(port=str(port), public_url=public_url, gateways=str(file))
        yield mailer, server


async def test_texts_arrive_as_written_and_receipts_say_that_they_are_delivered(
    mailer_and_kannel: tuple[MailerProcess, Kannel],
) -> None:
    mailer, server = mailer_and_kannel
    await mailer.create_clients(CLIENTS_PER_TEXT)
    for text in TEXTS:
        mailing = await mailer.call("POST", "/mailings", new_mailing(text=text), 201)
        await until_delivered(mailer, mailing["id"], CLIENTS_PER_TEXT)
    count = len(TEXTS) * CLIENTS_PER_TEXT
    received = await until_complete(server.parts, count)
    phones = await mailer.query("SELECT array_agg(phone) FROM client")
    assert sorted(received) == sorted((f"+{phone}", text) for phone in phones for text in TEXTS)
    assert await mailer.query(COUNT_BY_RECEIPT) == count


async def until_delivered(mailer: MailerProcess, mailing_id: int, count: int) -> dict[str, Any]:
    """Wait until a mailing is finished and has `count` delivered messages; return it."""

    async def find() -> dict[str, Any] | None:
        mailing = await mailer.mailing(mailing_id)
        is_delivered = mailing["delivered_messages"] == count
        return mailing if mailing["status"] == "finished" and is_delivered else None

    try:
        return await until(find)
    except TimeoutError:
        statistics = await mailer.call("GET", f"/mailings/{mailing_id}/statistics")
        raise AssertionError(statistics["reasons"]) from None


async def send(mailer: MailerProcess, text: str) -> dict[str, int]:
    """Send a mailing to all clients; return how many messages have each status at its end."""
    mailing = await mailer.call("POST", "/mailings", new_mailing(text=text), 201)

    async def find() -> dict[str, int] | None:
        found = await mailer.mailing(mailing["id"])
        counts = {
            name.removesuffix("_messages"): found[name]
            for name in ("sent_messages", "delivered_messages", "cancelled_messages")
            if found[name]
        }
        return counts if found["status"] == "finished" and "sent" not in counts else None

    return await until(find)


@pytest.mark.parametrize(("stop", "start"), [("STOP", "START"), ("СТОП", "СТАРТ")])  # noqa: RUF001  # words in Cyrillic
async def test_phone_that_answers_stop_gets_nothing_more_until_it_answers_start(
    mailer_and_kannel: tuple[MailerProcess, Kannel], stop: str, start: str
) -> None:
    mailer, server = mailer_and_kannel
    await mailer.create_clients(3)
    phone = await mailer.query("SELECT min(phone) FROM client")

    async def is_opted_out() -> bool:
        return bool(await mailer.query(IS_OPTED_OUT, phone))

    async def is_opted_in() -> bool:
        return not await is_opted_out()

    assert await send(mailer, "first") == {"delivered": 3}
    await server.send_from_phone(phone, stop)
    await until_true(is_opted_out)
    assert await send(mailer, "second") == {"delivered": 2, "cancelled": 1}
    await server.send_from_phone(phone, start)
    await until_true(is_opted_in)
    assert await send(mailer, "third") == {"delivered": 3}
    await until_complete(server.parts, 8)
    assert [part.data for part in server.parts if part.phone == f"+{phone}"] == [b"first", b"third"]
    replies = (await mailer.call("GET", "/replies"))["results"]
    assert {(reply["phone"], reply["text"]) for reply in replies} == {(phone, stop), (phone, start)}
