"""Users managed at the command line, and the hint how to create the first one.

The hint is the log event `no_login_configured`.
"""

import asyncio
import os
import pty
import sys
from collections.abc import Callable

import pytest
from tests.event_timeout import EVENT_TIMEOUT
from tests.processes import MailerProcess, Mailers, run

from mailer.db.engine import connect

PASSWORD = "correct horse battery"  # noqa: S105  # of a test
HEADERS = {"Sec-Fetch-Site": "same-origin"}
"""Header of a browser that sends a form of a page of mailer; without it a form is refused."""
SIGNED_IN, REFUSED = 303, 400
"""Statuses of a successful and of a refused sign-in."""


async def sign_in_status(mailer: MailerProcess, name: str, password: str = PASSWORD) -> int:
    """Return the status of the response to an attempt to sign in."""
    form = {"name": name, "password": password}
    async with mailer.session.post(
        "/login", data=form, headers=HEADERS, allow_redirects=False
    ) as response:
        return response.status


async def test_first_start_logs_once_how_to_create_the_first_user(start_mailer: Mailers) -> None:
    mailer = await start_mailer(auth="required")
    event = await mailer.event("no_login_configured")
    assert event["first_run"] == "mailer users create NAME --role admin"
    assert event["then_open"] == f"{mailer.address}/login"
    assert event["level"] == "warning"
    _, *arguments = event["first_run"].replace("NAME", "ann").split()
    process = run(*arguments, stdin=f"{PASSWORD}\n", database_url=mailer.database_url)
    assert process.returncode == 0, process.stderr
    assert await sign_in_status(mailer, "ann") == SIGNED_IN
    await mailer.stop()
    assert [event["event"] for event in mailer.events].count("no_login_configured") == 1

    restarted = await start_mailer(auth="required")
    await restarted.stop()
    assert not has_hint(restarted)


def has_hint(mailer: MailerProcess) -> bool:
    """Return whether the hint is in the log of a process."""
    return "no_login_configured" in [event["event"] for event in mailer.events]


async def test_start_logs_the_hint_while_no_user_can_sign_in_even_if_there_are_keys(
    start_mailer: Mailers, database_url: str
) -> None:
    for arguments in (
        ("keys", "create", "a key", "--scope", "admin"),
        ("users", "create", "ann", "--role", "admin"),
        ("users", "disable", "ann"),
    ):
        assert run(*arguments, stdin=f"{PASSWORD}\n", database_url=database_url).returncode == 0
    mailer = await start_mailer(auth="required")
    await mailer.stop()
    assert has_hint(mailer)
    with_provider = await start_mailer(
        auth="required", oidc_issuer="https://id.example", oidc_client_id="mailer"
    )
    await with_provider.stop()
    assert not has_hint(with_provider)


async def test_start_without_authentication_logs_no_hint(start_mailer: Mailers) -> None:
    mailer = await start_mailer()
    await mailer.stop()
    assert not has_hint(mailer)


def user_commands(database_url: str) -> Callable[..., str]:
    """Return a function that runs a command of `mailer users`, and returns its output."""

    def run_command(*arguments: str, stdin: str = "", status: int = 0) -> str:
        """Run a command with the standard input `stdin`; it must exit with `status`."""
        process = run("users", *arguments, stdin=stdin, database_url=database_url)
        assert process.returncode == status, process.stderr
        return process.stdout + process.stderr

    return run_command


async def test_commands_for_users_take_effect_at_once(start_mailer: Mailers) -> None:
    mailer = await start_mailer(auth="required")
    users = user_commands(mailer.database_url)

    output = users("create", "Ann", "--role", "viewer", stdin=PASSWORD)
    assert output == "Ann can sign in now, at /login.\n"
    assert await sign_in_status(mailer, "ann") == SIGNED_IN

    users("set-role", "ANN", "operator")
    assert users("list").split("\n")[1].split()[1:3] == ["Ann", "operator"]

    users("set-notices", "ann", "--mail", "a@b.org", "--notice", "mailing_held")
    assert await mailer.query("SELECT kinds FROM notice_recipient") == ["mailing_held"]
    users("set-notices", "ann")
    assert await mailer.query("SELECT count(*) FROM notice_recipient") == 0

    users("disable", "ann")
    assert "disabled" in users("list")
    assert await sign_in_status(mailer, "ann") == REFUSED
    users("enable", "ann")

    users("set-password", "ann", stdin="another long one\n")
    assert await sign_in_status(mailer, "ann", PASSWORD) == REFUSED
    assert await sign_in_status(mailer, "ann", "another long one") == SIGNED_IN

    users("sign-out", "ann")
    assert await mailer.query("SELECT count(*) FROM session") == 0

    actor = await mailer.query("SELECT actor FROM audit WHERE action = 'user_disabled'")
    assert actor.endswith("command line")


def test_invalid_commands_for_users_fail_and_say_why(database_url: str) -> None:
    users = user_commands(database_url)
    users("create", "Ann", "--role", "viewer", stdin=PASSWORD)

    for stdin in (PASSWORD, ""):  # the name is checked before the password is read
        output = users("create", "ann", "--role", "viewer", stdin=stdin, status=1)
        assert output == "mailer: Another user has this name.\n"
    output = users("create", " ", "--role", "viewer", status=1)
    assert output.startswith("mailer: name: must be 1 to 64 characters on one line")
    assert "password" not in output
    output = users("create", "bob", "--role", "viewer", stdin="short", status=1)
    assert "must be 12 to 1024 characters" in output
    assert users("create", "bob", "--role", "root", status=2)

    output = users("set-notices", "ann", "--mail", "b.org", "--notice", "all", status=1)
    assert "mail: must be a mail address" in output
    assert "kinds: must be of mailing_unreached" in output

    assert "There is no such user." in users("set-password", "bob", status=1)
    assert "There is no such user." in users("disable", "bob", status=1)


async def test_password_is_read_twice_from_a_terminal_and_not_shown(database_url: str) -> None:
    terminal_window, terminal = pty.openpty()
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "mailer", "users", "create", "ann", "--role", "admin"),
        env=os.environ | {"MAILER_DATABASE_URL": database_url},
        stdin=terminal,
        stdout=terminal,
        stderr=terminal,
        start_new_session=True,  # else it would read the password from the tests' own terminal
    )
    os.close(terminal)  # only the process still has it open
    shown = b""

    async def until_shown(words: bytes) -> None:
        nonlocal shown
        while words not in shown.lower():
            shown += await asyncio.to_thread(os.read, terminal_window, 1000)

    await until_shown(b"password (at least 12 characters):")
    os.write(terminal_window, f"{PASSWORD}\n".encode())
    await until_shown(b"confirmation:")
    os.write(terminal_window, f"{PASSWORD}\n".encode())
    assert await asyncio.wait_for(process.wait(), EVENT_TIMEOUT) == 0
    await until_shown(b"ann can sign in now, at /login.")
    os.close(terminal_window)
    assert PASSWORD.encode() not in shown
    connection = await connect(database_url)
    assert await connection.fetchval("SELECT name FROM app_user") == "ann"
    await connection.close()


@pytest.mark.parametrize("arguments", [("--password", PASSWORD), (PASSWORD,)])
def test_password_cannot_be_an_argument(arguments: tuple[str, ...]) -> None:
    process = run("users", "create", "ann", "--role", "viewer", *arguments)
    assert process.returncode == 2
