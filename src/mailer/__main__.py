"""The command line.

Each command imports what it runs when it runs: help and wrong settings answer at once.
"""

import asyncio
import contextlib
import signal
import sys
from collections.abc import Callable
from datetime import datetime
from functools import partial
from typing import Any, TextIO, TypeVar

import click
from rich.console import Console

from mailer.cli.access import keys, users
from mailer.cli.running import on_database, run, settings_given
from mailer.log import configure_logging

Command = TypeVar("Command", bound=Callable[..., Any])


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="mailer")
def main() -> None:
    """Mass messaging by SMS gateway. Settings are variables MAILER_..., or a file .env."""


main.add_command(keys)
main.add_command(users)


@main.command()
def serve() -> None:
    """Serve the API and the admin pages, and send what is due."""
    settings = settings_given()
    from mailer import app

    run(app.serve(settings))


@main.command()
def migrate() -> None:
    """Bring the database to the newest schema."""
    settings = settings_given()
    from mailer.db import opening

    run(opening.migrate_only(settings))


@main.command()
def demo() -> None:
    """Run everything on loopback, with sample clients and mailings under way."""
    settings = settings_given()
    from mailer import app

    configure_logging("warning", settings.log_format)  # what there is to see is on the pages
    run(app.run_demo(settings, click.echo))


@main.group()
def clients() -> None:
    """Bring clients in and out as CSV."""


@clients.command("import")
@click.argument("file")
def import_(file: str) -> None:
    """Import clients from FILE, or from standard input for -; exit 1 if a line was rejected."""
    settings = settings_given()
    from mailer.client import commands

    work = partial(commands.import_file, path=file, console=Console(stderr=True))
    if on_database(settings, work).rejected:
        sys.exit(1)


@clients.command()
@click.argument("file")
def export(file: str) -> None:
    """Export all clients to FILE, or to standard output for -."""
    settings = settings_given()
    from mailer.client import commands

    work = partial(commands.export_file, path=file, console=Console(stderr=True))
    on_database(settings, work)


@main.command()
@click.option("--date", "day", type=click.DateTime(["%Y-%m-%d"]), required=True, metavar="D")
@click.option("--send", is_flag=True, help="Send it by mail instead of printing it.")
def report(day: datetime, *, send: bool) -> None:
    """Print the report of day D, such as 2030-01-15, or send it by mail."""
    settings = settings_given()
    from mailer.report import commands

    made = run(commands.report(settings, day.date(), send=send))
    if not send:
        click.echo(made)


@main.command()
def verify() -> None:
    """Compare every ledger with its messages; exit 1 and the differences when one is off."""
    settings = settings_given()
    from mailer.report.verify import differences

    found = on_database(settings, differences)
    for difference in found:
        click.echo(difference)
    if found:
        sys.exit(1)
    click.echo("every ledger adds up")


@main.command()
@click.option("--yes", is_flag=True, help="Let it send without asking.")
def resume_after_restore(*, yes: bool) -> None:
    """Show what a restored database would send, ask, and let it send."""
    settings = settings_given()
    from mailer.mailing import commands

    restored = on_database(settings, commands.find_restored)
    if restored is None:
        click.echo("Nothing is held.")
        return
    for line in commands.describe(restored):
        click.echo(line)
    if not yes and not sys.stdin.isatty():
        click.echo("mailer: nothing is sent yet; with --yes it is", err=True)
        sys.exit(1)
    if not yes and not click.confirm("Let it send?"):
        sys.exit(1)
    on_database(settings, partial(commands.resume, held_since=restored.hold.since))
    click.echo("It may send now.")


def _fraction(name: str, what: str) -> Callable[[Command], Command]:
    return click.option(name, type=click.FloatRange(0, 1), default=0, help=f"{what}, 0 to 1.")


@main.command()
@click.option("--host", default="127.0.0.1", show_default=True)
@click.option("--port", type=click.IntRange(0, 65_535), default=8080, show_default=True)
@click.option("--latency", type=click.FloatRange(0), default=0, help="Mean seconds to an answer.")
@_fraction("--jitter", "Part by which the latency varies")
@_fraction("--error-rate", "Part answered 500, 502 or 503")
@_fraction("--reject-rate", "Part refused for good")
@_fraction("--malformed-rate", "Part answered 200 with nonsense")
@_fraction("--hang-rate", "Part never answered")
@_fraction("--reset-rate", "Part whose connection is reset")
@click.option(
    "--rate-limit", type=click.FloatRange(0), default=0, help="Messages a second; 0: any."
)
@click.option("--seed", type=int, help="For faults that repeat themselves.")
@click.option("--token", help="The bearer token to ask for.")
@click.option("--log", type=click.File("w"), help="Write a line of JSON a request here.")
def gateway(host: str, port: int, token: str | None, log: TextIO | None, **faults: Any) -> None:  # noqa: ANN401  # as click read them
    """Run the sandbox gateway alone: it takes messages, slow and faulty as asked."""
    run(_gateway(host, port, token, log, faults))


async def _gateway(
    host: str, port: int, token: str | None, log: TextIO | None, faults: dict[str, Any]
) -> None:
    from mailer.gateway.faults import Faults
    from mailer.gateway.sandbox_command import run_sandbox

    running = asyncio.create_task(run_sandbox(Faults(**faults), host, port, token, log, click.echo))
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, running.cancel)
    with contextlib.suppress(asyncio.CancelledError):
        await running


if __name__ == "__main__":
    main()
