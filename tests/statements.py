"""The SQL statements that a piece of code executes, and the plans of PostgreSQL for them."""

from collections.abc import Awaitable, Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from sqlalchemy import event, text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from mailer.db.engine import asyncpg_connection

WITH_PLAN = ("SELECT", "INSERT", "UPDATE", "DELETE", "WITH", "(")
"""How statements start that have a plan; others are LOCK and SAVEPOINT."""


@contextmanager
def recorded_statements(engine: AsyncEngine) -> Iterator[list[str]]:
    """Yield a list to which the statements that are executed in the block are added."""
    statements: list[str] = []

    def record(_connection: object, _cursor: object, statement: str, *_: object) -> None:
        statements.append(statement)

    event.listen(engine.sync_engine, "before_cursor_execute", record)
    try:
        yield statements
    finally:
        event.remove(engine.sync_engine, "before_cursor_execute", record)


async def plans_of(
    engine: AsyncEngine, step: Callable[[AsyncConnection], Awaitable[object]]
) -> list[str]:
    """Return the plans of the statements that `step` executes.

    Tables of tests are so small that PostgreSQL would scan them. This is made so expensive here
    that a plan scans a table only if no index can be used.
    """
    executed: list[tuple[str, tuple[Any, ...]]] = []

    def record(
        _connection: object, _cursor: object, statement: str, values: Iterable[Any], *_: object
    ) -> None:
        executed.append((statement, tuple(values)))

    async with engine.begin() as connection:
        await connection.execute(text("SET LOCAL enable_seqscan = off"))
        event.listen(engine.sync_engine, "before_cursor_execute", record)
        try:
            await step(connection)
        finally:
            event.remove(engine.sync_engine, "before_cursor_execute", record)
        database = await asyncpg_connection(connection)
        plans = [
            await database.fetch(f"EXPLAIN {statement}", *values)
            for statement, values in executed
            if statement.lstrip().startswith(WITH_PLAN)
        ]
    return ["\n".join(line for (line,) in plan) for plan in plans]
