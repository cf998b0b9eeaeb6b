"""The hours of a client's local day in which a mailing may reach that client."""

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
STRIDE = DAY
"""No zone changes its clocks there and back within this time."""

Offsets = tuple[tuple[datetime, timedelta], ...]
"""A zone's offsets from UTC in a span of time, each with the moment from which on it holds."""


class Spell(NamedTuple):
    """A time, in UTC, through which a window is open; `closes` is not in it."""

    opens: datetime
    closes: datetime


class Window(msgspec.Struct, frozen=True):
    """Local hours: `opens` is in the window, `closes` is not; it may cross midnight."""

    opens: time
    closes: time

    def is_open(self, local: time) -> bool:
        """Whether the local time of day `local` lies in the window."""
        if self.opens < self.closes:
            return self.opens <= local < self.closes
        return local >= self.opens or local < self.closes

    def next_opening(self, time_zone: str, at: datetime) -> datetime:
        """Return the first moment from `at` on, in UTC, at which the window is open in a zone.

        The zone's clock alone decides: an hour that it skips is never open, one that it shows
        twice is open twice, and a jump of the clocks into the window opens it.
        """
        at = at.astimezone(UTC)
        if self.is_open_in(time_zone, at):
            return at
        zone = _zone(time_zone)
        # A window can be missed on a day that the zone skips, and within the next day's jump.
        until = at + 4 * DAY
        moments = (*_showings(zone, self.opens, at, until), *_jumps(zone, at, until))
        return min(moment for moment in moments if self.is_open_in(time_zone, moment))

    def is_open_in(self, time_zone: str, moment: datetime) -> bool:
        """Whether the window is open in a zone at a moment."""
        return self.is_open(moment.astimezone(_zone(time_zone)).time())

    def spells(self, offsets: Offsets, until: datetime) -> Iterator[Spell]:
        """Yield every spell from where `offsets` begin to `until`, cut at both, as clocks show it.

        A jump of the clocks into the window opens it, and one out of it closes it.
        """
        begun = None
        for (start, offset), (end, _) in pairwise((*offsets, (until, timedelta()))):
            for spell in self._spells(start, end, offset):
                if begun is None:
                    begun = spell
                elif begun.closes == spell.opens:  # open before a jump, and after it
                    begun = Spell(begun.opens, spell.closes)
                else:
                    yield begun
                    begun = spell
        if begun is not None:
            yield begun

    def _spells(self, start: datetime, end: datetime, offset: timedelta) -> Iterator[Spell]:
        """Yield the spells from `start` to `end`, while clocks are so far ahead of UTC."""
        local = _since_midnight((start + offset).time())
        opens = start - (local - _since_midnight(self.opens)) % DAY
        length = (_since_midnight(self.closes) - _since_midnight(self.opens)) % DAY
        while opens < end:
            if opens + length > start:
                yield Spell(max(opens, start), min(opens + length, end))
            opens += DAY


def offsets_of(time_zone: str, start: datetime, end: datetime) -> Offsets:
    """Return a zone's offsets from UTC from `start`, in UTC, to `end`.

    Zones with equal offsets are alike there: their windows open and close at the same moments.
    """
    zone = _zone(time_zone)
    moments = (start, *(moment for moment in _jumps(zone, start, end) if moment < end))
    return tuple((moment, _offset(zone, moment)) for moment in moments)


def _since_midnight(clock: time) -> timedelta:
    return datetime.combine(datetime.min, clock) - datetime.min  # noqa: DTZ901  # a clock has no zone


def window_between(opens: str | UnsetType | None, closes: str | UnsetType | None) -> Window | None:
    """Return the window between two times of day, as the API has them; None without both."""
    if isinstance(opens, str) and isinstance(closes, str):
        return Window(time.fromisoformat(opens), time.fromisoformat(closes))
    return None


@functools.cache
def _zone(name: str) -> ZoneInfo:
    return ZoneInfo(name)


def _showings(zone: ZoneInfo, clock: time, start: datetime, end: datetime) -> Iterator[datetime]:
    """Yield every moment in [start, end) at which the zone's clock shows `clock`."""
    day = start.astimezone(zone).date()
    while day <= end.astimezone(zone).date():
        for fold in (0, 1):
            wall = datetime.combine(day, clock).replace(fold=fold)
            moment = wall.replace(tzinfo=zone).astimezone(UTC)
            is_shown = moment.astimezone(zone).replace(tzinfo=None, fold=0) == wall.replace(fold=0)
            if is_shown and start <= moment < end:
                yield moment
        day += DAY


def _jumps(zone: ZoneInfo, start: datetime, end: datetime) -> Iterator[datetime]:
    """Yield every moment in (start, end) at which the zone's offset from UTC changes."""
    month = start.replace(day=1, hour=0, minute=0, second=0, microsecond=0)
    while month < end:
        for moment in _jumps_of_month(zone, month):
            if start < moment < end:
                yield moment
        month = _next_month(month)


@functools.lru_cache(maxsize=8192)
def _jumps_of_month(zone: ZoneInfo, month: datetime) -> tuple[datetime, ...]:
    """Return every moment in a month, from its first on, at which the zone's offset changes.

    It is kept: a forecast asks for months of hundreds of zones, and the next one for the same.
    """
    found = []
    before, end = month - SECOND, _next_month(month) - SECOND
    offset = _offset(zone, before)
    while before < end:
        after = min(before + STRIDE, end)
        offset_before, offset = offset, _offset(zone, after)
        if offset != offset_before:
            found.append(_jump(zone, before, after))
        before = after
    return tuple(found)


def _next_month(month: datetime) -> datetime:
    return (month + 31 * DAY).replace(day=1)


def _jump(zone: ZoneInfo, before: datetime, after: datetime) -> datetime:
    """Return the first second of the offset that holds at `after`, found by halving."""
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
