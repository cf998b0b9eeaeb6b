"""Reading settings, and errors in settings that stop the start."""

from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.examples import thorough

from mailer.errors import StartError
from mailer.roles import parse_role_mapping
from mailer.settings import SECRETS, START_WORDS, STOP_WORDS, Settings, read_settings

NO_FILE = Path("/nonexistent/.env")
"""A `.env` file that does not exist."""

WRONG_ENDS = ("/send/#x", "/a b/", "/send/ ", "/send/\n", "/\tx/", "/я/", "/%zz/", "/<id>", ":0/")
"""Invalid ends of a URL, most of which urlsplit accepts."""
# invalid hosts of a URL, some with a port
WRONG_HOSTS = (
    "",
    "a..b",
    "-x",
    "1.2.3.4.5",
    "256.1.1.1",
    "x:65536",
    "x:-1",
    "[::zz]",
    "x" * 64,
    "gate.пример",
    "a b",
    "?x",
)


def read(**variables: str) -> Settings:
    """Return the settings for these variables: `port` is the variable MAILER_PORT."""
    environ = {f"MAILER_{name.upper()}": value for name, value in variables.items()}
    return read_settings(environ, NO_FILE)


def test_default_of_every_setting() -> None:
    settings = msgspec.structs.asdict(read_settings({}, NO_FILE))
    assert settings.pop("data_dir")
    assert settings == {
        **dict.fromkeys(("database_url", "gateways", "gateway_url", "gateway_token", "log_format")),
        **dict.fromkeys(("smtp_url", "smtp_from", "report_recipients")),
        **dict.fromkeys(("trusted_proxies", "public_url")),
        "receipt_wait": 3 * 86_400,
        **dict.fromkeys(("oidc_issuer", "oidc_client_id", "oidc_client_secret")),
        "key_rate": 100,
        "confirm_above": 1_000,
        "require_approval": False,
        "monitoring_token": None,
        "host": "127.0.0.1",
        "port": 8000,
        "gateway_timeout": 10,
        "gateway_concurrency": 50,
        "gateway_rate": 0,
        "retry_attempts": 8,
        "retry_base": 1,
        "retry_cap": 300,
        "retry_after_cap": 900,
        "breaker_failures": 10,
        "breaker_reset": 15,
        "lease": 60,
        "shutdown_grace": 20,
        "auth": "required",
        "log_level": "info",
        "report_at": "08:00",
        "report_time_zone": "UTC",
        "oidc_role_claim": "roles",
        "oidc_roles": "viewer=viewer,operator=operator,admin=admin",
        "webhook_private_addresses": False,
        "retention_days": 0,
        "stop_words": STOP_WORDS,
        "start_words": START_WORDS,
        "opt_out_text": None,
        "contact_cap": None,
    }


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("database_url", "postgresql://me@db/x", "postgresql://me@db/x"),
        ("database_url", "postgres:///x?host=/run", "postgres:///x?host=/run"),
        ("data_dir", "/srv/mailer", "/srv/mailer"),
        ("port", "0", 0),
        ("port", "65535", 65535),
        ("gateway_url", "https://gate.example/send/", "https://gate.example/send/"),
        ("gateway_token", "12345", "12345"),
        ("gateway_timeout", "2.5", 2.5),
        ("gateway_concurrency", "10000", 10000),
        ("gateway_rate", "0.5", 0.5),
        ("trusted_proxies", "10.0.0.0/8, ::1", "10.0.0.0/8, ::1"),
        ("retry_attempts", "1", 1),
        ("lease", "86400", 86400),
        ("shutdown_grace", "0", 0),
        ("auth", "none", "none"),
        ("log_level", "debug", "debug"),
        ("log_format", "json", "json"),
        ("smtp_url", "smtps://mail.example", "smtps://mail.example"),
        ("report_at", "23:59", "23:59"),
        ("report_time_zone", "Europe/Moscow", "Europe/Moscow"),
        ("oidc_role_claim", "realm_access.roles", "realm_access.roles"),
        ("oidc_roles", "viewer=staff, admin=it", "viewer=staff, admin=it"),
        ("retention_days", "30", 30),
        ("stop_words", "стоп, halt", "стоп, halt"),
        ("opt_out_text", "You get no more messages.", "You get no more messages."),
    ],
)
def test_variable_is_read(name: str, text: str, value: object) -> None:
    assert getattr(read(**{name: text}), name) == value


@pytest.mark.parametrize(
    ("url", "part"),
    [
        *((url, "starts with http") for url in ("gate.example", "ftp://x", "http:x", "//x")),
        *((url, "host") for url in ("http://", "http:///send/", "http://:80/", "http://[::1/")),
        *((f"http://x:{port}/", "port") for port in ("0", "65536", "99999", "port", "-1")),
    ],
)
def test_error_names_the_wrong_part_of_a_url(url: str, part: str) -> None:
    with pytest.raises(StartError, match=f"MAILER_GATEWAY_URL: must .*{part}"):
        read(gateway_url=url)


ERROR_OF_EMPTY_MONITORING = "^MAILER_MONITORING_TOKEN: is empty; set it, or leave it out$"


def test_empty_monitoring_token_stops_the_start() -> None:
    """Without a token the metrics would be open to all."""
    with pytest.raises(StartError, match=ERROR_OF_EMPTY_MONITORING):
        read(monitoring_token="")


@pytest.mark.parametrize("line", ["MAILER_MONITORING_TOKEN=", "MAILER_MONITORING_TOKEN"])
def test_empty_monitoring_token_in_the_file_stops_the_start_unless_overridden(
    tmp_path: Path, line: str
) -> None:
    file = tmp_path / ".env"
    file.write_text(line)
    with pytest.raises(StartError, match=ERROR_OF_EMPTY_MONITORING):
        read_settings({}, file)
    assert read_settings({"MAILER_MONITORING_TOKEN": "x"}, file).monitoring_token == "x"  # noqa: S105  # of a test


def test_other_empty_secret_counts_as_not_set() -> None:
    for name in ("gateway_token", "oidc_client_secret", "auth"):
        assert getattr(read(**{name: ""}), name) == getattr(Settings(), name)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        *(("port", wrong) for wrong in ("-1", "65536", "x", "80.5", "8000\n")),
        *(("gateway_timeout", wrong) for wrong in ("0", "-1", "86401", "x", "nan", "inf")),
        *(("gateway_concurrency", wrong) for wrong in ("0", "10001", "1.5", "many")),
        *(("gateway_rate", wrong) for wrong in ("-1", "1000001", "nan", "x")),
        *(("retry_attempts", wrong) for wrong in ("0", "1001", "1.5")),
        *(("retry_base", wrong) for wrong in ("0", "nan", "x")),
        *(("retry_cap", wrong) for wrong in ("0", "nan", "inf")),
        *(("breaker_failures", wrong) for wrong in ("0", "x")),
        *(("breaker_reset", wrong) for wrong in ("0", "nan")),
        *(("lease", wrong) for wrong in ("0", "nan", "86401", "x")),
        *(("shutdown_grace", wrong) for wrong in ("-1", "3601", "nan", "x")),
        *(("auth", wrong) for wrong in ("off", "NONE", "false")),
        *(("trusted_proxies", wrong) for wrong in ("proxy.example", "*", "10.0.0.1/8", "1, 2")),
        *(
            ("public_url", wrong)
            for wrong in ("x.example", "ftp://x", "https://x/?a", "https://u@x")
        ),
        *(("receipt_wait", wrong) for wrong in ("0", "2592001", "x")),
        *(("log_level", wrong) for wrong in ("trace", "INFO")),
        *(("log_format", wrong) for wrong in ("xml", "text")),
        *(("database_url", wrong) for wrong in ("mysql://x", "x", "postgresql+asyncpg://x")),
        *(("gateway_url", wrong) for wrong in ("ftp://x", "gate.example", "//x", "http://[x")),
        *(("gateway_url", wrong) for wrong in ("http://", "http:///send/", "http://x:port/")),
        *(("gateway_url", f"http://gate.example{wrong}") for wrong in WRONG_ENDS),
        *(("gateway_url", f"http://{wrong}/send/") for wrong in WRONG_HOSTS),
        *(("gateway_url", f"http://{wrong}@x/") for wrong in ("", ":pw", "a%3Ab:pw", "%FF:pw")),
        *(("smtp_url", wrong) for wrong in ("http://x", "mail.example", "smtp://[")),
        *(("smtp_url", f"smtp://mail.example{wrong}") for wrong in WRONG_ENDS[1:]),
        *(("smtp_url", f"smtp://{wrong}") for wrong in WRONG_HOSTS),
        *(("oidc_issuer", f"https://id.example{wrong}") for wrong in WRONG_ENDS),
        *(("oidc_issuer", f"https://{wrong}") for wrong in WRONG_HOSTS),
        *(("retry_after_cap", wrong) for wrong in ("0", "-1", "nan", "86401", "x")),
        *(("oidc_issuer", wrong) for wrong in ("id.example", "https://[", "http://id.example")),
        *(
            ("oidc_issuer", f"https://{wrong}")
            for wrong in ("me@id.example", "id.example?a", "x#y")
        ),
        *(("oidc_roles", wrong) for wrong in ("it", "admin", "admin=", "root=it", "admin=it,")),
        ("oidc_roles", "viewer=it,admin=it"),
        *(("report_at", wrong) for wrong in ("8:00", "24:00", "08:00:00", "08:00\n", "x")),
        *(("report_time_zone", wrong) for wrong in ("Mars/Base", "utc", "UTC+3")),
        *(("retention_days", wrong) for wrong in ("-1", "36501", "x", "0.5")),
        *(("stop_words", wrong) for wrong in (",", "stop,,halt", "...", "x" * 101)),
        ("start_words", "go, Stop!"),
        ("opt_out_text", "x" * 1_601),
    ],
)
def test_wrong_variable_stops_the_start_with_one_line_that_names_it(name: str, text: str) -> None:
    with pytest.raises(StartError) as error:
        read(**{name: text})
    assert f"MAILER_{name.upper()}" in str(error.value)
    assert "\n" not in str(error.value)


def test_gateway_cannot_have_both_a_user_and_a_token() -> None:
    with_user = "https://user:secret@gate.example/send/"
    assert read(gateway_url=with_user).gateway_url == with_user
    with pytest.raises(StartError, match="MAILER_GATEWAY_URL") as error:
        read(gateway_url=with_user, gateway_token="t")  # noqa: S106  # of a test
    assert "secret" not in str(error.value)


@pytest.mark.parametrize("issuer", ["https://id.example/a/", "http://127.0.0.1:9", "http://[::1]"])
def test_issuer_uses_https_or_is_on_loopback(issuer: str) -> None:
    assert read(oidc_issuer=issuer, oidc_client_id="mailer").oidc_issuer == issuer


@pytest.mark.parametrize("name", ["oidc_issuer", "oidc_client_id"])
def test_issuer_and_client_id_are_required_together(name: str) -> None:
    with pytest.raises(StartError, match="MAILER_OIDC_ISSUER and MAILER_OIDC_CLIENT_ID"):
        read(**{name: "https://id.example"})


def test_roles_of_the_identity_provider_are_mapped_to_roles() -> None:
    mapping = "viewer=all staff, operator=marketing,admin=it,admin=a=b"
    assert parse_role_mapping(mapping) == {
        "all staff": "viewer",
        "marketing": "operator",
        "it": "admin",
        "a=b": "admin",
    }


def test_unknown_variable_stops_the_start() -> None:
    with pytest.raises(StartError, match="MAILER_GATEWAY_URI is not a setting"):
        read(gateway_uri="http://x")


def test_all_wrong_variables_are_named_together() -> None:
    with pytest.raises(StartError) as error:
        read(port="x", lease="0", nonsense="1", database_url="mysql://x")
    for name in ("PORT", "LEASE", "NONSENSE", "DATABASE_URL"):
        assert f"MAILER_{name}" in str(error.value)


def test_variables_without_the_prefix_are_ignored() -> None:
    assert read_settings({"PORT": "x", "MAILERPORT": "x"}, NO_FILE).port == 8000


def test_empty_variable_counts_as_not_set() -> None:
    assert read(port="", gateway_url="").port == 8000


@pytest.mark.parametrize("host", ["127.0.0.1", "127.9.9.9", "::1", "localhost"])
def test_auth_none_is_accepted_on_a_loopback_host(host: str) -> None:
    assert read(host=host, auth="none").is_loopback


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.0.0.1", "example.org", "localhost.evil"])  # noqa: S104  # rejected
def test_auth_none_is_rejected_on_any_other_host(host: str) -> None:
    with pytest.raises(StartError, match="MAILER_AUTH"):
        read(host=host, auth="none")
    assert not read(host=host, auth="required").is_loopback


@pytest.mark.parametrize(("lease", "timeout"), [("10", "10"), ("5", "10"), ("10.5", "10")])
def test_lease_must_be_longer_than_the_gateway_timeout(lease: str, timeout: str) -> None:
    with pytest.raises(StartError, match="MAILER_LEASE"):
        read(lease=lease, gateway_timeout=timeout)


def test_lease_is_not_compared_with_a_timeout_that_a_file_of_gateways_replaces() -> None:
    assert read(lease="5", gateways="gateways.toml").gateway_timeout > 5


@pytest.mark.parametrize("name", sorted(SECRETS))
def test_settings_as_text_contain_no_secret(name: str) -> None:
    values = {"database_url": "postgresql://me:hush@db/x", "smtp_url": "smtp://me:hush@mail"}
    settings = read(**{name: values.get(name, "hush")})
    for text in (repr(settings), str(settings), f"{settings}", f"{settings!r}"):
        assert "hush" not in text
        assert f"{name}=***" in text


@pytest.mark.parametrize("user", ["user:hush", "user:hush@2", "hush"])
def test_settings_as_text_do_not_contain_the_gateways_user(user: str) -> None:
    settings = read(gateway_url=f"https://{user}@gate.example/send/")
    assert "hush" not in repr(settings)
    assert settings.redacted()["gateway_url"] == "https://***@gate.example/send/"


@pytest.mark.parametrize("name", ["database_url", "smtp_url"])
def test_error_contains_no_secret(name: str) -> None:
    with pytest.raises(StartError) as error:
        read(**{name: "mysql://me:hush@db/x"})
    assert "hush" not in str(error.value)


def test_environment_overrides_the_env_file(tmp_path: Path) -> None:
    env_file = tmp_path / ".env"
    env_file.write_text("MAILER_PORT=1\nMAILER_HOST='localhost'\nOTHER=x\n# MAILER_X=1\n")
    settings = read_settings({"MAILER_PORT": "2"}, env_file)
    assert (settings.port, settings.host) == (2, "localhost")


def test_unknown_variable_in_the_env_file_stops_the_start(tmp_path: Path) -> None:
    env_file = tmp_path / ".env"
    env_file.write_text("MAILER_PROT=1\n")
    with pytest.raises(StartError, match="MAILER_PROT"):
        read_settings({}, env_file)


@thorough
@given(
    variables=st.dictionaries(
        st.sampled_from(Settings.__struct_fields__),
        st.text() | st.integers().map(str) | st.floats().map(str) | st.just("http://["),
        max_size=4,
    )
)
def test_any_values_are_either_read_or_rejected(variables: dict[str, str]) -> None:
    try:
        read(**variables)
    except StartError as error:
        assert "MAILER_" in str(error)  # noqa: PT017  # both outcomes are right
