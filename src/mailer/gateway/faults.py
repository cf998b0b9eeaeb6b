"""Faults of the sandbox gateway, and the answers that it sends for them."""

from typing import Literal

import msgspec

from mailer.errors import FieldError, InvalidError

Fault = Literal["error", "reject", "malformed", "hang", "reset"]
Kind = Literal[Fault, "accepted", "limited", "unauthorized", "invalid", "disconnected"]

_MAX_VALUES = {"latency": 3_600.0, "rate_limit": 1_000_000.0}  # all others are fractions


class Faults(msgspec.Struct, frozen=True, kw_only=True):
    """Latency and faults of the sandbox gateway. Each rate is a fraction of the valid requests.

    Requests that break the protocol are refused at once, without latency or faults. A request gets
    at most one fault, so the sum of all rates is at most 1. Raises InvalidError naming every field
    that is out of range.
    """

    latency: float = 0.0
    """Mean seconds until an answer or a reset, 0 to 3,600."""
    jitter: float = 0.0
    """The latency varies uniformly by plus or minus this fraction of the mean, 0 to 1."""
    error_rate: float = 0.0
    """Answers 500, 502 or 503, half of the 503 with `Retry-After: 1`; 0 to 1."""
    reject_rate: float = 0.0
    """Answers 400, a permanent refusal; 0 to 1."""
    malformed_rate: float = 0.0
    """Answers 200 with one of: not JSON, wrong shape, code not 0, over 64 KiB; 0 to 1."""
    hang_rate: float = 0.0
    """Reads the request and never answers; 0 to 1.

    The request ends when the client disconnects or the sandbox stops.
    """
    reset_rate: float = 0.0
    """Reads the request, then resets the connection (RST) without an answer; 0 to 1."""
    rate_limit: float = 0.0
    """Most messages a second, 0 (no limit) to 1,000,000; above it answers 429 with `Retry-After`.

    A token bucket that holds the messages of one second, at least one, and starts full: in `t`
    seconds at most `max(1, rate_limit) + rate_limit * t` messages pass.
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
        # In floating point, ten times 0.1 can be a little over 1.
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


class SandboxAnswer(msgspec.Struct, frozen=True):
    """The answer to one request, and the kind under which it is counted."""

    kind: Kind
    status: int
    body: bytes
    headers: dict[str, str]


def create_answer(kind: Kind, status: int, body: bytes, **headers: str) -> SandboxAnswer:
    """Create an answer. `headers` are names with underscores, such as `retry_after`.

    The content type is JSON unless `content_type` is given.
    """
    named = {name.replace("_", "-").title(): value for name, value in headers.items()}
    return SandboxAnswer(kind, status, body, {"Content-Type": "application/json", **named})


def create_refusal(kind: Kind, status: int, reason: str, **headers: str) -> SandboxAnswer:
    """Create an answer that refuses the message, with a reason."""
    body = msgspec.json.encode({"code": status, "message": reason})
    return create_answer(kind, status, body, **headers)


# For each request with a fault, one of the fault's answers is chosen at random. `hang` and `reset`
# send no answer.
ANSWERS: dict[Fault, tuple[SandboxAnswer, ...]] = {
    "error": (
        create_refusal("error", 500, "internal error"),
        create_refusal("error", 502, "bad gateway"),
        create_refusal("error", 503, "unavailable"),
        create_refusal("error", 503, "unavailable", retry_after="1"),
    ),
    "reject": (create_refusal("reject", 400, "this number cannot be reached"),),
    "malformed": (
        create_answer("malformed", 200, b"<html>It works!</html>", content_type="text/html"),
        create_answer("malformed", 200, b'["code",0]'),
        create_answer("malformed", 200, b'{"code":7,"message":"not taken"}'),
        # Its code is 0: a client must stop reading at the limit and not accept it.
        create_answer("malformed", 200, b'{"code":0,"message":"%s"}' % (b"x" * 65_536)),
    ),
    "hang": (create_answer("hang", 0, b""),),
    "reset": (create_answer("reset", 0, b""),),
}
