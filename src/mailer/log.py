"""Logging: one line for each event, readable on a terminal and as JSON elsewhere."""

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
SECRET_WORDS = frozenset({"text", "token", "password", "secret", "authorization", "cookie"})
MAX_LOGGED_VALUE_LENGTH = 8_192
"""Maximum length of one value in an event, in characters."""
MAX_ITEMS = 50
"""Maximum items of a list or mapping in an event."""
MIN_SEARCHED_LENGTH = len("79161234567")
"""Shorter values cannot contain a phone and are not searched for one."""
MAX_DEPTH = 4
"""Maximum depth of nested lists and mappings in an event."""
MAX_RECENT_FAILURES = 100
FAILURE_LEVELS = frozenset({"warning", "error", "critical"})

# Personal data and secrets that the text of an exception may contain: a phone except its last two
# digits, the user and password of a URL, a bearer token.
PERSONAL_DATA = re.compile(
    r"(?<![0-9])7[0-9]{8}(?=[0-9]{2}(?![0-9]))|(?<=://)[^/\s@]+(?=@)|(?<=Bearer )\S+"
)
# Some gateways take their key in the query of a URL.
URL_QUERY = re.compile(r"""(://[^\s?#'"]{1,2000}\?)[^\s#'"]+""")

# Libraries whose messages below warnings do not help; those of SQLAlchemy would also show rows.
QUIET_LOGGERS = ("aiohttp", "alembic", "asyncio", "sqlalchemy", "uvicorn")


class LoggedFailure(msgspec.Struct, frozen=True):
    """An event at warning or above as in the log: without secrets and personal data."""

    at: datetime
    level: str
    event: str
    facts: dict[str, object]


_recent: deque[LoggedFailure] = deque(maxlen=MAX_RECENT_FAILURES)
_threshold = logging.DEBUG


def recent_failures() -> list[LoggedFailure]:
    """Return this worker's last events at warning or above, newest first, at most a hundred.

    Events below the log level are not included.
    """
    return list(_recent.copy())[::-1]  # copying is atomic; other threads may append meanwhile


def shows_debug() -> bool:
    """Return whether debug events are logged.

    The check costs a tenth of logging an event that the log level leaves out.
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
    facts: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.StackInfoRenderer(),
        structlog.processors.format_exc_info,  # plain text: locals may hold phones and tokens
    ]
    line: list[Processor] = [
        redact,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        _remember,
        _renderer(log_format or ("console" if output.isatty() else "json"), output),
    ]
    structlog.configure(
        processors=[*facts, *line],
        wrapper_class=structlog.make_filtering_bound_logger(threshold),
        logger_factory=structlog.WriteLoggerFactory(cast("TextIO", output)),
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(output)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[structlog.stdlib.add_logger_name, *facts],
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                *line,
            ],
        )
    )
    logging.basicConfig(level=threshold, handlers=[handler], force=True)
    logging.captureWarnings(capture=True)
    for name in QUIET_LOGGERS:
        logging.getLogger(name).setLevel(max(threshold, logging.WARNING))


class _LogStream:
    """The output of the log. Write errors, such as a full disk, do not stop mailer."""

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
    """Keep an event at warning or above; `redact` has masked and shortened it before."""
    if event["level"] in FAILURE_LEVELS:
        facts = dict(event)
        at = datetime.fromisoformat(facts.pop("timestamp"))
        _recent.append(LoggedFailure(at, facts.pop("level"), str(facts.pop("event", "")), facts))
    return event


def describe(error: BaseException) -> dict[str, str]:
    """Return the types and frames of an error for the log, without its texts.

    Texts may contain personal data.
    """
    chain = [error]
    while cause := chain[-1].__cause__ or chain[-1].__context__:
        chain.append(cause)
    return {
        "error": " from ".join(f"{type(e).__module__}.{type(e).__qualname__}" for e in chain),
        "frames": "".join(traceback.format_tb(error.__traceback__)),
    }


def redact(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    """Mask phones, texts and secrets that got into an event by mistake, and limit its size."""
    for key, value in event.items():
        event[key] = _mask(key, value)
    return event


def _mask(key: str, value: object, depth: int = 0) -> object:
    """Return `value` as it may be logged under `key`."""
    if value is None:
        return None
    name = _last_word(key)
    if name in SECRET_WORDS:
        return MASK
    if name == "phone":
        return MASK + str(value)[-2:]
    return _bound(key, value, depth)


@lru_cache(maxsize=1024)
def _last_word(key: str) -> str:
    return key.lower().rpartition("_")[2]


def _bound(key: str, value: object, depth: int) -> object:
    match value:
        case int() | float() | date() | time() | timedelta() | UUID():
            return value
        case str():
            return _mask_text(value)
        case msgspec.Struct():
            return _bound(key, msgspec.structs.asdict(value), depth)
        case Mapping() if depth < MAX_DEPTH:
            inner = islice(value.items(), MAX_ITEMS)
            return {str(k): _mask(str(k), v, depth + 1) for k, v in inner}
        case list() | tuple() | set() | frozenset() if depth < MAX_DEPTH:
            return [_mask(key, item, depth + 1) for item in islice(value, MAX_ITEMS)]
        case _:
            return _mask_text(repr(value))


def _mask_text(value: str) -> str:
    if len(value) < MIN_SEARCHED_LENGTH:
        return value
    if len(value) > MAX_LOGGED_VALUE_LENGTH:  # keep both ends: a traceback ends with the error
        half = MAX_LOGGED_VALUE_LENGTH // 2
        value = f"{value[:half]} ... {value[-half:]}"
    if "://" in value:
        value = URL_QUERY.sub(rf"\1{MASK}", value)
    return PERSONAL_DATA.sub(MASK, value)


def _renderer(log_format: Literal["console", "json"], stream: _LogStream) -> Processor:
    if log_format == "json":
        return _render_json
    return structlog.dev.ConsoleRenderer(
        colors=stream.isatty(), exception_formatter=structlog.dev.plain_traceback
    )


def _render_json(_logger: WrappedLogger, _method: str, event: EventDict) -> str:
    try:
        return msgspec.json.encode(event).decode()
    except (ValueError, TypeError, OverflowError):  # a lone surrogate, an integer past 64 bits
        return json.dumps(event, default=repr, skipkeys=True)
