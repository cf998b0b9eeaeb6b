"""Headers of every answer: what a browser may do with it, and that nobody keeps a copy."""

from litestar.enums import ScopeType
from litestar.types import ASGIApp, Message, Receive, Scope, Send

UNUSED = (
    *("accelerometer", "autoplay", "camera", "display-capture", "encrypted-media"),
    *("fullscreen", "geolocation", "gyroscope", "hid", "idle-detection", "local-fonts"),
    *("magnetometer", "microphone", "midi", "payment", "picture-in-picture"),
    *("publickey-credentials-get", "screen-wake-lock", "serial", "usb"),
    "xr-spatial-tracking",
)
"""Powers of a browser that no page of ours uses; of others Chromium would complain on each page."""
YEAR = 365 * 24 * 3600
HSTS = (b"strict-transport-security", f"max-age={YEAR}".encode())
"""Only where the request came by https: over http a browser would not heed it."""

# Referrer: without one browsers would send `Origin: null` with our own forms.
COMMON = tuple(
    (name.encode(), value.encode())
    for name, value in {
        "x-content-type-options": "nosniff",
        "x-frame-options": "DENY",
        "referrer-policy": "same-origin",
        "cross-origin-opener-policy": "same-origin",
        "cross-origin-resource-policy": "same-origin",
        "permissions-policy": ", ".join(f"{power}=()" for power in UNUSED),
        "content-security-policy": "default-src 'none'; frame-ancestors 'none'",
        "cache-control": "no-store",
    }.items()
)
"""For whoever has no word of its own on it: pages have a policy, and static files are kept.

Source: https://cheatsheetseries.owasp.org/cheatsheets/HTTP_Headers_Cheat_Sheet.html
"""


def guarded(app: ASGIApp) -> ASGIApp:
    """Wrap an application: each of its answers carries these headers."""

    async def guard(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != ScopeType.HTTP:
            await app(scope, receive, send)
            return
        wanted = (*COMMON, HSTS) if scope.get("scheme") == "https" else COMMON

        async def send_on(message: Message) -> None:
            if message["type"] == "http.response.start":
                given = list(message["headers"])
                known = {name.lower() for name, _ in given}
                message["headers"] = given + [pair for pair in wanted if pair[0] not in known]
            await send(message)

        await app(scope, receive, send_on)

    return guard
