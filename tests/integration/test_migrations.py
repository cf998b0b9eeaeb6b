"""Migrations lead to the schema that the code expects, and are never edited after they land."""

import asyncio
import hashlib
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from sqlalchemy import Connection
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncEngine
from tests.factories import add_mailings, create_patient_engine, do, execute, value
from tests.schema_dump import DOCUMENT, dump_schema

from mailer.db.migrate import CHECKOUT_MIGRATIONS, is_current, migrate
from mailer.db.tables import metadata
from mailer.opt_out.service import opt_out_phone
from mailer.sample_data import SampleMailing

CHECKSUMS = CHECKOUT_MIGRATIONS / "checksums.txt"
"""A line for each file of a migration that has landed: its SHA-256 digest and its name."""


async def test_migrations_lead_to_the_schema_of_the_code(engine: AsyncEngine) -> None:
    """Check the same as `alembic check`."""

    def differences(connection: Connection) -> list[object]:
        context = MigrationContext.configure(connection, opts={"compare_server_default": True})
        return list(compare_metadata(context, metadata))

    async with engine.connect() as connection:
        assert await connection.run_sync(differences) == []
        assert await is_current(connection)


async def test_documented_schema_is_that_of_the_migrations(database_url: str) -> None:
    assert DOCUMENT.read_text() == await asyncio.to_thread(dump_schema, database_url), (
        "run `make schema`"
    )


async def test_a_downgrade_to_nothing_leaves_nothing(database_url: str) -> None:
    engine = create_patient_engine(database_url)
    tables = "SELECT count(*) FROM pg_class WHERE relnamespace = 'public'::regnamespace"
    functions = "SELECT count(*) FROM pg_proc WHERE pronamespace = 'public'::regnamespace"

    await run(engine, command.downgrade, "base")

    assert await value(engine, functions) == 0
    assert await value(engine, tables) == 2  # alembic_version and its primary key
    await migrate(engine)
    async with engine.connect() as connection:
        assert await is_current(connection)
    await engine.dispose()


async def test_a_downgrade_cancels_drafts_because_the_older_version_would_send_them(
    database_url: str,
) -> None:
    engine = create_patient_engine(database_url)
    [draft] = await add_mailings(engine, SampleMailing(start=datetime.now(UTC), status="draft"))

    await run(engine, command.downgrade, "0008")

    state = "SELECT (status, is_closed, is_settled)::text FROM mailing"
    assert await value(engine, state) == "(cancelled,t,t)"
    await migrate(engine)
    await execute(engine, f"DELETE FROM mailing WHERE id = {draft}")  # noqa: S608  # a number
    await engine.dispose()


async def test_placeholders_are_literal_after_a_downgrade_and_in_texts_from_before(
    database_url: str,
) -> None:
    engine = create_patient_engine(database_url)
    ids = await add_mailings(engine, *[SampleMailing(start=datetime.now(UTC))] * 2)
    template = """[{"field": "name"}]"""
    await execute(
        engine,
        f"UPDATE mailing SET text = '{{{{ name }}}}', template = '{template}' WHERE id = {ids[1]}",  # noqa: S608  # our own values
    )

    await run(engine, command.downgrade, "0014")

    statuses = "SELECT array_agg(status ORDER BY id) FROM mailing"
    assert await value(engine, statuses) == ["running", "paused"]
    await migrate(engine)
    assert await value(engine, "SELECT count(template) FROM mailing") == 0
    assert await value(engine, "SELECT count(template) FROM mailing_text") == 0
    await engine.dispose()


async def test_a_downgrade_that_would_lose_opt_outs_is_refused(database_url: str) -> None:
    engine = create_patient_engine(database_url)
    await do(engine, lambda connection: opt_out_phone(connection, "79160000001", "page"))

    with pytest.raises(DBAPIError, match="a downgrade would lose the opt-outs"):
        await run(engine, command.downgrade, "base")
    assert await value(engine, "SELECT count(*) FROM opt_out") == 1
    await engine.dispose()


async def run(engine: AsyncEngine, alembic_command: Any, revision: str) -> None:
    """Run a command of Alembic, such as `downgrade`, to a revision."""

    def run_on(connection: Connection) -> None:
        config = Config()
        config.set_main_option("script_location", str(CHECKOUT_MIGRATIONS))
        config.attributes["connection"] = connection
        alembic_command(config, revision)

    async with engine.begin() as connection:
        await connection.run_sync(run_on)
    await engine.dispose()  # a connection caches the types of tables that are gone


def test_migrations_that_have_landed_are_unchanged() -> None:
    lines = (line.split() for line in CHECKSUMS.read_text().splitlines())
    recorded = {name: checksum for checksum, name in lines}
    files = {path.name: path for path in (CHECKOUT_MIGRATIONS / "versions").glob("[0-9]*")}

    assert files.keys() == recorded.keys(), "add the digest of a new migration to checksums.txt"
    assert {name: digest(path) for name, path in files.items()} == recorded, (
        "a migration that has landed is never edited: write a new one"
    )


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
