"""The sending window: the local hours of day in which a mailing may reach a client.

A clock change is a change of a time zone's offset from UTC: to daylight-saving time and back, or by
law. Everything here works with any such change.
"""

import functools
from collections.abc import Iterator
from datetime import UTC, datetime, time, timedelta
from itertools import pairwise
from typing import NamedTuple
from zoneinfo import ZoneInfo

import msgspec
from msgspec import UnsetType

DAY = timedelta(days=1)
SECOND = timedelta(seconds=1)
SCAN_STEP = DAY
"""Step of the search for offset changes. No time zone changes its offset and back within a day, so
that comparing the offsets before and after a step finds every change."""

Offsets = tuple[tuple[datetime, timedelta], ...]
"""A time zone's offsets from UTC in a time span, each with the moment from which it applies."""


class OpenInterval(NamedTuple):
    """An interval in UTC in which a window is open: `opens` is included, `closes` is excluded."""

    opens: datetime
    closes: datetime


class SendingWindow(msgspec.Struct, frozen=True):
    """Local hours from `opens`, included, to `closes`, excluded.

    The window crosses midnight when `opens` is later than `closes`. The two are never equal.
    """

    opens: time
    closes: time

    def is_open(self, local: time) -> bool:
        """Return whether the local time of day `local` is inside the window."""
        if self.opens < self.closes:
            return self.opens <= local < self.closes
        return local >= self.opens or local < self.closes

    def next_opening(self, time_zone: str, at: datetime) -> datetime:
        """Return the first moment from `at` on, in UTC, at which the window is open in a time zone.

        Only the local clock decides. An hour that the clock skips is never open, an hour that it
        repeats is open twice, and a clock change into the window opens it.
        """
        at = at.astimezone(UTC)
        if self.is_open_in(time_zone, at):
            return at
        zone = _zone(time_zone)
        # Four days are enough: a time zone may skip a whole day, and a clock change on the next day
        # may skip the window.
        until = at + 4 * DAY
        # the window can only open at its local opening time, or by a clock change
        candidates = (*_occurrences(zone, self.opens, at, until), *_offset_changes(zone, at, until))
        return min(moment for moment in candidates if self.is_open_in(time_zone, moment))

    def is_open_in(self, time_zone: str, moment: datetime) -> bool:
        """Return whether the window is open in a time zone at a moment."""
        return self.is_open(moment.astimezone(_zone(time_zone)).time())

    def open_intervals(self, offsets: Offsets, until: datetime) -> Iterator[OpenInterval]:
        """Yield the open intervals from the start of `offsets` to `until`, in order.

        Intervals that are open at the start or at `until` are cut there. A clock change into the
        window opens it, and one out of it closes it.
        """
        current = None  # the last interval, which may continue after a clock change
        after_last = (until, timedelta())  # ends the last offset; its own offset is not used
        for (start, offset), (end, _) in pairwise((*offsets, after_last)):
            for interval in self._intervals_at_offset(start, end, offset):
                if current is None:
                    current = interval
                elif current.closes == interval.opens:  # open before and after a clock change
                    current = OpenInterval(current.opens, interval.closes)
                else:
                    yield current
                    current = interval
        if current is not None:
            yield current

    def _intervals_at_offset(
        self, start: datetime, end: datetime, offset: timedelta
    ) -> Iterator[OpenInterval]:
        """Yield the open intervals from `start` to `end`, for a constant offset from UTC."""
        local_start = _since_midnight((start + offset).time())
        # the last opening until `start`
        opens = start - (local_start - _since_midnight(self.opens)) % DAY
        length = (_since_midnight(self.closes) - _since_midnight(self.opens)) % DAY
        while opens < end:
            if opens + length > start:
                yield OpenInterval(max(opens, start), min(opens + length, end))
            opens += DAY


def offsets_of(time_zone: str, start: datetime, end: datetime) -> Offsets:
    """Return the offsets of a time zone between `start` and `end`, both in UTC.

    In two time zones with equal offsets, windows open and close at the same moments. A caller can
    compute them once for both.
    """
    zone = _zone(time_zone)
    moments = (start, *(moment for moment in _offset_changes(zone, start, end) if moment < end))
    return tuple((moment, _offset(zone, moment)) for moment in moments)


def _since_midnight(local: time) -> timedelta:
    """Return how long after midnight a local time is, on a day without a clock change."""
    return datetime.combine(datetime.min, local) - datetime.min  # noqa: DTZ901  # a local time has no time zone


def window_between(
    opens: str | UnsetType | None, closes: str | UnsetType | None
) -> SendingWindow | None:
    """Return the window between two times of day in the API's format; None if one is not set."""
    if isinstance(opens, str) and isinstance(closes, str):
        return SendingWindow(time.fromisoformat(opens), time.fromisoformat(closes))
    return None


@functools.cache
def _zone(name: str) -> ZoneInfo:
    return ZoneInfo(name)


def _occurrences(zone: ZoneInfo, local: time, start: datetime, end: datetime) -> Iterator[datetime]:
    """Yield every moment in [start, end) at which the local time in `zone` is `local`.

    A clock change may skip the local time on a day, or repeat it. Python distinguishes the two
    moments of a repeated time by `fold`. An ordinary time gives the same moment twice.
    """
    day = start.astimezone(zone).date()
    while day <= end.astimezone(zone).date():
        for fold in (0, 1):
            wall = datetime.combine(day, local).replace(fold=fold)
            moment = wall.replace(tzinfo=zone).astimezone(UTC)
            # a skipped time does not survive the conversion to UTC and back
            exists = moment.astimezone(zone).replace(tzinfo=None, fold=0) == wall.replace(fold=0)
            if exists and start <= moment < end:
                yield moment
        day += DAY


def _offset_changes(zone: ZoneInfo, start: datetime, end: datetime) -> Iterator[datetime]:
    """Yield every moment in (start, end) at which the offset of `zone` from UTC changes."""
    month = start.replace(day=1, hour=0, minute=0, second=0, microsecond=0)
    while month < end:
        for moment in _offset_changes_of_month(zone, month):
            if start < moment < end:
                yield moment
        month = _next_month(month)


@functools.lru_cache(maxsize=8192)
def _offset_changes_of_month(zone: ZoneInfo, month: datetime) -> tuple[datetime, ...]:
    """Return every moment in a month at which the offset of `zone` changes.

    Results are cached, because each forecast needs the same months of hundreds of time zones.
    """
    changes = []
    # from the second before the month, to find a change at its first moment
    before, end = month - SECOND, _next_month(month) - SECOND
    offset = _offset(zone, before)
    while before < end:
        after = min(before + SCAN_STEP, end)
        offset_before, offset = offset, _offset(zone, after)
        if offset != offset_before:
            changes.append(_find_offset_change(zone, before, after))
        before = after
    return tuple(changes)


def _next_month(month: datetime) -> datetime:
    """Return the first moment of the month after `month`, which is the first of a month itself."""
    return (month + 31 * DAY).replace(day=1)


def _find_offset_change(zone: ZoneInfo, before: datetime, after: datetime) -> datetime:
    """Return the first second from which the offset at `after` applies, found by bisection.

    The offset changes once between `before` and `after`.
    """
    offset = _offset(zone, after)
    while after - before > SECOND:
        middle = before + (after - before) // SECOND // 2 * SECOND
        if _offset(zone, middle) == offset:
            after = middle
        else:
            before = middle
    return after


def _offset(zone: ZoneInfo, moment: datetime) -> timedelta:
    return moment.astimezone(zone).utcoffset() or timedelta()
