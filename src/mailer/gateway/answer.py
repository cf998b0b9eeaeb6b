"""What each answer of the gateway means: the contract's section 5, line by line."""

import contextlib
import re
import zlib
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from functools import partial

import msgspec

from mailer.gateway.port import Accepted, Outcome, Refused, Unavailable, Unknown
from mailer.json_input import JsonError, read_json

ANSWER_LIMIT = 64 * 1024
"""Bytes of an answer's body that are read; the rest is not worth waiting for."""


class Answer(msgspec.Struct, frozen=True):
    """The body of a 200: only code 0, however it is written, means that the message was taken."""

    code: int | float


def outcome_of_body(body: bytes | None) -> Outcome:
    """Return what the body of a 200 means; None is one that cannot be read, or over the limit.

    Whatever else is wrong in it, a code that can be read is what the gateway says.
    """
    if body is None or len(body) > ANSWER_LIMIT:
        return Unavailable("bad_response")
    try:
        answer = _decoder.decode(body)  # nearly every answer, and several times as fast
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        try:
            answer = _read_answer(body)
        except JsonError:
            return Unavailable("bad_response")
    return Accepted() if answer.code == 0 else Unavailable("bad_response")


def outcome_of_status(status: int, pause: float | None) -> Outcome:
    """Return what an answer other than 200 means, with the pause in seconds that it asks for."""
    match status:
        case 400 | 404 | 405 | 410 | 413 | 415 | 422:
            return Refused(f"rejected_{status}")
        case 401 | 403:  # the token is wrong, not the messages
            return Unavailable(f"http_{status}", pause, affects_all=True)
        case 429 | 503:
            return Unavailable(f"http_{status}", pause, affects_all=bool(pause))
        case _:
            return Unavailable(f"http_{status}", pause)


def outcome_of_unreadable(status: int | None) -> Outcome:
    """Return what an answer means of which no more can be read than its status, or not even that.

    It came, so that the connection was not lost.
    """
    if status is None or status == 200:  # noqa: PLR2004  # the contract's own number
        return Unavailable("bad_response")
    return outcome_of_status(status, None)


def outcome_of_failure(*, is_written: bool) -> Outcome:
    """Return what a failure of the network means: all that counts is what was written before."""
    return Unknown("connection_lost") if is_written else Unavailable("connection_failed")


_decoder = msgspec.json.Decoder(Answer)
_read_answer = partial(read_json, shape=Answer, limit=ANSWER_LIMIT, is_lenient=True)


_STATUS_LINE = re.compile(rb"\s*HTTP/\d(?:\.\d)? (\d{3})(?!\d)")


def status_in(head: bytes) -> int | None:
    """Return the status of an answer that begins so, after those of a status 1xx; None without."""
    at = 0
    while found := _STATUS_LINE.match(head, at):
        status = int(found[1])
        if not 100 <= status < 200:  # noqa: PLR2004  # HTTP's own
            return status
        at = head.find(b"\r\n\r\n", found.end())
        if at < 0:
            break
    return None


def unfolded(body: bytes | None, encoding: str) -> bytes | None:
    """Return a body without its encoding, or None when it cannot be read, or is over the limit.

    None was asked for; gzip and deflate come all the same, also without the header of zlib. One
    that is said to be encoded and is not is read as it is.
    """
    if body is None or not re.search(r"gzip|deflate", encoding, re.IGNORECASE):
        return body
    for window in (zlib.MAX_WBITS | 32, -zlib.MAX_WBITS):
        with contextlib.suppress(zlib.error):
            whole = zlib.decompressobj(window).decompress(body, ANSWER_LIMIT + 1)
            return whole if len(whole) <= ANSWER_LIMIT else None
    return body


def retry_after(value: str | None, now: datetime, date: str | None = None) -> float | None:
    """Return the seconds that a Retry-After header asks to wait (RFC 9110, section 10.2.3).

    A moment counts from the answer's own `date`, and from `now` without one.
    """
    if value is None:
        return None
    if value.isascii() and value.isdigit():
        return float(value.lstrip("0")[:9] or 0)
    until, since = _moment(value), _moment(date) or now
    return None if until is None else max(0.0, (until - since).total_seconds())


def _moment(value: str | None) -> datetime | None:
    try:
        moment = parsedate_to_datetime(value or "")
    except (ValueError, OverflowError):
        return None
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)
