"""A message's claims, the requests that were made under them, and which belong together."""

import msgspec

from soaking.journal import LAG

END_OF_TIME = float("inf")

UNKNOWN = frozenset({"timeout", "connection_lost", "lease_expired"})
"""Why nobody knows what became of a request."""
NOT_TAKEN = frozenset({"error", "malformed", "limited"})
SILENT = frozenset({"hang", "reset", "gone"})
"""Requests that the gateway gave no answer to."""
KINDS: dict[str, frozenset[str]] = {
    "rejected_400": frozenset({"reject"}),
    "http_500": frozenset({"error"}),
    "http_502": frozenset({"error"}),
    "http_503": frozenset({"error"}),
    "http_429": frozenset({"limited"}),
    "bad_response": frozenset({"malformed"}),
    "timeout": frozenset({"hang", "gone"}),
    "connection_lost": frozenset({"reset", "gone"}),
    "attempts_exhausted": NOT_TAKEN,
}
"""What the gateway does to a request by the reason that mailer gives for its outcome."""


class Change(msgspec.Struct, frozen=True):
    """A state that a message went to."""

    at: float
    """Unix time, shortly before the commit."""
    life: str
    """The run of mailer that wrote it."""
    message_id: int
    mailing_id: int
    client_id: int
    status: str
    reason: str | None
    attempts: int
    leased_until: float | None


class Request(msgspec.Struct):
    """A request at the gateway; it was written some time from `earliest` to `arrived`."""

    id: int | None
    arrived: float
    earliest: float
    kind: str
    is_overlap: bool


class Claim(msgspec.Struct):
    """A time that a process held a message: from the claim to what it or another wrote next."""

    opened: Change
    closed: Change | None
    request: Request | None = None

    @property
    def until(self) -> float:
        """When the message was in its hands no longer."""
        closed_at = END_OF_TIME if self.closed is None else self.closed.at
        return min(closed_at, self.opened.leased_until or END_OF_TIME)

    @property
    def is_counted(self) -> bool:
        """Whether it counts as an attempt."""
        return self.closed is None or self.closed.attempts >= self.opened.attempts

    @property
    def outcome(self) -> str:
        """What became of it, in a word: a reason, a state, or `untried`, or `open`."""
        if self.closed is None:
            return "open"
        if self.request is None and not self.is_counted:
            return "untried"  # whatever reason it keeps from an attempt before
        is_early = self.closed.at < (self.opened.leased_until or 0)
        if self.closed.reason == "lease_expired" and is_early:
            return self.closed.status  # an answer ended it; the reason is of an attempt before
        return self.closed.reason or self.closed.status

    def tells(self, request: Request) -> bool:
        """Whether its outcome is what the gateway did to a request."""
        if self.closed is None:
            return False
        if self.closed.reason is None:
            return self.closed.status == "delivered" and request.kind == "accepted"
        return request.kind in KINDS.get(self.closed.reason, ())


class Message(msgspec.Struct):
    """Everything that became of one message."""

    changes: list[Change]
    claims: list[Claim]
    unclaimed: list[Request] = []
    """Requests that no claim accounts for, or that came second under one."""

    @property
    def last(self) -> Change:
        """The state it ended in."""
        return self.changes[-1]


def claims_of(changes: list[Change]) -> list[Claim]:
    """Return a message's claims, in order."""
    followed = zip(changes, [*changes[1:], None], strict=True)
    return [Claim(change, after) for change, after in followed if change.status == "sending"]


def lay_beside(message: Message, requests: list[Request]) -> None:
    """Give each request to the claim that it was made under; each claim has one at most.

    When those were written that a frozen gateway read at once, nobody knows: they go to the claims
    that are left, first to those whose outcome is what the gateway did.
    """
    plain = [request for request in requests if request.earliest == request.arrived]
    frozen = [request for request in requests if request.earliest < request.arrived]
    for request in plain:
        fitting = [*_fitting(message, request, 0), *_fitting(message, request, LAG)]
        _give(message, request, fitting[:1])
    told = [(request, _fitting(message, request, LAG)) for request in frozen]
    told.sort(key=lambda pair: not any(claim.tells(pair[0]) for claim in pair[1]))
    for request, _ in told:
        fitting = _fitting(message, request, LAG)
        fitting.sort(key=lambda claim: (claim.tells(request), claim.is_counted))
        _give(message, request, fitting[-1:])


def _fitting(message: Message, request: Request, late: float) -> list[Claim]:
    """Return the claims without a request that one may have been made under."""
    return [
        claim
        for claim in message.claims
        if claim.request is None
        and claim.opened.at <= request.arrived
        and request.earliest <= claim.until + late
    ]


def _give(message: Message, request: Request, fitting: list[Claim]) -> None:
    for claim in fitting:
        claim.request = request
    if not fitting:
        message.unclaimed.append(request)
