"""A gateway with `proxy = true` is reached through the environment's proxy, any other directly."""

import asyncio
import contextlib
import os
import ssl
import sys
from pathlib import Path

import pytest
import trustme
from tests.fault_servers import (
    OK,
    AcceptingServer,
    SilentServer,
    Talk,
    create_request,
    http_response,
    read_request,
    respond_with,
    send,
    served,
)
from yarl import URL

from mailer.gateway.config import read_gateways
from mailer.gateway.http import HttpGateway
from mailer.gateway.protocol import Accepted, Outcome, Rejected, Request, TemporaryFailure, Unknown
from mailer.gateway.toml_file import ConfigFileError

NOT_SENT = TemporaryFailure("connection_failed")
NOBODY = "http://127.0.0.1:1/"
"""A URL at which nothing listens."""
REFUSING_PROFILE = """
title = "Refuses every status 4xx"
[request]
url = "{url}/{id}"
[[response]]
status = "4xx"
then = "rejected"
"""


class ProxyServer:
    """An HTTP proxy that connects to `target`, whatever host a request names."""

    def __init__(self, target: str) -> None:
        self.port = URL(target).port
        self.lines: list[str] = []
        """First lines of the requests."""
        self.headers: list[dict[str, str]] = []

    async def talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Handle a connection; a `Talk`."""
        target_reader, target_writer = await asyncio.open_connection("127.0.0.1", self.port)
        with contextlib.closing(target_writer):
            while True:
                request = await read_request(reader)
                self.lines.append(request.line)
                self.headers.append(request.headers)
                if request.line.startswith("CONNECT"):
                    writer.write(b"HTTP/1.1 200 Connection established\r\n\r\n")
                    await asyncio.gather(copy(reader, target_writer), copy(target_reader, writer))
                    return
                head = f"{request.line}\r\nContent-Length: {len(request.body)}\r\n\r\n"
                target_writer.write(head.encode() + request.body)
                response = await target_reader.readuntil(b"\r\n\r\n")
                writer.write(response + await target_reader.readexactly(len(OK)))


async def copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Copy everything until the end."""
    while part := await reader.read(65_536):
        writer.write(part)
    writer.close()


def configured(
    folder: Path, url: str, environ: dict[str, str], kind: str = "json", keys: str = "proxy = true"
) -> HttpGateway:
    """Return the gateway of a file of gateways."""
    file = folder / "gateways.toml"
    file.write_text(f'[[gateway]]\nname = "a"\nkind = "{kind}"\nurl = "{url}"\n{keys}\n')
    return HttpGateway(*read_gateways(file, environ))


def variables(proxy: str, **others: str) -> dict[str, str]:
    return {"HTTP_PROXY": proxy, "HTTPS_PROXY": proxy, **others}


async def send_by(gateway: HttpGateway, within: float = 30.0) -> tuple[Outcome, Request]:
    request = create_request(within=within)
    async with gateway:
        return await send(gateway, request), request


# ---- without TLS ----------------------------------------------------------------------------


async def test_requests_go_through_the_proxy_over_one_connection(tmp_path: Path) -> None:
    server = AcceptingServer()
    async with served(server.talk) as url:
        proxy = ProxyServer(url)
        async with (
            served(proxy.talk) as address,
            configured(
                tmp_path,
                "http://gateway.invalid:8080/sms/",  # only the proxy can resolve it
                variables(address.replace("//", "//ann:p%40ss@")),
            ) as gateway,
        ):
            outcomes = [await send(gateway, create_request(number)) for number in (7, 8)]
    assert outcomes == [Accepted()] * 2
    assert proxy.lines == [
        f"POST http://gateway.invalid:8080/sms/{number} HTTP/1.1" for number in (7, 8)
    ]
    for headers in proxy.headers:
        assert headers["host"] == "gateway.invalid:8080"
        assert headers["proxy-authorization"] == "Basic YW5uOnBAc3M="
    assert list(server.counts_by_message.values()) == [1, 1]


@pytest.mark.parametrize(
    ("keys", "others"),
    [("", {}), ("proxy = false", {}), ("proxy = true", {"NO_PROXY": "localhost,127.0.0.1"})],
)
async def test_without_the_key_or_with_no_proxy_nothing_goes_through_the_proxy(
    tmp_path: Path, keys: str, others: dict[str, str]
) -> None:
    server = AcceptingServer()
    async with served(server.talk) as url:
        proxy = ProxyServer(url)
        async with served(proxy.talk) as address:
            gateway = configured(tmp_path, url, variables(address, **others), keys=keys)
            outcome, _ = await send_by(gateway)
    assert outcome == Accepted()
    assert proxy.lines == []
    assert [request.line for request in server.requests] == ["POST /send/7 HTTP/1.1"]


async def test_status_407_without_tls_is_of_the_proxy_whatever_the_profile_says(
    tmp_path: Path,
) -> None:
    profile = tmp_path / "own.toml"
    profile.write_text(REFUSING_PROFILE)
    async with served(respond_with(http_response(407))) as address:
        with_proxy = configured(tmp_path, NOBODY, variables(address), kind="own.toml")
        without = configured(tmp_path, address, {}, kind="own.toml")
        outcomes = [(await send_by(gateway))[0] for gateway in (with_proxy, without)]
    assert outcomes == [
        TemporaryFailure("proxy_407", affects_all=True),
        Rejected("rejected_407"),
    ]


async def test_proxy_that_closes_after_the_request_leaves_it_unknown(tmp_path: Path) -> None:
    async with served(respond_with()) as address:
        outcome, request = await send_by(configured(tmp_path, NOBODY, variables(address)))
    assert outcome == Unknown("connection_lost")
    assert request.is_written


# ---- with TLS -------------------------------------------------------------------------------


async def test_requests_with_tls_go_through_a_tunnel(tmp_path: Path) -> None:
    """In a new process, because a process reads the trusted certificate authorities once."""
    server, authority = AcceptingServer(), trustme.CA()
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("gateway.invalid").configure_cert(tls)
    authority.cert_pem.write_to_path(tmp_path / "authority.pem")
    (tmp_path / "gateways.toml").write_text(
        '[[gateway]]\nname = "a"\nkind = "json"\nurl = "https://gateway.invalid/"\nproxy = true\n'
    )
    async with served(server.talk, tls) as url:
        proxy = ProxyServer(url)
        async with served(proxy.talk) as address:
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "mailer", "gateways", "check", "--send", "79161234567"),
                env=os.environ
                | variables(address.replace("//", "//ann:p%40ss@"), NO_PROXY="")
                | {
                    "MAILER_GATEWAYS": str(tmp_path / "gateways.toml"),
                    "SSL_CERT_FILE": str(tmp_path / "authority.pem"),
                },
                stdout=asyncio.subprocess.PIPE,
            )
            output, _ = await process.communicate()
    assert process.returncode == 0, output
    origin = address.removesuffix("/send/")
    assert output.decode().splitlines()[1:] == [
        f"  connected through the proxy {origin}, TLSv1.3",
        "  the test message is accepted",
    ]
    assert proxy.lines == ["CONNECT gateway.invalid:443 HTTP/1.1"] * 2
    assert {headers["proxy-authorization"] for headers in proxy.headers} == {"Basic YW5uOnBAc3M="}
    [request] = server.requests
    assert request.line.startswith("POST /")
    assert "proxy-authorization" not in request.headers


@pytest.mark.parametrize("status", [403, 407, 502])
async def test_tunnel_that_the_proxy_refuses_is_a_temporary_failure_that_names_it(
    tmp_path: Path, status: int
) -> None:
    async with served(respond_with(http_response(status))) as address:
        gateway = configured(tmp_path, "https://gateway.invalid/", variables(address))
        outcome, request = await send_by(gateway)
    assert outcome == TemporaryFailure(f"proxy_{status}", affects_all=True)
    assert not request.is_written


@pytest.mark.parametrize("url", ["http://gateway.invalid/", "https://gateway.invalid/"])
async def test_dead_proxy_is_a_temporary_failure(tmp_path: Path, url: str) -> None:
    outcome, request = await send_by(configured(tmp_path, url, variables(NOBODY)))
    assert outcome == NOT_SENT
    assert not request.is_written


async def no_answer(reader: asyncio.StreamReader, _: asyncio.StreamWriter) -> None:
    """Close the connection after the request."""
    await read_request(reader)


@pytest.mark.parametrize(
    "talk",
    [
        no_answer,
        respond_with(b"no response of HTTP\r\n\r\n"),
        respond_with(b"HTTP/1.1 200 OK\r\n\r\n"),
        SilentServer().talk,
    ],
    ids=["closes", "unreadable", "ends before TLS", "silent"],
)
async def test_tunnel_that_fails_is_a_temporary_failure(tmp_path: Path, talk: Talk) -> None:
    async with served(talk) as address:
        gateway = configured(tmp_path, "https://gateway.invalid/", variables(address))
        outcome, request = await send_by(gateway, within=0.5)
    assert outcome == NOT_SENT
    assert not request.is_written


def test_wrong_address_of_the_proxy_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigFileError) as error:
        configured(tmp_path, "https://gateway.invalid/", variables("proxy.example:3128"))
    [mistake] = error.value.mistakes
    place, _, reason = mistake.partition(".proxy: ")
    assert place == f"{tmp_path / 'gateways.toml'}: gateway[1]"
    assert reason == ("the environment variable HTTPS_PROXY must be a URL that starts with http://")
