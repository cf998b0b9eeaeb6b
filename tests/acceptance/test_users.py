"""Accounts from the command line, and what a first start says of them."""

import asyncio
import os
import pty
import sys

import pytest
from tests.patience import PATIENCE
from tests.processes import MailerProcess, Mailers, run

from mailer.db.engine import connect

PASSWORD = "correct horse battery"  # noqa: S105  # of a test
HEADERS = {
    "Sec-Fetch-Site": "same-origin",
    "Connection": "close",  # commands take so long that the server ends an idle one
}


async def status(mailer: MailerProcess, name: str, password: str = PASSWORD) -> int:
    """Return how an attempt to sign in is answered."""
    form = {"name": name, "password": password}
    async with mailer.session.post(
        "/login", data=form, headers=HEADERS, allow_redirects=False
    ) as answer:
        return answer.status


async def test_first_start_says_once_how_to_make_the_first_account(start_mailer: Mailers) -> None:
    mailer = await start_mailer(auth="required")
    said = await mailer.event("nobody_can_sign_in")
    assert said["first_run"] == "mailer users add NAME --role admin"
    assert said["then_open"] == f"{mailer.address}/login"
    assert said["level"] == "warning"
    words = [word.replace("NAME", "ann") for word in said["first_run"].split()[1:]]
    made = run(*words, given=f"{PASSWORD}\n", database_url=mailer.database_url)
    assert made.returncode == 0, made.stderr
    assert await status(mailer, "ann") == 303
    await mailer.stop()
    assert [event["event"] for event in mailer.events].count("nobody_can_sign_in") == 1

    again = await start_mailer(auth="required")
    await again.stop()
    assert not says_how(again)


def says_how(mailer: MailerProcess) -> bool:
    return "nobody_can_sign_in" in [event["event"] for event in mailer.events]


async def test_start_says_so_while_nobody_can_sign_in_whatever_keys_there_are(
    start_mailer: Mailers, database_url: str
) -> None:
    for words in (
        ("keys", "make", "a key", "--scope", "admin"),
        ("users", "add", "ann", "--role", "admin"),
        ("users", "disable", "ann"),
    ):
        assert run(*words, given=f"{PASSWORD}\n", database_url=database_url).returncode == 0
    mailer = await start_mailer(auth="required")
    await mailer.stop()
    assert says_how(mailer)
    provided = await start_mailer(
        auth="required", oidc_issuer="https://id.example", oidc_client_id="mailer"
    )
    await provided.stop()
    assert not says_how(provided)


async def test_start_that_lets_anybody_in_says_nothing_of_accounts(start_mailer: Mailers) -> None:
    mailer = await start_mailer()
    await mailer.stop()
    assert "nobody_can_sign_in" not in [event["event"] for event in mailer.events]


async def test_users_are_kept_at_the_command_line_and_act_at_once(start_mailer: Mailers) -> None:
    mailer = await start_mailer(auth="required")

    def users(*arguments: str, given: str = "", code: int = 0) -> str:
        ended = run("users", *arguments, given=given, database_url=mailer.database_url)
        assert ended.returncode == code, ended.stderr
        return ended.stdout + ended.stderr

    made = users("add", "Ann", "--role", "viewer", given=PASSWORD)
    assert made == "Ann can sign in now, at /login.\n"
    for given in (PASSWORD, ""):  # which is said before a password is asked for
        taken = users("add", "ann", "--role", "viewer", given=given, code=1)
        assert taken == "mailer: Another account has this name.\n"
    assert "There is no such account." in users("password", "bob", code=1)
    wrong = users("add", " ", "--role", "viewer", code=1)
    assert wrong.startswith("mailer: name: must be 1 to 64 characters on one line")
    assert "password" not in wrong
    assert await status(mailer, "ann") == 303
    users("role", "ANN", "operator")
    assert users("list").split("\n")[1].split()[1:3] == ["Ann", "operator"]
    users("disable", "ann")
    assert "disabled" in users("list")
    assert await status(mailer, "ann") == 400
    users("enable", "ann")
    users("password", "ann", given="another long one\n")
    assert await status(mailer, "ann") == 400
    assert await status(mailer, "ann", "another long one") == 303
    users("sign-out", "ann")
    assert await mailer.query("SELECT count(*) FROM session") == 0
    assert "There is no such account." in users("disable", "bob", code=1)
    assert "must be 12 to 1024 characters" in users(
        "add", "bob", "--role", "viewer", given="short", code=1
    )
    assert users("add", "bob", "--role", "root", code=2)
    by = await mailer.query("SELECT actor FROM audit WHERE action = 'account_disabled'")
    assert by.endswith("command line")


async def test_password_is_asked_for_twice_on_a_terminal_and_not_shown(database_url: str) -> None:
    run("migrate", database_url=database_url)
    ours, theirs = pty.openpty()
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "mailer", "users", "add", "ann", "--role", "admin"),
        env=os.environ | {"MAILER_DATABASE_URL": database_url},
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        start_new_session=True,
    )
    os.close(theirs)
    shown = b""

    async def until_shown(words: bytes, count: int) -> None:
        nonlocal shown
        while shown.lower().count(words) < count:
            shown += await asyncio.to_thread(os.read, ours, 1000)

    await until_shown(b"password (at least 12 characters):", 1)
    os.write(ours, f"{PASSWORD}\n".encode())
    await until_shown(b"confirmation:", 1)
    os.write(ours, f"{PASSWORD}\n".encode())
    assert await asyncio.wait_for(process.wait(), PATIENCE) == 0
    await until_shown(b"ann can sign in now, at /login.", 1)
    os.close(ours)
    assert PASSWORD.encode() not in shown
    connection = await connect(database_url)
    assert await connection.fetchval("SELECT name FROM account") == "ann"
    await connection.close()


@pytest.mark.parametrize("arguments", [("--password", PASSWORD), (PASSWORD,)])
def test_password_is_no_argument(arguments: tuple[str, ...]) -> None:
    ended = run("users", "add", "ann", "--role", "viewer", *arguments)
    assert ended.returncode == 2
