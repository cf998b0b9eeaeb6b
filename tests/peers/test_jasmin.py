"""Messages through a real Jasmin, which `make peers` installs; `make test` does not run this."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import NamedTuple

import pytest
from tests.fault_servers import send
from tests.message_parts import until_complete
from tests.peers.jasmin import PASSWORD, jasmin
from tests.peers.message_centre import MessageCentre, message_centre

from mailer.clock import elapsed
from mailer.gateway.config import read_gateways
from mailer.gateway.http import HttpGateway
from mailer.gateway.protocol import (
    Accepted,
    AccountTrouble,
    Outcome,
    OutgoingMessage,
    Request,
    TemporaryFailure,
)
from mailer.gateway.sms_parts import GSM7_BASIC, GSM7_EXTENSION, count_parts

PHONE = "79161234567"
TEXTS = [
    "Your order 100% is ready & waiting: {it} costs €5 [today]",
    "".join(sorted(GSM7_BASIC | GSM7_EXTENSION)),
    "Ваш заказ готов, приходите до 20:00!",
    "Happy birthday 🎂",
    "It's a long text of several parts. " * 12,
    "{€} " * 100,
    "Это длинный текст из нескольких частей. " * 6,
    "Поздравляем! 😀🎂 " * 45,
]


class Jasmin(NamedTuple):
    """A running Jasmin, and the message centre to which it sends."""

    url: str
    centre: MessageCentre
    folder: Path

    async def send(self, text: str, username: str = "ann", password: str = PASSWORD) -> Outcome:
        """Send a message through mailer's gateway, as a user of Jasmin."""
        path = self.folder / "gateways.toml"
        path.write_text(
            f'[[gateway]]\nname = "jasmin"\nkind = "jasmin"\nurl = "{self.url}"\n'
            f'username = "{username}"\npassword = "{password}"\nsender = "ACME"\n'
        )
        message = OutgoingMessage(id=7, phone=PHONE, text=text, sender="ACME")
        async with HttpGateway(read_gateways(path, {})[0]) as gateway:
            return await send(gateway, Request(message, elapsed() + 30.0))


@pytest.fixture(scope="module")
async def server(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Jasmin]:
    folder = tmp_path_factory.mktemp("jasmin")
    async with message_centre() as centre, jasmin(folder, centre.port) as url:
        yield Jasmin(url, centre, folder)


async def test_accepted_texts_arrive_at_the_message_centre_as_written(server: Jasmin) -> None:
    assert max(count_parts(text).parts for text in TEXTS) > 5  # Jasmin's default
    for text in TEXTS * 3:
        outcome = await server.send(text)
        assert isinstance(outcome, Accepted)
        assert outcome.gateway_message_id
        # Jasmin 0.11.1 loses messages with a validity that come in the last tenth of a second:
        # the test sends in all tenths.
        await asyncio.sleep(0.05)
    received = await until_complete(server.centre.parts, len(TEXTS * 3))
    assert sorted(received) == sorted((PHONE, text) for text in TEXTS * 3)


@pytest.mark.parametrize(
    ("username", "password", "trouble"),
    [
        ("ann", "wrong", "bad_credentials"),
        ("ann", "longer than Jasmin allows", "bad_credentials"),
        ("nobody", PASSWORD, "bad_credentials"),
        ("without-rights", PASSWORD, "bad_credentials"),
        ("without-sender", PASSWORD, "sender_refused"),
        ("without-balance", PASSWORD, "no_credit"),
        ("without-quota", PASSWORD, "no_credit"),
    ],
)
async def test_trouble_with_the_account_is_recognized(
    server: Jasmin, username: str, password: str, trouble: AccountTrouble
) -> None:
    outcome = await server.send("Hello", username, password)
    assert outcome == TemporaryFailure(trouble, affects_all=True, trouble=trouble)
