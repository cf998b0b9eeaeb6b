"""Logging: one line for each event, readable on a terminal and as JSON elsewhere.

Phones, texts and secrets in an event are masked, and its size is limited. The last failures are
also kept in memory, for the page of the system.
"""

import json
import logging
import re
import sys
import traceback
from collections import deque
from collections.abc import Mapping
from contextlib import suppress
from datetime import date, datetime, time, timedelta
from functools import lru_cache
from itertools import islice
from typing import Literal, TextIO, cast
from uuid import UUID

import msgspec
import structlog
from structlog.typing import EventDict, Processor, WrappedLogger

MASK = "***"
"""What is logged instead of personal data or a secret."""
SECRET_WORDS = frozenset({"text", "token", "password", "secret", "authorization", "cookie"})
"""A value is masked when the last word of its key is one of these, as in `gateway_token`."""
MAX_LOGGED_VALUE_LENGTH = 8_192
"""Maximum length of one value in an event, in characters."""
MAX_ITEMS = 50
"""Maximum items of a list or mapping in an event."""
MIN_SEARCHED_LENGTH = len("79161234567")
"""Shorter values cannot contain a phone and are not searched for one."""
MAX_DEPTH = 4
"""Maximum depth of nested lists and mappings in an event. Deeper ones are logged as their repr."""
MAX_RECENT_FAILURES = 100
"""Number of failures that are kept in memory."""
FAILURE_LEVELS = frozenset({"warning", "error", "critical"})
"""Levels of events that are failures."""

PERSONAL_DATA = re.compile(
    r"(?<![0-9])7[0-9]{8}(?=[0-9]{2}(?![0-9]))|(?<=://)[^/\s@]+(?=@)|(?<=Bearer )\S+"
)
"""Personal data and secrets that any value, such as the text of an exception, may contain: a phone
except its last two digits, the user and password of a URL, a bearer token."""
URL_QUERY = re.compile(r"""(://[^\s?#'"]{1,2000}\?)[^\s#'"]+""")
"""The query of a URL, which is masked too: some gateways expect their key there."""

QUIET_LOGGERS = ("aiohttp", "alembic", "asyncio", "sqlalchemy", "uvicorn")
"""Libraries of which only warnings and errors are logged. The rest does not help, and SQLAlchemy
would log rows."""


SILENT_LOGGER = "sqlalchemy.pool"
"""It logs as an error that a lost connection could not be closed. The loss itself is logged by the
code that used the connection."""


class LoggedFailure(msgspec.Struct, frozen=True):
    """An event at level warning or above, masked and shortened as in the log."""

    at: datetime
    level: str
    event: str
    facts: dict[str, object]


_recent: deque[LoggedFailure] = deque(maxlen=MAX_RECENT_FAILURES)
_threshold = logging.DEBUG
"""The lowest level that is logged."""


def recent_failures() -> list[LoggedFailure]:
    """Return this worker's last failures, newest first, at most `MAX_RECENT_FAILURES`.

    Events below the configured level are not included.
    """
    return list(_recent.copy())[::-1]  # copying is atomic; other threads may append meanwhile


def shows_debug() -> bool:
    """Return whether debug events are logged.

    Use it in hot paths: it costs a tenth of a call of `log.debug` that logs nothing.
    """
    return _threshold <= logging.DEBUG


def configure_logging(
    level: str, log_format: Literal["console", "json"] | None, stream: TextIO | None = None
) -> None:
    """Write the events of structlog and of the standard library to `stream` in one format.

    `level` is debug, info, warning or error. `log_format` defaults to `console` for a terminal and
    to `json` otherwise; `stream` defaults to standard error.
    """
    output = _LogStream(stream or sys.stderr)
    global _threshold  # noqa: PLW0603  # a process configures its log once
    _threshold = threshold = logging.getLevelNamesMapping()[level.upper()]
    # structlog passes an event through these processors in order: first more facts are added, then
    # the line is made
    fact_processors: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.StackInfoRenderer(),
        structlog.processors.format_exc_info,  # plain text: locals may hold phones and tokens
    ]
    line_processors: list[Processor] = [
        redact,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        _remember,
        _renderer(log_format or ("console" if output.isatty() else "json"), output),
    ]
    structlog.configure(
        processors=[*fact_processors, *line_processors],
        wrapper_class=structlog.make_filtering_bound_logger(threshold),
        logger_factory=structlog.WriteLoggerFactory(cast("TextIO", output)),
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(output)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[structlog.stdlib.add_logger_name, *fact_processors],
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                *line_processors,
            ],
        )
    )
    logging.basicConfig(level=threshold, handlers=[handler], force=True)
    logging.captureWarnings(capture=True)
    for name in QUIET_LOGGERS:
        logging.getLogger(name).setLevel(max(threshold, logging.WARNING))
    logging.getLogger(SILENT_LOGGER).setLevel(logging.CRITICAL)


class _LogStream:
    """The output of the log. Errors of writing, such as a full disk, are ignored."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self.isatty = stream.isatty

    def write(self, line: str) -> None:
        with suppress(OSError):
            self._stream.write(line)

    def flush(self) -> None:
        with suppress(OSError):
            self._stream.flush()


def _remember(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    """Keep an event at level warning or above, which is masked already, for `recent_failures`."""
    if event["level"] in FAILURE_LEVELS:
        facts = dict(event)
        at = datetime.fromisoformat(facts.pop("timestamp"))
        _recent.append(LoggedFailure(at, facts.pop("level"), str(facts.pop("event", "")), facts))
    return event


def describe(error: BaseException) -> dict[str, str]:
    """Return the types of an error and its causes, and its stack frames, for the log.

    The message of the error is left out, because it may contain personal data.
    """
    errors = [error]
    while cause := errors[-1].__cause__ or errors[-1].__context__:
        errors.append(cause)
    kinds = map(type, errors)
    return {
        "error": " from ".join(f"{kind.__module__}.{kind.__qualname__}" for kind in kinds),
        "frames": "".join(traceback.format_tb(error.__traceback__)),
    }


def redact(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    """Mask phones, texts and secrets in an event, and limit its size: a processor of structlog.

    They should not be there, but may be by mistake.
    """
    for key, value in event.items():
        event[key] = _mask(key, value)
    return event


def _mask(key: str, value: object, depth: int = 0) -> object:
    """Return `value` as it may be logged under `key`.

    `depth` is the number of lists and mappings around the value.
    """
    if value is None:
        return None
    last_word = _last_word(key)
    if last_word in SECRET_WORDS:
        return MASK
    if last_word == "phone":
        return MASK + str(value)[-2:]
    return _bound(key, value, depth)


@lru_cache(maxsize=1024)
def _last_word(key: str) -> str:
    """Return the last word of a key: `token` for `gateway_token`."""
    return key.lower().rpartition("_")[2]


def _bound(key: str, value: object, depth: int) -> object:
    """Return a value of limited size, with what is inside it masked. Parameters as in `_mask`."""
    match value:
        case int() | float() | date() | time() | timedelta() | UUID():
            return value
        case str():
            return _mask_text(value)
        case msgspec.Struct():
            return _bound(key, msgspec.structs.asdict(value), depth)
        case Mapping() if depth < MAX_DEPTH:
            inner = islice(value.items(), MAX_ITEMS)
            return {str(name): _mask(str(name), each, depth + 1) for name, each in inner}
        case list() | tuple() | set() | frozenset() if depth < MAX_DEPTH:
            return [_mask(key, item, depth + 1) for item in islice(value, MAX_ITEMS)]
        case _:
            return _mask_text(repr(value))


def _mask_text(value: str) -> str:
    """Return a text of limited length, without the personal data and secrets found in it."""
    if len(value) < MIN_SEARCHED_LENGTH:
        return value
    if len(value) > MAX_LOGGED_VALUE_LENGTH:  # keep both ends: a traceback ends with the error
        half = MAX_LOGGED_VALUE_LENGTH // 2
        value = f"{value[:half]} ... {value[-half:]}"
    if "://" in value:
        value = URL_QUERY.sub(rf"\1{MASK}", value)
    return PERSONAL_DATA.sub(MASK, value)


def _renderer(log_format: Literal["console", "json"], stream: _LogStream) -> Processor:
    """Return the last processor of structlog, which makes the line in a format."""
    if log_format == "json":
        return _render_json
    return structlog.dev.ConsoleRenderer(
        colors=stream.isatty(), exception_formatter=structlog.dev.plain_traceback
    )


def _render_json(_logger: WrappedLogger, _method: str, event: EventDict) -> str:
    """Return an event as one line of JSON, whatever values it has."""
    try:
        return msgspec.json.encode(event).decode()
    except (ValueError, TypeError, OverflowError):  # a lone surrogate, an integer past 64 bits
        return json.dumps(event, default=repr, skipkeys=True)
