"""Faults of the sandbox gateway, and the responses that it sends for them."""

from typing import Literal

import msgspec

from mailer.errors import FieldError, InvalidError

Fault = Literal["error", "reject", "malformed", "hang", "reset"]
RequestKind = Literal[Fault, "accepted", "limited", "unauthorized", "invalid", "disconnected"]
"""How a request ended: with a fault, or as `SandboxCounts` describes."""

_MAX_VALUES = {"latency": 3_600.0, "rate_limit": 1_000_000.0}
"""Largest value of each field that is not a fraction."""


class Faults(msgspec.Struct, frozen=True, kw_only=True):
    """Latency and faults of the sandbox gateway. Each rate is a fraction of the valid requests.

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


class SandboxResponse(msgspec.Struct, frozen=True):
    """The response to one request, and the kind under which the request is counted."""

    kind: RequestKind
    status: int
    body: bytes
    headers: dict[str, str]


def create_response(kind: RequestKind, status: int, body: bytes, **headers: str) -> SandboxResponse:
    """Create a response. The names of `headers` have underscores, such as `retry_after`.

    The content type is JSON unless `content_type` is given.
    """
    named_headers = {name.replace("_", "-").title(): value for name, value in headers.items()}
    return SandboxResponse(
        kind, status, body, {"Content-Type": "application/json", **named_headers}
    )


def create_refusal(kind: RequestKind, status: int, reason: str, **headers: str) -> SandboxResponse:
    """Create a response that refuses the message, with a reason."""
    body = msgspec.json.encode({"code": status, "message": reason})
    return create_response(kind, status, body, **headers)


FAULT_RESPONSES: dict[Fault, tuple[SandboxResponse, ...]] = {
    "error": (
        create_refusal("error", 500, "internal error"),
        create_refusal("error", 502, "bad gateway"),
        create_refusal("error", 503, "unavailable"),
        create_refusal("error", 503, "unavailable", retry_after="1"),
    ),
    "reject": (create_refusal("reject", 400, "this number cannot be reached"),),
    "malformed": (
        create_response("malformed", 200, b"<html>It works!</html>", content_type="text/html"),
        create_response("malformed", 200, b'["code",0]'),
        create_response("malformed", 200, b'{"code":7,"message":"not taken"}'),
        # its code is 0, but a client must stop reading at the limit and not accept it
        create_response("malformed", 200, b'{"code":0,"message":"%s"}' % (b"x" * 65_536)),
    ),
    # never sent: they only carry the kind
    "hang": (create_response("hang", 0, b""),),
    "reset": (create_response("reset", 0, b""),),
}
"""Responses for each fault. For each request with the fault, one of them is chosen at random."""
