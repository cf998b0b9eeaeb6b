"""TLS of the gateway and of the mail server is verified: who cannot show who it is gets nothing."""

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
from tests.mailserver import Mailbox, knows, mail_server
from tests.wire import OK, Talk, answer, request_of, served

import mailer
from mailer.report.daily import daily_report
from mailer.report.mail import MailNotSentError, post_of, send_report
from mailer.settings import Settings

ROOT = Path(__file__).parents[2]
YESTERDAY = datetime.now(UTC) - timedelta(days=1)
SEND = """
import asyncio, sys
from datetime import UTC, datetime
from mailer.clock import database_clock, elapsed
from tests.wire import a_request, gateway_at, send

async def main():
    database_clock.sample(elapsed(), datetime.now(UTC), elapsed())
    async with gateway_at(sys.argv[1], "t0ken") as gateway:
        print(await send(gateway, a_request()))

asyncio.run(main())
"""
"""In a process of its own: the authorities that are trusted are read once."""


class Certificates:
    """What servers on loopback may show."""

    def __init__(self, trusted: trustme.CA) -> None:
        self.good = _context(trusted.issue_cert("127.0.0.1", "localhost"))
        self.bad = {
            "of another host": _context(trusted.issue_cert("gateway.example", "127.0.0.2")),
            "out of date": _context(
                trusted.issue_cert(
                    "127.0.0.1", not_before=YESTERDAY - timedelta(days=9), not_after=YESTERDAY
                )
            ),
            "of nobody": _context(trustme.CA().issue_cert("127.0.0.1")),
        }


def _context(certificate: trustme.LeafCert) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    certificate.configure_cert(context)
    return context


BAD = ["of another host", "out of date", "of nobody"]


@pytest.fixture
def certificates(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Certificates:
    """Certificates of an authority that is trusted here, and of others."""
    authority = trustme.CA()
    authority.cert_pem.write_to_path(tmp_path / "authority.pem")
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "authority.pem"))
    return Certificates(authority)


# ---- the gateway ----------------------------------------------------------------------------


class Taking:
    """A gateway that takes what comes, and keeps it."""

    def __init__(self) -> None:
        self.taken: list[tuple[str, dict[str, str], bytes]] = []

    async def talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.taken.append(await request_of(reader))
        writer.write(answer(200, OK))


async def outcome_at(url: str) -> str:
    """Return the outcome of a message that another process sends."""
    path = os.pathsep.join([str(Path(mailer.__file__).parents[1]), str(ROOT)])
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", SEND, url),
        env=os.environ | {"PYTHONPATH": path},
        stdout=asyncio.subprocess.PIPE,
    )
    told, _ = await process.communicate()
    return told.decode().strip()


async def test_gateway_that_shows_who_it_is_gets_the_message(certificates: Certificates) -> None:
    server = Taking()
    async with served(server.talk, certificates.good) as url:
        assert await outcome_at(url) == "Accepted()"
    assert len(server.taken) == 1


@pytest.mark.parametrize("certificate", BAD)
async def test_gateway_with_a_wrong_certificate_gets_nothing(
    certificates: Certificates, certificate: str
) -> None:
    server = Taking()
    async with served(server.talk, certificates.bad[certificate]) as url:
        assert "connection_failed" in await outcome_at(url)
    assert server.taken == []


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_token_and_text_go_nowhere_else_by_a_redirect(status: int) -> None:
    elsewhere = Taking()

    def redirects(target: str) -> Talk:
        async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await request_of(reader)
            writer.write(answer(status, b"", f"Location: {target}7", "Connection: close"))

        return talk

    async with served(elsewhere.talk) as target, served(redirects(target)) as url:
        assert f"http_{status}" in await outcome_at(url)
    assert elsewhere.taken == []


# ---- mail -----------------------------------------------------------------------------------

WAYS = ["smtps", "smtp"]
"""Encrypted from the start, and by STARTTLS."""


@contextlib.asynccontextmanager
async def post_office(way: str, tls: ssl.SSLContext, mailbox: Mailbox) -> Any:
    options = {"tls": tls} if way == "smtps" else {"tls_context": tls}
    login: dict[str, Any] = {"authenticator": knows, "auth_require_tls": way == "smtp"}
    async with mail_server(mailbox, **options, **login) as port:
        yield post_of(
            Settings(
                smtp_url=f"{way}://ops%40example.org:p%40ss%2Fword@127.0.0.1:{port}",
                report_recipients="boss@example.org",
            )
        )


@pytest.mark.parametrize("way", WAYS)
async def test_mail_server_that_shows_who_it_is_gets_the_mail(
    engine: AsyncEngine, certificates: Certificates, way: str
) -> None:
    mailbox = Mailbox()
    report = await daily_report(engine, date(2020, 1, 15), "UTC")
    async with post_office(way, certificates.good, mailbox) as post:
        await send_report(report, post)
    assert len(mailbox.envelopes) == 1
    assert mailbox.was_encrypted == [way == "smtp"]  # where it is from the start, nobody notes it


@pytest.mark.parametrize("certificate", BAD)
@pytest.mark.parametrize("way", WAYS)
async def test_mail_server_with_a_wrong_certificate_gets_nothing_of_the_report(
    engine: AsyncEngine, certificates: Certificates, way: str, certificate: str
) -> None:
    mailbox = Mailbox()
    report = await daily_report(engine, date(2020, 1, 15), "UTC")
    async with post_office(way, certificates.bad[certificate], mailbox) as post:
        with pytest.raises(MailNotSentError, match="CERTIFICATE_VERIFY_FAILED") as error:
            await send_report(report, post)
    assert "p@ss" not in str(error.value)
    assert "p%40ss" not in str(error.value)
    assert not mailbox.envelopes
