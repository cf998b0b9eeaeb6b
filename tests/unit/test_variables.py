"""Reading settings from the environment and from a `.env` file."""

import os
from pathlib import Path

import pytest

from mailer.errors import StartError
from mailer.settings import Settings, read_settings

NO_FILE = Path("/nonexistent/.env")

KUBERNETES = {
    "MAILER_SERVICE_HOST": "10.96.0.17",
    "MAILER_SERVICE_PORT": "8000",
    "MAILER_SERVICE_PORT_HTTP": "8000",
    "MAILER_SERVICE_PORT_HTTP_ALT": "8001",
    "MAILER_PORT": "tcp://10.96.0.17:8000",
    "MAILER_PORT_8000_TCP": "tcp://10.96.0.17:8000",
    "MAILER_PORT_8000_TCP_PROTO": "tcp",
    "MAILER_PORT_8000_TCP_PORT": "8000",
    "MAILER_PORT_8000_TCP_ADDR": "10.96.0.17",
    "MAILER_PORT_53_UDP": "udp://10.96.0.17:53",
    "MAILER_PORT_53_UDP_PROTO": "udp",
    "MAILER_PORT_53_UDP_PORT": "53",
    "MAILER_PORT_53_UDP_ADDR": "fd00::11",
    "MAILER_PORT_99_SCTP": "sctp://[fd00::11]:99",
    "MAILER_API_V2_SERVICE_HOST": "fd00::11",
    "MAILER_API_V2_SERVICE_PORT": "80",
    "MAILER_API_V2_PORT": "udp://10.96.0.18:80",
    "MAILER_API_V2_PORT_80_TCP_ADDR": "10.96.0.18",
}
"""Variables that Kubernetes sets in a pod for the Services `mailer` and `mailer-api-v2`."""


def read(environ: dict[str, str], file: Path = NO_FILE) -> Settings:
    return read_settings(environ, file)


def error_of(file: Path, environ: dict[str, str] | None = None) -> str:
    """Return the error of reading these variables: one line that can be printed."""
    with pytest.raises(StartError) as error:
        read(environ or {}, file)
    assert "\n" not in str(error.value)
    str(error.value).encode()  # raises if the text cannot be printed
    return str(error.value)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """The path of a `.env` file, which does not exist yet."""
    return tmp_path / ".env"


def test_variables_of_kubernetes_for_a_service_named_mailer_are_ignored(file: Path) -> None:
    file.write_text("MAILER_PORT=8001\n")
    assert read(KUBERNETES) == Settings()
    assert read(KUBERNETES, file).port == 8001  # not overridden by MAILER_PORT=tcp://...
    assert read(KUBERNETES | {"MAILER_PORT": "8002"}).port == 8002


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("MAILER_SERVICE_HOST", "mail.example"),
        ("MAILER_SERVICE_PORT", "http"),
        ("MAILER_PORT", "10.96.0.17:8000"),
        ("MAILER_PORT", "http://10.96.0.17:8000"),
        ("MAILER_PORT", "tcp://10.96.0.17"),
        ("MAILER_PORT_8000", "tcp://10.96.0.17:8000"),
        ("MAILER_PORT_8000_TCP_ADR", "10.96.0.17"),
        ("MAILER_PROT", "tcp://10.96.0.17:8000"),
        ("MAILER_GATEWAY_URL", "tcp://10.96.0.17:8000"),
    ],
)
def test_variables_similar_to_those_of_kubernetes_are_rejected(name: str, value: str) -> None:
    assert name in error_of(NO_FILE, {name: value})


@pytest.mark.parametrize(("name", "value"), KUBERNETES.items())
def test_variables_of_kubernetes_in_the_file_are_rejected(
    file: Path, name: str, value: str
) -> None:
    file.write_text(f"{name}={value}\n")
    assert name in error_of(file)


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32", "latin-1"])
def test_file_in_another_encoding_is_rejected_in_one_line(file: Path, encoding: str) -> None:
    file.write_text("# café\nMAILER_PORT=8001\n", encoding=encoding)
    assert "UTF-8" in error_of(file)


def test_error_names_the_line_that_is_not_utf_8(file: Path) -> None:
    file.write_bytes("MAILER_PORT=1\r\n\r\nMAILER_HOST=почта\n".encode("cp1251"))
    assert "line 3 is not UTF-8" in error_of(file)


@pytest.mark.parametrize(
    "content",
    [
        b"\xef\xbb\xbfMAILER_PORT=8001\n",  # with a byte order mark
        b"MAILER_PORT=8001\r\n",
        b"MAILER_PORT=8001\rMAILER_LEASE=90",
        b"  export MAILER_PORT=8001   # the port",
        b"MAILER_PORT = '8001'",
        b'MAILER_PORT="8001"',
        b"MAILER_PORT=1\nMAILER_PORT=8001\n",
        b"MAILER_PORT=${PORT_OF_MAILER:-8001}\n",
        b"BASE=80\nMAILER_PORT=${BASE}01\n",
        b"this line is not a variable\nMAILER_PORT=8001\n",
    ],
)
def test_all_usual_formats_of_the_file_are_read(file: Path, content: bytes) -> None:
    file.write_bytes(content)
    assert read({}, file).port == 8001


def test_an_empty_variable_with_a_default_counts_as_set(file: Path) -> None:
    file.write_text("MAILER_GATEWAY_TOKEN=${TOKEN:-none}token\n")
    assert read({"TOKEN": ""}, file).gateway_token == "token"  # noqa: S105  # of a test


def test_value_in_single_quotes_is_not_interpolated(file: Path) -> None:
    file.write_text("MAILER_GATEWAY_TOKEN='pa${ss}w$rd'\n")
    assert read({}, file).gateway_token == "pa${ss}w$rd"  # noqa: S105  # of a test
    assert read({"ss": "x"}, file).gateway_token == "pa${ss}w$rd"  # noqa: S105  # likewise


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"MAILER_PORT=80\0\n", "UTF-8"),
        (b"\n# comment\n\nMAILER_GATEWAY_TOKEN=pa${ss}word\n", "line 4 uses"),
        (b"OTHER=x\nMAILER_GATEWAY_TOKEN='unfinished\n", "line 2 is not NAME=value"),
        (b"MAILER_PORT 8001\n", "line 1 is not NAME=value"),
        (b'MAILER_HOST="a\\nb"\n', "MAILER_HOST: contains a line end"),
        (b'MAILER_HOST="a\nb"\n', "MAILER_HOST: contains a line end"),
        (b"MAILER_PORT=8001\n" + b"#" * 1024 * 1024, "larger than"),
    ],
)
def test_malformed_file_is_rejected_in_one_line(file: Path, content: bytes, expected: str) -> None:
    file.write_bytes(content)
    assert expected in error_of(file)


def test_unreadable_file_is_rejected_in_one_line(file: Path) -> None:
    file.mkdir()
    assert "Is a directory" in error_of(file)
    file.rmdir()
    file.symlink_to("elsewhere")
    assert "does not exist" in error_of(file)
    file.unlink()
    file.symlink_to("/dev/zero")
    assert "larger than" in error_of(file)
    file.unlink()
    file.symlink_to(file)
    assert error_of(file)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_file_of_another_user_is_rejected_in_one_line(file: Path) -> None:
    file.touch(mode=0o000)
    assert "Permission denied" in error_of(file)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        (b"MAILER_HOST", b"\xff\xfe"),
        (b"MAILER_HOST", "почта".encode("cp1251")),
        (b"MAILER_\xff", b"x"),
        (b"MAILER_A\nB", b"x"),
        (b"MAILER_GATEWAY_TOKEN", b"secret\n"),
        (b"MAILER_" + b"A" * 100_000, b"x"),
        ("MAILER_ПОРТ".encode(), b"8000"),
    ],
)
def test_invalid_bytes_in_a_variable_are_rejected_in_one_line(name: bytes, value: bytes) -> None:
    error = error_of(NO_FILE, {os.fsdecode(name): os.fsdecode(value)})
    assert "MAILER_" in error
    assert "secret" not in error
    assert len(error) < 200


def test_other_variables_may_contain_any_bytes() -> None:
    assert read({"OTHER": "\udcff", "PS1": "\x1b[0m"}) == Settings()
