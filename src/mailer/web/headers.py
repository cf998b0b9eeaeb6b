"""Security headers of every response, and `no-store`."""

from litestar.enums import ScopeType
from litestar.types import ASGIApp, Message, Receive, Scope, Send

DISABLED_FEATURES = (
    *("accelerometer", "autoplay", "camera", "display-capture", "encrypted-media"),
    *("fullscreen", "geolocation", "gyroscope", "hid", "idle-detection", "local-fonts"),
    *("magnetometer", "microphone", "midi", "payment", "picture-in-picture"),
    *("publickey-credentials-get", "screen-wake-lock", "serial", "usb"),
    "xr-spatial-tracking",
)
"""Browser features that our pages do not use. Only names that Chromium knows, or it would warn."""
SECONDS_PER_YEAR = 365 * 24 * 3600
HSTS = (b"strict-transport-security", f"max-age={SECONDS_PER_YEAR}".encode())
"""Makes browsers use only https for a year. Sent only over https; they ignore it over http."""

COMMON_HEADERS = tuple(
    (name.encode(), value.encode())
    for name, value in {
        "x-content-type-options": "nosniff",
        "x-frame-options": "DENY",
        # not `no-referrer`: browsers would send `Origin: null` with our own forms
        "referrer-policy": "same-origin",
        "cross-origin-opener-policy": "same-origin",
        "cross-origin-resource-policy": "same-origin",
        "permissions-policy": ", ".join(f"{feature}=()" for feature in DISABLED_FEATURES),
        "content-security-policy": "default-src 'none'; frame-ancestors 'none'",
        "cache-control": "no-store",
    }.items()
)
"""Headers of every response that does not set its own value. Pages set their own policy, static
files their own `cache-control`.

Source: https://cheatsheetseries.owasp.org/cheatsheets/HTTP_Headers_Cheat_Sheet.html
"""


def add_security_headers(app: ASGIApp) -> ASGIApp:
    """Wrap an application to add `COMMON_HEADERS`, and HSTS over https, to every response."""

    async def add_headers(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != ScopeType.HTTP:
            await app(scope, receive, send)
            return
        defaults = (*COMMON_HEADERS, HSTS) if scope.get("scheme") == "https" else COMMON_HEADERS

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = list(message["headers"])
                names = {name.lower() for name, _ in headers}
                message["headers"] = headers + [pair for pair in defaults if pair[0] not in names]
            await send(message)

        await app(scope, receive, send_with_headers)

    return add_headers
