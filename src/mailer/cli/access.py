"""The commands `mailer keys` and `mailer users`: API keys, and users of the pages."""

import sys
from functools import partial

import click

from mailer.cli.runner import load_settings, run_on_database
from mailer.roles import ROLES, SCOPES

ROLE = click.Choice(ROLES)
ID_OPTION = click.option(
    "--id", "user_id", type=int, help="ID of the user, if several have this name: see list."
)


@click.group()
def keys() -> None:
    """Create, list and revoke API keys."""


@keys.command("create")
@click.argument("name")
@click.option(
    "--scope",
    type=click.Choice(SCOPES),
    required=True,
    help="read: read only; write: also change clients and mailings; admin: also the audit log.",
)
@click.option(
    "--expires",
    "days",
    type=click.IntRange(1, 36_500),
    metavar="DAYS",
    help="Days until the key expires. Default: never.",
)
def create_key(name: str, scope: str, days: int | None) -> None:
    """Create an API key with the name NAME and print it once."""
    settings = load_settings()
    from mailer.access import commands

    create = partial(commands.create_key, name=name, scope=scope, days=days)
    click.echo(run_on_database(settings, create))
    click.echo("Store it now: it is not shown again.", err=True)


@keys.command("list")
def list_keys() -> None:
    """List all API keys, the newest first."""
    settings = load_settings()
    from mailer.access import commands

    for line in run_on_database(settings, commands.list_keys):
        click.echo(line)


@keys.command("revoke")
@click.argument("name")
def revoke_key(name: str) -> None:
    """Revoke the API key with the name NAME at once."""
    settings = load_settings()
    from mailer.access import commands

    run_on_database(settings, partial(commands.revoke_key, name=name))


@click.group()
def users() -> None:
    """Manage the users who sign in to the pages."""


def _read_password() -> str:
    """Prompt twice for a password on a terminal, else read one line from standard input.

    Passwords are not command arguments, because other users of the machine can see those.
    """
    if sys.stdin.isatty():
        prompt = "Password (at least 12 characters)"
        return str(click.prompt(prompt, hide_input=True, confirmation_prompt=True))
    return sys.stdin.readline().rstrip("\r\n")


@users.command("create")
@click.argument("name")
@click.option("--role", type=ROLE, required=True, help="What the user may do.")
def create_user(name: str, role: str) -> None:
    """Create a user; prompt for the password, or read it from standard input."""
    settings = load_settings()
    from mailer.access import commands

    # refused before the prompt for a password, not after it
    run_on_database(settings, partial(commands.ensure_user_can_be_created, name=name, role=role))
    password = _read_password()
    create = partial(commands.create_user, name=name, role=role, password=password)
    run_on_database(settings, create)
    click.echo(f"{name.strip()} can sign in now, at /login.", err=True)


@users.command("list")
def list_users() -> None:
    """List all users."""
    settings = load_settings()
    from mailer.access import commands

    for line in run_on_database(settings, commands.list_users):
        click.echo(line)


@users.command("set-role")
@click.argument("name")
@click.argument("role", type=ROLE)
def set_role(name: str, role: str) -> None:
    """Change the role of a user at once."""
    settings = load_settings()
    from mailer.access import commands

    run_on_database(settings, partial(commands.set_user_role, name=name, role=role))


@users.command("set-password")
@click.argument("name")
def set_password(name: str) -> None:
    """Change the password of a user, read as by `create`, and end all sessions of the user."""
    settings = load_settings()
    from mailer.access import commands

    run_on_database(settings, partial(commands.ensure_user_exists, name=name))
    password = _read_password()
    run_on_database(settings, partial(commands.set_user_password, name=name, password=password))


@users.command("set-notices")
@click.argument("name")
@ID_OPTION
@click.option("--mail", metavar="ADDRESS", help="Mail address. Without it, no notices are sent.")
@click.option(
    "--notice",
    "kinds",
    multiple=True,
    metavar="NOTICE",
    help="mailing_unreached, mailing_held or gateway_trouble; repeat it for several.",
)
@click.option("--language", default="en", show_default=True, help="Language of the mails: en, ru.")
@click.option("--time-zone", default="UTC", show_default=True, help="Time zone of the mails.")
def set_notices(  # noqa: PLR0913, PLR0917  # the options of the command
    name: str,
    user_id: int | None,
    mail: str | None,
    kinds: tuple[str, ...],
    language: str,
    time_zone: str,
) -> None:
    """Set the mail address of a user, and the notices that are sent there."""
    settings = load_settings()
    from mailer.notice import commands

    values = {
        "mail": mail or "",
        "kinds": list(kinds),
        "language": language,
        "time_zone": time_zone,
    }
    run_on_database(
        settings, partial(commands.set_notices, name=name, user_id=user_id, values=values)
    )


@users.command("disable")
@click.argument("name")
@ID_OPTION
def disable_user(name: str, user_id: int | None) -> None:
    """Disable a user at once, until enabled again."""
    settings = load_settings()
    from mailer.access import commands

    run_on_database(settings, partial(commands.disable_user, name=name, user_id=user_id))


@users.command("enable")
@click.argument("name")
@ID_OPTION
def enable_user(name: str, user_id: int | None) -> None:
    """Enable a disabled user."""
    settings = load_settings()
    from mailer.access import commands

    run_on_database(settings, partial(commands.enable_user, name=name, user_id=user_id))


@users.command("sign-out")
@click.argument("name")
@ID_OPTION
def sign_out_user(name: str, user_id: int | None) -> None:
    """End all sessions of a user."""
    settings = load_settings()
    from mailer.access import commands

    run_on_database(settings, partial(commands.sign_out_user, name=name, user_id=user_id))
