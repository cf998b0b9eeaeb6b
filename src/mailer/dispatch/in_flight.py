"""Gateway requests in flight, which are aborted at their deadline or when their mailing stops."""

import asyncio
from collections.abc import Mapping
from datetime import datetime

from mailer.clock import elapsed
from mailer.gateway.protocol import Request
from mailer.mailing.model import RunningMailing


class InFlightRequests:
    """All gateway requests of this worker that have started and not ended.

    One timer serves all deadlines. Nearly every request ends long before its deadline, and a timer
    for each would cost more than all other bookkeeping.
    """

    def __init__(self) -> None:
        self._mailings: dict[Request, int] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._fires_at = float("inf")

    def __len__(self) -> int:
        return len(self._mailings)

    def add(self, mailing_id: int, request: Request) -> None:
        """Abort a request at its deadline, or when its mailing stops, until it is removed."""
        self._mailings[request] = mailing_id
        if request.deadline < self._fires_at:
            self._set_timer(request.deadline)

    def remove(self, request: Request) -> None:
        """Remove a request that has ended."""
        del self._mailings[request]

    def apply_mailing_changes(self, mailings: Mapping[int, RunningMailing], now: datetime) -> None:
        """Abort unwritten requests of mailings that may not send, and shorten deadlines.

        `mailings` are the running and paused mailings. A request must end with its mailing: an
        earlier end moves the deadline forward.
        """
        elapsed_now = elapsed()
        for request, mailing_id in self._mailings.items():
            mailing = mailings.get(mailing_id)
            if mailing is None or not mailing.may_send:
                request.abort_unwritten()
            if mailing is not None:
                seconds = mailing.time_left(now)
                request.deadline = min(request.deadline, elapsed_now + seconds)
        self._abort_overdue()

    def abort_all(self, reason: str) -> None:
        """Abort every request. A request that was written has the outcome unknown, for `reason`."""
        for request in self._mailings:
            request.abort_unwritten()
            request.abort(reason)

    def _abort_overdue(self) -> None:
        now = elapsed()
        for request in self._mailings:
            if request.deadline <= now:
                request.abort("timeout")
        deadlines = [r.deadline for r in self._mailings if r.abort_reason is None]
        self._set_timer(min(deadlines, default=float("inf")))

    def _set_timer(self, moment: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._fires_at = moment
        if moment < float("inf"):
            loop = asyncio.get_running_loop()
            self._timer = loop.call_later(moment - elapsed(), self._abort_overdue)
