"""SQL made of names; columns of counts are named like the statuses of messages."""

from collections.abc import Iterable


def one_of(column: str, values: tuple[str, ...]) -> str:
    """Return the SQL condition that a column has one of `values`."""
    return f"{column} IN ({', '.join(repr(value) for value in values)})"


def add_up(names: Iterable[str]) -> str:
    """Return the sum of several columns of one row."""
    return " + ".join(names)


def sums(names: Iterable[str]) -> str:
    """Return the sum of each column over all rows, under the same name; 0 without rows."""
    return ", ".join(f"coalesce(sum({name}), 0)::bigint AS {name}" for name in names)


def count_by_status(names: Iterable[str], status: str = "status") -> str:
    """Return the number of rows of each status, each under its name; `status` is a column."""
    return ", ".join(f"count(*) FILTER (WHERE {status} = '{name}') AS {name}" for name in names)


def values_of(names: Iterable[str], value: str) -> str:
    """Return rows for VALUES, one for each name, which takes the place of `{name}` in `value`."""
    return ", ".join(f"({value.format(name=name)})" for name in names)
