"""Plan when the messages of a mailing are due in a time zone, or why they are not sent.

All clients of one time zone have the same local time, so one plan applies to all their messages.
"""

from collections.abc import Iterable
from datetime import datetime
from typing import Any

import msgspec
from sqlalchemy import Row

from mailer.mailing.window import SendingWindow


class Plan(msgspec.Struct, frozen=True):
    """The due time, status and reason of the messages of one mailing in one time zone."""

    time_zone: str | None
    """None for all time zones."""
    due_at: datetime
    status: str
    """`scheduled`, or `cancelled` when the messages cannot be sent before the mailing's end."""
    reason: str | None
    """Why the messages are cancelled: `expired`, `no_window` or `mailing_cancelled`."""


def plan(
    time_zone: str | None,
    window: SendingWindow | None,
    start: datetime,
    end: datetime,
    at: datetime,
) -> Plan:
    """Return the plan for messages that are planned at the moment `at`.

    `start` and `end` are those of the mailing. A message is due when the window is open for the
    first time after both `start` and `at`. Without a window it is due at `start`, even if that has
    passed; the time zone does not matter then and may be None.
    """
    earliest = max(start, at)
    if earliest >= end:
        return Plan(time_zone, earliest, "cancelled", "expired")
    due_at = start
    if window is not None and time_zone is not None:
        due_at = window.next_opening(time_zone, earliest)
    if due_at >= end:
        return Plan(time_zone, due_at, "cancelled", "no_window")
    return Plan(time_zone, due_at, "scheduled", None)


def plan_cancelled(time_zone: str | None, at: datetime) -> Plan:
    """Return the plan for messages of a mailing that was cancelled before they were written."""
    return Plan(time_zone, at, "cancelled", "mailing_cancelled")


def plan_by_zone(mailing: Row[Any], time_zones: Iterable[str | None]) -> dict[str | None, Plan]:
    """Return the plan for each time zone.

    `mailing` is a row of the table `mailing`, and has also a column `now` with the database's time.
    """
    window, start, end = window_of(mailing), mailing.datetime_start, mailing.datetime_end
    return {zone: plan(zone, window, start, end, mailing.now) for zone in time_zones}


def window_of(mailing: Row[Any]) -> SendingWindow | None:
    """Return the sending window of a row of the table `mailing`; None when it has none."""
    if mailing.send_interval_time_start is None:
        return None
    return SendingWindow(mailing.send_interval_time_start, mailing.send_interval_time_end)
