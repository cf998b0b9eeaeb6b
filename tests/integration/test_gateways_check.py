"""`mailer gateways check` says whether each gateway can be used, and why not."""

import asyncio
import ssl
from pathlib import Path

import pytest
import trustme
from tests.fault_servers import (
    ReceivedRequest,
    SilentServer,
    Talk,
    http_response,
    read_request,
    respond_with,
    served,
)

from mailer.gateway.check import check_gateways
from mailer.gateway.config import read_gateways

PHONE = "79161234567"
VONAGE = """
[[gateway]]
name = "main"
kind = "vonage"
url = "{url}"
account = "key"
token = "secret"
sender = "ACME"
"""


def vonage(balance: bytes, message: bytes, requests: list[ReceivedRequest]) -> Talk:
    """Return a server that answers for the balance and for a message, and keeps the requests."""

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        request = await read_request(reader)
        requests.append(request)
        body = balance if "balance" in request.line else message
        writer.write(http_response(200, body, "Connection: close"))

    return talk


async def check(
    folder: Path, config: str, phone: str | None = None, **environ: str
) -> tuple[bool, list[str]]:
    """Check the gateways of a configuration; return the result and the printed lines."""
    (folder / "gateways.toml").write_text(config)
    lines: list[str] = []
    gateways = read_gateways(folder / "gateways.toml", environ)
    return await check_gateways(gateways, phone, lines.append), lines


async def test_balance_is_shown_and_a_test_message_sent(tmp_path: Path) -> None:
    requests: list[ReceivedRequest] = []
    accepted = b'{"messages": [{"status": "0", "message-id": "abc"}]}'
    async with served(vonage(b'{"value": 12.5}', accepted, requests)) as url:
        is_good, lines = await check(tmp_path, VONAGE.format(url=url), PHONE)
    assert is_good
    assert lines[1:] == [
        "  connected, without TLS",
        "  balance: 12.5",
        "  the test message is accepted, with the id abc",
    ]
    assert PHONE.encode() in requests[-1].body


async def test_operator_codes_that_no_gateway_takes_are_mentioned(tmp_path: Path) -> None:
    async with served(vonage(b'{"value": 1}', b"", [])) as url:
        config = VONAGE.format(url=url)
        _, lines = await check(tmp_path, config + 'operator_codes = ["916"]')
        _, lines_without_codes = await check(tmp_path, config)
    assert lines[-1].startswith("Note: messages to clients with other operator codes wait")
    assert not lines_without_codes[-1].startswith("Note")


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        ("", "  no receipts: set callback_secret, so that mailer can tell the provider's calls"),
        (
            'callback_secret = "0123456789abcdef"\n',
            "  receipts: the provider calls https://m.example/gateways/main/receipts",
        ),
    ],
)
async def test_receipts_are_mentioned_if_providers_can_reach_mailer(
    tmp_path: Path, keys: str, expected: str
) -> None:
    async with served(vonage(b'{"value": 1}', b"", [])) as url:
        file = tmp_path / "gateways.toml"
        file.write_text(VONAGE.format(url=url) + keys)
        lines: list[str] = []
        gateways = read_gateways(file, {})
        is_good = await check_gateways(gateways, None, lines.append, "https://m.example")
    assert is_good
    assert lines[1].startswith(expected)


async def test_without_a_phone_nothing_is_sent(tmp_path: Path) -> None:
    requests: list[ReceivedRequest] = []
    async with served(vonage(b'{"value": 12.5}', b"", requests)) as url:
        is_good, _ = await check(tmp_path, VONAGE.format(url=url))
    assert is_good
    assert ["balance" in request.line for request in requests] == [True]


async def test_account_trouble_is_named(tmp_path: Path) -> None:
    no_credit = b'{"messages": [{"status": "9"}]}'
    async with served(vonage(b'{"value": 0}', no_credit, [])) as url:
        is_good, lines = await check(tmp_path, VONAGE.format(url=url), PHONE)
    assert not is_good
    assert lines[-1] == "  failed: the test message is not accepted: no_credit"


async def test_gateway_that_cannot_be_reached_is_named_and_the_next_is_checked(
    tmp_path: Path,
) -> None:
    async with served(vonage(b'{"value": 1}', b"", [])) as url:
        config = VONAGE.format(url="http://127.0.0.1:1") + VONAGE.format(url=url).replace(
            "main", "other"
        )
        is_good, lines = await check(tmp_path, config)
    assert not is_good
    assert lines[1].startswith("  failed: cannot connect: ")
    assert lines[-1] == "  balance: 1"


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (http_response(407), "the proxy refuses the connection: proxy_407"),
        (b"SSH-2.0-OpenSSH\r\n\r\n", "the answer of the proxy is not HTTP"),
    ],
)
async def test_proxy_that_cannot_be_used_is_named(
    tmp_path: Path, answer: bytes, expected: str
) -> None:
    config = VONAGE.format(url="https://gateway.invalid") + "proxy = true\n"
    async with served(respond_with(answer)) as proxy:
        is_good, lines = await check(tmp_path, config, HTTPS_PROXY=proxy)
    assert not is_good
    assert lines[1:] == [f"  failed: {expected}"]


async def test_untrusted_certificate_is_named(tmp_path: Path) -> None:
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    trustme.CA().issue_cert("127.0.0.1").configure_cert(tls)
    async with served(SilentServer().talk, tls) as url:
        is_good, lines = await check(tmp_path, VONAGE.format(url=url))
    assert not is_good
    assert lines[1].startswith("  failed: the TLS connection is refused: ")


async def test_name_that_cannot_be_resolved_is_named(tmp_path: Path) -> None:
    is_good, lines = await check(tmp_path, VONAGE.format(url="http://gateway.invalid"))
    assert not is_good
    assert lines[1:] == ["  failed: the name of the host cannot be resolved"]
