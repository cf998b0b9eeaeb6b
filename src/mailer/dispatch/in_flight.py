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
        """The id of each request's mailing."""
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = float("inf")
        """When the timer ends, a moment of `elapsed()`; infinite without a timer."""

    def __len__(self) -> int:
        return len(self._mailings)

    def add(self, mailing_id: int, request: Request) -> None:
        """Add a request that starts now. Until it is removed, it may be aborted."""
        self._mailings[request] = mailing_id
        if request.deadline < self._timer_at:
            self._set_timer(request.deadline)

    def remove(self, request: Request) -> None:
        """Remove a request that has ended."""
        del self._mailings[request]

    def apply_mailing_changes(self, mailings: Mapping[int, RunningMailing], now: datetime) -> None:
        """Abort requests, and move deadlines forward, after changes of mailings.

        Unwritten requests of mailings that may not send any more are aborted. A request must end
        before its mailing does, so an earlier end of the mailing moves the deadline forward.

        `mailings` are all running and paused mailings; `now` is the time by the database's clock.
        """
        elapsed_now = elapsed()
        for request, mailing_id in self._mailings.items():
            mailing = mailings.get(mailing_id)
            if mailing is None or not mailing.may_send:
                request.abort_unwritten()
            if mailing is not None:
                deadline_of_mailing = elapsed_now + mailing.time_left(now)
                request.deadline = min(request.deadline, deadline_of_mailing)
        self._abort_overdue()

    def abort_unwritten(self, message_ids: frozenset[int]) -> None:
        """Abort the requests for these messages that are not written yet."""
        if message_ids:
            for request in self._mailings:
                if request.message.id in message_ids:
                    request.abort_unwritten()

    def abort_all(self, reason: str) -> None:
        """Abort every request. Written ones are unknown for `reason`; the others are not sent."""
        for request in self._mailings:
            request.abort_unwritten()
            request.abort(reason)

    def _abort_overdue(self) -> None:
        """Abort the requests whose deadline has come, and set the timer for the next deadline."""
        now = elapsed()
        for request in self._mailings:
            if request.deadline <= now:
                request.abort("timeout")
        deadlines = [request.deadline for request in self._mailings if request.abort_reason is None]
        self._set_timer(min(deadlines, default=float("inf")))

    def _set_timer(self, moment: float) -> None:
        """Replace the timer by one that ends at a moment of `elapsed()`; infinite for no timer."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._timer_at = moment
        if moment < float("inf"):
            loop = asyncio.get_running_loop()
            self._timer = loop.call_later(moment - elapsed(), self._abort_overdue)
