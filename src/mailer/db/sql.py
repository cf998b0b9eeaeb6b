"""Parts of SQL that tables and statements share: common columns, and SQL built from names.

The names are those of columns. Many columns hold the count of one message status and are named like
that status, so that their SQL can be built from the list of statuses.
"""

from collections.abc import Iterable, Sequence
from typing import Any

from sqlalchemy import (
    ARRAY,
    BigInteger,
    Column,
    ColumnElement,
    DateTime,
    Label,
    MetaData,
    String,
    any_,
    func,
    literal,
    literal_column,
)

metadata = MetaData(
    naming_convention={
        "pk": "%(table_name)s_pkey",
        "uq": "%(table_name)s_%(column_0_N_name)s_key",
        "ix": "%(table_name)s_%(column_0_N_name)s_idx",
        "ck": "%(table_name)s_%(constraint_name)s_check",
        "fk": "%(table_name)s_%(column_0_N_name)s_fkey",
    }
)
"""The set of all tables. Constraints and indexes without a name get the one that PostgreSQL itself
would choose."""

QUEUE_TABLE_OPTIONS = {
    "autovacuum_vacuum_scale_factor": "0",
    "autovacuum_vacuum_threshold": "10000",
}
"""For a table that is filled and emptied all the time, like a queue: vacuum it after 10,000 dead
rows, however large it is. PostgreSQL's default is a fraction of the table's size."""


REVERSED_PHONE: Label[str] = literal_column("reverse(phone::text)", String).label("reversed_phone")
"""Expression in indexes for the search by the last digits of a phone: see
`mailer.client.phone_search`."""


# ---- columns ---------------------------------------------------------------------------------


def timestamp(name: str, *, nullable: bool = False) -> Column[object]:
    """Return a column for a timestamp with time zone."""
    return Column(name, DateTime(timezone=True), nullable=nullable)


def timestamp_now(name: str) -> Column[object]:
    """Return a timestamp column whose default is the time of the transaction."""
    return Column(name, DateTime(timezone=True), nullable=False, server_default=func.now())


def count_columns(names: Iterable[str]) -> list[Column[int]]:
    """Return a column for a count under each name; the default is 0."""
    return [Column(name, BigInteger, nullable=False, server_default="0") for name in names]


# ---- conditions ------------------------------------------------------------------------------


def has_id(column: ColumnElement[Any], ids: Sequence[int]) -> ColumnElement[bool]:
    """Return the condition that a column has one of these ids; it is read by the column's index."""
    return column == any_(literal(list(ids), ARRAY(BigInteger)))


# ---- SQL built from names --------------------------------------------------------------------


def one_of(column: str, values: tuple[str, ...]) -> str:
    """Return the SQL condition that a column has one of `values`."""
    return f"{column} IN ({', '.join(repr(value) for value in values)})"


def add_up(names: Iterable[str]) -> str:
    """Return the SQL sum of several columns of one row: `a + b + c`."""
    return " + ".join(names)


def sums(names: Iterable[str]) -> str:
    """Return SQL for the sum of each column over all rows, under the column's name.

    A sum over no rows is 0.
    """
    return ", ".join(f"coalesce(sum({name}), 0)::bigint AS {name}" for name in names)


def count_by_status(statuses: Iterable[str], column: str = "status") -> str:
    """Return SQL for the number of rows with each status in `column`, named like the status."""
    return ", ".join(f"count(*) FILTER (WHERE {column} = '{name}') AS {name}" for name in statuses)


def values_of(names: Iterable[str], row_template: str) -> str:
    """Return the rows of a VALUES list: `row_template` once for each name, in parentheses.

    The name replaces `{name}` in the template. For example the names a and b with the template
    `'{name}', t.{name}` give `('a', t.a), ('b', t.b)`.
    """
    return ", ".join(f"({row_template.format(name=name)})" for name in names)
