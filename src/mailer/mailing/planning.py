"""Decide when the messages of a mailing are due, by time zone, or why they are cancelled."""

from collections.abc import Iterable
from datetime import datetime
from typing import Any

import msgspec
from sqlalchemy import Row

from mailer.mailing.window import SendingWindow


class Plan(msgspec.Struct, frozen=True):
    """When the messages of a mailing for one time zone are due, or why they are cancelled."""

    time_zone: str | None
    """None for all time zones."""
    due_at: datetime
    status: str
    reason: str | None


def plan(
    time_zone: str | None,
    window: SendingWindow | None,
    start: datetime,
    end: datetime,
    at: datetime,
) -> Plan:
    """Return when, from `at` on, a message for a time zone is due, or why it will not be sent.

    Without a window the time zone does not matter and may be None.
    """
    since = max(start, at)
    if since >= end:
        return Plan(time_zone, since, "cancelled", "expired")
    due_at = start
    if window is not None and time_zone is not None:
        due_at = window.next_opening(time_zone, since)
    if due_at >= end:
        return Plan(time_zone, due_at, "cancelled", "no_window")
    return Plan(time_zone, due_at, "scheduled", None)


def window_of(mailing: Row[Any]) -> SendingWindow | None:
    """Return the sending window of a row of `mailing`, or None."""
    if mailing.send_interval_time_start is None:
        return None
    return SendingWindow(mailing.send_interval_time_start, mailing.send_interval_time_end)


def plan_by_zone(mailing: Row[Any], time_zones: Iterable[str]) -> dict[str, Plan]:
    """Return a plan for each time zone; `mailing` is a row of `mailing` with the moment `now`."""
    window, start, end = window_of(mailing), mailing.datetime_start, mailing.datetime_end
    return {zone: plan(zone, window, start, end, mailing.now) for zone in time_zones}
