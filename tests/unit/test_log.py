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

from mailer.log import REMEMBERED, configure_logging, describe, recent_failures

NUMBER_BEYOND_64_BITS = 10**30


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


class Person(msgspec.Struct):
    phone: str
    tag: str


@pytest.fixture(autouse=True)
def as_it_was() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    configure_logging("debug", "json", io.StringIO())  # as before anything is configured
    logging.captureWarnings(capture=False)
    root.handlers[:] = handlers
    root.setLevel(level)
    structlog.reset_defaults()
    structlog.contextvars.clear_contextvars()


@pytest.fixture
def stream() -> io.StringIO:
    return io.StringIO()


def lines(stream: io.StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def only_line(stream: io.StringIO) -> dict[str, Any]:
    (line,) = lines(stream)
    return line


def test_an_event_is_one_line_of_json_away_from_a_terminal(stream: io.StringIO) -> None:
    configure_logging("info", None, stream)
    structlog.get_logger().info("message_delivered", message_id=7)
    line = only_line(stream)
    timestamp = line.pop("timestamp")
    assert line == {"event": "message_delivered", "level": "info", "message_id": 7}
    assert re.fullmatch(r"[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9:]{8}\.[0-9]{6}Z", timestamp)


def test_a_terminal_gets_text_for_a_person() -> None:
    terminal = Terminal()
    configure_logging("info", None, terminal)
    structlog.get_logger().info("message_delivered", message_id=7)
    assert "message_delivered" in terminal.getvalue()
    assert not terminal.getvalue().startswith("{")


def test_the_format_can_be_given() -> None:
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


def test_libraries_are_rendered_alike(stream: io.StringIO) -> None:
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
def test_a_library_that_would_show_rows_or_ticks_is_quiet(stream: io.StringIO, name: str) -> None:
    configure_logging("debug", "json", stream)
    logging.getLogger(name).info("SELECT phone, text")
    assert lines(stream) == []


def test_a_warning_is_a_line_too(stream: io.StringIO) -> None:
    configure_logging("info", "json", stream)
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.warn("old", DeprecationWarning, stacklevel=1)
    assert only_line(stream)["logger"] == "py.warnings"


@pytest.mark.parametrize(
    ("key", "value", "shown"),
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
    stream: io.StringIO, key: str, value: object, shown: object
) -> None:
    configure_logging("info", "json", stream)
    structlog.get_logger().info("oops", **{key: value})
    assert only_line(stream)[key] == shown


def test_a_message_of_a_library_is_masked(stream: io.StringIO) -> None:
    configure_logging("info", "json", stream)
    logging.getLogger("some.library").info("GET /clients?phone=%s", "79161234567")
    assert only_line(stream)["event"] == "GET /clients?phone=***67"


def look_up(phone: int) -> None:
    token = "t0" + "ken"
    raise LookupError(phone, len(token))


@pytest.mark.parametrize("log_format", ["console", "json"])
def test_an_exception_is_shown_without_locals(
    stream: io.StringIO, log_format: Literal["console", "json"]
) -> None:
    configure_logging("info", log_format, stream)
    try:
        look_up(79161234567)
    except LookupError:
        structlog.get_logger().exception("failed")
        logging.getLogger("some.library").exception("failed too")
    written = stream.getvalue()
    assert written.count("LookupError: (***67, 5)") == 2
    assert "t0ken" not in written


def test_a_line_is_bounded(stream: io.StringIO) -> None:
    configure_logging("info", "json", stream)
    circle: list[object] = []
    circle.append(circle)
    structlog.get_logger().info("big", body="x" * 10**7, ids=list(range(10**5)), circle=circle)
    assert len(stream.getvalue()) < 10_000


@pytest.mark.parametrize(
    "value", ["\ud800", "\x00", NUMBER_BEYOND_64_BITS, float("nan"), {1: object}, b"\xff"]
)
def test_no_value_breaks_a_line(stream: io.StringIO, value: object) -> None:
    configure_logging("info", "json", stream)
    structlog.get_logger().info("odd", value=value)
    assert only_line(stream)["event"] == "odd"


def test_an_error_is_described_without_what_it_says() -> None:
    try:
        try:
            int("phone 79161234567")
        except ValueError as cause:
            raise RuntimeError("Your order is ready.") from cause
    except RuntimeError as error:
        described = describe(error)
    assert described["error"] == "builtins.RuntimeError from builtins.ValueError"
    assert "test_log.py" in described["frames"]


def test_failures_are_remembered_newest_first_with_their_facts(stream: io.StringIO) -> None:
    configure_logging("info", "json", stream)
    structlog.get_logger().info("started")
    structlog.get_logger().warning("database_away", at="claim")
    logging.getLogger("some.library").error("no answer from %s", "mail.example.org")
    newest, older = recent_failures()[:2]
    assert (newest.event, newest.level) == ("no answer from mail.example.org", "error")
    assert newest.facts == {"logger": "some.library"}
    assert (older.event, older.level, older.facts) == ("database_away", "warning", {"at": "claim"})
    assert older.at <= newest.at <= datetime.now(UTC)
    assert all(failure.event != "started" for failure in recent_failures())


def test_no_more_than_the_last_hundred_failures_are_remembered(stream: io.StringIO) -> None:
    configure_logging("info", "json", stream)
    for number in range(REMEMBERED + 5):
        structlog.get_logger().error("step_failed", number=number)
    numbers = [failure.facts["number"] for failure in recent_failures()]
    assert numbers == list(range(5, REMEMBERED + 5))[::-1]


def test_what_is_remembered_holds_no_personal_data_and_is_bounded(stream: io.StringIO) -> None:
    configure_logging("info", "json", stream)
    try:
        look_up(79161234567)
    except LookupError:
        structlog.get_logger().exception("failed", phone="79161234567", body="x" * 10**6)
    failure = recent_failures()[0]
    assert failure.level == "error"
    assert failure.facts["phone"] == "***67"
    assert "LookupError: (***67, 5)" in str(failure.facts["exception"])
    assert "79161234567" not in str(failure)
    assert len(str(failure.facts["body"])) < 10_000


def test_what_the_level_leaves_out_is_not_remembered(stream: io.StringIO) -> None:
    configure_logging("error", "json", stream)
    structlog.get_logger().warning("left_out")
    assert all(failure.event != "left_out" for failure in recent_failures())
