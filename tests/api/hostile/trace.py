"""What is in the database, and what a refusal looks like."""

from typing import Any

import httpx
from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncEngine

from mailer.db.schema import metadata


async def contents(engine: AsyncEngine) -> list[list[tuple[Any, ...]]]:
    """Return every row of every table."""
    async with engine.connect() as connection:
        return [
            sorted(map(tuple, await connection.execute(select(table))), key=str)
            for table in metadata.sorted_tables
        ]


def assert_is_problem(answer: httpx.Response, *statuses: int) -> None:
    assert answer.status_code in statuses, answer.text[:500]
    assert answer.headers["content-type"] == "application/problem+json"
    problem = answer.json()
    assert {"type", "title", "status", "detail"} <= problem.keys()
    assert problem["status"] == answer.status_code


def fields(answer: httpx.Response) -> set[str]:
    return {error["field"] for error in answer.json()["errors"]}
