"""How a command runs: under which settings, and what it says when it cannot."""

import os
import sys
from collections.abc import Awaitable, Callable, Coroutine
from typing import TYPE_CHECKING, Any, TypeVar

import click
import structlog
import uvloop

from mailer.errors import MailerError, StartError, UnavailableError
from mailer.log import configure_logging, describe
from mailer.settings import Settings, read_settings

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncEngine

log = structlog.get_logger()

Result = TypeVar("Result")

CANNOT_START = 78
"""Exit status when a setting is wrong and a restart would not help (EX_CONFIG of sysexits.h)."""
TRY_AGAIN = 75
"""Exit status for what may pass (EX_TEMPFAIL of sysexits.h)."""
INTERRUPTED = 130
"""Exit status after Ctrl-C, as shells have it."""


def run(work: Coroutine[Any, Any, Result]) -> Result:
    """Run `work` to its end; what mailer refuses is one line on standard error."""
    try:
        return uvloop.run(work)
    except MailerError as error:
        click.echo(f"mailer: {error}", err=True)
        sys.exit(_exit_status(error))
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)
    except Exception as error:  # noqa: BLE001  # the last word on it, without what it may hold
        log.critical("crashed", **describe(error))
        sys.exit(1)


def _exit_status(error: MailerError) -> int:
    match error:
        case StartError():
            return CANNOT_START
        case UnavailableError():
            return TRY_AGAIN
        case _:
            return 1


def settings_given() -> Settings:
    """Return the settings; wrong ones end the command with one line on standard error."""
    try:
        settings = read_settings(os.environ)
    except StartError as error:
        click.echo(f"mailer: {error}", err=True)
        sys.exit(CANNOT_START)
    configure_logging(settings.log_level, settings.log_format)
    return settings


def on_database(settings: Settings, work: "Callable[[AsyncEngine], Awaitable[Result]]") -> Result:
    """Do something on the database, which a running mailer may use meanwhile."""
    from mailer.db import opening

    return run(opening.on_database(settings, work))
