"""TLS certificates of the gateway and the mail server are verified before anything is sent."""

import asyncio
import contextlib
import os
import ssl
import sys
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import trustme
from sqlalchemy.ext.asyncio import AsyncEngine
from tests.fault_servers import OK, Talk, http_response, read_request, served
from tests.mailserver import Mailbox, check_login, mail_server

import mailer
from mailer.daily_report.mail import send_report
from mailer.daily_report.report import daily_report
from mailer.mail.sending import MailNotSentError
from mailer.mail.smtp_config import read_smtp_config
from mailer.settings import Settings

ROOT = Path(__file__).parents[2]
YESTERDAY = datetime.now(UTC) - timedelta(days=1)
# Sends a message to the gateway at the URL in the first argument, and prints the outcome. It runs
# in a new process, because a process reads the trusted certificate authorities once.
SEND_SCRIPT = """
import asyncio, sys
from datetime import UTC, datetime
from mailer.clock import database_clock, elapsed
from tests.fault_servers import create_request, gateway_at, send

async def main():
    database_clock.sample(elapsed(), datetime.now(UTC), elapsed())
    async with gateway_at(sys.argv[1], "t0ken") as gateway:
        print(await send(gateway, create_request()))

asyncio.run(main())
"""


class Certificates:
    """TLS contexts of servers on loopback: with a valid certificate, and with invalid ones."""

    def __init__(self, trusted: trustme.CA) -> None:
        self.good = _context(trusted.issue_cert("127.0.0.1", "localhost"))
        self.bad = {
            "of another host": _context(trusted.issue_cert("gateway.example", "127.0.0.2")),
            "expired": _context(
                trusted.issue_cert(
                    "127.0.0.1", not_before=YESTERDAY - timedelta(days=9), not_after=YESTERDAY
                )
            ),
            "of an unknown authority": _context(trustme.CA().issue_cert("127.0.0.1")),
        }


def _context(certificate: trustme.LeafCert) -> ssl.SSLContext:
    """Return the TLS context of a server with a certificate."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    certificate.configure_cert(context)
    return context


BAD = ["of another host", "expired", "of an unknown authority"]
"""The keys of `Certificates.bad`."""


@pytest.fixture
def certificates(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Certificates:
    """Certificates of an authority that this process and its children trust, and invalid ones."""
    authority = trustme.CA()
    authority.cert_pem.write_to_path(tmp_path / "authority.pem")
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "authority.pem"))
    return Certificates(authority)


# ---- the gateway ----------------------------------------------------------------------------


class RecordingServer:
    """A gateway that accepts and records every request."""

    def __init__(self) -> None:
        self.requests: list[tuple[str, dict[str, str], bytes]] = []

    async def talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.requests.append(await read_request(reader))
        writer.write(http_response(200, OK))


async def send_in_new_process(url: str) -> str:
    """Send a message to a URL in a new process; return the outcome."""
    path = os.pathsep.join([str(Path(mailer.__file__).parents[1]), str(ROOT)])
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", SEND_SCRIPT, url),
        env=os.environ | {"PYTHONPATH": path},
        stdout=asyncio.subprocess.PIPE,
    )
    output, _ = await process.communicate()
    return output.decode().strip()


async def test_a_gateway_with_a_valid_certificate_receives_the_message(
    certificates: Certificates,
) -> None:
    server = RecordingServer()
    async with served(server.talk, certificates.good) as url:
        assert await send_in_new_process(url) == "Accepted(gateway_message_id=None)"
    assert len(server.requests) == 1


@pytest.mark.parametrize("certificate", BAD)
async def test_a_gateway_with_an_invalid_certificate_receives_nothing(
    certificates: Certificates, certificate: str
) -> None:
    server = RecordingServer()
    async with served(server.talk, certificates.bad[certificate]) as url:
        assert "connection_failed" in await send_in_new_process(url)
    assert server.requests == []


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_a_redirect_of_the_gateway_is_not_followed(status: int) -> None:
    """Otherwise the other server would get the token and the text."""
    target_server = RecordingServer()

    def redirect_to(target: str) -> Talk:
        async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await read_request(reader)
            location = f"Location: {target}7"  # the URL of the message with the id 7 there
            writer.write(http_response(status, b"", location, "Connection: close"))

        return talk

    async with served(target_server.talk) as target, served(redirect_to(target)) as url:
        assert f"http_{status}" in await send_in_new_process(url)
    assert target_server.requests == []


# ---- mail -----------------------------------------------------------------------------------

SCHEMES = ["smtps", "smtp"]
"""Encryption from the start, and by STARTTLS."""


@contextlib.asynccontextmanager
async def smtp_config_with(scheme: str, tls: ssl.SSLContext, mailbox: Mailbox) -> Any:
    """Run a mail server that requires encryption and a login; yield the settings to use it."""
    options = {"tls": tls} if scheme == "smtps" else {"tls_context": tls}
    login: dict[str, Any] = {"authenticator": check_login, "auth_require_tls": scheme == "smtp"}
    async with mail_server(mailbox, **options, **login) as port:
        yield read_smtp_config(
            Settings(
                smtp_url=f"{scheme}://ops%40example.org:p%40ss%2Fword@127.0.0.1:{port}",
                report_recipients="boss@example.org",
            )
        )


@pytest.mark.parametrize("scheme", SCHEMES)
async def test_a_mail_server_with_a_valid_certificate_receives_the_mail(
    engine: AsyncEngine, certificates: Certificates, scheme: str
) -> None:
    mailbox = Mailbox()
    report = await daily_report(engine, date(2020, 1, 15), "UTC")
    async with smtp_config_with(scheme, certificates.good, mailbox) as smtp_config:
        await send_report(report, smtp_config)
    assert len(mailbox.envelopes) == 1
    assert mailbox.was_encrypted == [scheme == "smtp"]  # only STARTTLS is recorded


@pytest.mark.parametrize("certificate", BAD)
@pytest.mark.parametrize("scheme", SCHEMES)
async def test_a_mail_server_with_an_invalid_certificate_receives_nothing(
    engine: AsyncEngine, certificates: Certificates, scheme: str, certificate: str
) -> None:
    mailbox = Mailbox()
    report = await daily_report(engine, date(2020, 1, 15), "UTC")
    async with smtp_config_with(scheme, certificates.bad[certificate], mailbox) as smtp_config:
        with pytest.raises(MailNotSentError, match="CERTIFICATE_VERIFY_FAILED") as error:
            await send_report(report, smtp_config)
    assert "p@ss" not in str(error.value)
    assert "p%40ss" not in str(error.value)
    assert not mailbox.envelopes
