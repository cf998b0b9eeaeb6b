"""Logging, set up once: one line an event, for a person on a terminal and as JSON elsewhere."""

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

HIDDEN = "***"
SECRETS = frozenset({"text", "token", "password", "secret", "authorization", "cookie"})
LONGEST = 8_192  # characters of one value: a log line is bounded, like every other limit
MOST_ITEMS = 50
SHORTEST = len("79161234567")  # nothing shorter can hold a phone: most values are not searched
DEEPEST = 4
REMEMBERED = 100
FAILURES = frozenset({"warning", "error", "critical"})

# What may stand in the text of an exception: a phone but for its last two digits, the user and
# password of a URL, a bearer token.
PERSONAL = re.compile(
    r"(?<![0-9])7[0-9]{8}(?=[0-9]{2}(?![0-9]))|(?<=://)[^/\s@]+(?=@)|(?<=Bearer )\S+"
)
# A gateway may want its key in the query.
QUERY = re.compile(r"""(://[^\s?#'"]{1,2000}\?)[^\s#'"]+""")

# Libraries whose chatter tells an operator nothing; SQLAlchemy's would also show rows.
QUIET = ("aiohttp", "alembic", "asyncio", "sqlalchemy", "uvicorn")


class Failure(msgspec.Struct, frozen=True):
    """An event at warning or above, as the log shows it: without secrets and personal data."""

    at: datetime
    level: str
    event: str
    facts: dict[str, object]


_recent: deque[Failure] = deque(maxlen=REMEMBERED)
_threshold = logging.DEBUG


def recent_failures() -> list[Failure]:
    """Return this process's last events at warning or above, newest first, at most a hundred.

    What the log's level leaves out is not among them.
    """
    return list(_recent.copy())[::-1]  # a copy is one step, whatever other threads add meanwhile


def shows_debug() -> bool:
    """Return whether the log shows debug: a tenth of the cost of an event that it passes over."""
    return _threshold <= logging.DEBUG


def configure_logging(
    level: str, log_format: Literal["console", "json"] | None, stream: TextIO | None = None
) -> None:
    """Send structlog's events and the standard library's records to `stream`, rendered alike.

    `level` is debug, info, warning or error. Without `log_format` a terminal gets `console` and
    anything else `json`; without `stream` it is standard error.
    """
    output = _LogStream(stream or sys.stderr)
    global _threshold  # noqa: PLW0603  # a process has one log, and sets it up once
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
    for name in QUIET:
        logging.getLogger(name).setLevel(max(threshold, logging.WARNING))


class _LogStream:
    """Where log lines go. A reader that is gone or a disk that is full stops nothing else."""

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
    """Keep a failure; what comes here is redacted, and bounded as a line is."""
    if event["level"] in FAILURES:
        facts = dict(event)
        at = datetime.fromisoformat(facts.pop("timestamp"))
        _recent.append(Failure(at, facts.pop("level"), str(facts.pop("event", "")), facts))
    return event


def describe(error: BaseException) -> dict[str, str]:
    """Return an error's types and frames for a log line, without texts, which may hold data."""
    chain = [error]
    while cause := chain[-1].__cause__ or chain[-1].__context__:
        chain.append(cause)
    return {
        "error": " from ".join(f"{type(e).__module__}.{type(e).__qualname__}" for e in chain),
        "frames": "".join(traceback.format_tb(error.__traceback__)),
    }


def redact(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    """Mask phones, texts and secrets that reached an event by mistake, and bound its size."""
    for key, value in event.items():
        event[key] = _safe(key, value)
    return event


def _safe(key: str, value: object, depth: int = 0) -> object:
    """Return `value` as a log may show it under `key`."""
    if value is None:
        return None
    name = _last_word(key)
    if name in SECRETS:
        return HIDDEN
    if name == "phone":
        return HIDDEN + str(value)[-2:]
    return _bounded(key, value, depth)


@lru_cache(maxsize=1024)
def _last_word(key: str) -> str:
    return key.lower().rpartition("_")[2]


def _bounded(key: str, value: object, depth: int) -> object:
    match value:
        case int() | float() | date() | time() | timedelta() | UUID():
            return value
        case str():
            return _safe_text(value)
        case msgspec.Struct():
            return _bounded(key, msgspec.structs.asdict(value), depth)
        case Mapping() if depth < DEEPEST:
            inner = islice(value.items(), MOST_ITEMS)
            return {str(k): _safe(str(k), v, depth + 1) for k, v in inner}
        case list() | tuple() | set() | frozenset() if depth < DEEPEST:
            return [_safe(key, item, depth + 1) for item in islice(value, MOST_ITEMS)]
        case _:
            return _safe_text(repr(value))


def _safe_text(value: str) -> str:
    if len(value) < SHORTEST:
        return value
    if len(value) > LONGEST:  # both ends: what it was, and for a traceback the error itself
        half = LONGEST // 2
        value = f"{value[:half]} ... {value[-half:]}"
    if "://" in value:
        value = QUERY.sub(rf"\1{HIDDEN}", value)
    return PERSONAL.sub(HIDDEN, value)


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
