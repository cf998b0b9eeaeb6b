"""The command line."""

import os
import sys
from collections.abc import Coroutine

import click
import uvloop

from mailer import app
from mailer.errors import MailerError
from mailer.log import configure_logging
from mailer.settings import Settings, read_settings


def _run(work: Coroutine[None, None, None]) -> None:
    """Run `work` to its end; what mailer refuses is one line on standard error and exit 1."""
    try:
        uvloop.run(work)
    except MailerError as error:
        sys.exit(f"mailer: {error}")


def _settings() -> Settings:
    try:
        settings = read_settings(os.environ)
    except MailerError as error:
        sys.exit(f"mailer: {error}")
    configure_logging(settings.log_level, settings.log_format)
    return settings


@click.group()
@click.version_option(package_name="mailer")
def main() -> None:
    """Mass messaging by SMS gateway. Settings: variables MAILER_..., or a file .env."""


@main.command()
def serve() -> None:
    """Serve the API and the admin pages, and send what is due."""
    _run(app.serve(_settings()))


if __name__ == "__main__":
    main()
