"""The hours of a client's local day in which a mailing may reach that client."""

import functools
from collections.abc import Iterator
from datetime import UTC, datetime, time, timedelta
from zoneinfo import ZoneInfo

import msgspec

DAY = timedelta(days=1)
SECOND = timedelta(seconds=1)
STRIDE = timedelta(hours=6)
"""No zone changes its clocks there and back within this time."""


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
    before = start.replace(microsecond=0)
    while before < end:
        after = before + STRIDE
        if _offset(zone, before) != _offset(zone, after):
            yield _jump(zone, before, after)
        before = after


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


def _offset(zone: ZoneInfo, moment: datetime) -> timedelta | None:
    return moment.astimezone(zone).utcoffset()
