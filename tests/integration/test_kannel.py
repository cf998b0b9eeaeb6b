"""Messages through a real Kannel arrive at the network operator as they were written."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from tests.kannel import kannel
from tests.message_parts import until_complete
from tests.processes import Mailers, mailers

from mailer.sample_data import new_mailing

CLIENTS_PER_TEXT = 125
TEXTS = [
    "Your order 100% is ready & waiting: {it} costs €5 [today]",
    "Ваш заказ готов, приходите до 20:00!",
    "It's a long text of several parts. " * 12,
    "Это длинный текст из нескольких частей и эмодзи 😀. " * 6,
]


@pytest.fixture
async def start_mailer(database_url: str) -> AsyncIterator[Mailers]:
    async with mailers(database_url) as start:
        yield start


async def test_texts_arrive_at_the_operator_as_written(
    start_mailer: Mailers, tmp_path: Path
) -> None:
    async with kannel(tmp_path) as server:
        (tmp_path / "gateways.toml").write_text(server.config())
        mailer = await start_mailer(gateways=str(tmp_path / "gateways.toml"))
        await mailer.create_clients(CLIENTS_PER_TEXT)
        for text in TEXTS:
            mailing = await mailer.call("POST", "/mailings", new_mailing(text=text), 201)
            finished = await mailer.finished(mailing["id"])
            assert finished["delivered_messages"] == CLIENTS_PER_TEXT
        received = await until_complete(server.parts, len(TEXTS) * CLIENTS_PER_TEXT)
        phones = await mailer.query("SELECT array_agg(phone) FROM client")
    assert sorted(received) == sorted((f"+{phone}", text) for phone in phones for text in TEXTS)
