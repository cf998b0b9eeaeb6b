"""The requests in flight, which end early with their deadline, their mailing or the process."""

import asyncio
from collections.abc import Mapping
from datetime import datetime

from mailer.clock import elapsed
from mailer.gateway.port import Request
from mailer.mailing.model import RunningMailing


class Requests:
    """Every request of this process that has begun and not ended.

    One timer serves all deadlines: nearly every request ends long before its own, and a timer
    each would cost more than the rest of the bookkeeping.
    """

    def __init__(self) -> None:
        self._under_way: dict[Request, int] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._fires_at = float("inf")

    def __len__(self) -> int:
        return len(self._under_way)

    def add(self, mailing_id: int, request: Request) -> None:
        """Keep a request of a mailing to its deadline, and to its mailing, until it is removed."""
        self._under_way[request] = mailing_id
        if request.deadline < self._fires_at:
            self._set_timer(request.deadline)

    def remove(self, request: Request) -> None:
        """Let go of a request that has ended."""
        del self._under_way[request]

    def follow(self, under_way: Mapping[int, RunningMailing], now: datetime) -> None:
        """Stop what belongs to a mailing that may not send; keep all to the ends they have now."""
        elapsed_now = elapsed()
        for request, mailing_id in self._under_way.items():
            mailing = under_way.get(mailing_id)
            if mailing is None or not mailing.may_send:
                request.stop()
            if mailing is not None:
                left = mailing.time_left(now)
                request.deadline = min(request.deadline, elapsed_now + left)
        self._cut_late()

    def cut_all(self, because: str) -> None:
        """End every request; what was written of it stays written."""
        for request in self._under_way:
            request.stop()
            request.cut(because)

    def _cut_late(self) -> None:
        now = elapsed()
        for request in self._under_way:
            if request.deadline <= now:
                request.cut("timeout")
        waiting = [r.deadline for r in self._under_way if r.cut_because is None]
        self._set_timer(min(waiting, default=float("inf")))

    def _set_timer(self, moment: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._fires_at = moment
        if moment < float("inf"):
            loop = asyncio.get_running_loop()
            self._timer = loop.call_later(moment - elapsed(), self._cut_late)
