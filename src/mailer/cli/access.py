"""The commands that say who may come in: `mailer keys` and `mailer users`."""

import sys
from functools import partial

import click

from mailer.cli.running import on_database, settings_given
from mailer.settings import ROLES, SCOPES

ROLE = click.Choice(ROLES)
WHICH = click.option(
    "--id", "which", type=int, help="Which, when several are called NAME: see list."
)


@click.group()
def keys() -> None:
    """Make and revoke the keys that programs use the API by."""


@keys.command()
@click.argument("name")
@click.option(
    "--scope",
    type=click.Choice(SCOPES),
    required=True,
    help="read looks; write also changes clients and mailings; admin also reads the audit log.",
)
@click.option("--expires", "days", type=click.IntRange(1, 36_500), metavar="DAYS")
def make(name: str, scope: str, days: int | None) -> None:
    """Make a key called NAME and print it, once; without --expires it is good for ever."""
    settings = settings_given()
    from mailer.access import commands

    work = partial(commands.make_key, name=name, scope=scope, days=days)
    click.echo(on_database(settings, work))
    click.echo("Keep it: it is not shown again.", err=True)


@keys.command("list")
def list_keys() -> None:
    """List all keys, the newest first."""
    settings = settings_given()
    from mailer.access import commands

    for line in on_database(settings, commands.list_keys):
        click.echo(line)


@keys.command()
@click.argument("name")
def revoke(name: str) -> None:
    """Revoke the key called NAME: it opens nothing from now on."""
    settings = settings_given()
    from mailer.access import commands

    on_database(settings, partial(commands.revoke_key, name=name))


@click.group()
def users() -> None:
    """Keep the accounts of people who sign in to the pages."""


def _new_password() -> str:
    """Ask for a password twice on a terminal, else read a line; arguments are seen by all."""
    if sys.stdin.isatty():
        asked = "Password (at least 12 characters)"
        return str(click.prompt(asked, hide_input=True, confirmation_prompt=True))
    return sys.stdin.readline().rstrip("\r\n")


@users.command()
@click.argument("name")
@click.option("--role", type=ROLE, required=True, help="What they may do.")
def add(name: str, role: str) -> None:
    """Make an account; its password is asked for, or read from standard input."""
    settings = settings_given()
    from mailer.access import commands

    on_database(settings, partial(commands.expect_new_user, name=name, role=role))
    given = _new_password()
    on_database(settings, partial(commands.add_user, name=name, role=role, password=given))
    click.echo(f"{name.strip()} can sign in now, at /login.", err=True)


@users.command("list")
def list_users() -> None:
    """List all accounts."""
    settings = settings_given()
    from mailer.access import commands

    for line in on_database(settings, commands.list_users):
        click.echo(line)


@users.command()
@click.argument("name")
@click.argument("role", type=ROLE)
def role(name: str, role: str) -> None:
    """Give an account another role, which holds at once."""
    settings = settings_given()
    from mailer.access import commands

    on_database(settings, partial(commands.set_user_role, name=name, role=role))


@users.command()
@click.argument("name")
def password(name: str) -> None:
    """Give an account another password, read as add reads it; its sessions end."""
    settings = settings_given()
    from mailer.access import commands

    on_database(settings, partial(commands.expect_user, name=name))
    given = _new_password()
    on_database(settings, partial(commands.set_user_password, name=name, password=given))


@users.command()
@click.argument("name")
@WHICH
def disable(name: str, which: int | None) -> None:
    """Keep somebody out, at once, until enabled again."""
    settings = settings_given()
    from mailer.access import commands

    on_database(settings, partial(commands.disable_user, name=name, account_id=which))


@users.command()
@click.argument("name")
@WHICH
def enable(name: str, which: int | None) -> None:
    """Let somebody in again."""
    settings = settings_given()
    from mailer.access import commands

    on_database(settings, partial(commands.enable_user, name=name, account_id=which))


@users.command()
@click.argument("name")
@WHICH
def sign_out(name: str, which: int | None) -> None:
    """End all sessions of an account."""
    settings = settings_given()
    from mailer.access import commands

    on_database(settings, partial(commands.sign_out_user, name=name, account_id=which))
