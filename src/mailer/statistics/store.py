"""SQL that counts mailings and messages for statistics and reports."""

from typing import Any

import msgspec
from sqlalchemy import Row, func, select, text
from sqlalchemy.ext.asyncio import AsyncConnection

from mailer.db.sql import sums
from mailer.db.tables.mailing import settled_totals
from mailer.mailing.store import UNSETTLED, select_mailings
from mailer.statuses import (
    MESSAGE_STATUSES,
    NOT_SCHEDULED,
    OUTCOMES,
    MailingStatus,
    MessageCounts,
    OutcomeCounts,
)


class StatusTotals(msgspec.Struct, frozen=True):
    """The number of the unsettled mailings with one status, and the sums of their counts."""

    status: MailingStatus
    mailings: int
    messages: MessageCounts


class SettledTotals(msgspec.Struct, frozen=True):
    """Totals that outlive the mailings that they count."""

    finished: int
    """Settled mailings with the status `finished` that are not deleted."""
    cancelled: int
    """Settled mailings with the status `cancelled` that are not deleted."""
    outcomes: OutcomeCounts
    """Messages of all settled mailings and of mailings whose rows are deleted."""


class SendingCount(msgspec.Struct, frozen=True):
    """The messages of a mailing that are being sent to one operator code and time zone."""

    operator_code: str
    time_zone: str
    messages: int


def sum_columns(mailings: Any) -> list[Any]:  # noqa: ANN401  # SQLAlchemy has no type for its columns
    """Return columns, named by status, with the sums of the counts of all selected mailings.

    `mailings` is a subquery of `select_mailings`.
    """
    return [
        func.coalesce(func.sum(mailings.c[f"{name}_messages"]), 0).label(name)
        for name in MESSAGE_STATUSES
    ]


def counts_from_row(row: Row[Any]) -> MessageCounts:
    """Return the counts in a row that has `sum_columns`."""
    return MessageCounts(**{name: int(getattr(row, name)) for name in MESSAGE_STATUSES})


async def sum_unsettled(connection: AsyncConnection) -> list[StatusTotals]:
    """Return totals of the mailings that are not settled, for each status that occurs."""
    unsettled = select_mailings().where(UNSETTLED).subquery()
    statement = select(
        unsettled.c.status, func.count().label("mailings"), *sum_columns(unsettled)
    ).group_by(unsettled.c.status)
    return [
        StatusTotals(row.status, row.mailings, counts_from_row(row))
        for row in await connection.execute(statement)
    ]


async def get_settled_totals(connection: AsyncConnection) -> SettledTotals:
    """Return the totals of settled mailings, which the database keeps in one row."""
    totals = (await connection.execute(select(settled_totals))).one()
    outcomes = OutcomeCounts(**{name: getattr(totals, name) for name in OUTCOMES})
    return SettledTotals(totals.finished, totals.cancelled_mailings, outcomes)


# A deleted mailing keeps its row until its last message is deleted. Then a trigger adds its counts
# to `settled_totals`, and they are not summed here any more.
SUM_DELETED = text(f"""
    SELECT {sums(NOT_SCHEDULED)}
    FROM mailing JOIN mailing_counts ON mailing_id = id
    WHERE deleted_at IS NOT NULL AND NOT is_settled""")  # noqa: S608  # no user input


async def sum_deleted(connection: AsyncConnection) -> dict[str, int]:
    """Return sums by status, without `scheduled`, of unsettled mailings that are being deleted."""
    return (await connection.execute(SUM_DELETED)).one()._asdict()


COUNT_SENDING = text("""
    SELECT operator_code, time_zone, count(*) AS messages FROM message
    WHERE mailing_id = :mailing_id AND status = 'sending' GROUP BY operator_code, time_zone""")


async def count_sending(connection: AsyncConnection, mailing_id: int) -> list[SendingCount]:
    """Return how many messages of a mailing are being sent, by operator code and time zone."""
    rows = await connection.execute(COUNT_SENDING, {"mailing_id": mailing_id})
    return [SendingCount(*row) for row in rows]
