"""Where settings are read from: the environment, and a file that a person wrote somehow."""

import os
from pathlib import Path

import pytest

from mailer.errors import StartError
from mailer.settings import Settings, read_settings

NOWHERE = Path("/nonexistent/.env")

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
"""As they stand in a pod beside the Services `mailer` and `mailer-api-v2`."""


def read(environ: dict[str, str], file: Path = NOWHERE) -> Settings:
    return read_settings(environ, file)


def refusal(file: Path, environ: dict[str, str] | None = None) -> str:
    with pytest.raises(StartError) as error:
        read(environ or {}, file)
    assert "\n" not in str(error.value)
    str(error.value).encode()  # can be printed
    return str(error.value)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / ".env"


def test_what_kubernetes_says_of_a_service_named_mailer_is_passed_over(file: Path) -> None:
    file.write_text("MAILER_PORT=8001\n")
    assert read(KUBERNETES) == Settings()
    assert read(KUBERNETES, file).port == 8001
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
def test_what_only_resembles_it_is_refused(name: str, value: str) -> None:
    assert name in refusal(NOWHERE, {name: value})


@pytest.mark.parametrize(("name", "value"), KUBERNETES.items())
def test_no_platform_writes_a_file_of_settings(file: Path, name: str, value: str) -> None:
    file.write_text(f"{name}={value}\n")
    assert name in refusal(file)


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32", "latin-1"])
def test_a_file_in_another_encoding_is_refused_in_one_line(file: Path, encoding: str) -> None:
    file.write_text("# café\nMAILER_PORT=8001\n", encoding=encoding)
    assert "UTF-8" in refusal(file)


def test_the_line_that_is_not_utf_8_is_named(file: Path) -> None:
    file.write_bytes("MAILER_PORT=1\r\n\r\nMAILER_HOST=почта\n".encode("cp1251"))
    assert "line 3 is not UTF-8" in refusal(file)


@pytest.mark.parametrize(
    "content",
    [
        b"\xef\xbb\xbfMAILER_PORT=8001\n",
        b"MAILER_PORT=8001\r\n",
        b"MAILER_PORT=8001\rMAILER_LEASE=90",
        b"  export MAILER_PORT=8001   # where it listens",
        b"MAILER_PORT = '8001'",
        b'MAILER_PORT="8001"',
        b"MAILER_PORT=1\nMAILER_PORT=8001\n",
        b"MAILER_PORT=${PORT_OF_MAILER:-8001}\n",
        b"BASE=80\nMAILER_PORT=${BASE}01\n",
        b"these words are nobody's business\nMAILER_PORT=8001\n",
    ],
)
def test_a_file_may_be_written_in_many_ways(file: Path, content: bytes) -> None:
    file.write_bytes(content)
    assert read({}, file).port == 8001


def test_single_quotes_keep_a_value_as_it_is(file: Path) -> None:
    file.write_text("MAILER_GATEWAY_TOKEN='pa${ss}w$rd'\n")
    assert read({}, file).gateway_token == "pa${ss}w$rd"  # noqa: S105  # of a test
    assert read({"ss": "x"}, file).gateway_token == "pa${ss}w$rd"  # noqa: S105  # likewise


@pytest.mark.parametrize(
    ("content", "word"),
    [
        (b"MAILER_PORT=80\0\n", "UTF-8"),
        (b"\n# comment\n\nMAILER_GATEWAY_TOKEN=pa${ss}word\n", "line 4 uses"),
        (b"OTHER=x\nMAILER_GATEWAY_TOKEN='unfinished\n", "line 2 is not NAME=value"),
        (b"MAILER_PORT 8001\n", "line 1 is not NAME=value"),
        (b'MAILER_HOST="a\\nb"\n', "MAILER_HOST: holds a line end"),
        (b'MAILER_HOST="a\nb"\n', "MAILER_HOST: holds a line end"),
        (b"MAILER_PORT=8001\n" + b"#" * 1024 * 1024, "larger than"),
    ],
)
def test_a_file_that_cannot_be_meant_so_is_refused_in_one_line(
    file: Path, content: bytes, word: str
) -> None:
    file.write_bytes(content)
    assert word in refusal(file)


def test_a_file_that_cannot_be_read_is_refused_in_one_line(file: Path) -> None:
    file.mkdir()
    assert "Is a directory" in refusal(file)
    file.rmdir()
    file.symlink_to("elsewhere")
    assert "does not exist" in refusal(file)
    file.unlink()
    file.symlink_to("/dev/zero")
    assert "larger than" in refusal(file)
    file.unlink()
    file.symlink_to(file)
    assert refusal(file)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_of_another_user_is_refused_in_one_line(file: Path) -> None:
    file.touch(mode=0o000)
    assert "Permission denied" in refusal(file)


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
def test_bytes_that_are_no_setting_are_refused_in_one_line(name: bytes, value: bytes) -> None:
    said = refusal(NOWHERE, {os.fsdecode(name): os.fsdecode(value)})
    assert "MAILER_" in said
    assert "secret" not in said
    assert len(said) < 200


def test_other_variables_may_hold_any_bytes() -> None:
    assert read({"OTHER": "\udcff", "PS1": "\x1b[0m"}) == Settings()
