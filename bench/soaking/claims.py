"""The claims and receipts of a message, and the matching of the gateways' requests to claims.

Under each claim a worker may send the message once. The logs of the gateways show requests but not
claims; the database shows claims but not requests. `match_requests` finds the claim of each request
by time.
"""

from collections.abc import Iterator
from itertools import pairwise

import msgspec

from soaking.journal import LAG, Receipt
from soaking.sandbox import KINDS

END_OF_TIME = float("inf")

UNKNOWN_REASONS = frozenset({"timeout", "connection_lost", "lease_expired"})
"""Reasons that mailer records for an unknown outcome. Also `bad_response`, if the gateway may have
accepted the message and sends repeats again."""
TEMPORARILY_FAILED = frozenset({"error", "malformed", "limited", "account", "unauthorized"})
"""Kinds of requests that the gateway answered with a temporary failure."""
UNANSWERED = frozenset({"hang", "reset", "disconnected"})
"""Kinds of requests that the gateway did not answer."""
KINDS_BY_REASON: dict[str, frozenset[str]] = {
    **dict.fromkeys(("http_500", "http_502", "http_503"), frozenset({"error"})),
    **dict.fromkeys(("code_5", "code_10"), frozenset({"error"})),  # of Vonage
    "code_1": frozenset({"limited"}),
    "code_REJECTED_SYSTEM_ERROR": frozenset({"error"}),  # of Infobip
    "http_429": frozenset({"limited"}),
    "http_401": frozenset({"unauthorized"}),
    "no_credit": frozenset({"account"}),
    "bad_response": frozenset({"malformed"}),
    "timeout": frozenset({"hang", "disconnected"}),
    "connection_lost": frozenset({"reset", "disconnected"}),
    "attempts_exhausted": TEMPORARILY_FAILED,
}
"""For each reason that mailer records, the kinds of requests that may have led to it. Reasons that
begin with `rejected_` are not listed."""


ACCEPTED_STATUSES = {kind.name: "sent" if kind.has_receipts else "delivered" for kind in KINDS}
"""By gateway: the status of a message that it has accepted, before any receipt."""
RECEIPT_REASONS = ("not_delivered", "validity_expired")
"""Beginnings of the reasons of messages that are undelivered because a receipt says so."""


class Change(msgspec.Struct, frozen=True):
    """A change of a message's row, with the new values."""

    at: float
    """Unix time, shortly before the commit."""
    worker: str
    """The worker that made the change."""
    message_id: int
    mailing_id: int
    client_id: int
    status: str
    reason: str | None
    attempts: int
    leased_until: float | None
    unknown_reason: str | None
    """Why delivery by an attempt is unknown."""
    route: int
    gateway: str | None

    @property
    def is_receipt_state(self) -> bool:
        """Whether a receipt may have led to this status and reason."""
        if self.status == "undelivered":
            return (self.reason or "").startswith(RECEIPT_REASONS)
        return self.status in {"sent", "delivered"} and self.reason is None

    @property
    def is_accepted(self) -> bool:
        """Whether the message counts as accepted by the gateway."""
        return self.is_receipt_state or self.status == "sent"


class Request(msgspec.Struct):
    """A request in the gateway's log."""

    id: int | None
    """Message id; None if the gateway could not read it."""
    arrived: float
    """Unix time at which the gateway read the request."""
    earliest: float
    """Earliest time at which the worker may have written it. Before `arrived` if the gateway or the
    worker was frozen."""
    kind: str
    """How the gateway answered, such as `accepted`."""
    gateway: str
    answered: float
    """Latest time at which the gateway answered, if it did."""
    is_overlap: bool
    """Whether another request for the message was in flight when it arrived."""


class Claim(msgspec.Struct):
    """A claim of a message by a worker."""

    opened: Change
    """The change to `sending`, with which the claim began."""
    closed: Change | None
    """The next change of the message, by any worker; None if there was none."""
    request: Request | None = None
    """The request that was sent under the claim, if there was one."""
    shown: frozenset[str] = frozenset()
    """The statuses that receipts of the message may have shown before the end of the claim."""

    @property
    def until(self) -> float:
        """Unix time at which the claim or its lease ended."""
        closed_at = END_OF_TIME if self.closed is None else self.closed.at
        return min(closed_at, self.opened.leased_until or END_OF_TIME)

    @property
    def is_counted(self) -> bool:
        """Whether the claim counts as an attempt, because its end did not decrease the attempts."""
        return self.closed is None or self.closed.attempts >= self.opened.attempts

    @property
    def outcome(self) -> str:
        """Outcome of the claim in one word.

        The recorded reason or, without a reason, the status; `untried` if the message was released
        without a request, and `open` if the claim has not ended.
        """
        if self.closed is None:
            return "open"
        if self.request is None and not self.is_counted:
            return "untried"  # the message may keep the reason of an earlier attempt
        is_early = self.closed.at < (self.opened.leased_until or 0)
        if self.closed.reason == "lease_expired" and is_early:
            return self.closed.status  # an answer came in time; the reason is of an earlier attempt
        return self.closed.reason or self.closed.status

    @property
    def is_unknown(self) -> bool:
        """Whether mailer recorded that it does not know the outcome."""
        if self.outcome == "bad_response" and self.closed is not None:
            return self.closed.unknown_reason == "bad_response"
        return self.outcome in UNKNOWN_REASONS

    @property
    def may_be_by_receipt(self) -> bool:
        """Whether a receipt that came before the end of the claim may have decided its end."""
        closed = self.closed
        return closed is not None and closed.is_receipt_state and closed.status in self.shown

    def agrees_with(self, request: Request) -> bool:
        """Return whether the recorded outcome is one that this request can have led to.

        A receipt of an earlier attempt may have led to it whatever the answer to the request was.
        """
        if self.closed is None:
            return False
        if self.may_be_by_receipt:
            return True
        if self.closed.reason is None:
            accepted = ACCEPTED_STATUSES[request.gateway]
            return self.closed.status == accepted and request.kind == "accepted"
        if self.closed.reason.startswith("rejected_"):
            return request.kind == "reject"
        return request.kind in KINDS_BY_REASON.get(self.closed.reason, ())


class Message(msgspec.Struct):
    """Everything known about one message, in order."""

    changes: list[Change]
    claims: list[Claim]
    receipts: list[Receipt]
    """In the order in which the calls began."""
    unclaimed: list[Request] = []
    """Requests without a claim, or beyond the first request of a claim."""

    def __post_init__(self) -> None:
        """Find out what receipts may have shown before the end of each claim."""
        for claim in self.claims:
            closed_at = END_OF_TIME if claim.closed is None else claim.closed.at
            claim.shown = frozenset(receipt.shown for receipt in self.receipts_until(closed_at))

    @property
    def last(self) -> Change:
        """The last change, with the final values."""
        return self.changes[-1]

    def receipts_until(self, at: float) -> list[Receipt]:
        """Return the receipts that may have come until a Unix time."""
        return [each for each in self.receipts if each.attempts and each.started <= at + LAG]

    def receipt_changes(self) -> Iterator[tuple[Change, Change]]:
        """Yield the changes between two statuses that receipts lead to, each with the one before.

        Also those from and to `sent` with the reason `no_receipt`.
        """
        for before, after in pairwise(self.changes):
            is_after_receipt = before.is_receipt_state or before.reason == "no_receipt"
            if is_after_receipt and after.is_receipt_state:
                yield before, after

    def lives(self) -> list[tuple[list[Claim], Change]]:
        """Return the claims and the last change of each life of the message.

        A new life begins when a user retries a message that is undelivered as a receipt says:
        nothing of the life before may have reached the client.
        """
        starts = [
            after.at
            for before, after in pairwise(self.changes)
            if before.status == "undelivered"
            and before.is_receipt_state
            and after.status == "scheduled"
        ]
        lives = []
        for start, end in pairwise([0.0, *starts, END_OF_TIME]):
            claims = [claim for claim in self.claims if start <= claim.opened.at < end]
            changes = [change for change in self.changes if start <= change.at < end]
            lives.append((claims, changes[-1]))
        return lives


def build_claims(changes: list[Change]) -> list[Claim]:
    """Return a message's claims: each change to `sending`, with the change after it."""
    following = [*changes[1:], None]
    pairs = zip(changes, following, strict=True)
    return [Claim(change, after) for change, after in pairs if change.status == "sending"]


def match_requests(message: Message, requests: list[Request]) -> None:
    """Match each request to the claim under which it was sent; at most one request to each claim.

    After a freeze, the gateway reads several requests at once, so the time at which they were
    written is not known exactly. These requests are matched last, to the remaining claims, and
    first those whose kind agrees with the outcome of a claim.
    """
    timed = [request for request in requests if request.earliest == request.arrived]
    untimed = [request for request in requests if request.earliest < request.arrived]
    for request in timed:
        candidates = _candidates(message, request) or _candidates(message, request, lag=LAG)
        _assign(message, request, candidates[0] if candidates else None)

    def agrees_with_none(request: Request) -> bool:
        candidates = _candidates(message, request, lag=LAG)
        return not any(claim.agrees_with(request) for claim in candidates)

    for request in sorted(untimed, key=agrees_with_none):
        candidates = _candidates(message, request, lag=LAG)
        candidates.sort(key=lambda claim: (claim.agrees_with(request), claim.is_counted))
        _assign(message, request, candidates[-1] if candidates else None)


def _candidates(message: Message, request: Request, lag: float = 0.0) -> list[Claim]:
    """Return the claims without a request under which the request may have been sent.

    They are claims for the same gateway. The request may be up to `lag` seconds later than the end
    of the claim.
    """
    return [
        claim
        for claim in message.claims
        if claim.request is None
        and claim.opened.gateway == request.gateway
        and claim.opened.at <= request.arrived
        and request.earliest <= claim.until + lag
    ]


def _assign(message: Message, request: Request, claim: Claim | None) -> None:
    """Match a request to a claim, or add it to `unclaimed` if there is none."""
    if claim is None:
        message.unclaimed.append(request)
    else:
        claim.request = request
