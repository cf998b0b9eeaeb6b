"""Each migration on a database with data in it, there and back."""

from collections.abc import AsyncIterator
from typing import Any

import pytest
from alembic import command
from alembic.config import Config
from sqlalchemy import Connection, text
from sqlalchemy.ext.asyncio import AsyncEngine
from tests.sample import add_clients, advance, create_patient_engine, do, execute, value

from mailer.db.migrate import CHECKOUT, is_current, migrate
from mailer.mailing import moving
from mailer.report.verify import differences

ADD_MAILINGS = """
    INSERT INTO mailing (datetime_start, datetime_end, text, status, clients_count,
        audience_cursor, audience_until, deleted_at)
    SELECT now() + start::interval, now() + finish::interval, name, status, 2,
        coalesce(until, 0), until, CASE WHEN name = 'deleted' THEN now() END
    FROM (VALUES
        ('to come', 'scheduled', '1 hour', '2 hours', NULL),
        ('under way', 'running', '-1 hour', '1 hour', 2),
        ('past its end', 'running', '-2 hours', '-1 hour', 2),
        ('through', 'finished', '-1 hour', '1 hour', 2),
        ('ended', 'finished', '-2 hours', '-1 hour', 2),
        ('deleted', 'finished', '-2 hours', '-1 hour', 2)
    ) AS mailing (name, status, start, finish, until)"""
ADD_LEDGERS = "INSERT INTO ledger (mailing_id) SELECT id FROM mailing"
ADD_MESSAGES = """
    INSERT INTO message (mailing_id, client_id, due_at, status, reason)
    SELECT mailing.id, client.id, datetime_start,
        CASE WHEN mailing.status = 'running' THEN 'scheduled'
             WHEN client.id = 1 THEN 'undelivered' ELSE 'delivered' END,
        CASE WHEN mailing.status = 'finished' AND client.id = 1 THEN 'rejected_400' END
    FROM mailing, client WHERE audience_until IS NOT NULL"""
TABLES = ("client", "mailing", "ledger", "message")


@pytest.fixture
async def engine(database_url: str) -> AsyncIterator[AsyncEngine]:
    """A database of the first schema with clients, mailings and messages in it."""
    engine = create_patient_engine(database_url)
    await downgrade(engine, "base")
    await upgrade(engine, "0001")
    await add_clients(engine, 2)
    await execute(engine, ADD_MAILINGS, ADD_LEDGERS, ADD_MESSAGES)
    yield engine
    await engine.dispose()


async def upgrade(engine: AsyncEngine, revision: str) -> None:
    await _run(engine, command.upgrade, revision)


async def downgrade(engine: AsyncEngine, revision: str) -> None:
    await _run(engine, command.downgrade, revision)


async def _run(engine: AsyncEngine, run: Any, revision: str) -> None:
    def on(connection: Connection) -> None:
        config = Config()
        config.set_main_option("script_location", str(CHECKOUT))
        config.attributes["connection"] = connection
        run(config, revision)

    async with engine.begin() as connection:
        await connection.run_sync(on)
    await engine.dispose()  # what a connection remembers of the tables is not so any more


async def contents(engine: AsyncEngine) -> dict[str, list[Any]]:
    """Return every row of every table, its columns by name."""
    async with engine.connect() as connection:
        return {
            table: sorted(
                (dict(row) for row in (await connection.execute(select)).mappings()), key=str
            )
            for table in TABLES
            for select in [text(f"SELECT * FROM {table}")]  # noqa: S608  # tables of our own
        }


async def test_what_has_ended_is_settled_and_nothing_else(engine: AsyncEngine) -> None:
    await migrate(engine)

    settled = "SELECT array_agg(text ORDER BY text) FROM mailing WHERE is_settled"
    assert await value(engine, settled) == ["deleted", "ended", "through"]
    assert await value(engine, "SELECT count(*) FROM mailing WHERE retry_before IS NULL") == 6
    assert await value(engine, "SELECT count(*) FROM message WHERE last_failure IS NULL") == 10
    assert await differences(engine) == []


async def test_mailings_under_way_go_on_after_the_migration(engine: AsyncEngine) -> None:
    await migrate(engine)
    to_do = await do(engine, moving.look)
    assert to_do.clears
    assert not to_do.begins

    await advance(engine)

    settled = "SELECT array_agg(text ORDER BY text) FROM mailing WHERE NOT is_settled"
    assert await value(engine, settled) == ["to come", "under way"]
    assert await value(engine, "SELECT sum(cancelled) FROM ledger") == 2
    assert await differences(engine) == []


async def test_migration_and_its_undoing_lose_nothing(engine: AsyncEngine) -> None:
    before = await contents(engine)
    await migrate(engine)
    migrated = await contents(engine)

    await downgrade(engine, "0001")

    assert await contents(engine) == before
    await migrate(engine)
    assert await contents(engine) == migrated
    async with engine.connect() as connection:
        assert await is_current(connection)


async def test_what_may_have_been_accepted_is_known_after_the_migration(
    engine: AsyncEngine,
) -> None:
    await upgrade(engine, "0008")
    await execute(
        engine,
        "UPDATE message SET last_failure = 'timeout', reason = 'timeout' WHERE id = 1",
        "UPDATE message SET last_failure = 'http_503', reason = 'http_503' WHERE id = 2",
        "UPDATE message SET status = 'unknown', reason = 'internal_error' WHERE id = 3",
        "UPDATE message SET last_failure = 'timeout' WHERE status = 'undelivered'",
    )
    await migrate(engine)
    known = "SELECT jsonb_object_agg(id, unknown_reason) FROM message WHERE unknown_reason <> ''"
    assert await value(engine, known) == {"1": "timeout", "3": "internal_error"}
    paused = "SELECT array_agg(id ORDER BY id) FROM message WHERE retry_at = due_at"
    assert await value(engine, paused) == [1, 2]


async def test_unknown_outcome_moves_to_the_moment_at_which_it_was_decided(
    engine: AsyncEngine,
) -> None:
    await upgrade(engine, "0022")
    await execute(
        engine,
        "UPDATE message SET status = 'unknown', reason = 'timeout', unknown_reason = 'timeout',"
        " sent_at = now() - interval '1 day', updated_at = now() WHERE id = 1",
    )
    sums = """
        SELECT coalesce(sum("unknown"), 0) FROM tally_move, message
        WHERE dimension = 'outcome' AND key LIKE '% timeout' AND message.id = 1
            AND split_part(key, ' ', 1)::bigint
                = floor(extract(epoch FROM message.{}) / 900)::bigint * 900"""

    async def counted() -> list[int]:
        moments = ("sent_at", "updated_at")
        return [int(await value(engine, sums.format(moment))) for moment in moments]

    assert await counted() == [1, 0]
    await migrate(engine)
    assert await counted() == [0, 1]
    assert await differences(engine) == []
    await downgrade(engine, "0022")
    assert await counted() == [1, 0]


async def test_tags_are_folded_by_the_migration_and_stay_as_written(engine: AsyncEngine) -> None:
    tags = ["vip", "VIP", " vip\u200b", "ЮГ", "и\u0306", "\u200b", "stra\u00dfe", "\u01f0" * 60]
    added = "FROM client WHERE id > 2 ORDER BY id"
    add = text("INSERT INTO client (phone, operator_code, tag) VALUES (:phone, '916', :tag)")
    async with engine.begin() as connection:
        for n, tag in enumerate(tags):
            await connection.execute(add, {"phone": f"7990{n:07}", "tag": tag})
    await migrate(engine)
    async with engine.connect() as connection:
        found = await connection.execute(text(f"SELECT tag, tag_written {added}"))
        assert [tuple(row) for row in found] == [
            ("vip", None),
            ("vip", "VIP"),
            ("vip", None),
            ("юг", "ЮГ"),
            ("й", None),
            (None, None),
            ("strasse", "stra\u00dfe"),
            ("\u01f0" * 60, None),
        ]
    assert not any("kinds" in found.what for found in await differences(engine))
    await downgrade(engine, "0013")
    async with engine.connect() as connection:
        back = (await connection.scalars(text(f"SELECT tag {added}"))).all()
    assert back == ["vip", "VIP", "vip", "ЮГ", "й", None, "stra\u00dfe", "\u01f0" * 60]


async def test_first_schema_is_undone_without_a_trace(engine: AsyncEngine) -> None:
    await migrate(engine)

    await downgrade(engine, "base")

    left = """
        SELECT array_agg(relname::text) FROM pg_class
        WHERE relnamespace = 'public'::regnamespace AND relname !~ '^alembic_version'"""
    assert await value(engine, left) is None
    left = "SELECT count(*) FROM pg_proc WHERE pronamespace = 'public'::regnamespace"
    assert await value(engine, left) == 0


async def test_paused_and_cancelled_mailings_survive_the_undoing(engine: AsyncEngine) -> None:
    await migrate(engine)
    await execute(
        engine,
        "UPDATE mailing SET status = 'paused' WHERE text = 'under way'",
        "UPDATE mailing SET status = 'cancelled', is_settled = true WHERE text = 'to come'",
    )
    await downgrade(engine, "0001")
    await migrate(engine)
    await advance(engine)

    statuses = "SELECT jsonb_object_agg(text, status) FROM mailing"
    assert await value(engine, statuses) == {
        "to come": "cancelled",
        "under way": "paused",
        "past its end": "finished",
        "through": "finished",
        "ended": "finished",
        "deleted": "finished",
    }
    assert await differences(engine) == []
