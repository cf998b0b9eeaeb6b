"""Convert the answers of a gateway to outcomes."""

import contextlib
import re
import zlib
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from functools import partial
from http import HTTPStatus

import msgspec

from mailer.gateway.protocol import Accepted, Outcome, Rejected, TemporaryFailure, Unknown
from mailer.json_input import JsonError, read_json

MAX_ANSWER_BYTES = 64 * 1024
"""Most bytes that are read of an answer's body."""


class AnswerBody(msgspec.Struct, frozen=True):
    """The body of an answer with status 200. Only code 0, also written 0.0, means accepted."""

    code: int | float


def outcome_of_body(body: bytes | None) -> Outcome:
    """Return the outcome of an answer with status 200, by its body.

    `body` is None when it cannot be read or is over the limit. If the JSON is not quite valid but
    its code can be read, the code decides.
    """
    if body is None or len(body) > MAX_ANSWER_BYTES:
        return TemporaryFailure("bad_response")
    try:
        answer = _decoder.decode(body)  # several times as fast, and enough for nearly every answer
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        try:
            answer = _read_answer(body)
        except JsonError:
            return TemporaryFailure("bad_response")
    return Accepted() if answer.code == 0 else TemporaryFailure("bad_response")


def outcome_of_status(status: int, retry_after: float | None) -> Outcome:
    """Return the outcome of an answer with a status other than 200.

    `retry_after` is the number of seconds that the answer asks to wait, or None.
    """
    match status:
        case 400 | 404 | 405 | 410 | 413 | 415 | 422:
            return Rejected(f"rejected_{status}")
        case 401 | 403:  # the token is wrong, not the message
            return TemporaryFailure(f"http_{status}", retry_after, affects_all=True)
        case 429 | 503:  # without a time to wait, only this message waits
            return TemporaryFailure(f"http_{status}", retry_after, affects_all=bool(retry_after))
        case _:
            return TemporaryFailure(f"http_{status}", retry_after)


def outcome_of_unreadable(status: int | None) -> Outcome:
    """Return the outcome of an answer of which only the status can be read, or nothing.

    `status` is None when it cannot be read. An answer came, so the outcome is not
    `connection_lost`.
    """
    if status is None or status == HTTPStatus.OK:
        return TemporaryFailure("bad_response")
    return outcome_of_status(status, None)


def outcome_of_failure(*, is_written: bool) -> Outcome:
    """Return the outcome of a network failure: unknown if the request was already written."""
    return Unknown("connection_lost") if is_written else TemporaryFailure("connection_failed")


_decoder = msgspec.json.Decoder(AnswerBody)
_read_answer = partial(read_json, shape=AnswerBody, limit=MAX_ANSWER_BYTES, is_lenient=True)


_STATUS_LINE = re.compile(rb"\s*HTTP/\d(?:\.\d)? (\d{3})(?!\d)")


def find_status(head: bytes) -> int | None:
    """Return the status in the first bytes of an answer, or None. Interim answers are skipped."""
    position = 0
    while match := _STATUS_LINE.match(head, position):
        status = int(match[1])
        if not HTTPStatus.CONTINUE <= status < HTTPStatus.OK:
            return status
        position = head.find(b"\r\n\r\n", match.end())  # the pattern skips the blank line
        if position < 0:
            break
    return None


def decompress(body: bytes | None, encoding: str) -> bytes | None:
    """Return a decompressed body; None when it is over the limit or `body` is None.

    Requests ask for no encoding, but some gateways send gzip or deflate, and deflate with or
    without the zlib header. If a body cannot be decompressed, it is returned unchanged.
    """
    if body is None or not re.search(r"gzip|deflate", encoding, re.IGNORECASE):
        return body
    for window in (zlib.MAX_WBITS | 32, -zlib.MAX_WBITS):
        with contextlib.suppress(zlib.error):
            plain = zlib.decompressobj(window).decompress(body, MAX_ANSWER_BYTES + 1)
            return plain if len(plain) <= MAX_ANSWER_BYTES else None
    return body


def parse_retry_after(value: str | None, now: datetime, date: str | None = None) -> float | None:
    """Return the seconds that a Retry-After header asks to wait (RFC 9110, section 10.2.3).

    The header may hold a date. It is then compared with the answer's own `date`, or else with
    `now`. Returns None for a missing or invalid header.
    """
    if value is None:
        return None
    if value.isascii() and value.isdigit():
        return float(value.lstrip("0")[:9] or 0)  # 9 digits: it is capped later anyway
    until, since = _parse_date(value), _parse_date(date) or now
    return None if until is None else max(0.0, (until - since).total_seconds())


def _parse_date(value: str | None) -> datetime | None:
    try:
        moment = parsedate_to_datetime(value or "")
    except (ValueError, OverflowError):
        return None
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)
