"""Faults of the sandbox gateway."""

from typing import Literal

import msgspec

from mailer.errors import FieldError, InvalidError

Fault = Literal["error", "reject", "malformed", "hang", "reset"]
RequestKind = Literal[
    Fault,
    "accepted",
    "account",
    "balance",
    "poll",
    "limited",
    "unauthorized",
    "invalid",
    "disconnected",
]
"""How a request ended: with a fault, or as `SandboxCounts` describes."""

_MAX_VALUES = {"latency": 3_600.0, "rate_limit": 1_000_000.0}
"""Largest value of each field that is not a fraction."""


class Faults(msgspec.Struct, frozen=True, kw_only=True):
    """Latency and faults of the sandbox gateway. Each rate is a fraction of the valid requests.

    Statuses and bodies are those of the kind `json`. Other kinds send the responses with which the
    provider says the same.

    Requests that break the protocol are refused at once, without latency or faults. A request gets
    at most one fault, so the sum of all rates is at most 1. Raises InvalidError naming every field
    that is out of range.
    """

    latency: float = 0.0
    """Mean seconds until a response or a reset, 0 to 3,600."""
    jitter: float = 0.0
    """The latency varies evenly, by up to this fraction of the mean in both directions; 0 to 1."""
    error_rate: float = 0.0
    """Responds with 500, 502 or 503, half of the 503 with `Retry-After: 1`; 0 to 1."""
    reject_rate: float = 0.0
    """Responds with 400, a permanent refusal; 0 to 1."""
    malformed_rate: float = 0.0
    """Responds with 200 and one of: not JSON, wrong shape, code not 0, over 64 KiB; 0 to 1."""
    hang_rate: float = 0.0
    """Reads the request and never responds; 0 to 1.

    The request ends when the client disconnects or the sandbox stops.
    """
    reset_rate: float = 0.0
    """Reads the request, then resets the connection (RST) without a response; 0 to 1."""
    rate_limit: float = 0.0
    """Most messages a second, 0 (no limit) to 1,000,000; responds to others with 429.

    The 429 has a `Retry-After`. The messages of one second, at least one, may come at once (a token
    bucket that starts full): in `t` seconds at most `max(1, rate_limit) + rate_limit * t` pass.
    """
    seed: int | None = None
    """With a seed, requests in the same order get the same faults."""

    def __post_init__(self) -> None:
        """Refuse values that are out of range."""
        errors = [
            FieldError(field, f"must be from 0 to {_MAX_VALUES.get(field, 1.0):,g}")
            for field in self.__struct_fields__
            if field != "seed"
            and not 0.0 <= getattr(self, field) <= _MAX_VALUES.get(field, 1.0)  # refuses NaN too
        ]
        # in floating point, ten times 0.1 can be a little over 1
        if not errors and sum(rate for _, rate in self.rates()) > 1.0 + 1e-9:
            errors = [FieldError("rates", "must not add up to more than 1")]
        if errors:
            raise InvalidError(errors)

    def rates(self) -> tuple[tuple[Fault, float], ...]:
        """Return every fault with the fraction of requests that get it."""
        return (
            ("error", self.error_rate),
            ("reject", self.reject_rate),
            ("malformed", self.malformed_rate),
            ("hang", self.hang_rate),
            ("reset", self.reset_rate),
        )
