"""What tests compare: the contents of the database, and the response to a refused request."""

from typing import Any

import httpx
from sqlalchemy import Select, Table, select
from sqlalchemy.ext.asyncio import AsyncEngine

from mailer.db.tables import metadata
from mailer.db.tables.access import audit

Contents = list[list[tuple[Any, ...]]]
"""The rows of each table."""


async def contents(engine: AsyncEngine) -> Contents:
    """Return every row of every table, except audit entries about exports."""
    async with engine.connect() as connection:
        return [
            sorted(map(tuple, await connection.execute(_rows(table))), key=str)
            for table in metadata.sorted_tables
        ]


def _rows(table: Table) -> Select[Any]:
    """Return the query for the rows of a table; every export is audited, also a hostile one."""
    if table is audit:
        return select(table).where(audit.c.action.not_in(("clients_exported", "messages_exported")))
    return select(table)


def assert_is_problem(response: httpx.Response, *statuses: int) -> None:
    """Assert that a response is an error in the form of RFC 9457, with one of these statuses."""
    assert response.status_code in statuses, response.text[:500]
    assert response.headers["content-type"] == "application/problem+json"
    problem = response.json()
    assert {"type", "title", "status", "detail"} <= problem.keys()
    assert problem["status"] == response.status_code


def wrong_fields(response: httpx.Response) -> set[str]:
    """Return the names of the fields that a response reports as wrong."""
    return {error["field"] for error in response.json()["errors"]}
