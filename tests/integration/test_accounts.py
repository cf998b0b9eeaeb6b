"""Accounts: who may sign in, and that each change of one is written down and acts at once."""

import asyncio
import threading
import time
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from typing import Any

import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine
from tests.patience import PATIENCE
from tests.sample import do, execute, value

from mailer.access import accounts, commands, keys, passwords, service, sessions
from mailer.access.accounts import Account, NewAccount, NewPassword
from mailer.access.model import COMMAND_LINE, Actor
from mailer.access.still import TakenAwayError
from mailer.errors import InvalidError, MailerError
from mailer.validation import check
from mailer.web.turns import Turns

pytestmark = pytest.mark.usefixtures("cheap_passwords")
PASSWORD = "correct horse battery"  # noqa: S105  # of a test
ANOTHER = NewPassword(password="another long one")  # noqa: S106  # of a test
THIRD = NewPassword(password="the third long one")  # noqa: S106  # of a test
WAITING = """
    SELECT count(*) FROM pg_stat_activity
    WHERE datname = current_database() AND wait_event_type = 'Lock'"""
AUDIT = text("SELECT action, actor_kind, target_id, before, after FROM audit ORDER BY id")


async def add(engine: AsyncEngine, name: str = "Ann", role: str = "viewer") -> Account:
    given = {"name": name, "role": role, "password": PASSWORD}
    return await service.add_account(
        engine, check(NewAccount, given, datetime.now(UTC)), COMMAND_LINE
    )


async def enter(engine: AsyncEngine, name: str = "Ann", password: str = PASSWORD) -> str:
    return await service.sign_in(engine, name, password, "192.0.2.1", "Firefox")


async def who(engine: AsyncEngine, secret: str) -> Actor | None:
    async with engine.begin() as connection:
        return await sessions.use(connection, secret, None)


async def until_waiting(engine: AsyncEngine) -> None:
    """Wait until somebody waits for a row that another has."""
    async with asyncio.timeout(PATIENCE):
        while not await value(engine, WAITING):
            await asyncio.sleep(0.01)


async def audited(engine: AsyncEngine) -> list[tuple[Any, ...]]:
    async with engine.connect() as connection:
        return [tuple(row) for row in await connection.execute(AUDIT)]


async def test_password_is_the_same_however_its_letters_are_composed() -> None:
    kept = await passwords.hashed("Zo\u00eb's long secret")
    assert await passwords.matches(kept, "Zoe\u0308's long secret")


@pytest.mark.parametrize(
    ("given", "field"),
    [
        ({"name": ""}, "name"),
        ({"name": "x" * 65}, "name"),
        ({"name": "a\0b"}, "name"),
        ({"name": "ann\n"}, "name"),
        ({"role": "root"}, "role"),
        ({"password": "x" * 11}, "password"),
        ({"password": "x" * 1_025}, "password"),
        ({"name": "Annabel Lee 1", "password": "annabel lee 1"}, "password"),
    ],
)
def test_account_that_breaks_a_rule_is_refused_by_the_field(
    given: dict[str, str], field: str
) -> None:
    whole = {"name": "ann", "role": "viewer", "password": PASSWORD} | given
    with pytest.raises(InvalidError) as refused:
        check(NewAccount, whole, datetime.now(UTC))
    assert [error.field for error in refused.value.errors] == [field]


@pytest.mark.parametrize("length", [12, 1_024])
def test_password_need_not_have_any_kind_of_character(length: int) -> None:
    password = ("vkpzwqmhtrgl" * length)[:length]
    check(NewAccount, {"name": "a", "role": "admin", "password": password}, datetime.now(UTC))


async def test_name_is_taken_whatever_its_case(engine: AsyncEngine) -> None:
    await add(engine, "Ann")
    with pytest.raises(accounts.AccountNameTakenError):
        await add(engine, "aNN")


@pytest.mark.parametrize("unclean", [" Zoë", "Zoe\u0308", "Z\u200boë\u2060"])
async def test_new_name_loses_what_nobody_sees_and_opens_in_either_form(
    engine: AsyncEngine, unclean: str
) -> None:
    assert (await add(engine, unclean)).name == "Zoë"
    with pytest.raises(accounts.AccountNameTakenError):
        await add(engine, "zoë")
    assert await enter(engine, unclean)
    assert await enter(engine, "zoë")


async def test_name_from_before_names_were_cleaned_goes_on_to_open_its_account(
    engine: AsyncEngine,
) -> None:
    old = await add(engine, "Ann")
    await execute(engine, "UPDATE account SET name = E'An\\u200bn'")
    new = await add(engine, "Ann")
    for name, account in (("An\u200bn", old), ("Ann", new)):
        actor = await who(engine, await enter(engine, name))
        assert actor is not None
        assert actor.id == account.id


async def test_person_comes_in_by_name_and_password_with_the_rights_of_the_role(
    engine: AsyncEngine,
) -> None:
    made = await add(engine, role="operator")
    secret = await enter(engine, " aNN ")
    by = await who(engine, secret)
    assert by is not None
    assert (by.kind, by.name, by.id, by.scope) == ("account", "Ann", made.id, "write")
    async with engine.connect() as connection:
        (shown,) = await accounts.every(connection)
    assert shown.signed_in_at is not None
    assert shown.sessions == 1


@pytest.mark.parametrize("password", [PASSWORD.upper(), "", "\0", "x" * 2_000])
async def test_wrong_password_and_unknown_name_are_refused_with_the_same_words(
    engine: AsyncEngine, password: str
) -> None:
    await add(engine)
    said = set()
    for name in ("Ann", "Bob", "a\0b"):
        with pytest.raises(service.NotSignedInError) as refused:
            await enter(engine, name, password)
        said.add(str(refused.value))
    assert len(said) == 1
    assert await value(engine, "SELECT count(*) FROM session") == 0


async def test_no_more_than_two_passwords_are_hashed_at_once() -> None:
    running = most = 0
    lock = threading.Lock()

    def work() -> None:
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        time.sleep(0.02)
        with lock:
            running -= 1

    await asyncio.gather(*(passwords._in_thread(work) for _ in range(10)))  # noqa: SLF001  # how many hash at once nobody else can see
    assert most == 2


async def test_who_gets_no_turn_is_told_when_to_come_again_and_has_not_failed(
    engine: AsyncEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    await add(engine)
    busy = Turns(1, patience=0.05, busy=passwords.HashingBusyError)
    monkeypatch.setattr(passwords, "TURNS", busy)
    async with busy.turn():
        for _ in range(6):
            with pytest.raises(passwords.HashingBusyError) as refused:
                await enter(engine)
    assert refused.value.retry_after == 5
    assert await value(engine, "SELECT max(failures) FROM throttle") == 0
    assert await enter(engine)


async def test_disabled_account_lets_nobody_in_and_its_sessions_end(engine: AsyncEngine) -> None:
    made = await add(engine)
    secret = await enter(engine)
    async with engine.begin() as connection:
        await accounts.disable(connection, made.id, COMMAND_LINE)
    assert await who(engine, secret) is None
    assert await value(engine, "SELECT count(*) FROM session") == 0
    with pytest.raises(service.NotSignedInError):
        await enter(engine)
    async with engine.begin() as connection:
        await accounts.enable(connection, made.id, COMMAND_LINE)
    assert await who(engine, secret) is None
    assert await enter(engine)


async def test_role_holds_from_the_next_request_on(engine: AsyncEngine) -> None:
    made = await add(engine, role="admin")
    secret = await enter(engine)
    async with engine.begin() as connection:
        await accounts.set_role(connection, made.id, "viewer", COMMAND_LINE)
    by = await who(engine, secret)
    assert by is not None
    assert by.scope == "read"


async def test_new_password_ends_every_session_but_the_one_that_sets_it(
    engine: AsyncEngine,
) -> None:
    made = await add(engine)
    here, there = await enter(engine), await enter(engine)
    by = await who(engine, here)
    assert by is not None
    await service.change_own_password(engine, by, PASSWORD, ANOTHER)
    assert await who(engine, here) is not None
    assert await who(engine, there) is None
    await service.set_password(engine, made.id, THIRD, COMMAND_LINE)
    assert await who(engine, here) is None
    with pytest.raises(service.NotSignedInError):
        await enter(engine, password="another long one")  # noqa: S106  # of a test
    assert await enter(engine, password="the third long one")  # noqa: S106  # of a test


async def test_own_password_is_changed_only_by_who_knows_it(engine: AsyncEngine) -> None:
    await add(engine)
    by = await who(engine, await enter(engine))
    assert by is not None
    with pytest.raises(InvalidError, match="present"):
        await service.change_own_password(engine, by, "not this at all", ANOTHER)
    assert await enter(engine)


async def test_each_change_is_written_down_without_secrets(engine: AsyncEngine) -> None:
    made = await add(engine)
    secret = await enter(engine)
    with pytest.raises(service.NotSignedInError):
        await enter(engine, "My Password By Mistake")
    with pytest.raises(service.NotSignedInError):
        await enter(engine, password="wrong")  # noqa: S106  # of a test
    by = await who(engine, secret)
    assert by is not None
    await service.sign_out(engine, by)
    async with engine.begin() as connection:
        await accounts.set_role(connection, made.id, "admin", COMMAND_LINE)
        await accounts.disable(connection, made.id, COMMAND_LINE)
        await accounts.enable(connection, made.id, COMMAND_LINE)
    await service.set_password(engine, made.id, ANOTHER, COMMAND_LINE)
    await enter(engine, password="another long one")  # noqa: S106  # of a test
    async with engine.begin() as connection:
        await accounts.end_sessions(connection, made.id, COMMAND_LINE)
    assert await audited(engine) == [
        ("account_made", "command", made.id, None, {"name": "Ann", "role": "viewer"}),
        ("signed_in", "account", made.id, None, None),
        ("sign_in_failed", "anybody", None, None, None),
        ("sign_in_failed", "anybody", made.id, None, None),
        ("signed_out", "account", made.id, None, None),
        ("account_role_changed", "command", made.id, {"role": "viewer"}, {"role": "admin"}),
        ("account_disabled", "command", made.id, None, None),
        ("account_enabled", "command", made.id, None, None),
        ("account_password_changed", "command", made.id, None, None),
        ("signed_in", "account", made.id, None, None),
        ("sessions_ended", "command", made.id, None, {"sessions": 1}),
    ]
    everything = "SELECT string_agg(audit::text, ' ') FROM audit"
    told = await value(engine, everything)
    assert "argon2" not in told
    assert "Mistake" not in told


async def test_what_changes_nothing_is_not_written_down(engine: AsyncEngine) -> None:
    made = await add(engine)
    async with engine.begin() as connection:
        await accounts.set_role(connection, made.id, "viewer", COMMAND_LINE)
        await accounts.enable(connection, made.id, COMMAND_LINE)
        await accounts.end_sessions(connection, made.id, COMMAND_LINE)
    assert len(await audited(engine)) == 1


Step = Callable[[AsyncConnection, int, Actor], Awaitable[object]]


@pytest.mark.parametrize(
    "step",
    [
        lambda connection, account_id, by: accounts.set_role(connection, account_id, "viewer", by),
        accounts.disable,
    ],
)
async def test_nobody_shuts_themselves_out(engine: AsyncEngine, step: Step) -> None:
    made = await add(engine, role="admin")
    by = Actor("account", "Ann", made.id)
    with pytest.raises(accounts.OwnAccountError):
        async with engine.begin() as connection:
            await step(connection, made.id, by)
    assert await enter(engine)


@pytest.mark.parametrize(
    "step",
    [
        lambda connection, account_id, by: accounts.set_role(connection, account_id, "viewer", by),
        accounts.disable,
    ],
)
async def test_of_two_admins_who_shut_each_other_out_at_once_one_stays(
    engine: AsyncEngine, step: Step
) -> None:
    ann, bob = await add(engine, "Ann", "admin"), await add(engine, "Bob", "admin")

    async def shut_out(whom: Account, by: Account) -> None:
        async with engine.begin() as connection:
            await step(connection, whom.id, by.actor(None))

    async with engine.begin() as connection:
        await step(connection, bob.id, ann.actor(None))
        second = asyncio.create_task(shut_out(ann, by=bob))
        await until_waiting(engine)
    with pytest.raises(TakenAwayError):
        await second
    left = "SELECT name FROM account WHERE role = 'admin' AND disabled_at IS NULL"
    assert await value(engine, left) == "Ann"


@pytest.mark.parametrize(
    "step",
    [
        lambda connection, account_id, by: accounts.set_role(connection, account_id, "viewer", by),
        accounts.disable,
        accounts.enable,
        accounts.end_sessions,
    ],
)
async def test_account_that_does_not_exist_is_said_so(engine: AsyncEngine, step: Step) -> None:
    with pytest.raises(accounts.AccountNotFoundError):
        async with engine.begin() as connection:
            await step(connection, 1, COMMAND_LINE)
    with pytest.raises(MailerError):
        await service.set_password(engine, 1, ANOTHER, COMMAND_LINE)


async def test_password_is_not_set_where_the_provider_keeps_the_person(engine: AsyncEngine) -> None:
    async with engine.begin() as connection:
        await connection.execute(
            text("""
                INSERT INTO account (name, role, issuer, subject)
                VALUES ('Ann', 'viewer', 'https://id.example', '1')""")
        )
    account_id = await value(engine, "SELECT id FROM account")
    with pytest.raises(accounts.NoPasswordHereError):
        await service.set_password(engine, account_id, ANOTHER, COMMAND_LINE)
    with pytest.raises(service.NotSignedInError):
        await enter(engine)


PROVIDED = """
    INSERT INTO account (name, role, issuer, subject)
    VALUES ('Ann', 'viewer', 'https://id.example', '{}')"""


async def test_anybody_is_known_once_a_password_lets_somebody_in(engine: AsyncEngine) -> None:
    async def is_anybody_known() -> bool:
        return await do(engine, accounts.is_anybody_known)

    key = keys.NewKey(name="a key", scope="admin")
    await do(engine, lambda db: keys.add(db, key, COMMAND_LINE))
    await execute(engine, PROVIDED.format(1))
    assert not await is_anybody_known()
    made = await add(engine)
    assert await is_anybody_known()
    await do(engine, lambda db: accounts.disable(db, made.id, COMMAND_LINE))
    assert not await is_anybody_known()


async def test_commands_reach_whom_the_provider_knows_and_tell_namesakes_apart(
    engine: AsyncEngine,
) -> None:
    disabled = "SELECT array_agg(id) FROM account WHERE disabled_at IS NOT NULL"
    await execute(engine, PROVIDED.format(1))
    await commands.disable_user(engine, "ann", None)
    assert await value(engine, disabled) == [1]
    await commands.enable_user(engine, "ANN", None)
    with pytest.raises(accounts.RoleElsewhereError):
        await commands.set_user_role(engine, "ann", "admin")
    with pytest.raises(accounts.NoPasswordHereError):
        await commands.set_user_password(engine, "ann", PASSWORD)
    await execute(engine, PROVIDED.format(2))
    for step in (commands.disable_user, commands.enable_user, commands.sign_out_user):
        with pytest.raises(commands.SeveralAccountsError) as refused:
            await step(engine, "Ann", None)
        assert str(refused.value) == "Several accounts have this name; say --id and one of 1, 2."
        with pytest.raises(accounts.AccountNotFoundError):
            await step(engine, "Ann", 3)
        with pytest.raises(accounts.AccountNotFoundError):
            await step(engine, "Bob", 1)
    await commands.disable_user(engine, "Ann", 2)
    assert await value(engine, disabled) == [2]
    made = await add(engine)
    await commands.set_user_role(engine, "ann", "operator")
    assert await value(engine, "SELECT role FROM account WHERE password IS NOT NULL") == "operator"
    shown = await commands.list_users(engine)
    assert [line.split()[0] for line in shown] == ["id", "1", "2", str(made.id)]
    assert shown[2].endswith("disabled https://id.example")


def test_who_does_something_may_look_unless_more_is_said() -> None:
    assert not Actor("account", "Ann", 1).may("write")
    assert COMMAND_LINE.may("admin")
