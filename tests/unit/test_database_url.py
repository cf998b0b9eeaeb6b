"""Database URLs are read as psql reads them (libpq, section 32.1)."""

from pathlib import Path
from typing import Any

import pytest
import trustme
from hypothesis import given
from hypothesis import strategies as st
from tests.examples import thorough

from mailer.db.url import DEFAULT_CONNECT_TIMEOUT, ConnectionTarget, read_url


def hosts(target: ConnectionTarget) -> list[tuple[object, object]]:
    """Return host and port of each attempt to connect."""
    return [(attempt.get("host"), attempt.get("port")) for attempt in target.attempts]


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("postgresql://", {}),
        ("postgres:///mailer", {"database": "mailer"}),
        ("postgresql://me@db", {"user": "me", "host": "db"}),
        ("postgresql://me:hush@db:5433/x", {"password": "hush", "port": 5433, "database": "x"}),
        ("postgresql://m%40e:p%2F%23%3F@db/x", {"user": "m@e", "password": "p/#?"}),
        ("postgresql://me:p?#w@db/x", {"password": "p?#w", "host": "db"}),
        ("postgresql://me:a+b@db/x", {"password": "a+b"}),
        ("postgresql://[::1]:5433/x", {"host": "::1", "port": 5433}),
        ("postgresql://%2Frun%2Fpg/x", {"host": "/run/pg"}),
        ("postgresql:///x?host=/run/pg&port=5433", {"host": "/run/pg", "port": 5433}),
        ("postgresql://a/x?host=b&dbname=y&user=u&password=p", {"host": "b", "database": "y"}),
        ("postgresql://db?hostaddr=10.0.0.1&sslmode=require", {"host": "10.0.0.1"}),
        ("postgresql://db?krbsrvname=pg", {"krbsrvname": "pg"}),
        ("postgresql://db?sslmode=disable", {"dsn": "postgresql://?sslmode=disable"}),
        ("postgresql://db?sslmode=disable&", {"dsn": "postgresql://?sslmode=disable"}),
        ("postgresql://db?ssl=true", {"dsn": "postgresql://?sslmode=require"}),
        ("postgresql://db?target_session_attrs=any", {"target_session_attrs": "any"}),
    ],
)
def test_every_component_of_a_url_is_read_as_by_psql(url: str, expected: dict[str, Any]) -> None:
    [attempt] = read_url(url).attempts
    assert {name: attempt.get(name) for name in expected} == expected


@pytest.mark.parametrize(
    "parameter",
    [
        *("keepalives=1", "keepalives_idle=30", "keepalives_interval=5", "keepalives_count=3"),
        *("tcp_user_timeout=1000", "gssencmode=disable", "gssencmode=prefer", "sslsni=1"),
        *("channel_binding=prefer", "channel_binding=disable", "client_encoding=utf8"),
        *("fallback_application_name=x", "sslcompression=0", "load_balance_hosts=random"),
    ],
)
def test_parameter_without_effect_is_accepted_and_ignored(parameter: str) -> None:
    assert read_url(f"postgresql://db?{parameter}").attempts == read_url("postgresql://db").attempts


def test_connect_timeout_applies_to_each_host() -> None:
    assert read_url("postgresql://a,b?connect_timeout=10").timeout == 10
    assert read_url("postgresql://a?connect_timeout=0").timeout == DEFAULT_CONNECT_TIMEOUT
    assert read_url("postgresql://a").timeout == DEFAULT_CONNECT_TIMEOUT


def test_options_and_application_name_are_sent_to_the_server() -> None:
    url = "postgresql://db?options=-c%20search_path%3Dmailer&application_name=ours"
    assert read_url(url).server_settings == {
        "options": "-c search_path=mailer",
        "application_name": "ours",
    }


def test_several_hosts_are_tried_in_order() -> None:
    assert hosts(read_url("postgresql://h1:5432,h2:5433/x")) == [("h1", 5432), ("h2", 5433)]
    assert hosts(read_url("postgresql://h1,[::1]:6/x")) == [("h1", 5432), ("::1", 6)]
    assert hosts(read_url("postgresql:///x?host=a,b&port=1,2")) == [("a", 1), ("b", 2)]
    assert hosts(read_url("postgresql:///x?host=a,b&port=7")) == [("a", 7), ("b", 7)]


def test_hosts_in_random_order_are_the_same_hosts() -> None:
    shuffled = read_url("postgresql://a,b,c?load_balance_hosts=random")
    assert sorted(hosts(shuffled)) == sorted(hosts(read_url("postgresql://a,b,c")))


def test_with_several_hosts_the_writable_one_is_required() -> None:
    for query in ("", "?target_session_attrs=any"):
        attempts = read_url(f"postgresql://a,b{query}").attempts
        assert [attempt["target_session_attrs"] for attempt in attempts] == ["read-write"] * 2
    [attempt, _] = read_url("postgresql://a,b?target_session_attrs=primary").attempts
    assert attempt["target_session_attrs"] == "primary"


def error_of(url: str) -> str:
    """Return the error that a URL causes: one line without the password `hush`."""
    with pytest.raises(ValueError, match=r"[a-z]") as error:
        read_url(url)
    assert "hush" not in str(error.value)
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize(
    ("parameter", "name"),
    [
        # unknown to the driver; `passord` is misspelled
        *((f"{name}=x", name) for name in ("require_auth", "requirepeer", "sslcrldir", "passord")),
        *((f"{name}=x", name) for name in ("oauth_issuer", "scram_client_key", "sslkeylogfile")),
        *((f"{name}=x", name) for name in ("statement_timeout", "search_path", "servicefile")),
        # known, with values that are not allowed
        ("channel_binding=require", "channel_binding"),
        ("gssencmode=require", "gssencmode"),
        ("client_encoding=latin1", "client_encoding"),
        ("sslsni=0", "sslsni"),
        ("sslcertmode=require", "sslcertmode"),
        ("replication=database", "replication"),
        ("keepalives=yes", "keepalives"),
        ("connect_timeout=soon", "connect_timeout"),
        ("load_balance_hosts=round-robin", "load_balance_hosts"),
        ("hostaddr=10.0.0.1&sslmode=verify-full", "hostaddr"),
        ("sslrootcert=/nonexistent/ca.pem", "sslrootcert"),
        ("sslrootcert=/etc/passwd", "sslrootcert"),
        ("sslcert=/etc/passwd", "sslcert"),
        ("passfile=/nonexistent", "passfile"),
        ("service=nowhere", "service"),
        ("target_session_attrs=master", "target_session_attrs"),
        ("hostaddr=db.example", "hostaddr"),
        ("host=@socket", "abstract"),
        ("port=1,2", "port"),
        ("keepalives", "keepalives"),
        ("a%ZZ=1", "parameter"),
    ],
)
def test_unsupported_parameter_is_rejected_with_its_name(parameter: str, name: str) -> None:
    assert name in error_of(f"postgresql://me:hush@db/x?{parameter}")


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://me:hush@db:x/y",
        "postgresql://me:hush@db:0/y",
        "postgresql://me:hush@db:65536/y",
        "postgresql://me:hush@[::1/y",
        "postgresql://me:hush@::1/y",
        "postgresql://me:hush/more@db/y",
        "postgresql://me:hush@a,,b/y",
        "postgresql://me:hush%@db/y",
        "postgresql://me:hush%00@db/y",
        "postgresql://me:hush%ff@db/y",
        "postgresql://me@db/y?hush%20word=1",
        "postgresql://me@db/y?password=hush=hush",
    ],
)
def test_error_contains_no_password(url: str) -> None:
    error_of(url)


# a service file of libpq: a section for each service
SERVICES = """
# ours
[mailer]
host=db
port=5433
user=me
password=a%b#c=d
dbname=x
connect_timeout=7
sslmode=disable

[strange]
host=db
requirepeer=postgres

[closed]
sslrootcert=/nonexistent
"""


@pytest.fixture
def service_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A service file with `SERVICES`, which libpq's variable names."""
    file = tmp_path / "services"
    file.write_text(SERVICES)
    monkeypatch.setenv("PGSERVICEFILE", str(file))
    return file


@pytest.mark.usefixtures("service_file")
def test_service_is_read_from_the_service_file() -> None:
    target = read_url("postgresql://?service=mailer")
    [attempt] = target.attempts
    assert target.timeout == 7
    assert attempt == {
        "host": "db",
        "port": 5433,
        "user": "me",
        "password": "a%b#c=d",
        "database": "x",
        "dsn": "postgresql://?sslmode=disable",
    }


@pytest.mark.usefixtures("service_file")
def test_url_overrides_its_service() -> None:
    [attempt] = read_url("postgresql://you@other/?service=mailer&port=1").attempts
    assert (attempt["user"], attempt["host"], attempt["port"]) == ("you", "other", 1)


def test_wrong_service_is_rejected(service_file: Path) -> None:
    assert "requirepeer" in error_of("postgresql://?service=strange")
    assert "sslrootcert" in error_of("postgresql://?service=closed")
    service_file.unlink()
    service_file.mkdir()  # cannot be read as a file
    assert "service" in error_of("postgresql://?service=mailer")


def test_tls_files_are_read_at_startup(tmp_path: Path) -> None:
    ca = trustme.CA()
    ca.cert_pem.write_to_path(tmp_path / "ca.pem")
    certificate = ca.issue_cert("mailer")
    certificate.private_key_and_cert_chain_pem.write_to_path(tmp_path / "mailer.pem")
    own_certificate = f"sslcert={tmp_path}/mailer.pem&sslkey={tmp_path}/mailer.pem"
    url = f"postgresql://db?sslmode=verify-full&sslrootcert={tmp_path}/ca.pem&{own_certificate}"
    [attempt] = read_url(url).attempts
    assert "sslrootcert" in attempt["dsn"]
    assert "sslkey" in error_of(f"{url}&sslkey=/etc/passwd")


def test_root_certificate_system_means_those_of_the_machine_with_host_names_verified() -> None:
    [attempt] = read_url("postgresql://db?sslrootcert=system").attempts
    assert attempt["ssl"].check_hostname
    assert "sslrootcert" in error_of("postgresql://db?sslrootcert=system&sslmode=require")


@thorough
@given(st.text().map("postgresql://{}".format) | st.text())
def test_any_text_is_either_read_or_rejected_in_one_line(url: str) -> None:
    try:
        read_url(url)
    except ValueError as error:
        assert "\n" not in str(error)  # noqa: PT017  # both outcomes are right
