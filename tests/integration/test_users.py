"""Users: who can sign in; each change is recorded in the audit log and applies at once."""

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Any

import pytest
from argon2 import PasswordHasher
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine
from tests.event_timeout import EVENT_TIMEOUT
from tests.factories import do, execute, value

from mailer.access import commands, credentials, keys, service, sessions, users
from mailer.access.model import COMMAND_LINE, Actor
from mailer.access.reauthorize import AccessRevokedError
from mailer.access.users import NewPassword, NewUser, User
from mailer.errors import InvalidError, MailerError
from mailer.limits import ConcurrencyLimiter
from mailer.validation import check

pytestmark = pytest.mark.usefixtures("cheap_passwords")
PASSWORD = "correct horse battery"  # noqa: S105  # used in tests alone
"""The password of every user that `create_user` creates."""
ANOTHER = NewPassword(password="another long one")  # noqa: S106  # used in tests alone
THIRD = NewPassword(password="the third long one")  # noqa: S106  # used in tests alone
COUNT_BLOCKED_SESSIONS = """
    SELECT count(*) FROM pg_stat_activity
    WHERE datname = current_database() AND wait_event_type = 'Lock'"""
AUDIT = text("SELECT action, actor_kind, target_id, before, after FROM audit ORDER BY id")
INSERT_PROVIDER_USER = """
    INSERT INTO app_user (name, role, issuer, subject)
    VALUES ('Ann', 'viewer', 'https://id.example', '{}')"""
"""Inserts a user of an OpenID provider, who has no local password."""
Step = Callable[[AsyncConnection, int, Actor], Awaitable[object]]
"""A change of the user with an id, by an actor."""


async def make_viewer(connection: AsyncConnection, user_id: int, by: Actor) -> None:
    await users.set_role(connection, user_id, "viewer", by)


async def create_user(engine: AsyncEngine, name: str = "Ann", role: str = "viewer") -> User:
    """Create a user with the password `PASSWORD`."""
    values = {"name": name, "role": role, "password": PASSWORD}
    return await service.create_user(
        engine, check(NewUser, values, datetime.now(UTC)), COMMAND_LINE
    )


async def sign_in(engine: AsyncEngine, name: str = "Ann", password: str = PASSWORD) -> str:
    """Sign in and return the secret of the session."""
    return await service.sign_in(engine, name, password, "192.0.2.1", "Firefox")


async def get_actor(engine: AsyncEngine, secret: str) -> Actor | None:
    """Return the actor of a request with a session's secret; None if the session has ended."""
    async with engine.begin() as connection:
        return await sessions.authenticate(connection, secret, None)


async def wait_until_blocked(engine: AsyncEngine) -> None:
    """Wait until some transaction waits for a lock."""
    async with asyncio.timeout(EVENT_TIMEOUT):
        while not await value(engine, COUNT_BLOCKED_SESSIONS):
            await asyncio.sleep(0.01)


async def read_audit_log(engine: AsyncEngine) -> list[tuple[Any, ...]]:
    async with engine.connect() as connection:
        return [tuple(row) for row in await connection.execute(AUDIT)]


async def test_composed_and_decomposed_characters_are_the_same_password() -> None:
    stored_hash = await credentials.hash_password("Zo\u00eb's long secret")
    assert await credentials.verify_password(stored_hash, "Zoe\u0308's long secret")


@pytest.mark.parametrize(
    ("change", "field"),
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
def test_an_invalid_field_of_a_new_user_is_refused_by_its_name(
    change: dict[str, str], field: str
) -> None:
    values = {"name": "ann", "role": "viewer", "password": PASSWORD} | change
    with pytest.raises(InvalidError) as refused:
        check(NewUser, values, datetime.now(UTC))
    assert [error.field for error in refused.value.errors] == [field]


@pytest.mark.parametrize("length", [12, 1_024])
def test_a_password_needs_no_particular_types_of_characters(length: int) -> None:
    password = ("vkpzwqmhtrgl" * length)[:length]  # lower-case letters alone
    check(NewUser, {"name": "a", "role": "admin", "password": password}, datetime.now(UTC))


async def test_user_names_are_unique_ignoring_case(engine: AsyncEngine) -> None:
    await create_user(engine, "Ann")
    with pytest.raises(users.UserNameTakenError):
        await create_user(engine, "aNN")


@pytest.mark.parametrize("unclean", [" Zoë", "Zoe\u0308", "Z\u200boë\u2060"])
async def test_a_new_name_is_cleaned_and_accepted_in_either_form(
    engine: AsyncEngine, unclean: str
) -> None:
    assert (await create_user(engine, unclean)).name == "Zoë"
    with pytest.raises(users.UserNameTakenError):
        await create_user(engine, "zoë")
    assert await sign_in(engine, unclean)
    assert await sign_in(engine, "zoë")


async def test_a_user_signs_in_by_name_and_password_with_the_scope_of_the_role(
    engine: AsyncEngine,
) -> None:
    user = await create_user(engine, role="operator")
    secret = await sign_in(engine, " aNN ")
    actor = await get_actor(engine, secret)
    assert actor is not None
    assert (actor.kind, actor.name, actor.id, actor.scope) == ("user", "Ann", user.id, "write")
    async with engine.connect() as connection:
        (listed,) = await users.list_all(connection)
    assert listed.signed_in_at is not None
    assert listed.sessions == 1


@pytest.mark.parametrize("password", [PASSWORD.upper(), "", "\0", "x" * 2_000])
async def test_a_wrong_password_and_an_unknown_name_have_the_same_error(
    engine: AsyncEngine, password: str
) -> None:
    await create_user(engine)
    messages = set()
    for name in ("Ann", "Bob", "a\0b"):
        with pytest.raises(service.NotSignedInError) as refused:
            await sign_in(engine, name, password)
        messages.add(str(refused.value))
    assert len(messages) == 1
    assert await value(engine, "SELECT count(*) FROM session") == 0


async def test_at_most_two_passwords_are_hashed_at_the_same_time() -> None:
    running = max_running = 0
    lock = threading.Lock()

    def pretend_to_hash() -> None:
        nonlocal running, max_running
        with lock:
            running += 1
            max_running = max(max_running, running)
        time.sleep(0.02)
        with lock:
            running -= 1

    await asyncio.gather(*(credentials._in_thread(pretend_to_hash) for _ in range(10)))  # noqa: SLF001  # the concurrency is not public
    assert max_running == 2


async def test_an_attempt_that_waits_too_long_for_hashing_does_not_count_as_a_failure(
    engine: AsyncEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    await create_user(engine)
    limiter = ConcurrencyLimiter(1, timeout=0.05, busy=credentials.HashingBusyError)
    monkeypatch.setattr(credentials, "HASH_LIMITER", limiter)
    async with limiter.slot():  # the only one, so that every hashing has to wait
        for _ in range(6):  # after five failures, the sixth attempt would be throttled
            with pytest.raises(credentials.HashingBusyError) as refused:
                await sign_in(engine)
    assert refused.value.retry_after == 5
    assert await value(engine, "SELECT max(failures) FROM login_throttle") == 0
    assert await sign_in(engine)


class LimiterOfOneHash:
    """A limiter with time for one hash; the second one is refused."""

    def __init__(self) -> None:
        self.is_used = False

    @asynccontextmanager
    async def slot(self) -> AsyncIterator[None]:
        if self.is_used:
            raise credentials.HashingBusyError
        self.is_used = True
        yield


async def test_a_right_password_that_cannot_be_rehashed_does_not_count_as_a_failure(
    engine: AsyncEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    await create_user(engine)
    other_cost = PasswordHasher(time_cost=2, memory_cost=8, parallelism=1)
    old_hash = other_cost.hash(PASSWORD)
    await execute(engine, f"UPDATE app_user SET password_hash = '{old_hash}'")  # noqa: S608  # a hash
    monkeypatch.setattr(credentials, "HASH_LIMITER", LimiterOfOneHash())
    with pytest.raises(credentials.HashingBusyError):
        await sign_in(engine)
    assert await value(engine, "SELECT max(failures) FROM login_throttle") == 0


async def test_a_right_current_password_does_not_count_as_a_failure_if_the_new_one_cannot_be_hashed(
    engine: AsyncEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    await create_user(engine)
    actor = await get_actor(engine, await sign_in(engine))
    assert actor is not None
    monkeypatch.setattr(credentials, "HASH_LIMITER", LimiterOfOneHash())
    with pytest.raises(credentials.HashingBusyError):
        await service.change_own_password(engine, actor, PASSWORD, ANOTHER)
    assert await value(engine, "SELECT max(failures) FROM login_throttle") == 0


async def test_disabling_a_user_ends_sessions_and_prevents_signing_in(engine: AsyncEngine) -> None:
    user = await create_user(engine)
    secret = await sign_in(engine)
    async with engine.begin() as connection:
        await users.disable(connection, user.id, COMMAND_LINE)
    assert await get_actor(engine, secret) is None
    assert await value(engine, "SELECT count(*) FROM session") == 0
    with pytest.raises(service.NotSignedInError):
        await sign_in(engine)
    async with engine.begin() as connection:
        await users.enable(connection, user.id, COMMAND_LINE)
    assert await get_actor(engine, secret) is None
    assert await sign_in(engine)


async def test_a_new_role_applies_from_the_next_request_on(engine: AsyncEngine) -> None:
    user = await create_user(engine, role="admin")
    secret = await sign_in(engine)
    async with engine.begin() as connection:
        await users.set_role(connection, user.id, "viewer", COMMAND_LINE)
    actor = await get_actor(engine, secret)
    assert actor is not None
    assert actor.scope == "read"


async def test_a_new_password_ends_all_other_sessions(
    engine: AsyncEngine,
) -> None:
    user = await create_user(engine)
    own_session, other_session = await sign_in(engine), await sign_in(engine)
    actor = await get_actor(engine, own_session)
    assert actor is not None
    await service.change_own_password(engine, actor, PASSWORD, ANOTHER)
    assert await get_actor(engine, own_session) is not None
    assert await get_actor(engine, other_session) is None

    await service.set_password(engine, user.id, THIRD, COMMAND_LINE)
    assert await get_actor(engine, own_session) is None
    with pytest.raises(service.NotSignedInError):
        await sign_in(engine, password=ANOTHER.password)
    assert await sign_in(engine, password=THIRD.password)


async def test_changing_the_own_password_needs_the_current_one(engine: AsyncEngine) -> None:
    await create_user(engine)
    actor = await get_actor(engine, await sign_in(engine))
    assert actor is not None
    with pytest.raises(InvalidError, match="current_password"):
        await service.change_own_password(engine, actor, "not this at all", ANOTHER)
    assert await sign_in(engine)


async def test_every_change_is_recorded_without_secrets(engine: AsyncEngine) -> None:
    """The names of users who do not exist are left out too: a user may type a password there."""
    user = await create_user(engine)
    secret = await sign_in(engine)
    with pytest.raises(service.NotSignedInError):
        await sign_in(engine, "My Password By Mistake")
    with pytest.raises(service.NotSignedInError):
        await sign_in(engine, password="wrong")  # noqa: S106  # used in tests alone
    actor = await get_actor(engine, secret)
    assert actor is not None
    await service.sign_out(engine, actor)
    async with engine.begin() as connection:
        await users.set_role(connection, user.id, "admin", COMMAND_LINE)
        await users.disable(connection, user.id, COMMAND_LINE)
        await users.enable(connection, user.id, COMMAND_LINE)
    await service.set_password(engine, user.id, ANOTHER, COMMAND_LINE)
    await sign_in(engine, password=ANOTHER.password)
    async with engine.begin() as connection:
        await users.end_sessions(connection, user.id, COMMAND_LINE)
    assert await read_audit_log(engine) == [
        ("user_created", "command", user.id, None, {"name": "Ann", "role": "viewer"}),
        ("signed_in", "user", user.id, None, None),
        ("sign_in_failed", "anonymous", None, None, None),
        ("sign_in_failed", "anonymous", user.id, None, None),
        ("signed_out", "user", user.id, None, None),
        ("user_role_changed", "command", user.id, {"role": "viewer"}, {"role": "admin"}),
        ("user_disabled", "command", user.id, None, None),
        ("user_enabled", "command", user.id, None, None),
        ("user_password_changed", "command", user.id, None, None),
        ("signed_in", "user", user.id, None, None),
        ("sessions_ended", "command", user.id, None, {"sessions": 1}),
    ]
    whole_log = await value(engine, "SELECT string_agg(audit::text, ' ') FROM audit")
    assert "argon2" not in whole_log
    assert "Mistake" not in whole_log


async def test_calls_that_change_nothing_are_not_recorded(engine: AsyncEngine) -> None:
    user = await create_user(engine)
    async with engine.begin() as connection:
        await users.set_role(connection, user.id, "viewer", COMMAND_LINE)
        await users.enable(connection, user.id, COMMAND_LINE)
        await users.end_sessions(connection, user.id, COMMAND_LINE)
    assert len(await read_audit_log(engine)) == 1  # that the user was created


@pytest.mark.parametrize("step", [make_viewer, users.disable])
async def test_users_cannot_disable_or_demote_themselves(engine: AsyncEngine, step: Step) -> None:
    user = await create_user(engine, role="admin")
    actor = Actor("user", "Ann", user.id)
    with pytest.raises(users.OwnUserError):
        async with engine.begin() as connection:
            await step(connection, user.id, actor)
    assert await sign_in(engine)


@pytest.mark.parametrize("step", [make_viewer, users.disable])
async def test_of_two_admins_who_disable_each_other_at_once_one_remains(
    engine: AsyncEngine, step: Step
) -> None:
    ann, bob = await create_user(engine, "Ann", "admin"), await create_user(engine, "Bob", "admin")

    async def apply_step_of_bob() -> None:
        async with engine.begin() as connection:
            await step(connection, ann.id, bob.actor(None))

    async with engine.begin() as connection:
        await step(connection, bob.id, ann.actor(None))
        step_of_bob = asyncio.create_task(apply_step_of_bob())
        await wait_until_blocked(engine)  # until ann's step is committed at the end of the block
    with pytest.raises(AccessRevokedError):
        await step_of_bob
    remaining = "SELECT name FROM app_user WHERE role = 'admin' AND disabled_at IS NULL"
    assert await value(engine, remaining) == "Ann"


@pytest.mark.parametrize("step", [make_viewer, users.disable, users.enable, users.end_sessions])
async def test_changing_an_unknown_user_is_an_error(engine: AsyncEngine, step: Step) -> None:
    with pytest.raises(users.UserNotFoundError):
        async with engine.begin() as connection:
            await step(connection, 1, COMMAND_LINE)
    with pytest.raises(MailerError):
        await service.set_password(engine, 1, ANOTHER, COMMAND_LINE)


async def test_a_user_of_the_provider_gets_no_local_password(engine: AsyncEngine) -> None:
    await execute(engine, INSERT_PROVIDER_USER.format(1))
    user_id = await value(engine, "SELECT id FROM app_user")
    with pytest.raises(users.NoLocalPasswordError):
        await service.set_password(engine, user_id, ANOTHER, COMMAND_LINE)
    with pytest.raises(service.NotSignedInError):
        await sign_in(engine)


async def test_has_password_users_is_true_if_a_user_can_sign_in_by_password(
    engine: AsyncEngine,
) -> None:
    async def has_password_users() -> bool:
        return await do(engine, users.has_password_users)

    key = keys.NewKey(name="a key", scope="admin")
    await do(engine, lambda db: keys.create(db, key, COMMAND_LINE))
    await execute(engine, INSERT_PROVIDER_USER.format(1))
    assert not await has_password_users()  # neither a key nor this user has a password
    user = await create_user(engine)
    assert await has_password_users()
    await do(engine, lambda db: users.disable(db, user.id, COMMAND_LINE))
    assert not await has_password_users()


DISABLED_IDS = "SELECT array_agg(id) FROM app_user WHERE disabled_at IS NOT NULL"


async def test_commands_can_disable_a_provider_user_but_not_set_role_or_password(
    engine: AsyncEngine,
) -> None:
    await execute(engine, INSERT_PROVIDER_USER.format(1))
    await commands.disable_user(engine, "ann", user_id=None)
    assert await value(engine, DISABLED_IDS) == [1]
    await commands.enable_user(engine, "ANN", user_id=None)
    assert await value(engine, DISABLED_IDS) is None
    with pytest.raises(users.ExternalRoleError):
        await commands.set_user_role(engine, "ann", "admin")
    with pytest.raises(users.NoLocalPasswordError):
        await commands.set_user_password(engine, "ann", PASSWORD)


async def test_commands_need_an_id_if_several_users_have_the_name(engine: AsyncEngine) -> None:
    await execute(engine, INSERT_PROVIDER_USER.format(1), INSERT_PROVIDER_USER.format(2))
    for command in (commands.disable_user, commands.enable_user, commands.sign_out_user):
        with pytest.raises(commands.AmbiguousUserError) as refused:
            await command(engine, "Ann", user_id=None)
        assert str(refused.value) == "Several users have this name; give --id with one of 1, 2."
        with pytest.raises(users.UserNotFoundError):
            await command(engine, "Ann", user_id=3)
        with pytest.raises(users.UserNotFoundError):
            await command(engine, "Bob", user_id=1)
    await commands.disable_user(engine, "Ann", user_id=2)
    assert await value(engine, DISABLED_IDS) == [2]

    lines = await commands.list_users(engine)
    assert [line.split()[0] for line in lines] == ["id", "1", "2"]
    assert lines[2].endswith("disabled https://id.example")


async def test_the_role_command_finds_the_local_user_among_users_of_the_same_name(
    engine: AsyncEngine,
) -> None:
    await execute(engine, INSERT_PROVIDER_USER.format(1))
    await create_user(engine, "Ann")
    await commands.set_user_role(engine, "ann", "operator")
    local_role = "SELECT role FROM app_user WHERE password_hash IS NOT NULL"
    assert await value(engine, local_role) == "operator"


def test_an_actor_has_the_scope_read_by_default() -> None:
    assert not Actor("user", "Ann", 1).may("write")
    assert COMMAND_LINE.may("admin")
