"""Sending a daily report by mail, with a real mail server."""

import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from datetime import date
from pathlib import Path
from typing import Any

import pytest
import trustme
from msgspec.structs import replace
from tests.factories import HOUR, NOON
from tests.mailserver import Mailbox, check_login, mail_server

from mailer.daily_report.mail import send_report
from mailer.daily_report.outcomes import FailureCount
from mailer.daily_report.render import render_html, render_text
from mailer.daily_report.report import DailyReport
from mailer.mail.sending import MailNotSentError, MailResult
from mailer.mail.smtp_config import SmtpConfig, read_smtp_config
from mailer.settings import Settings
from mailer.statistics.model import Bucket
from mailer.statuses import MessageCounts, OutcomeCounts

REPORT = DailyReport(
    day=date(2020, 1, 15),
    time_zone="UTC",
    as_of=NOON + 24 * HOUR,
    mailings_count=0,
    clients_count=0,
    messages=MessageCounts.of(),
    mailings=[],
    gateways=[],
    failures=[FailureCount("undelivered", "rejected_400", 2)],
    awaiting=0,
    hours=[Bucket(NOON, OutcomeCounts.of(delivered=1, undelivered=2))],
)
"""A report of one delivered and two undelivered messages."""
VALID_LOGIN = "ops%40example.org:p%40ss%2Fword@"
"""The part of a mail server's URL with the login that `check_login` accepts."""
StartMailServer = Callable[..., Awaitable[int]]


@pytest.fixture
async def start_mail_server() -> AsyncIterator[StartMailServer]:
    """A function that starts a mail server for a mailbox and returns its port."""
    async with AsyncExitStack() as stack:

        async def start(mailbox: Mailbox, **options: Any) -> int:
            return await stack.enter_async_context(mail_server(mailbox, **options))

        yield start


@pytest.fixture
def certificate(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> ssl.SSLContext:
    """TLS context of a mail server whose certificate this process trusts."""
    authority = trustme.CA()
    authority.cert_pem.write_to_path(tmp_path / "authority.pem")
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "authority.pem"))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1", "localhost").configure_cert(context)
    return context


def smtp_config(port: int, *, scheme: str = "smtp", login: str = "") -> SmtpConfig:
    """Return the configuration of a mail server on this machine and two recipients."""
    return read_smtp_config(
        Settings(
            smtp_url=f"{scheme}://{login}127.0.0.1:{port}",
            report_recipients="boss@example.org, ops@example.org",
        )
    )


async def test_the_subject_names_messages_without_a_receipt(
    start_mail_server: StartMailServer,
) -> None:
    mailbox = Mailbox()
    hours = [Bucket(NOON, OutcomeCounts.of(sent=1500, delivered=1, undelivered=2))]
    config = smtp_config(await start_mail_server(mailbox))
    await send_report(replace(REPORT, hours=hours), config)
    subject = "mailer, 2020-01-15: 1 delivered, 2 not, 1,500 without a receipt"
    assert mailbox.mail()["Subject"] == subject


async def test_the_mail_has_text_and_html(start_mail_server: StartMailServer) -> None:
    mailbox = Mailbox()
    await send_report(REPORT, smtp_config(await start_mail_server(mailbox)))

    assert mailbox.envelopes[0].rcpt_tos == ["boss@example.org", "ops@example.org"]
    mail = mailbox.mail()
    assert mail["Subject"] == "mailer, 2020-01-15: 1 delivered, 2 not"
    assert mail["From"] == "mailer <mailer@127.0.0.1>"
    assert mail["To"] == "boss@example.org, ops@example.org"
    assert mail["Message-ID"]
    assert mail["Date"].datetime == REPORT.as_of
    assert mail.get_content_type() == "multipart/alternative"
    text_part, html = mail.iter_parts()
    assert text_part.get_content_type() == "text/plain"
    assert text_part.get_content().splitlines() == render_text(REPORT).splitlines()
    assert html.get_content_type() == "text/html"
    assert html.get_content().splitlines() == render_html(REPORT).splitlines()


async def test_a_login_is_encrypted_if_the_server_supports_it(
    start_mail_server: StartMailServer, certificate: ssl.SSLContext
) -> None:
    mailbox = Mailbox()
    port = await start_mail_server(
        mailbox, tls_context=certificate, authenticator=check_login, auth_required=True
    )
    await send_report(REPORT, smtp_config(port, login=VALID_LOGIN))

    assert mailbox.was_encrypted == [True]
    assert mailbox.mail()["From"] == "mailer <ops@example.org>"


async def test_a_login_at_this_machine_needs_no_encryption(
    start_mail_server: StartMailServer,
) -> None:
    mailbox = Mailbox()
    port = await start_mail_server(mailbox, authenticator=check_login, auth_require_tls=False)
    await send_report(REPORT, smtp_config(port, login=VALID_LOGIN))

    assert mailbox.was_encrypted == [False]


async def test_smtps_is_encrypted_from_the_start(
    start_mail_server: StartMailServer, certificate: ssl.SSLContext
) -> None:
    mailbox = Mailbox()
    port = await start_mail_server(
        mailbox, tls=certificate, authenticator=check_login, auth_require_tls=False
    )
    config = smtp_config(port, scheme="smtps", login=VALID_LOGIN)
    await send_report(REPORT, config)

    assert len(mailbox.envelopes) == 1


async def get_failure(config: SmtpConfig) -> str:
    """Fail to send a report, and return the message of the error."""
    with pytest.raises(MailNotSentError) as error:
        await send_report(REPORT, config)
    assert "\n" not in str(error.value)
    return str(error.value)


async def test_a_wrong_password_is_reported_in_one_line(start_mail_server: StartMailServer) -> None:
    mailbox = Mailbox()
    port = await start_mail_server(mailbox, authenticator=check_login, auth_require_tls=False)
    failure = await get_failure(smtp_config(port, login="ops%40example.org:secret@"))

    assert failure.startswith(f"the mail server 127.0.0.1:{port} did not accept the mail: 535")
    assert "secret" not in failure
    assert not mailbox.envelopes


async def test_an_untrusted_certificate_is_refused(
    start_mail_server: StartMailServer,
    certificate: ssl.SSLContext,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("SSL_CERT_FILE")  # so that the certificate is not trusted
    mailbox = Mailbox()
    for scheme, options in (
        ("smtp", {"tls_context": certificate, "authenticator": check_login}),  # offers STARTTLS
        ("smtps", {"tls": certificate}),
    ):
        port = await start_mail_server(mailbox, **options)
        config = smtp_config(port, scheme=scheme, login=VALID_LOGIN)
        assert "CERTIFICATE_VERIFY_FAILED" in await get_failure(config)
    assert not mailbox.envelopes


async def test_an_unreachable_server_is_reported_in_one_line() -> None:
    no_server = smtp_config(port=1)
    assert "127.0.0.1:1 did not accept the mail" in await get_failure(no_server)


async def test_a_refused_recipient_does_not_stop_the_others(
    start_mail_server: StartMailServer,
) -> None:
    mailbox = Mailbox(refusing="boss@example.org")
    config = smtp_config(await start_mail_server(mailbox))
    await send_report(REPORT, config)
    assert mailbox.envelopes[0].rcpt_tos == ["ops@example.org"]


async def test_the_result_of_each_recipient_is_returned(start_mail_server: StartMailServer) -> None:
    mailbox = Mailbox(refusing="boss@example.org")
    port = await start_mail_server(mailbox)
    config = smtp_config(port)
    assert await send_report(REPORT, config) == MailResult(
        accepted=["ops@example.org"], deferred={}, refused={"boss@example.org": 550}
    )

    mailbox.answers |= {"ops@example.org": "450 4.2.0 greylisted"}
    assert await send_report(REPORT, config) == MailResult(
        accepted=[], deferred={"ops@example.org": 450}, refused={"boss@example.org": 550}
    )


async def test_recipients_in_server_errors_are_masked(start_mail_server: StartMailServer) -> None:
    mailbox = Mailbox()
    mailbox.data_answer = "554 5.7.1 <boss@example.org>: not for boss@example.org, sorry"
    failure = await get_failure(smtp_config(await start_mail_server(mailbox)))
    assert failure.endswith("554 5.7.1 <***>: not for ***, sorry")


async def test_without_a_login_mail_is_encrypted_whatever_the_certificate(
    start_mail_server: StartMailServer,
    certificate: ssl.SSLContext,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """An untrusted certificate is better than clear text."""
    monkeypatch.delenv("SSL_CERT_FILE")  # so that the certificate is not trusted
    mailbox = Mailbox()
    port = await start_mail_server(mailbox, tls_context=certificate)
    await send_report(REPORT, smtp_config(port))
    assert mailbox.was_encrypted == [True]


async def test_without_a_login_mail_is_sent_unencrypted_if_tls_fails(
    start_mail_server: StartMailServer,
) -> None:
    mailbox = Mailbox()
    without_certificate = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)  # every TLS handshake fails
    port = await start_mail_server(
        mailbox, tls_context=without_certificate, authenticator=check_login
    )
    await get_failure(smtp_config(port, login=VALID_LOGIN))
    assert not mailbox.envelopes

    await send_report(REPORT, smtp_config(port))
    assert mailbox.was_encrypted == [False]


async def test_the_mail_consists_of_short_ascii_lines(start_mail_server: StartMailServer) -> None:
    mailbox = Mailbox()
    config = smtp_config(await start_mail_server(mailbox))
    await send_report(REPORT, config)
    content = mailbox.envelopes[0].content
    assert isinstance(content, bytes)
    assert content.isascii()
    assert max(map(len, content.splitlines())) <= 100
