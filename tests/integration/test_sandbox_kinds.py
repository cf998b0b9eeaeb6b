"""The sandbox gateway as each kind that is shipped, with mailer's own client and configuration."""

import asyncio
import tomllib
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from tests.event_timeout import EVENT_TIMEOUT

from mailer.clock import elapsed
from mailer.errors import InvalidError
from mailer.gateway.check import check_gateways
from mailer.gateway.config import read_gateways
from mailer.gateway.http import HttpGateway
from mailer.gateway.profile_file import load_profile, shipped_kinds
from mailer.gateway.profile_mistakes import account_keys
from mailer.gateway.protocol import (
    Accepted,
    AccountTrouble,
    Outcome,
    OutgoingMessage,
    Rejected,
    Request,
    TemporaryFailure,
    Unknown,
)
from mailer.gateway.sandbox import Faults, SandboxGateway, SandboxRequest

TEXTS = ("It is 100% off & free", "Привет, мир", "👍🏽 +1=2\n", "Скидка до 50%. " * 100)
WITHOUT_ID = {"json", "kannel"}
"""Kinds whose responses have no id of the gateway."""


def account_of(kind: str, value: str) -> dict[str, str]:
    """Return an account with this value for each key that the kind uses."""
    return dict.fromkeys(account_keys(load_profile(kind)), value)


def with_account(kind: str, account: dict[str, Any]) -> SandboxGateway:
    return SandboxGateway(Faults(), kind=kind, on_request=None, **account)


@asynccontextmanager
async def client_of(
    sandbox: SandboxGateway, folder: Path, table_of: SandboxGateway | None = None
) -> AsyncIterator[HttpGateway]:
    """Run a sandbox, and yield a client of it, configured by its table `[[gateway]]`.

    With `table_of`, the table is that of another sandbox.
    """
    async with sandbox.run() as url:
        file = folder / "gateways.toml"
        file.write_text((table_of or sandbox).gateway_table("main", url), encoding="utf-8")
        [gateway] = read_gateways(file, {})
        async with HttpGateway(gateway) as client:
            yield client


def create_request(text: str = "Hello", message_id: int = 1) -> Request:
    message = OutgoingMessage(
        id=message_id,
        phone="79161234567",
        text=text,
        sender="ACME",
        validity=7_200,
        valid_from=datetime.now(UTC),
    )
    return Request(message, elapsed() + EVENT_TIMEOUT)


async def send(client: HttpGateway, text: str = "Hello", message_id: int = 1) -> Outcome:
    return await client.send(create_request(text, message_id))


async def send_all(client: HttpGateway, texts: Sequence[str]) -> list[Outcome]:
    return [await send(client, text, number) for number, text in enumerate(texts, start=1)]


@pytest.mark.parametrize("kind", shipped_kinds())
async def test_texts_of_each_kind_arrive_as_written(kind: str, tmp_path: Path) -> None:
    received: list[SandboxRequest] = []
    sandbox = SandboxGateway(Faults(), kind=kind, on_request=received.append)
    async with client_of(sandbox, tmp_path) as client:
        outcomes = await send_all(client, TEXTS)
    ids = {outcome.gateway_message_id for outcome in outcomes if isinstance(outcome, Accepted)}
    assert [outcome for outcome in outcomes if not isinstance(outcome, Accepted)] == []
    assert ids == {None} if kind in WITHOUT_ID else len(ids - {None}) == len(TEXTS)
    messages = [request.message for request in received]
    assert [(each.phone, each.text) for each in messages if each is not None] == [
        (79161234567, text) for text in TEXTS
    ]


@pytest.mark.parametrize("kind", shipped_kinds())
@pytest.mark.parametrize(
    ("fault", "outcomes"),
    [
        ("error", (TemporaryFailure, Unknown)),
        ("reject", (Rejected,)),
        ("malformed", (TemporaryFailure, Unknown)),
        ("reset", (Unknown,)),
    ],
)
async def test_each_fault_of_each_kind_has_its_outcome(
    kind: str, fault: str, outcomes: tuple[type[Outcome], ...], tmp_path: Path
) -> None:
    faults = Faults(**{f"{fault}_rate": 1.0}, seed=1)
    sandbox = SandboxGateway(faults, kind=kind)
    async with client_of(sandbox, tmp_path) as client:
        found = await send_all(client, ["Hello"] * 20)
    assert {type(outcome) for outcome in found} <= set(outcomes)
    assert all(getattr(outcome, "trouble", None) is None for outcome in found)
    assert (getattr(sandbox.counts, fault), sandbox.counts.total) == (20, 20)


@pytest.mark.parametrize("kind", shipped_kinds())
async def test_hanging_request_of_each_kind_has_an_unknown_outcome(
    kind: str, tmp_path: Path
) -> None:
    arrived = asyncio.Event()
    sandbox = SandboxGateway(
        Faults(hang_rate=1.0), kind=kind, on_request=lambda _request: arrived.set()
    )
    async with client_of(sandbox, tmp_path) as client:
        request = create_request()
        sending = asyncio.create_task(client.send(request))
        await asyncio.wait_for(arrived.wait(), EVENT_TIMEOUT)
        request.abort("timeout")
        assert await sending == Unknown("timeout")
    assert sandbox.counts.hang == 1


@pytest.mark.parametrize("kind", shipped_kinds())
async def test_requests_over_the_rate_limit_fail_temporarily(kind: str, tmp_path: Path) -> None:
    sandbox = SandboxGateway(Faults(rate_limit=0.001), kind=kind)
    async with client_of(sandbox, tmp_path) as client:
        first, second = await send_all(client, ["Hello"] * 2)
    assert isinstance(first, Accepted)
    assert isinstance(second, TemporaryFailure)
    assert (sandbox.counts.accepted, sandbox.counts.limited) == (1, 1)


@pytest.mark.parametrize("kind", shipped_kinds())
async def test_wrong_keys_are_trouble_of_the_account(kind: str, tmp_path: Path) -> None:
    sandbox = with_account(kind, account_of(kind, "p/ &+%"))
    other = with_account(kind, account_of(kind, "wrong"))
    async with client_of(sandbox, tmp_path) as client:
        assert isinstance(await send(client), Accepted)
    async with client_of(sandbox, tmp_path, table_of=other) as client:
        outcome = await send(client)
    assert isinstance(outcome, TemporaryFailure)
    assert outcome.trouble == "bad_credentials"
    assert (sandbox.counts.accepted, sandbox.counts.unauthorized) == (1, 1)


@pytest.mark.parametrize("kind", shipped_kinds())
async def test_check_of_the_gateways_succeeds(kind: str, tmp_path: Path) -> None:
    sandbox = SandboxGateway(Faults(), kind=kind)
    lines: list[str] = []
    async with sandbox.run() as url:
        file = tmp_path / "gateways.toml"
        file.write_text(sandbox.gateway_table("main", url), encoding="utf-8")
        gateways = read_gateways(file, {})
        assert await check_gateways(gateways, "79161234567", lines.append)
    has_balance = gateways[0].profile.balance is not None
    assert any("balance: " in line for line in lines) == has_balance
    assert (sandbox.counts.balance, sandbox.counts.accepted) == (int(has_balance), 1)


async def test_balance_of_another_account_is_refused(tmp_path: Path) -> None:
    sandbox = with_account("smsc", account_of("smsc", "right"))
    lines: list[str] = []
    async with sandbox.run() as url:
        other = with_account("smsc", account_of("smsc", "wrong"))
        file = tmp_path / "gateways.toml"
        file.write_text(other.gateway_table("main", url), encoding="utf-8")
        assert not await check_gateways(read_gateways(file, {}), None, lines.append)
    assert (sandbox.counts.unauthorized, sandbox.counts.total) == (1, 1)


@pytest.mark.parametrize("kind", shipped_kinds())
async def test_request_for_another_api_is_invalid(kind: str, tmp_path: Path) -> None:
    sandbox = SandboxGateway(Faults(), kind=kind)
    other = SandboxGateway(Faults(), kind="exolve" if kind == "textbee" else "textbee")
    async with client_of(sandbox, tmp_path, table_of=other) as client:
        await send(client)
    assert (sandbox.counts.invalid, sandbox.counts.total) == (1, 1)


@pytest.mark.parametrize("kind", shipped_kinds())
async def test_gateway_that_fails_for_a_while_accepts_messages_after_it(
    kind: str, tmp_path: Path
) -> None:
    sandbox = SandboxGateway(Faults(), kind=kind)
    async with client_of(sandbox, tmp_path) as client:
        sandbox.fail_for(3_600)
        assert isinstance(await send(client), TemporaryFailure)
        sandbox.fail_for(0)
        assert isinstance(await send(client), Accepted)
    assert (sandbox.counts.error, sandbox.counts.accepted) == (1, 1)


async def test_failure_for_a_while_ends_by_itself(tmp_path: Path) -> None:
    sandbox = SandboxGateway(Faults(), kind="kannel")
    async with client_of(sandbox, tmp_path) as client, asyncio.timeout(EVENT_TIMEOUT):
        sandbox.fail_for(0.05)
        while not isinstance(await send(client), Accepted):
            pass


@pytest.mark.parametrize(
    ("kind", "trouble"),
    [
        ("vonage", "no_credit"),
        ("jasmin", "no_credit"),
        ("smsru", "sender_refused"),
        ("infobip", "account_blocked"),
    ],
)
async def test_account_can_have_trouble_for_a_while(
    kind: str, trouble: AccountTrouble, tmp_path: Path
) -> None:
    sandbox = SandboxGateway(Faults(), kind=kind)
    async with client_of(sandbox, tmp_path) as client:
        sandbox.fail_for(3_600, trouble)
        outcome = await send(client)
    assert isinstance(outcome, TemporaryFailure)
    assert (outcome.trouble, sandbox.counts.account) == (trouble, 1)


def test_trouble_for_which_a_kind_has_no_response_is_an_error() -> None:
    with pytest.raises(ValueError, match="no response of the kind kannel means no_credit"):
        SandboxGateway(Faults(), kind="kannel").fail_for(1, "no_credit")


@pytest.mark.parametrize(
    "kind",
    [kind for kind in shipped_kinds() if load_profile(kind).limits.recognizes_repeats],
)
async def test_gateway_that_recognizes_repeats_accepts_one_without_faults(
    kind: str, tmp_path: Path
) -> None:
    sandbox = SandboxGateway(Faults(error_rate=0.5, seed=1), kind=kind)
    async with client_of(sandbox, tmp_path) as client:
        while not isinstance(await send(client), Accepted):
            pass
        outcomes = [await send(client) for _ in range(10)]
    assert all(isinstance(outcome, Accepted) for outcome in outcomes)
    assert (sandbox.counts.accepted, sandbox.counts.repeats) == (11, 10)


async def test_repeat_is_counted_also_if_the_gateway_does_not_recognize_it(tmp_path: Path) -> None:
    sandbox = SandboxGateway(Faults(), kind="vonage")
    async with client_of(sandbox, tmp_path) as client:
        first, second = [await send(client) for _ in range(2)]
    assert first != second  # two messages, with two ids
    assert (sandbox.counts.accepted, sandbox.counts.repeats) == (2, 1)


async def test_message_without_an_id_is_neither_repeat_nor_overlap(tmp_path: Path) -> None:
    sandbox = SandboxGateway(Faults(latency=0.01), kind="twilio")
    async with client_of(sandbox, tmp_path) as client:
        await asyncio.gather(send(client), send(client))
    counts = sandbox.counts
    assert (counts.accepted, counts.repeats, counts.overlaps) == (2, 0, 0)


def test_table_of_a_gateway_is_toml_for_any_value() -> None:
    value = 'a"\\\n\té😀'
    sandbox = SandboxGateway(Faults(), kind="kannel", password=value)
    table = tomllib.loads(sandbox.gateway_table("main", "http://127.0.0.1:1") + "order = 2\n")
    assert table["gateway"] == [
        {
            "name": "main",
            "kind": "kannel",
            "url": "http://127.0.0.1:1",
            "username": "sandbox",
            "password": value,
            "order": 2,
        }
    ]


@pytest.mark.parametrize(
    ("kind", "account", "message"),
    [
        ("kanel", {}, "^kind: must be one of android, exolve, "),
        ("./own.toml", {}, "^kind: must be one of android, exolve, "),
        ("kannel", {"token": "t"}, "^token: is not used by the kind kannel$"),
        ("json", {"user": "u"}, "^user: is not used by the kind json$"),
    ],
)
def test_unknown_kind_or_unused_key_is_an_error(
    kind: str, account: dict[str, str], message: str
) -> None:
    with pytest.raises(InvalidError, match=message):
        with_account(kind, account)
