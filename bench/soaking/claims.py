"""The claims of a message, and the matching of gateway requests to claims."""

import msgspec

from soaking.journal import LAG

END_OF_TIME = float("inf")

UNKNOWN_REASONS = frozenset({"timeout", "connection_lost", "lease_expired"})
"""Reasons of an unknown outcome."""
NOT_ACCEPTED = frozenset({"error", "malformed", "limited"})
"""Kinds of requests that the gateway answered with a temporary failure."""
UNANSWERED = frozenset({"hang", "reset", "disconnected"})
"""Kinds of requests that the gateway did not answer."""
KINDS_BY_REASON: dict[str, frozenset[str]] = {
    "rejected_400": frozenset({"reject"}),
    "http_500": frozenset({"error"}),
    "http_502": frozenset({"error"}),
    "http_503": frozenset({"error"}),
    "http_429": frozenset({"limited"}),
    "bad_response": frozenset({"malformed"}),
    "timeout": frozenset({"hang", "disconnected"}),
    "connection_lost": frozenset({"reset", "disconnected"}),
    "attempts_exhausted": NOT_ACCEPTED,
}
"""For each reason that mailer records, the kinds of requests that may have led to it."""


class Change(msgspec.Struct, frozen=True):
    """A change of a message's state, with the new state."""

    at: float
    """Unix time, shortly before the commit."""
    worker: str
    """The worker that wrote it."""
    message_id: int
    mailing_id: int
    client_id: int
    status: str
    reason: str | None
    attempts: int
    leased_until: float | None


class Request(msgspec.Struct):
    """A request at the gateway; it was written at some time from `earliest` to `arrived`."""

    id: int | None
    arrived: float
    earliest: float
    kind: str
    is_overlap: bool


class Claim(msgspec.Struct):
    """A claim of a message by a worker.

    It lasts from the change to `sending` (`opened`) to the next change, by any worker (`closed`).
    """

    opened: Change
    closed: Change | None
    request: Request | None = None

    @property
    def until(self) -> float:
        """Unix time at which the claim or its lease ended."""
        closed_at = END_OF_TIME if self.closed is None else self.closed.at
        return min(closed_at, self.opened.leased_until or END_OF_TIME)

    @property
    def is_counted(self) -> bool:
        """Whether the claim counts as an attempt."""
        return self.closed is None or self.closed.attempts >= self.opened.attempts

    @property
    def outcome(self) -> str:
        """Outcome of the claim in one word: a reason, a status, `untried` or `open`."""
        if self.closed is None:
            return "open"
        if self.request is None and not self.is_counted:
            return "untried"  # the message may keep the reason of an earlier attempt
        is_early = self.closed.at < (self.opened.leased_until or 0)
        if self.closed.reason == "lease_expired" and is_early:
            return self.closed.status  # an answer came; the reason is that of an earlier attempt
        return self.closed.reason or self.closed.status

    def agrees_with(self, request: Request) -> bool:
        """Return whether the recorded outcome is what the gateway did with the request."""
        if self.closed is None:
            return False
        if self.closed.reason is None:
            return self.closed.status == "delivered" and request.kind == "accepted"
        return request.kind in KINDS_BY_REASON.get(self.closed.reason, ())


class Message(msgspec.Struct):
    """The changes, claims and unexplained requests of one message."""

    changes: list[Change]
    claims: list[Claim]
    unclaimed: list[Request] = []
    """Requests without a claim, or beyond the first request of a claim."""

    @property
    def last(self) -> Change:
        """The last change, with the final state."""
        return self.changes[-1]


def build_claims(changes: list[Change]) -> list[Claim]:
    """Return a message's claims, in order."""
    pairs = zip(changes, [*changes[1:], None], strict=True)
    return [Claim(change, after) for change, after in pairs if change.status == "sending"]


def match_requests(message: Message, requests: list[Request]) -> None:
    """Match each request to the claim under which it was sent; at most one request per claim.

    A gateway that was frozen reads several requests at once, so that the time of their writing is
    unknown. These are matched last, to the remaining claims, and first to claims whose outcome
    agrees with the request.
    """
    timed = [request for request in requests if request.earliest == request.arrived]
    untimed = [request for request in requests if request.earliest < request.arrived]
    for request in timed:
        candidates = [*_candidates(message, request, 0), *_candidates(message, request, LAG)]
        _assign(message, request, candidates[:1])
    pairs = [(request, _candidates(message, request, LAG)) for request in untimed]
    pairs.sort(key=lambda pair: not any(claim.agrees_with(pair[0]) for claim in pair[1]))
    for request, _ in pairs:
        candidates = _candidates(message, request, LAG)
        candidates.sort(key=lambda claim: (claim.agrees_with(request), claim.is_counted))
        _assign(message, request, candidates[-1:])


def _candidates(message: Message, request: Request, lag: float) -> list[Claim]:
    """Return the claims without a request under which the request may have been sent."""
    return [
        claim
        for claim in message.claims
        if claim.request is None
        and claim.opened.at <= request.arrived
        and request.earliest <= claim.until + lag
    ]


def _assign(message: Message, request: Request, candidates: list[Claim]) -> None:
    for claim in candidates:
        claim.request = request
    if not candidates:
        message.unclaimed.append(request)
