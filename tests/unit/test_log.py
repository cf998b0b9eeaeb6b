"""Log lines: format, level, masking of personal data, limits, and remembered failures."""

import io
import json
import logging
import re
import warnings
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any, Literal

import msgspec
import pytest
import structlog

from mailer.log import MAX_RECENT_FAILURES, configure_logging, describe, recent_failures

NUMBER_BEYOND_64_BITS = 10**30


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


class Person(msgspec.Struct):
    phone: str
    tag: str


@pytest.fixture(autouse=True)
def restore_logging() -> Iterator[None]:
    """Restore after each test how the other tests log."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    configure_logging("debug", "json", io.StringIO())  # the state before any configuration
    logging.captureWarnings(capture=False)
    root.handlers[:] = handlers
    root.setLevel(level)
    structlog.reset_defaults()
    structlog.contextvars.clear_contextvars()


@pytest.fixture
def stream() -> io.StringIO:
    """The output of the log."""
    return io.StringIO()


def lines(stream: io.StringIO) -> list[dict[str, Any]]:
    """Return the lines of the log, which are JSON."""
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def only_line(stream: io.StringIO) -> dict[str, Any]:
    (line,) = lines(stream)
    return line


def test_event_is_one_line_of_json_without_a_terminal(stream: io.StringIO) -> None:
    configure_logging("info", None, stream)
    structlog.get_logger().info("message_delivered", message_id=7)
    line = only_line(stream)
    timestamp = line.pop("timestamp")
    assert line == {"event": "message_delivered", "level": "info", "message_id": 7}
    assert re.fullmatch(r"[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9:]{8}\.[0-9]{6}Z", timestamp)


def test_event_on_a_terminal_is_readable_text() -> None:
    terminal = Terminal()
    configure_logging("info", None, terminal)
    structlog.get_logger().info("message_delivered", message_id=7)
    assert "message_delivered" in terminal.getvalue()
    assert not terminal.getvalue().startswith("{")


def test_configured_format_is_used_on_a_terminal_too() -> None:
    terminal = Terminal()
    configure_logging("info", "json", terminal)
    structlog.get_logger().info("message_delivered")
    assert only_line(terminal)["event"] == "message_delivered"


def test_events_below_the_level_are_dropped(stream: io.StringIO) -> None:
    configure_logging("warning", "json", stream)
    structlog.get_logger().info("claimed")
    logging.getLogger("some.library").info("started")
    structlog.get_logger().warning("gateway_held")
    assert only_line(stream)["event"] == "gateway_held"


def test_log_records_of_libraries_have_the_same_format(stream: io.StringIO) -> None:
    configure_logging("info", "json", stream)
    structlog.contextvars.bind_contextvars(request_id="r1")
    logging.getLogger("some.library").info("listening on %s", "127.0.0.1")
    line = only_line(stream)
    assert line.pop("timestamp").endswith("Z")
    assert line == {
        "event": "listening on 127.0.0.1",
        "level": "info",
        "logger": "some.library",
        "request_id": "r1",
    }


@pytest.mark.parametrize("name", ["sqlalchemy.engine.Engine", "asyncio"])
def test_info_records_of_noisy_libraries_are_dropped(stream: io.StringIO, name: str) -> None:
    configure_logging("debug", "json", stream)
    logging.getLogger(name).info("SELECT phone, text")
    assert lines(stream) == []


def test_python_warning_is_logged(stream: io.StringIO) -> None:
    configure_logging("info", "json", stream)
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.warn("old", DeprecationWarning, stacklevel=1)
    assert only_line(stream)["logger"] == "py.warnings"


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("phone", "79161234567", "***67"),
        ("client_phone", 79161234567, "***67"),
        ("text", "hello", "***"),
        ("gateway_token", "t0ken", "***"),
        ("password", "secret", "***"),
        ("Authorization", "Bearer t0ken", "***"),
        ("text", None, None),
        ("context", "kept", "kept"),
        ("rows", [{"phone": "79161234567", "id": 1}], [{"phone": "***67", "id": 1}]),
        ("client", Person("79161234567", "vip"), {"phone": "***67", "tag": "vip"}),
        ("url", "postgresql://me:secret@db/mailer", "postgresql://***@db/mailer"),
        ("url", "http://gate/send?key=hush&id=7", "http://gate/send?***"),
        (
            "error",
            OSError("('https://u:p@gate/?key=hush')"),
            "OSError(\"('https://***@gate/?***')\")",
        ),
        ("error", ValueError("Key (phone)=(79161234567)"), "ValueError('Key (phone)=(***67)')"),
        ("header", "Bearer t0ken", "Bearer ***"),
        ("message_id", 79161234567, 79161234567),
    ],
)
def test_personal_data_is_masked(
    stream: io.StringIO, key: str, value: object, expected: object
) -> None:
    configure_logging("info", "json", stream)
    structlog.get_logger().info("oops", **{key: value})
    assert only_line(stream)[key] == expected


def test_log_record_of_a_library_is_masked(stream: io.StringIO) -> None:
    configure_logging("info", "json", stream)
    logging.getLogger("some.library").info("GET /clients?phone=%s", "79161234567")
    assert only_line(stream)["event"] == "GET /clients?phone=***67"


def fail_with_phone(phone: int) -> None:
    """Raise an error whose message has the phone and 5, with a token in a local variable.

    The token is not in the source, which is a part of the traceback.
    """
    token = "t0" + "ken"
    raise LookupError(phone, len(token))


@pytest.mark.parametrize("log_format", ["console", "json"])
def test_exception_is_logged_without_local_variables(
    stream: io.StringIO, log_format: Literal["console", "json"]
) -> None:
    configure_logging("info", log_format, stream)
    try:
        fail_with_phone(79161234567)
    except LookupError:
        structlog.get_logger().exception("failed")
        logging.getLogger("some.library").exception("failed too")
    log = stream.getvalue()
    assert log.count("LookupError: (***67, 5)") == 2
    assert "t0ken" not in log


def test_length_of_a_line_is_limited(stream: io.StringIO) -> None:
    configure_logging("info", "json", stream)
    circle: list[object] = []
    circle.append(circle)  # a list that contains itself
    structlog.get_logger().info("big", body="x" * 10**7, ids=list(range(10**5)), circle=circle)
    assert len(stream.getvalue()) < 10_000


@pytest.mark.parametrize(
    # a lone surrogate, which is not UTF-8; NUL; and what JSON or msgspec cannot represent
    "value",
    ["\ud800", "\x00", NUMBER_BEYOND_64_BITS, float("nan"), {1: object}, b"\xff"],
)
def test_any_value_can_be_logged(stream: io.StringIO, value: object) -> None:
    configure_logging("info", "json", stream)
    structlog.get_logger().info("odd", value=value)
    assert only_line(stream)["event"] == "odd"


def test_description_of_an_error_contains_no_message() -> None:
    try:
        try:
            int("phone 79161234567")
        except ValueError as cause:
            raise RuntimeError("Your order is ready.") from cause
    except RuntimeError as error:
        description = describe(error)
    assert description["error"] == "builtins.RuntimeError from builtins.ValueError"
    assert "test_log.py" in description["frames"]


def test_recent_failures_come_newest_first_with_their_facts(stream: io.StringIO) -> None:
    configure_logging("info", "json", stream)
    structlog.get_logger().info("started")
    structlog.get_logger().warning("database_unavailable", at="claim")
    logging.getLogger("some.library").error("no answer from %s", "mail.example.org")
    newest, older = recent_failures()[:2]
    assert (newest.event, newest.level) == ("no answer from mail.example.org", "error")
    assert newest.facts == {"logger": "some.library"}
    assert (older.event, older.level, older.facts) == (
        "database_unavailable",
        "warning",
        {"at": "claim"},
    )
    assert older.at <= newest.at <= datetime.now(UTC)
    assert all(failure.event != "started" for failure in recent_failures())


def test_only_the_last_hundred_failures_are_remembered(stream: io.StringIO) -> None:
    configure_logging("info", "json", stream)
    for number in range(MAX_RECENT_FAILURES + 5):
        structlog.get_logger().error("task_failed", number=number)
    numbers = [failure.facts["number"] for failure in recent_failures()]
    assert numbers == list(range(5, MAX_RECENT_FAILURES + 5))[::-1]


def test_remembered_failure_is_masked_and_limited_in_size(stream: io.StringIO) -> None:
    configure_logging("info", "json", stream)
    try:
        fail_with_phone(79161234567)
    except LookupError:
        structlog.get_logger().exception("failed", phone="79161234567", body="x" * 10**6)
    failure = recent_failures()[0]
    assert failure.level == "error"
    assert failure.facts["phone"] == "***67"
    assert "LookupError: (***67, 5)" in str(failure.facts["exception"])
    assert "79161234567" not in str(failure)
    assert len(str(failure.facts["body"])) < 10_000


def test_event_below_the_level_is_not_remembered(stream: io.StringIO) -> None:
    configure_logging("error", "json", stream)
    structlog.get_logger().warning("left_out")
    assert all(failure.event != "left_out" for failure in recent_failures())
