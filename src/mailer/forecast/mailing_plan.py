"""When the messages of a mailing may be sent, for a forecast."""

from collections.abc import Iterable, Iterator
from datetime import datetime, timedelta

import msgspec

from mailer.forecast.throughput_simulation import SendSlot
from mailer.mailing.window import DAY, Offsets, SendingWindow, offsets_of

MAX_HORIZON = timedelta(days=60)
"""The longest time that a forecast simulates; longer times are not useful."""


class MailingPlan(msgspec.Struct, frozen=True):
    """When a mailing may be sent, and the moment `at` of the forecast, all in UTC."""

    start: datetime
    end: datetime
    window: SendingWindow | None
    at: datetime

    @property
    def since(self) -> datetime:
        """Return the earliest moment to send from now on."""
        return max(self.start, self.at)

    @property
    def until(self) -> datetime:
        """Return the end of the simulated time."""
        return min(self.end, self.since + MAX_HORIZON)

    def offsets(self, time_zone: str) -> Offsets:
        """Return the UTC offsets of a time zone during the mailing.

        Zones with equal offsets have their sending windows at equal times. The offsets start a day
        before `at`, because a window that is open now may have opened then. Without a window, the
        result is the same for all time zones.
        """
        earliest = max(self.start, self.at - DAY)
        if self.window is None:
            return ((earliest, timedelta()),)
        return offsets_of(time_zone, earliest, self.until)

    def slots(self, offsets: Offsets, due_at: datetime | None) -> Iterator[SendSlot]:
        """Yield, in order, when messages may be sent to clients with these UTC offsets.

        The messages of a slot may be due before its start: an open window has opened in the past.
        """
        intervals: Iterable[tuple[datetime, datetime]] = [(self.start, self.until)]
        if self.window is not None:
            intervals = self.window.open_intervals(offsets, self.until)
        earliest = max(self.since, due_at or self.since)
        for opens, closes in intervals:
            if closes > earliest:
                yield SendSlot(
                    due=self._seconds_until(max(opens, due_at or opens)),
                    start=self._seconds_until(max(opens, earliest)),
                    end=self._seconds_until(closes),
                )

    def _seconds_until(self, moment: datetime) -> float:
        return (moment - self.at).total_seconds()

    def opens_too_late(self, time_zone: str, due_at: datetime | None) -> datetime | None:
        """Return when the window opens in a time zone if that is at the mailing's end or later.

        Return None otherwise, and also after the mailing's end: then `no_time` is the reason.
        """
        if self.window is None or self.since >= self.end:
            return None
        earliest = max(self.since, due_at or self.since)
        opens_at = self.window.next_opening(time_zone, earliest)
        return opens_at if opens_at >= self.end else None
