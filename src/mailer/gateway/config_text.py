"""Texts in `gateways.toml` that must have a form. Their `rule` is the mistake that is named."""

from typing import Annotated

from msgspec import Meta

ConfigName = Annotated[
    str,
    Meta(
        pattern=r"^[a-z0-9][a-z0-9_-]{0,31}$(?!\n)",
        extra={
            "rule": "must be 1 to 32 small letters, digits, - and _, and start with a letter or"
            " digit"
        },
    ),
]
ConfigSender = Annotated[
    str,
    Meta(
        pattern=r"^[!-~]([ -~]{0,18}[!-~])?$(?!\n)",
        extra={"rule": "must be 1 to 20 printable ASCII characters without a space at either end"},
    ),
]
"""As a mailing's own sender."""
ConfigCode = Annotated[
    str, Meta(pattern=r"^[0-9]{3}$(?!\n)", extra={"rule": 'must be three digits, such as "916"'})
]
