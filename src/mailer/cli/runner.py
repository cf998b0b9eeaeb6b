"""Running a command: its settings, its error messages and its exit status."""

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

EXIT_CANNOT_START = 78
"""Exit status for a wrong setting, which a restart does not correct (EX_CONFIG of sysexits.h)."""
EXIT_TEMPORARY_FAILURE = 75
"""Exit status for a failure that may pass by itself (EX_TEMPFAIL of sysexits.h)."""
EXIT_INTERRUPTED = 130
"""Exit status after Ctrl-C, by the convention of shells."""


def run(work: Coroutine[Any, Any, Result]) -> Result:
    """Run `work` to its end and return its result.

    An error ends the command: an error of mailer is printed as one line on standard error, any
    other is logged.
    """
    try:
        return uvloop.run(work)
    except MailerError as error:
        click.echo(f"mailer: {error}", err=True)
        sys.exit(_exit_status(error))
    except KeyboardInterrupt:
        sys.exit(EXIT_INTERRUPTED)
    except Exception as error:  # noqa: BLE001  # logged without its text, which may hold personal data
        log.critical("crashed", **describe(error))
        sys.exit(1)


def _exit_status(error: MailerError) -> int:
    match error:
        case StartError():
            return EXIT_CANNOT_START
        case UnavailableError():
            return EXIT_TEMPORARY_FAILURE
        case _:
            return 1


def load_settings() -> Settings:
    """Return the settings and set up logging.

    A wrong setting ends the command with one line on standard error.
    """
    try:
        settings = read_settings(os.environ)
    except StartError as error:
        click.echo(f"mailer: {error}", err=True)
        sys.exit(EXIT_CANNOT_START)
    configure_logging(settings.log_level, settings.log_format)
    return settings


def run_on_database(
    settings: Settings, work: "Callable[[AsyncEngine], Awaitable[Result]]"
) -> Result:
    """Run `work` on the database and return its result; an error ends the command as in `run`.

    A running mailer may use the database at the same time.
    """
    from mailer.db import startup

    return run(startup.run_on_database(startup.DatabaseSource.of(settings), work))
