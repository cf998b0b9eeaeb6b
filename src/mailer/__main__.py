"""The command `mailer` and its subcommands.

Each subcommand imports its code only when it runs: importing all code takes seconds, but the help
and the errors of settings must appear at once.
"""

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import Callable
from datetime import datetime
from functools import partial
from typing import Any, TextIO, TypeVar

import click
from rich.console import Console

from mailer.cli.access import keys, users
from mailer.cli.runner import EXIT_CANNOT_START, load_settings, run, run_on_database
from mailer.log import configure_logging

Command = TypeVar("Command", bound=Callable[..., Any])
"""A function that click calls for a command."""


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="mailer")
def main() -> None:
    """Mass messaging by SMS. Settings are environment variables MAILER_..., or a file .env."""


main.add_command(keys)
main.add_command(users)


@main.command()
def serve() -> None:
    """Serve the API and the admin pages, and send due messages."""
    settings = load_settings()
    from mailer import worker

    run(worker.serve(settings))


@main.command()
def migrate() -> None:
    """Bring the database to the newest schema."""
    settings = load_settings()
    from mailer.db import startup

    run(startup.migrate_only(startup.DatabaseSource.of(settings)))


@main.command()
def demo() -> None:
    """Run everything on loopback, with sample clients and running mailings."""
    settings = load_settings()
    from mailer import worker

    configure_logging("warning", settings.log_format)  # the pages show the rest
    run(worker.run_demo(settings, click.echo))


@main.group()
def clients() -> None:
    """Import clients from CSV or Excel, and export them as CSV."""


@clients.command("import")
@click.argument("file")
@click.option("--rejected", metavar="FILE", help="Write the rejected lines to FILE, to correct.")
@click.option(
    "--columns",
    metavar="NAMES",
    help="What the columns of FILE are, in its order, with commas, as phone,,name: a blank one is"
    " ignored.",
)
def import_(file: str, rejected: str | None, columns: str | None) -> None:
    """Import clients from FILE, or from standard input for -; exit 1 if a line was rejected.

    FILE is CSV or an Excel workbook (.xlsx). Columns whose names are valid for a field, such as
    name, are imported as fields.
    """
    settings = load_settings()
    from mailer.client import commands

    import_file = partial(
        commands.import_file,
        path=file,
        console=Console(stderr=True),
        rejected_path=rejected,
        columns=None if columns is None else [name.strip() for name in columns.split(",")],
    )
    import_report = run_on_database(settings, import_file)
    if import_report.rejected:
        sys.exit(1)


@clients.command()
@click.argument("file")
def export(file: str) -> None:
    """Export all clients to FILE, or to standard output for -."""
    settings = load_settings()
    from mailer.client import commands

    export_file = partial(commands.export_file, path=file, console=Console(stderr=True))
    run_on_database(settings, export_file)


@main.command()
@click.option("--date", "day", type=click.DateTime(["%Y-%m-%d"]), required=True, metavar="D")
@click.option("--send", is_flag=True, help="Send the report by mail instead of printing it.")
def report(day: datetime, *, send: bool) -> None:
    """Print the daily report of day D, such as 2030-01-15, or send it by mail."""
    settings = load_settings()
    from mailer.daily_report.mail import report_command

    text = run(report_command(settings, day.date(), send=send))
    if not send:
        click.echo(text)


@main.command()
def verify() -> None:
    """Compare all counts with the messages; print the differences and exit 1 if there are any."""
    settings = load_settings()
    from mailer.statistics.verify import find_differences

    differences = run_on_database(settings, find_differences)
    for line in differences:
        click.echo(line)
    if differences:
        sys.exit(1)
    click.echo("all counts add up")


@main.command()
@click.option("--yes", is_flag=True, help="Allow sending without confirmation.")
def resume_after_restore(*, yes: bool) -> None:
    """Show what a restored database would send, ask for confirmation, and allow sending."""
    settings = load_settings()
    from mailer.mailing import commands

    restored = run_on_database(settings, commands.find_restored)
    if restored is None:
        click.echo("Nothing to resume: sending is allowed.")
        return
    for line in commands.describe(restored):
        click.echo(line)
    if not yes and not sys.stdin.isatty():
        click.echo("mailer: not confirmed, so nothing is sent; use --yes", err=True)
        sys.exit(1)
    if not yes and not click.confirm("Allow sending?"):
        sys.exit(1)
    run_on_database(settings, partial(commands.resume, held_since=restored.hold.since))
    click.echo("Sending is allowed now.")


@main.group()
def gateways() -> None:
    """Check the gateways of MAILER_GATEWAYS."""


@gateways.command("check")
@click.option(
    "--send",
    "phone",
    metavar="PHONE",
    help="Send one message through each gateway to PHONE (7XXXXXXXXXX).",
)
def check_gateways(phone: str | None) -> None:
    """Check the file, the connections and the balances; exit 1 if a gateway cannot be used."""
    settings = load_settings()
    from mailer.client.phone import STORED_FORM, normalize_phone
    from mailer.gateway import check
    from mailer.gateway.config import configured_gateways
    from mailer.gateway.toml_file import ConfigFileError

    if phone is not None and not STORED_FORM.fullmatch(phone := normalize_phone(phone)):
        raise click.BadParameter("must be a phone such as 79161234567", param_hint="--send")
    try:
        configured = configured_gateways(settings, os.environ)
    except ConfigFileError as error:
        for mistake in error.mistakes:
            click.echo(f"mailer: {mistake}", err=True)
        sys.exit(EXIT_CANNOT_START)
    if not configured:
        click.echo(
            "mailer: set MAILER_GATEWAYS to the path of a file, see docs/gateways.md", err=True
        )
        sys.exit(EXIT_CANNOT_START)
    if not run(check.check_gateways(configured, phone, click.echo, settings.public_url)):
        sys.exit(1)


def _fraction_option(name: str, description: str) -> Callable[[Command], Command]:
    """Return an option for a fraction from 0 to 1, by default 0."""
    text = f"{description}, 0 to 1."
    return click.option(name, type=click.FloatRange(0, 1), default=0, help=text)


@main.command()
@click.option("--host", default="127.0.0.1", show_default=True)
@click.option("--port", type=click.IntRange(0, 65_535), default=8080, show_default=True)
@click.option(
    "--latency", type=click.FloatRange(0), default=0, help="Mean seconds before an answer."
)
@_fraction_option("--jitter", "Fraction by which the latency varies")
@_fraction_option("--error-rate", "Fraction of requests that fail temporarily, such as with 503")
@_fraction_option("--reject-rate", "Fraction of messages rejected permanently")
@_fraction_option("--malformed-rate", "Fraction of requests answered with an invalid body")
@_fraction_option("--hang-rate", "Fraction of requests never answered")
@_fraction_option("--reset-rate", "Fraction of requests whose connection is reset")
@click.option(
    "--rate-limit", type=click.FloatRange(0), default=0, help="Messages a second; 0: no limit."
)
@click.option("--seed", type=int, help="Seed of the faults, to repeat a run.")
@click.option(
    "--kind",
    default="json",
    show_default=True,
    help="Kind of gateway to stand in for, as in gateways.toml.",
)
@click.option("--account", help="Account to require, if the kind has one; default: any.")
@click.option("--username", help="User to require, if the kind has one; default: any.")
@click.option("--password", help="Password to require, if the kind has one; default: any.")
@click.option("--token", help="Token to require, if the kind has one; default: any or none.")
@click.option("--receipts-url", help="Where to call mailer, if requests do not say it.")
@click.option("--callback-secret", help="Secret of the signatures; default: the token.")
@click.option(
    "--receipt-delay", type=click.FloatRange(0), default=0, help="Mean seconds before a receipt."
)
@_fraction_option("--receipt-failed", "Fraction of accepted messages that are not delivered")
@_fraction_option("--receipt-loss", "Fraction of receipts that are never sent")
@_fraction_option("--receipt-repeat", "Fraction of receipts that are sent twice")
@_fraction_option("--receipt-disorder", "Fraction of messages with receipts in the wrong order")
@_fraction_option("--receipt-early", "Fraction of messages with receipts before the answer")
@_fraction_option("--reply-share", "Fraction of messages to which the client replies")
@_fraction_option("--stop-share", "Fraction of replies that are a stop word")
@click.option(
    "--log",
    type=click.File("w"),
    help="Write one line of JSON for each request and each call to this file.",
)
def sandbox(host: str, port: int, log: TextIO | None, **options: Any) -> None:  # noqa: ANN401  # values by click
    """Run only the sandbox gateway: it speaks as a real one, with faults, and sends nothing."""
    run(_run_sandbox(host, port, log, options))


async def _run_sandbox(host: str, port: int, log: TextIO | None, options: dict[str, Any]) -> None:
    """Run the sandbox until a signal ends it.

    `options` are the fields of `Faults` and of `CallOptions`, the kind of the gateway and the keys
    of its account.
    """
    from mailer.gateway.faults import Faults
    from mailer.gateway.sandbox_command import run_sandbox
    from mailer.gateway.sandbox_options import CallOptions

    faults = Faults(**{name: options.pop(name) for name in Faults.__struct_fields__})
    calls = CallOptions(**{name: options.pop(name) for name in CallOptions.__struct_fields__})
    sandbox_task = asyncio.create_task(
        run_sandbox(faults, host, port, log, click.echo, calls=calls, **options)
    )
    loop = asyncio.get_running_loop()
    for signal_number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(signal_number, sandbox_task.cancel)
    with contextlib.suppress(asyncio.CancelledError):
        await sandbox_task


if __name__ == "__main__":
    main()
