"""Convert the HTTP responses of a gateway to outcomes."""

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

MAX_RESPONSE_BODY_BYTES = 64 * 1024
"""Most bytes that are read of a response's body."""


class AcceptanceBody(msgspec.Struct, frozen=True):
    """The body of a response with status 200. Only code 0, also written 0.0, means accepted."""

    code: int | float


def outcome_of_body(body: bytes | None) -> Outcome:
    """Return the outcome of a response with status 200, by its body.

    `body` is None when it cannot be read or is over the limit. If the JSON is not quite valid but
    its code can be read, the code decides.
    """
    if body is None or len(body) > MAX_RESPONSE_BODY_BYTES:
        return TemporaryFailure("bad_response")
    try:
        content = _decoder.decode(body)  # several times as fast, and enough for nearly every body
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        try:
            content = _decode_leniently(body)
        except JsonError:
            return TemporaryFailure("bad_response")
    return Accepted() if content.code == 0 else TemporaryFailure("bad_response")


def outcome_of_status(status: int, retry_after: float | None) -> Outcome:
    """Return the outcome of a response with a status other than 200.

    `retry_after` is the number of seconds that the gateway asks to wait, or None.
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


def outcome_of_unreadable_response(status: int | None) -> Outcome:
    """Return the outcome of a response that the HTTP parser refused.

    `status` is the response's status, or None if even the status cannot be read. The outcome is
    never `connection_lost`, because the gateway did respond.
    """
    if status is None or status == HTTPStatus.OK:
        return TemporaryFailure("bad_response")
    return outcome_of_status(status, None)


def outcome_of_network_failure(*, is_written: bool) -> Outcome:
    """Return the outcome of a request without a response: unknown if the request was written."""
    return Unknown("connection_lost") if is_written else TemporaryFailure("connection_failed")


_decoder = msgspec.json.Decoder(AcceptanceBody)
_decode_leniently = partial(
    read_json, shape=AcceptanceBody, limit=MAX_RESPONSE_BODY_BYTES, is_lenient=True
)


_STATUS_LINE = re.compile(rb"\s*HTTP/\d(?:\.\d)? (\d{3})(?!\d)")


def find_status(received: bytes) -> int | None:
    """Return the status of the final response in the first bytes received; None without one.

    Interim responses (status 1xx) before the final response are skipped.
    """
    position = 0
    while match := _STATUS_LINE.match(received, position):
        status = int(match[1])
        if not HTTPStatus.CONTINUE <= status < HTTPStatus.OK:
            return status
        # the next response begins after this blank line, which the pattern skips
        position = received.find(b"\r\n\r\n", match.end())
        if position < 0:
            break
    return None


def decompress(body: bytes | None, encoding: str) -> bytes | None:
    """Return a decompressed body; None when it is over the limit or `body` is None.

    `encoding` is the response's Content-Encoding. Requests ask for no encoding, but some gateways
    send gzip or deflate all the same. A body that cannot be decompressed is returned unchanged.
    """
    if body is None or not re.search(r"gzip|deflate", encoding, re.IGNORECASE):
        return body
    # values of the parameter `wbits`: 32 detects the header, a negative value expects none
    gzip_or_zlib, deflate_without_header = zlib.MAX_WBITS | 32, -zlib.MAX_WBITS
    for window_bits in (gzip_or_zlib, deflate_without_header):
        with contextlib.suppress(zlib.error):
            decompressor = zlib.decompressobj(window_bits)
            plain = decompressor.decompress(body, MAX_RESPONSE_BODY_BYTES + 1)
            return plain if len(plain) <= MAX_RESPONSE_BODY_BYTES else None
    return body


def parse_retry_after(
    value: str | None, now: datetime, date_header: str | None = None
) -> float | None:
    """Return the seconds that a Retry-After header asks to wait (RFC 9110, section 10.2.3).

    `value` is a number of seconds, or a date. A date is compared with the `Date` header of the same
    response, by the gateway's own clock, or without one with `now`. Returns None for a missing or
    invalid header.
    """
    if value is None:
        return None
    if value.isascii() and value.isdigit():
        return float(value.lstrip("0")[:9] or 0)  # 9 digits are enough: the caller caps the pause
    retry_at, sent_at = _parse_date(value), _parse_date(date_header) or now
    return None if retry_at is None else max(0.0, (retry_at - sent_at).total_seconds())


def _parse_date(value: str | None) -> datetime | None:
    """Parse the date of a header; None when it is missing or invalid. The default zone is UTC."""
    try:
        moment = parsedate_to_datetime(value or "")
    except (ValueError, OverflowError):
        return None
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)
