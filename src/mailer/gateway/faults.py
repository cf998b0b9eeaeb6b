"""Faults of the sandbox gateway, and how each looks on the wire."""

from typing import Literal

import msgspec

from mailer.errors import FieldError, InvalidError

Fault = Literal["error", "reject", "malformed", "hang", "reset"]
Kind = Literal[Fault, "accepted", "limited", "unauthorized", "invalid", "gone"]

_HIGHEST = {"latency": 3_600.0, "rate_limit": 1_000_000.0}  # all others are fractions


class Faults(msgspec.Struct, frozen=True, kw_only=True):
    """How slow and how wrong the sandbox is; each rate is a fraction of the requests it takes.

    Only requests that keep to the protocol meet faults and latency, the others are refused at once.
    Each meets one fault at most, so the rates add up to 1 at most. Raises InvalidError naming every
    field out of range.
    """

    latency: float = 0.0
    """Mean seconds before an answer or a reset, 0 to 3,600."""
    jitter: float = 0.0
    """The latency varies uniformly by plus or minus this fraction of itself, 0 to 1."""
    error_rate: float = 0.0
    """Answers 500, 502 or 503, half of the 503 with `Retry-After: 1`; 0 to 1."""
    reject_rate: float = 0.0
    """Answers 400, a refusal that is final; 0 to 1."""
    malformed_rate: float = 0.0
    """Answers 200 with one of: not JSON, wrong shape, code not 0, over 64 KiB; 0 to 1."""
    hang_rate: float = 0.0
    """Takes the request and never answers, until the client goes or the sandbox stops; 0 to 1."""
    reset_rate: float = 0.0
    """Takes the request, then resets the connection (RST) without an answer; 0 to 1."""
    rate_limit: float = 0.0
    """Messages a second taken, 0 (no limit) to 1,000,000; over it 429 with `Retry-After`.

    A bucket of one second's messages, one at least, that starts full: in `t` seconds at most
    `max(1, rate_limit) + rate_limit * t` pass.
    """
    seed: int | None = None
    """With a seed, requests that come in the same order meet the same faults."""

    def __post_init__(self) -> None:
        """Refuse what is out of range."""
        wrong = [
            FieldError(field, f"must be from 0 to {_HIGHEST.get(field, 1.0):,g}")
            for field in self.__struct_fields__
            if field != "seed"
            and not 0.0 <= getattr(self, field) <= _HIGHEST.get(field, 1.0)  # refuses NaN too
        ]
        # Ten times 0.1 is a little over 1 in floating point.
        if not wrong and sum(rate for _, rate in self.rates()) > 1.0 + 1e-9:
            wrong = [FieldError("rates", "must not add up to more than 1")]
        if wrong:
            raise InvalidError(wrong)

    def rates(self) -> tuple[tuple[Fault, float], ...]:
        """Every fault with the fraction of requests that meet it."""
        return (
            ("error", self.error_rate),
            ("reject", self.reject_rate),
            ("malformed", self.malformed_rate),
            ("hang", self.hang_rate),
            ("reset", self.reset_rate),
        )


class Answer(msgspec.Struct, frozen=True):
    """The answer to one request, and the kind that it is counted as."""

    kind: Kind
    status: int
    body: bytes
    headers: dict[str, str]


def answer(kind: Kind, status: int, body: bytes, **headers: str) -> Answer:
    """Make an answer of JSON unless a `content_type` is given; `retry_after` is `Retry-After`."""
    given = {name.replace("_", "-").title(): value for name, value in headers.items()}
    return Answer(kind, status, body, {"Content-Type": "application/json", **given})


def refusal(kind: Kind, status: int, reason: str, **headers: str) -> Answer:
    """Make an answer that says that the message was not taken, and why."""
    body = msgspec.json.encode({"code": status, "message": reason})
    return answer(kind, status, body, **headers)


# One of them is drawn for each request that meets the fault. To hang and to reset send nothing.
ANSWERS: dict[Fault, tuple[Answer, ...]] = {
    "error": (
        refusal("error", 500, "internal error"),
        refusal("error", 502, "bad gateway"),
        refusal("error", 503, "unavailable"),
        refusal("error", 503, "unavailable", retry_after="1"),
    ),
    "reject": (refusal("reject", 400, "this number cannot be reached"),),
    "malformed": (
        answer("malformed", 200, b"<html>It works!</html>", content_type="text/html"),
        answer("malformed", 200, b'["code",0]'),
        answer("malformed", 200, b'{"code":7,"message":"not taken"}'),
        # Its code is 0, so only a client that stops reading at the limit gets it right.
        answer("malformed", 200, b'{"code":0,"message":"%s"}' % (b"x" * 65_536)),
    ),
    "hang": (answer("hang", 0, b""),),
    "reset": (answer("reset", 0, b""),),
}
