"""Fixtures: a real PostgreSQL for every test that needs one, and the application on it."""

import gc
import shutil
import tempfile
from collections.abc import AsyncIterator, Generator, Iterator
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
from sqlalchemy import text, update
from sqlalchemy.ext.asyncio import AsyncEngine

from mailer.access import credentials
from mailer.app import create_app
from mailer.clock import database_clock, elapsed
from mailer.db.engine import connect, create_engine
from mailer.db.migrate import migrate
from mailer.db.tables.mailing import settled_totals
from mailer.embedded_postgres.cluster import embedded_postgres
from mailer.mailing.text_reach import kept_reaches
from tests import programs
from tests.asgi_client import inside
from tests.factories import OPEN, create_patient_engine
from tests.provider import OpenIdProvider, running_provider

settings.register_profile("patient", deadline=None)  # examples may be slow on a busy machine
settings.load_profile("patient")

TEMPLATE = "mailer_template"
"""A database with the newest schema, of which the databases of tests are copies."""
EMPTY = (
    text("""
        DO $$
        DECLARE
            tables CONSTANT text[] := '{message, mailing_counts, mailing, client_to_replan, client,
                daily_report, session, oidc_sign_in, api_key, app_user, login_throttle,
                known_network, idempotency, origin, audit, message_count, message_count_delta,
                outcome_count, delivery_count, segment_count, segment_count_delta,
                client_field_count, client_field_count_delta,
                operator_route, route, gateway_pause, early_receipt, receipt_poll, opt_out,
                opt_out_to_link, opt_out_count, answer, reply, reply_part, webhook,
                webhook_event, webhook_delivery, gateway_outage, mailing_hold, rerouting,
                routes_applied, client_list_member, client_list, client_contact}';
            table_name text;
            has_rows boolean;
        BEGIN
            LOOP -- until no process of an earlier test, which may still run, locks a table
                BEGIN
                    SET LOCAL lock_timeout = '200ms';
                    EXECUTE 'LOCK TABLE ' || array_to_string(tables, ', ');
                    EXIT;
                EXCEPTION WHEN lock_not_available OR deadlock_detected THEN
                END;
            END LOOP;
            FOREACH table_name IN ARRAY tables LOOP
                EXECUTE format('SELECT EXISTS (SELECT FROM %I)', table_name) INTO has_rows;
                CONTINUE WHEN NOT has_rows;
                IF table_name = 'audit' THEN
                    ALTER TABLE audit DISABLE TRIGGER refuse_change;
                    DELETE FROM audit;
                    ALTER TABLE audit ENABLE TRIGGER refuse_change;
                ELSIF pg_table_size(table_name::regclass) > 1000000 THEN -- bytes
                    EXECUTE format('TRUNCATE %I CASCADE', table_name);
                ELSE
                    EXECUTE format('DELETE FROM %I', table_name);
                END IF;
            END LOOP;
            -- ids start at 1 again
            PERFORM setval(seqrelid, seqstart, false)
            FROM pg_sequence JOIN pg_depend ON objid = seqrelid AND deptype = 'i';
        END $$"""),
    text("INSERT INTO operator_route SELECT '', find_route('{default}')"),  # as after the migration
    update(settled_totals).values(dict.fromkeys(settled_totals.c.keys(), 0)),
    text("SELECT update_origin()"),
    text("UPDATE origin SET moved_at = moved_at - interval '1 hour'"),
)
"""Statements that empty a database, and let it look like one that has not restarted lately.

Deleting the rows of small tables takes up to ten times less time than a TRUNCATE of all tables.
"""
_database_numbers = count(1)

gc.disable()  # during collection, whose objects all live until the end


def pytest_collection_finish() -> None:
    """Exclude the collected tests from garbage collection, to save time."""
    gc.freeze()
    gc.enable()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Report skipped tests that need the same missing program at one location.

    Then pytest's summary contains one line for all of them.
    """
    report = yield
    if isinstance(report.longrepr, tuple) and report.longrepr[2].endswith(programs.NOT_INSTALLED):
        report.longrepr = (programs.__file__, 1, report.longrepr[2])
    return report


@pytest.fixture(scope="session", autouse=True)
def _database_time() -> None:
    """Set the estimate of the database's time, as a process does when it opens its database.

    The database of the tests runs on this machine, so its clock is the one of this machine.
    """
    database_clock.sample(elapsed(), datetime.now(UTC), elapsed())


@pytest.fixture(scope="module")
def cheap_passwords() -> Iterator[None]:
    """Hash passwords at the lowest cost, to save time; `test_password_cost` tests the real cost."""
    cheap = PasswordHasher(time_cost=1, memory_cost=8, parallelism=1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(credentials, "_hasher", lambda: cheap)
        patch.setattr(credentials, "_dummy_hash", cache(credentials._dummy_hash.__wrapped__))  # noqa: SLF001  # its hash depends on the cost
        yield


@pytest.fixture(scope="session")
def openid() -> Iterator[OpenIdProvider]:
    """An OpenID provider for the session; `tests.provider` has its users and passwords."""
    with running_provider() as provider:
        yield provider


@pytest.fixture(scope="session")
async def server_url() -> AsyncIterator[str]:
    """A PostgreSQL server for the session, with a migrated template database."""
    folder = Path(tempfile.mkdtemp(prefix="mailer-tests-"))
    folder.chmod(0o755)  # PostgreSQL's own user must enter it when the tests run as root
    try:
        async with embedded_postgres(folder) as url:
            await _disable_fsync(url)
            await _create_database(url, TEMPLATE)
            engine = create_engine(_database_url_on(url, TEMPLATE))
            await migrate(engine)
            await engine.dispose()
            yield url
    finally:
        shutil.rmtree(folder)


@asynccontextmanager
async def _new_database(server_url: str) -> AsyncIterator[str]:
    """Create a database of the newest schema, yield its URL, and drop it."""
    name = f"mailer_{next(_database_numbers)}"
    await _create_database(server_url, name, TEMPLATE)
    yield _database_url_on(server_url, name)
    connection = await connect(server_url)
    # without FORCE, which may not end an autovacuum worker; a plain DROP waits for the worker
    await connection.execute(f"DROP DATABASE {name}")
    await connection.close()


@pytest.fixture
async def database_url(server_url: str) -> AsyncIterator[str]:
    """The URL of an empty database of the newest schema, for this test alone."""
    async with _new_database(server_url) as url:
        yield url


@pytest.fixture(scope="module")
async def shared_database_url(server_url: str) -> AsyncIterator[str]:
    """The URL of one database for all tests of a file; creating one takes as long as ten tests."""
    async with _new_database(server_url) as url:
        yield url


@pytest.fixture(scope="module")
async def shared_engine(shared_database_url: str) -> AsyncIterator[AsyncEngine]:
    """An engine for the file's database."""
    engine = create_patient_engine(shared_database_url)
    yield engine
    await engine.dispose()


@pytest.fixture(scope="module")
async def application(shared_engine: AsyncEngine) -> AsyncIterator[httpx.AsyncClient]:
    """An HTTP client of the API, with the application in this process and nothing that sends.

    An exception in the application answers 500.
    """
    app = create_app(shared_engine, settings=OPEN)
    transport = inside(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://mailer/api/v1") as client:
        yield client


@pytest.fixture
async def engine(shared_engine: AsyncEngine) -> AsyncEngine:
    """An engine for the file's database, emptied for this test."""
    async with shared_engine.begin() as connection:
        for statement in EMPTY:
            await connection.execute(statement)
    kept_reaches(shared_engine).clear()
    return shared_engine


@pytest.fixture
async def api(engine: AsyncEngine, application: httpx.AsyncClient) -> httpx.AsyncClient:
    """An HTTP client of the API, with an empty database."""
    del engine  # the fixture has emptied the database
    return application


async def _disable_fsync(server_url: str) -> None:
    """Disable waiting for the disk, because the server's data need not survive a crash."""
    connection = await connect(server_url.replace("mailer@", "postgres@"))
    await connection.execute("ALTER SYSTEM SET fsync = off")
    await connection.execute("ALTER SYSTEM SET full_page_writes = off")
    await connection.execute("SELECT pg_reload_conf()")
    await connection.close()


async def _create_database(server_url: str, name: str, template: str = "template0") -> None:
    connection = await connect(server_url)
    await connection.execute(f"CREATE DATABASE {name} TEMPLATE {template}")
    await connection.close()


def _database_url_on(server_url: str, database: str) -> str:
    return urlunsplit(urlsplit(server_url)._replace(path=f"/{database}"))
