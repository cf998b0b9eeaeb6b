"""Read what a gateway's HTTP response says outside its body: status, encoding, pause."""

import contextlib
import re
import zlib
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from http import HTTPStatus

from mailer.gateway.protocol import Outcome, TemporaryFailure, Unknown

MAX_RESPONSE_BODY_BYTES = 64 * 1024
"""Most bytes that are read of a response's body."""


def outcome_of_network_failure(*, is_written: bool) -> Outcome:
    """Return the outcome of a request without a response: unknown if the request was written."""
    return Unknown("connection_lost") if is_written else TemporaryFailure("connection_failed")


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


_CHARSET = re.compile(
    r"charset\s*=\s*\"?(utf-?(?:8|16|32)|utf-(?:16|32)(?:le|be)|us-ascii"
    r"|iso-8859-(?:1[013-6]|[1-9])|(?:windows-|cp)125[0-8]|koi8-[ru])"
    r"(?![\w-])",
    re.IGNORECASE,
)
"""Charsets of texts. Python has other codecs, which raise errors or take long."""


def find_charset(content_type: str) -> str:
    """Return the charset that a header Content-Type names; UTF-8 if it names none of texts."""
    charset = _CHARSET.search(content_type)
    return charset[1] if charset else "utf-8"


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
