import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from datetime import UTC, date, datetime, timedelta
from email.message import EmailMessage
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import msgspec
import pytest
import trustme
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine
from tests.mailserver import Mailbox, knows, mail_server
from tests.sample import NOON, add_clients, add_mailing, add_messages, do, execute

from mailer.errors import InvalidError, StartError
from mailer.message import tally
from mailer.report.chart import draw
from mailer.report.daily import (
    LISTED,
    DailyReport,
    bounds,
    daily_report,
    render_html,
    render_text,
)
from mailer.report.mail import MailNotSentError, MailResult, post_of, send_report
from mailer.report.model import MessageCounts, OutcomeCounts, ReasonCount
from mailer.settings import Settings

DAY = date(2020, 1, 15)
HOUR = timedelta(hours=1)

# ---- what it says ----------------------------------------------------------------------------


async def test_report_counts_what_happened_on_the_local_day(engine: AsyncEngine) -> None:
    clients = await add_clients(engine, 9)
    start = datetime(2020, 1, 14, tzinfo=UTC)
    mailing_id = await add_mailing(engine, clients=9, start=start, lasts=72 * HOUR)
    begins = datetime(2020, 1, 14, 21, tzinfo=UTC)  # midnight in Moscow
    second = timedelta(seconds=1)
    await add_messages(engine, mailing_id, clients[:1], "delivered", at=begins - second)
    await add_messages(engine, mailing_id, clients[1:3], "delivered", at=begins)
    await add_messages(
        engine, mailing_id, clients[3:4], "undelivered", "rejected_400", begins + 24 * HOUR - second
    )
    await add_messages(
        engine, mailing_id, clients[4:6], "undelivered", "attempts_exhausted", begins + HOUR
    )
    await add_messages(engine, mailing_id, clients[6:7], "cancelled", "expired", begins + 24 * HOUR)
    await add_messages(engine, mailing_id, clients[7:], "scheduled", "timeout", begins + HOUR)

    report = await daily_report(engine, DAY, "Europe/Moscow")

    assert report.failures == [
        ReasonCount("undelivered", "attempts_exhausted", 2),
        ReasonCount("undelivered", "rejected_400", 1),
    ]
    assert report.outcomes == OutcomeCounts.of(delivered=2, undelivered=3)
    assert report.messages == MessageCounts.of(scheduled=2, delivered=3, undelivered=3, cancelled=1)
    (mailing,) = report.mailings
    assert (mailing.id, mailing.clients_count, mailing.messages) == (mailing_id, 9, report.messages)
    assert mailing.datetime_start.isoformat() == "2020-01-14T03:00:00+03:00"


async def test_report_names_the_mailings_that_were_under_way(engine: AsyncEngine) -> None:
    begins, ends = bounds(DAY, ZoneInfo("UTC"))
    await set_updated(
        engine,
        await add_mailing(engine, status="finished", start=begins - 2 * HOUR, lasts=2 * HOUR),
        begins - HOUR / 60,
    )
    at_midnight = await add_mailing(engine, start=begins - 2 * HOUR, lasts=2 * HOUR)
    within = await add_mailing(engine, start=begins - 2 * HOUR, lasts=3 * HOUR)
    await add_mailing(engine, start=ends)
    around = await add_mailing(engine, start=begins - HOUR, lasts=99 * HOUR)
    to_come = await add_mailing(engine, status="scheduled", start=ends - HOUR)
    await set_updated(
        engine, await add_mailing(engine, status="finished", start=begins - HOUR), begins - HOUR / 2
    )
    finished = await add_mailing(engine, status="finished", start=begins - HOUR)
    await set_updated(engine, finished, begins + HOUR)
    deleted = await add_mailing(engine)
    async with engine.begin() as connection:
        await connection.execute(
            text("UPDATE mailing SET deleted_at = now() WHERE id = :id"), {"id": deleted}
        )

    report = await daily_report(engine, DAY, "UTC")

    assert [mailing.id for mailing in report.mailings] == [
        *(finished, to_come, around, within, at_midnight)
    ]
    assert report.mailings_count == 5


async def set_updated(engine: AsyncEngine, mailing_id: int, at: datetime) -> None:
    async with engine.begin() as connection:
        await connection.execute(
            text("UPDATE mailing SET updated_at = :at WHERE id = :id"),
            {"id": mailing_id, "at": at},
        )


async def test_long_report_is_cut_but_its_sums_are_not(engine: AsyncEngine) -> None:
    for _ in range(LISTED + 2):
        await add_mailing(engine, status="scheduled", clients=10)

    report = await daily_report(engine, DAY, "UTC")

    assert len(report.mailings) == LISTED
    assert report.mailings_count == LISTED + 2
    assert report.clients_count == report.messages.scheduled == 10 * (LISTED + 2)
    assert "and 2 older ones" in render_text(report)
    assert "and 2 older ones" in render_html(report, "cid:chart")


async def test_day_without_mailings_says_so(engine: AsyncEngine) -> None:
    report = await daily_report(engine, DAY, "UTC")

    assert report.messages == MessageCounts.of()
    assert "No mailing was under way" in render_text(report)
    assert "None." in render_html(report, "cid:chart")


@pytest.mark.parametrize(
    ("day", "zone", "hours"),
    [
        (date(2020, 1, 15), "UTC", 24),
        (date(2030, 3, 31), "Europe/Berlin", 23),
        (date(2030, 10, 27), "Europe/Berlin", 25),
        (date(2018, 11, 4), "America/Sao_Paulo", 23),  # has no midnight
        (date(2011, 12, 30), "Pacific/Apia", 0),  # was left out
    ],
)
def test_day_is_as_long_as_its_zone_has_it(day: date, zone: str, hours: int) -> None:
    begins, ends = bounds(day, ZoneInfo(zone))
    assert (ends - begins) / HOUR == hours


@pytest.mark.parametrize("day", [date.min, date.max])
def test_day_out_of_the_calendar_is_refused(day: date) -> None:
    with pytest.raises(InvalidError, match="date"):
        bounds(day, ZoneInfo("Asia/Tokyo"))


async def test_text_holds_every_figure(engine: AsyncEngine) -> None:
    assert render_text(await sample_report(engine)).splitlines()[3:10] == [
        "On that day",
        "  delivered                1",
        "  undelivered              2",
        "  unknown                  0",
        "  cancelled                0",
        "",
        "Not delivered on that day, and why",
    ]


async def test_outcomes_are_counted_by_the_local_hour(engine: AsyncEngine) -> None:
    clients = await add_clients(engine, 5)
    start = datetime(2030, 10, 26, tzinfo=UTC)
    mailing_id = await add_mailing(engine, clients=5, start=start, lasts=72 * HOUR)
    begins = datetime(2030, 10, 26, 22, tzinfo=UTC)  # midnight in Berlin, when clocks are set back
    second = timedelta(seconds=1)
    await add_messages(engine, mailing_id, clients[:1], "delivered", at=begins - second)
    await add_messages(engine, mailing_id, clients[1:2], "delivered", at=begins + 3 * HOUR - second)
    await add_messages(engine, mailing_id, clients[2:3], "unknown", "x", at=begins + 3 * HOUR)
    await do(engine, lambda db: tally.fold(db, 5))  # half of it folded, half of it not
    await add_messages(engine, mailing_id, clients[3:4], "cancelled", "x", begins + 25 * HOUR)
    await add_messages(engine, mailing_id, clients[4:], "delivered", at=begins + 3 * HOUR)

    report = await daily_report(engine, date(2030, 10, 27), "Europe/Berlin")

    assert len(report.hours) == 25
    assert [(f"{hour.start:%H %z}", hour.messages) for hour in report.busy_hours] == [
        ("02 +0200", OutcomeCounts.of(delivered=1)),
        ("02 +0100", OutcomeCounts.of(delivered=1, unknown=1)),
    ]
    lines = render_text(report).splitlines()
    at = lines.index("By the hour")
    assert [line.split() for line in lines[at + 1 : at + 5]] == [
        ["from", "delivered", "undelivered", "unknown", "cancelled"],
        ["02:00", "1", "0", "0", "0"],
        ["02:00", "again", "1", "0", "1", "0"],
        [],
    ]


async def test_report_reads_no_message_and_so_outlives_them(engine: AsyncEngine) -> None:
    report = await sample_report(engine)
    await execute(engine, "DELETE FROM message")

    again = await daily_report(engine, DAY, "UTC")

    assert msgspec.structs.replace(again, made_at=report.made_at) == report
    assert again.busy_hours[0].messages == OutcomeCounts.of(delivered=1, undelivered=2)


@pytest.mark.parametrize(
    ("day", "zone", "hours"),
    [
        (date(2030, 3, 31), "Europe/Berlin", 23),
        (date(2030, 10, 27), "Europe/Berlin", 25),
        (date(2018, 11, 4), "America/Sao_Paulo", 23),
        (date(2011, 12, 30), "Pacific/Apia", 0),
        (date(1999, 12, 31), "UTC", 24),
    ],
)
async def test_report_has_every_hour_of_its_day(
    engine: AsyncEngine, day: date, zone: str, hours: int
) -> None:
    assert len((await daily_report(engine, day, zone)).hours) == hours


async def test_longest_report_is_not_cut_by_mail_programs(engine: AsyncEngine) -> None:
    clients = await add_clients(engine, 6)
    for _ in range(LISTED + 1):
        mailing_id = await add_mailing(engine, clients=1_000_000)
        for place, status in enumerate(MessageCounts.__struct_fields__):
            if status != "sending":
                await add_messages(engine, mailing_id, clients[place : place + 1], status, "x")

    assert len(render_html(await daily_report(engine, DAY, "UTC"), "cid:chart")) < 100_000


async def test_report_tells_nothing_of_texts_and_phones(engine: AsyncEngine) -> None:
    report = await sample_report(engine)
    for rendered in (render_text(report), render_html(report, "cid:chart")):
        assert "price" not in rendered
        assert "7916" not in rendered


async def test_reason_is_escaped_in_html(engine: AsyncEngine) -> None:
    assert "<b>&" in render_text(await sample_report(engine))
    assert "&lt;b&gt;&amp;" in render_html(await sample_report(engine), "cid:chart")


ELSEWHERE = "smtp://report%40example.org:secret@mail.example.org"


async def sample_report(engine: AsyncEngine) -> DailyReport:
    clients = await add_clients(engine, 3)
    mailing_id = await add_mailing(engine, clients=3)
    await add_messages(engine, mailing_id, clients[:1], "delivered", at=NOON + HOUR)
    await add_messages(engine, mailing_id, clients[1:], "undelivered", "<b>&", NOON + HOUR)
    return await daily_report(engine, DAY, "UTC")


# ---- how it is sent --------------------------------------------------------------------------


@pytest.fixture
async def start_mail_server() -> AsyncIterator[Callable[..., Awaitable[int]]]:
    async with AsyncExitStack() as stack:

        async def start(mailbox: Mailbox, **options: Any) -> int:
            return await stack.enter_async_context(mail_server(mailbox, **options))

        yield start


@pytest.fixture
def certificate(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> ssl.SSLContext:
    """A mail server's certificate that this process trusts."""
    authority = trustme.CA()
    authority.cert_pem.write_to_path(tmp_path / "authority.pem")
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "authority.pem"))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1", "localhost").configure_cert(context)
    return context


def settings_for(port: int, *, scheme: str = "smtp", login: str = "") -> Settings:
    return Settings(
        smtp_url=f"{scheme}://{login}127.0.0.1:{port}",
        report_recipients="boss@example.org, ops@example.org",
    )


KNOWN = "ops%40example.org:p%40ss%2Fword@"
StartMailServer = Callable[..., Awaitable[int]]


async def test_mail_is_received_with_both_parts(
    engine: AsyncEngine, start_mail_server: StartMailServer
) -> None:
    mailbox = Mailbox()
    report = await sample_report(engine)
    await send_report(report, post_of(settings_for(await start_mail_server(mailbox))))

    assert mailbox.envelopes[0].rcpt_tos == ["boss@example.org", "ops@example.org"]
    mail = mailbox.mail()
    assert mail["Subject"] == "mailer, 2020-01-15: 1 delivered, 2 not"
    assert mail["From"] == "mailer <mailer@127.0.0.1>"
    assert mail["To"] == "boss@example.org, ops@example.org"
    assert mail["Message-ID"]
    assert mail["Date"].datetime == report.made_at.replace(microsecond=0)
    assert mail.get_content_type() == "multipart/alternative"
    plain, related = mail.iter_parts()
    assert plain.get_content_type() == "text/plain"
    assert plain.get_content().splitlines() == render_text(report).splitlines()
    assert related.get_content_type() == "multipart/related"
    assert isinstance(related, EmailMessage)
    html, picture = related.iter_parts()
    assert html.get_content_type() == "text/html"
    chart = picture["Content-ID"].strip("<>")
    assert html.get_content().splitlines() == render_html(report, f"cid:{chart}").splitlines()
    assert f'src="cid:{chart}"' in html.get_content()
    assert picture.get_content_type() == "image/png"
    assert picture.get_content_disposition() == "inline"
    assert picture.get_content() == draw(report.hours, "UTC")


async def test_mail_of_a_day_on_which_nothing_happened_has_no_picture(
    engine: AsyncEngine, start_mail_server: StartMailServer
) -> None:
    mailbox = Mailbox()
    report = await daily_report(engine, DAY, "UTC")
    await send_report(report, post_of(settings_for(await start_mail_server(mailbox))))

    _, html = mailbox.mail().iter_parts()
    assert html.get_content_type() == "text/html"
    assert "<img" not in html.get_content()


async def test_login_is_encrypted_when_the_server_can(
    engine: AsyncEngine, start_mail_server: StartMailServer, certificate: ssl.SSLContext
) -> None:
    mailbox = Mailbox()
    port = await start_mail_server(
        mailbox, tls_context=certificate, authenticator=knows, auth_required=True
    )
    await send_report(await sample_report(engine), post_of(settings_for(port, login=KNOWN)))

    assert mailbox.was_encrypted == [True]
    assert mailbox.mail()["From"] == "mailer <ops@example.org>"


async def test_login_goes_on_without_encryption_on_this_machine_alone(
    engine: AsyncEngine, start_mail_server: StartMailServer
) -> None:
    mailbox = Mailbox()
    port = await start_mail_server(mailbox, authenticator=knows, auth_require_tls=False)
    await send_report(await sample_report(engine), post_of(settings_for(port, login=KNOWN)))

    assert mailbox.was_encrypted == [False]
    elsewhere = msgspec.structs.replace(settings_for(port, login=KNOWN), smtp_url=ELSEWHERE)
    assert post_of(elsewhere).starts_tls is True


async def test_smtps_is_encrypted_from_the_start(
    engine: AsyncEngine, start_mail_server: StartMailServer, certificate: ssl.SSLContext
) -> None:
    mailbox = Mailbox()
    port = await start_mail_server(
        mailbox, tls=certificate, authenticator=knows, auth_require_tls=False
    )
    settings = settings_for(port, scheme="smtps", login=KNOWN)
    await send_report(await sample_report(engine), post_of(settings))

    assert len(mailbox.envelopes) == 1


async def refusal(engine: AsyncEngine, settings: Settings) -> str:
    """What is said when the report cannot be sent."""
    with pytest.raises(MailNotSentError) as error:
        await send_report(await sample_report(engine), post_of(settings))
    assert "\n" not in str(error.value)
    return str(error.value)


async def test_wrong_password_is_said_in_one_line(
    engine: AsyncEngine, start_mail_server: StartMailServer
) -> None:
    mailbox = Mailbox()
    port = await start_mail_server(mailbox, authenticator=knows, auth_require_tls=False)
    said = await refusal(engine, settings_for(port, login="ops%40example.org:secret@"))

    assert said.startswith(f"the mail server 127.0.0.1:{port} did not take the report: 535")
    assert "secret" not in said
    assert not mailbox.envelopes


async def test_certificate_that_nobody_knows_is_refused(
    engine: AsyncEngine,
    start_mail_server: StartMailServer,
    certificate: ssl.SSLContext,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("SSL_CERT_FILE")
    mailbox = Mailbox()
    for scheme, options in (
        ("smtp", {"tls_context": certificate, "authenticator": knows}),
        ("smtps", {"tls": certificate}),
    ):
        port = await start_mail_server(mailbox, **options)
        settings = settings_for(port, scheme=scheme, login=KNOWN)
        assert "CERTIFICATE_VERIFY_FAILED" in await refusal(engine, settings)
    assert not mailbox.envelopes


async def test_server_that_is_away_is_said_in_one_line(engine: AsyncEngine) -> None:
    assert "127.0.0.1:1 did not take the report" in await refusal(engine, settings_for(1))


async def test_one_refused_recipient_does_not_keep_the_report_from_others(
    engine: AsyncEngine, start_mail_server: StartMailServer
) -> None:
    mailbox = Mailbox(refusing="boss@example.org")
    await send_report(
        await sample_report(engine), post_of(settings_for(await start_mail_server(mailbox)))
    )
    assert mailbox.envelopes[0].rcpt_tos == ["ops@example.org"]


async def test_recipients_are_told_apart_by_what_the_server_answers(
    engine: AsyncEngine, start_mail_server: StartMailServer
) -> None:
    mailbox = Mailbox(refusing="boss@example.org")
    port = await start_mail_server(mailbox)
    report, post = await sample_report(engine), post_of(settings_for(port))
    assert await send_report(report, post) == MailResult(
        accepted=["ops@example.org"], deferred={}, refused={"boss@example.org": 550}
    )
    mailbox.answers |= {"ops@example.org": "450 4.2.0 greylisted"}
    assert await send_report(report, post) == MailResult(
        accepted=[], deferred={"ops@example.org": 450}, refused={"boss@example.org": 550}
    )


async def test_log_names_no_recipient_that_the_server_names(
    engine: AsyncEngine, start_mail_server: StartMailServer
) -> None:
    mailbox = Mailbox()
    mailbox.data_answer = "554 5.7.1 <boss@example.org>: not for boss@example.org, sorry"
    said = await refusal(engine, settings_for(await start_mail_server(mailbox)))
    assert said.endswith("554 5.7.1 <***>: not for ***, sorry")


async def test_mail_without_a_login_is_encrypted_when_the_server_offers_it(
    engine: AsyncEngine,
    start_mail_server: StartMailServer,
    certificate: ssl.SSLContext,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Whoever signed the certificate: the other way would be clear text."""
    monkeypatch.delenv("SSL_CERT_FILE")
    mailbox = Mailbox()
    port = await start_mail_server(mailbox, tls_context=certificate)
    await send_report(await sample_report(engine), post_of(settings_for(port)))
    assert mailbox.was_encrypted == [True]


async def test_without_a_login_encryption_that_the_server_cannot_do_is_left_out(
    engine: AsyncEngine, start_mail_server: StartMailServer
) -> None:
    mailbox = Mailbox()
    without_certificate = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    port = await start_mail_server(mailbox, tls_context=without_certificate, authenticator=knows)
    await refusal(engine, settings_for(port, login=KNOWN))
    assert not mailbox.envelopes

    await send_report(await sample_report(engine), post_of(settings_for(port)))
    assert mailbox.was_encrypted == [False]


async def test_mail_is_made_of_short_lines_of_ascii(
    engine: AsyncEngine, start_mail_server: StartMailServer
) -> None:
    mailbox = Mailbox()
    await send_report(
        await sample_report(engine), post_of(settings_for(await start_mail_server(mailbox)))
    )
    content = mailbox.envelopes[0].content
    assert isinstance(content, bytes)
    assert content.isascii()
    assert max(map(len, content.splitlines())) <= 100


@pytest.mark.parametrize(
    ("smtp_url", "smtp_from", "sender"),
    [
        ("smtp://mail.example.org", None, "mailer@mail.example.org"),
        ("smtp://apikey:x@mail.example.org", None, "mailer@mail.example.org"),
        ("smtp://me%40example.org:x@mail.example.org", None, "me@example.org"),
        ("smtp://me%40example.org:x@mail.example.org", "sms@example.org", "sms@example.org"),
        ("smtp://mail.example.org", " sms@пример.рф ", "sms@xn--e1afmkfd.xn--p1ai"),
        ("smtp://127.0.0.1", None, "mailer@127.0.0.1"),
        ("smtp://[::1]", None, "mailer@localhost"),
    ],
)
def test_sender_is_as_set_else_the_login_else_mailer(
    smtp_url: str, smtp_from: str | None, sender: str
) -> None:
    settings = Settings(smtp_url=smtp_url, smtp_from=smtp_from, report_recipients="a@b.org")
    assert post_of(settings).sender == sender


@pytest.mark.parametrize("wrong", ["boss", "a@b.org, c@d.org", "a@", "x <a@b.org>", "a@b..org"])
def test_sender_that_is_no_address_is_refused(wrong: str) -> None:
    with pytest.raises(StartError, match="MAILER_SMTP_FROM"):
        post_of(Settings(smtp_url="smtp://h", smtp_from=wrong, report_recipients="a@b.org"))


@pytest.mark.parametrize(
    ("url", "recipients", "said"),
    [
        (None, "a@b.org", "MAILER_SMTP_URL is not set"),
        ("smtp://h", None, "MAILER_REPORT_RECIPIENTS is not set"),
        ("smtp://h", " , ", "MAILER_REPORT_RECIPIENTS is not set"),
        ("smtp://h", "a@b.org, boss", "MAILER_REPORT_RECIPIENTS: 'boss' is not a mail address"),
        ("smtp://h", "a@b.org\nBcc: c@d.org", "is not a mail address"),
        ("smtp://", "a@b.org", "MAILER_SMTP_URL: must be"),
        ("smtp://h:secret", "a@b.org", "MAILER_SMTP_URL: must be"),
        ("smtp://u:se/cret@h", "a@b.org", "MAILER_SMTP_URL: must be"),
        ("smtp://h/path", "a@b.org", "MAILER_SMTP_URL: must be"),
    ],
)
def test_wrong_setting_is_said_in_one_line(
    url: str | None, recipients: str | None, said: str
) -> None:
    with pytest.raises(StartError, match=said) as error:
        post_of(Settings(smtp_url=url, report_recipients=recipients))
    assert "\n" not in str(error.value)
    assert "cret" not in str(error.value)


@pytest.mark.parametrize(
    ("url", "port"),
    [
        ("smtp://mail.example.org", 25),
        ("smtp://user:secret@mail.example.org", 587),
        ("smtps://user:secret@mail.example.org/", 465),
        ("smtp://mail.example.org:2525", 2525),
    ],
)
def test_port_follows_from_how_mail_is_sent(url: str, port: int) -> None:
    post = post_of(Settings(smtp_url=url, report_recipients="a@b.org"))
    assert post.port == port
    assert "secret" not in repr(post)
