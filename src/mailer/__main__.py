"""The command line.

Each command imports what it runs when it runs: help and wrong settings answer at once.
"""

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import Callable, Coroutine
from datetime import datetime
from functools import partial
from typing import Any, TextIO, TypeVar

import click
import structlog
import uvloop
from rich.console import Console

from mailer.errors import MailerError, StartError
from mailer.log import configure_logging, describe
from mailer.settings import Settings, read_settings

log = structlog.get_logger()

Result = TypeVar("Result")
Command = TypeVar("Command", bound=Callable[..., Any])

CANNOT_START = 78
"""Exit status when the surroundings are wrong and a restart would not help (sysexits.h)."""
INTERRUPTED = 130
"""Exit status after Ctrl-C, as shells have it."""


def _run(work: Coroutine[Any, Any, Result]) -> Result:
    """Run `work` to its end; what mailer refuses is one line on standard error."""
    try:
        return uvloop.run(work)
    except MailerError as error:
        click.echo(f"mailer: {error}", err=True)
        sys.exit(CANNOT_START if isinstance(error, StartError) else 1)
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)
    except Exception as error:  # noqa: BLE001  # the last word on it, without what it may hold
        log.critical("crashed", **describe(error))
        sys.exit(1)


def _settings() -> Settings:
    try:
        settings = read_settings(os.environ)
    except StartError as error:
        click.echo(f"mailer: {error}", err=True)
        sys.exit(CANNOT_START)
    configure_logging(settings.log_level, settings.log_format)
    return settings


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="mailer")
def main() -> None:
    """Mass messaging by SMS gateway. Settings are variables MAILER_..., or a file .env."""


@main.command()
def serve() -> None:
    """Serve the API and the admin pages, and send what is due."""
    settings = _settings()
    from mailer import app

    _run(app.serve(settings))


@main.command()
def migrate() -> None:
    """Bring the database to the newest schema."""
    settings = _settings()
    from mailer import app

    _run(app.migrate_only(settings))


@main.command()
def demo() -> None:
    """Run everything on loopback, with sample clients and mailings under way."""
    settings = _settings()
    from mailer import app

    configure_logging("warning", settings.log_format)  # what there is to see is on the pages
    _run(app.run_demo(settings, click.echo))


@main.group()
def clients() -> None:
    """Bring clients in and out as CSV."""


@clients.command("import")
@click.argument("file")
def import_(file: str) -> None:
    """Import clients from FILE, or from standard input for -; exit 1 if a line was rejected."""
    settings = _settings()
    from mailer import app
    from mailer.client import commands

    work = partial(commands.import_file, path=file, console=Console(stderr=True))
    if _run(app.on_database(settings, work)).rejected:
        sys.exit(1)


@clients.command()
@click.argument("file")
def export(file: str) -> None:
    """Export all clients to FILE, or to standard output for -."""
    settings = _settings()
    from mailer import app
    from mailer.client import commands

    work = partial(commands.export_file, path=file, console=Console(stderr=True))
    _run(app.on_database(settings, work))


@main.group()
def keys() -> None:
    """Make and revoke the keys that programs use the API by."""


@keys.command()
@click.argument("name")
@click.option(
    "--scope",
    type=click.Choice(["read", "write", "admin"]),
    required=True,
    help="read looks; write also changes clients and mailings; admin also reads the audit log.",
)
@click.option("--expires", "days", type=click.IntRange(1, 36_500), metavar="DAYS")
def make(name: str, scope: str, days: int | None) -> None:
    """Make a key called NAME and print it, once; without --expires it is good for ever."""
    settings = _settings()
    from mailer import app
    from mailer.access import commands

    work = partial(commands.make_key, name=name, scope=scope, days=days)
    click.echo(_run(app.on_database(settings, work)))
    click.echo("Keep it: it is not shown again.", err=True)


@keys.command("list")
def list_() -> None:
    """List all keys, the newest first."""
    settings = _settings()
    from mailer import app
    from mailer.access import commands

    for line in _run(app.on_database(settings, commands.list_keys)):
        click.echo(line)


@keys.command()
@click.argument("name")
def revoke(name: str) -> None:
    """Revoke the key called NAME: it opens nothing from now on."""
    settings = _settings()
    from mailer import app
    from mailer.access import commands

    _run(app.on_database(settings, partial(commands.revoke_key, name=name)))


@main.command()
@click.option("--date", "day", type=click.DateTime(["%Y-%m-%d"]), required=True, metavar="D")
@click.option("--send", is_flag=True, help="Send it by mail instead of printing it.")
def report(day: datetime, *, send: bool) -> None:
    """Print the report of day D, such as 2030-01-15, or send it by mail."""
    settings = _settings()
    from mailer import app

    made = _run(app.report(settings, day.date(), send=send))
    if not send:
        click.echo(made)


@main.command()
def verify() -> None:
    """Compare every ledger with its messages; exit 1 and the differences when one is off."""
    settings = _settings()
    from mailer import app
    from mailer.report.verify import differences

    found = _run(app.on_database(settings, differences))
    for difference in found:
        click.echo(difference)
    if found:
        sys.exit(1)
    click.echo("every ledger adds up")


@main.group()
def users() -> None:
    """Keep the accounts of people who sign in to the pages."""


def _new_password() -> str:
    """Ask for a password twice on a terminal, else read a line; arguments are seen by all."""
    if sys.stdin.isatty():
        return str(click.prompt("Password", hide_input=True, confirmation_prompt=True))
    return sys.stdin.readline().rstrip("\r\n")


def _change_account(change: str, *given: str) -> None:
    """Do what a function of access/commands.py does."""
    settings = _settings()
    from mailer import app
    from mailer.access import commands

    _run(app.on_database(settings, lambda database: getattr(commands, change)(database, *given)))


ROLE = click.Choice(["viewer", "operator", "admin"])


@users.command("add")
@click.argument("name")
@click.option("--role", type=ROLE, required=True, help="What they may do.")
def add_user(name: str, role: str) -> None:
    """Make an account; its password is asked for, or read from standard input."""
    _change_account("add_user", name, role, _new_password())


@users.command("list")
def list_users() -> None:
    """List all accounts."""
    settings = _settings()
    from mailer import app
    from mailer.access import commands

    for line in _run(app.on_database(settings, commands.list_users)):
        click.echo(line)


@users.command("role")
@click.argument("name")
@click.argument("role", type=ROLE)
def set_role(name: str, role: str) -> None:
    """Give an account another role, which holds at once."""
    _change_account("set_user_role", name, role)


@users.command("password")
@click.argument("name")
def set_password(name: str) -> None:
    """Give an account another password, read as add reads it; its sessions end."""
    _change_account("set_user_password", name, _new_password())


@users.command("disable")
@click.argument("name")
def disable_user(name: str) -> None:
    """Keep somebody out, at once, until enabled again."""
    _change_account("disable_user", name)


@users.command("enable")
@click.argument("name")
def enable_user(name: str) -> None:
    """Let somebody in again."""
    _change_account("enable_user", name)


@users.command("sign-out")
@click.argument("name")
def sign_out_user(name: str) -> None:
    """End all sessions of an account."""
    _change_account("sign_out_user", name)


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
    _run(_gateway(host, port, token, log, faults))


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
