"""The configuration of the daily mail, as read from the settings."""

import pytest

from mailer.errors import StartError
from mailer.mail.smtp_config import read_smtp_config
from mailer.settings import Settings


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
def test_the_sender_is_the_setting_or_the_login_or_mailer(
    smtp_url: str, smtp_from: str | None, sender: str
) -> None:
    settings = Settings(smtp_url=smtp_url, smtp_from=smtp_from, report_recipients="a@b.org")
    assert read_smtp_config(settings).sender == sender


@pytest.mark.parametrize("wrong", ["boss", "a@b.org, c@d.org", "a@", "x <a@b.org>", "a@b..org"])
def test_an_invalid_sender_is_a_start_error(wrong: str) -> None:
    with pytest.raises(StartError, match="MAILER_SMTP_FROM"):
        read_smtp_config(
            Settings(smtp_url="smtp://h", smtp_from=wrong, report_recipients="a@b.org")
        )


@pytest.mark.parametrize(
    ("url", "recipients", "message"),
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
def test_an_invalid_setting_is_a_start_error_in_one_line(
    url: str | None, recipients: str | None, message: str
) -> None:
    with pytest.raises(StartError, match=message) as error:
        read_smtp_config(Settings(smtp_url=url, report_recipients=recipients))
    assert "\n" not in str(error.value)
    assert "cret" not in str(error.value)  # a part of the passwords above


@pytest.mark.parametrize(
    ("url", "port"),
    [
        ("smtp://mail.example.org", 25),
        ("smtp://user:secret@mail.example.org", 587),
        ("smtps://user:secret@mail.example.org/", 465),
        ("smtp://mail.example.org:2525", 2525),
    ],
)
def test_the_default_port_depends_on_scheme_and_login(url: str, port: int) -> None:
    config = read_smtp_config(Settings(smtp_url=url, report_recipients="a@b.org"))
    assert config.port == port
    assert "secret" not in repr(config)


def test_a_login_at_another_machine_requires_encryption() -> None:
    url = "smtp://report%40example.org:secret@mail.example.org"
    config = read_smtp_config(Settings(smtp_url=url, report_recipients="a@b.org"))
    assert config.starts_tls is True
