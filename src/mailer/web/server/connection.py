"""Limits of connections: timeouts for slow HTTP clients, sizes of heads, number of connections.

A head is the first line of a request and its headers. `uvicorn_server.py` applies these limits.
"""

from http import HTTPStatus

import msgspec

from mailer.web.headers import COMMON_HEADERS
from mailer.web.problems import problem, to_response

MAX_URL_BYTES = 8 * 1024
"""Bytes of the URL of a request: path and query."""
MAX_HEAD_BYTES = 32 * 1024
"""Bytes of all headers of a request together."""
MAX_REQUEST_HEADERS = 100
MIN_READ_RATE = 1024
"""Bytes a second that a client must read of its response, on average over
`ConnectionLimits.reader` seconds."""


class ConnectionLimits(msgspec.Struct, frozen=True, kw_only=True):
    """Timeouts for HTTP clients, in seconds, and the number of connections."""

    head: float = 10.0
    """From the start of a connection until its first head is complete. For each later request it
    counts from the response before it, and uvicorn's keep-alive timeout is added."""
    body: float = 30.0
    """For a complete body of JSON or of a form."""
    body_part: float = 90.0
    """For the next part of any body. Those who read bodies have shorter timeouts, with a response;
    this one only ends the connection."""
    reader: float = 60.0
    """For a client that reads its response slowly: in this time it must read at `MIN_READ_RATE`."""
    connections: int = 500
    """Connections at once. One more evicts that which has waited longest for its client."""


class Refusal(msgspec.Struct, frozen=True):
    """A response that ends a connection whose request is not read further."""

    status: HTTPStatus
    detail: str

    def to_bytes(self) -> bytes:
        """Return the whole response, head and body; the body is a problem."""
        problem_headers, body = to_response(problem(self.status, self.detail))
        is_busy = self.status == HTTPStatus.SERVICE_UNAVAILABLE
        headers = [
            *COMMON_HEADERS,
            *problem_headers,
            (b"connection", b"close"),
            *([(b"retry-after", b"1")] if is_busy else []),
        ]
        lines = [f"HTTP/1.1 {self.status.value} {self.status.phrase}".encode()]
        lines += [name + b": " + value for name, value in headers]
        return b"\r\n".join(lines) + b"\r\n\r\n" + body


# the refusals that `uvicorn_server.py` sends
NOT_HTTP = Refusal(HTTPStatus.BAD_REQUEST, "This is not HTTP.")
URL_TOO_LONG = Refusal(HTTPStatus.REQUEST_URI_TOO_LONG, "The URL is too long.")
HEAD_TOO_LARGE = Refusal(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, "The headers are too large.")
TOO_MANY_CONNECTIONS = Refusal(
    HTTPStatus.SERVICE_UNAVAILABLE,
    "Too many connections are being served; try again in a moment.",
)
