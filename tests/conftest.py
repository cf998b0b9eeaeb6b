"""A real PostgreSQL for every test that needs one, and the application on it."""

import gc
import shutil
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from functools import cache
from itertools import count
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

import httpx
import pytest
from argon2 import PasswordHasher
from hypothesis import settings
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from mailer.access import passwords
from mailer.app import create_app
from mailer.clock import database_clock, elapsed
from mailer.db.embedded import embedded_postgres
from mailer.db.engine import connect, create_engine
from mailer.db.migrate import migrate
from tests.asked import inside
from tests.provider import OpenIdProvider, running_provider
from tests.sample import OPEN, create_patient_engine

settings.register_profile("patient", deadline=None)  # the machine may be busy with other things
settings.load_profile("patient")

TEMPLATE = "mailer_template"
EMPTY = (
    text("""
        DO $$
        DECLARE
            tables CONSTANT text[] := '{message, ledger, mailing, moved_client, client, report,
                session, sign_in, api_key, account, throttle, home, idempotency, origin, audit,
                tally, tally_move, outcome_count, directory, directory_move}';
            one text;
            has_rows boolean;
        BEGIN
            EXECUTE 'LOCK TABLE ' || array_to_string(tables, ', ');
            FOREACH one IN ARRAY tables LOOP
                EXECUTE format('SELECT EXISTS (SELECT FROM %I)', one) INTO has_rows;
                CONTINUE WHEN NOT has_rows;
                IF one = 'audit' THEN
                    ALTER TABLE audit DISABLE TRIGGER audit_never_altered;
                    DELETE FROM audit;
                    ALTER TABLE audit ENABLE TRIGGER audit_never_altered;
                ELSIF pg_table_size(one::regclass) > 1000000 THEN
                    EXECUTE format('TRUNCATE %I CASCADE', one);
                ELSE
                    EXECUTE format('DELETE FROM %I', one);
                END IF;
            END LOOP;
            PERFORM setval(seqrelid, seqstart, false)
            FROM pg_sequence JOIN pg_depend ON objid = seqrelid AND deptype = 'i';
        END $$"""),
    text("""
        UPDATE settled SET finished = 0, cancelled_mailings = 0, delivered = 0, undelivered = 0,
            "unknown" = 0, cancelled = 0"""),
    text("SELECT update_origin()"),
    text("UPDATE origin SET moved_at = moved_at - interval '1 hour'"),
)
"""Makes a database as new, which did not restart lately. A TRUNCATE of all tables takes up to ten
times as long."""
_numbers = count(1)

gc.disable()  # until all is collected, none of which goes before the end


def pytest_collection_finish() -> None:
    """Keep the garbage collector from going through all that was collected, again and again."""
    gc.freeze()
    gc.enable()


@pytest.fixture(scope="session", autouse=True)
def _database_time() -> None:
    """What a process learns when it opens its database; the tests' is on this machine."""
    database_clock.sample(elapsed(), datetime.now(UTC), elapsed())


@pytest.fixture(scope="module")
def cheap_passwords() -> Iterator[None]:
    """Hash passwords at the least cost there is; `test_password_cost` tests what one costs."""
    cheap = PasswordHasher(time_cost=1, memory_cost=8, parallelism=1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(passwords, "_hasher", lambda: cheap)
        patch.setattr(passwords, "_nobodys", cache(passwords._nobodys.__wrapped__))  # noqa: SLF001  # made of the cost
        yield


@pytest.fixture(scope="session")
def openid() -> Iterator[OpenIdProvider]:
    """An OpenID provider for the session; `tests.provider` says who can sign in, and how."""
    with running_provider() as provider:
        yield provider


@pytest.fixture(scope="session")
async def server_url() -> AsyncIterator[str]:
    """A PostgreSQL server for the session, with a migrated database to copy."""
    folder = Path(tempfile.mkdtemp(prefix="mailer-tests-"))
    folder.chmod(0o755)  # PostgreSQL's user passes through when the tests run as root
    try:
        async with embedded_postgres(folder) as url:
            await _write_without_waiting(url)
            await _create_database(url, TEMPLATE)
            engine = create_engine(_on(url, TEMPLATE))
            await migrate(engine)
            await engine.dispose()
            yield url
    finally:
        shutil.rmtree(folder)


@asynccontextmanager
async def _database(server_url: str) -> AsyncIterator[str]:
    name = f"mailer_{next(_numbers)}"
    await _create_database(server_url, name, TEMPLATE)
    yield _on(server_url, name)
    connection = await connect(server_url)
    # not by force: that may not end an autovacuum worker, where a plain DROP waits for all to go
    await connection.execute(f"DROP DATABASE {name}")
    await connection.close()


@pytest.fixture
async def database_url(server_url: str) -> AsyncIterator[str]:
    """A database of the newest schema with nothing in it, for this test alone."""
    async with _database(server_url) as url:
        yield url


@pytest.fixture(scope="module")
async def shared_database_url(server_url: str) -> AsyncIterator[str]:
    """One database for the file: a new one takes as long as ten tests."""
    async with _database(server_url) as url:
        yield url


@pytest.fixture(scope="module")
async def shared_engine(shared_database_url: str) -> AsyncIterator[AsyncEngine]:
    """The file's database."""
    engine = create_patient_engine(shared_database_url)
    yield engine
    await engine.dispose()


@pytest.fixture(scope="module")
async def application(shared_engine: AsyncEngine) -> AsyncIterator[httpx.AsyncClient]:
    """The application's API in this process, without a dispatcher; an error in it answers 500."""
    app = create_app(shared_engine, settings=OPEN)
    transport = inside(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://mailer/api/v1") as client:
        yield client


@pytest.fixture
async def engine(shared_engine: AsyncEngine) -> AsyncEngine:
    """A database with nothing in it."""
    async with shared_engine.begin() as connection:
        for statement in EMPTY:
            await connection.execute(statement)
    return shared_engine


@pytest.fixture
async def api(engine: AsyncEngine, application: httpx.AsyncClient) -> httpx.AsyncClient:
    """The application's API with nothing in its database."""
    del engine  # emptied, which is all that is wanted of it
    return application


async def _write_without_waiting(server_url: str) -> None:
    """Leave the disk to itself: this server is never killed, and gone after the session."""
    connection = await connect(server_url.replace("mailer@", "postgres@"))
    await connection.execute("ALTER SYSTEM SET fsync = off")
    await connection.execute("ALTER SYSTEM SET full_page_writes = off")
    await connection.execute("SELECT pg_reload_conf()")
    await connection.close()


async def _create_database(server_url: str, name: str, template: str = "template0") -> None:
    connection = await connect(server_url)
    await connection.execute(f"CREATE DATABASE {name} TEMPLATE {template}")
    await connection.close()


def _on(server_url: str, database: str) -> str:
    return urlunsplit(urlsplit(server_url)._replace(path=f"/{database}"))
