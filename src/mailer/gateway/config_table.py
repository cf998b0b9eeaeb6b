"""The table `[[gateway]]` in `gateways.toml`."""

from typing import Annotated

import msgspec
from msgspec import Meta

from mailer.gateway.config_text import ConfigCode, ConfigName, ConfigSender

ConfigText = Annotated[str, Meta(min_length=1, max_length=4_096)]


class GatewayConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One `[[gateway]]` of the file. Durations are in seconds."""

    name: ConfigName
    kind: ConfigText
    """Name of a profile that is shipped with mailer, or the path of one's own."""
    url: ConfigText | None = None
    """Address of the API, if the profile has none or another is to be used."""
    account: ConfigText | None = None
    username: ConfigText | None = None
    password: ConfigText | None = None
    token: ConfigText | None = None
    callback_secret: ConfigText | None = None
    """Secret of the provider's calls: in the URL that it is given, or of its signature."""
    previous_callback_secret: ConfigText | None = None
    """One that is still accepted while `callback_secret` is replaced."""
    receipts: bool | None = None
    """Whether a message is delivered only when a receipt says so. Default: if receipts can come,
    and each request says where to."""
    sender: ConfigSender | None = None
    """Name or number that the client sees, unless the mailing has another."""
    concurrency: Annotated[int, Meta(ge=1, le=10_000)] | None = None
    """Most requests at the same time, in each worker. Default: that of the profile, or 50."""
    rate: Annotated[float, Meta(ge=0, le=1_000_000)] | None = None
    """Most messages a second; 0 for no limit. Default: that of the profile, or no limit."""
    parts: Annotated[int, Meta(ge=1, le=255)] | None = None
    """Most parts of a text. Default: that of the profile, or no limit."""
    timeout: Annotated[float, Meta(gt=0, le=86_400)] = 10
    proxy: bool = False
    """Whether to use the proxy that the environment names, see `find_proxy`."""
    price: Annotated[float, Meta(ge=0, le=1_000)] | None = None
    """Price of one part, in the company's currency."""
    operator_codes: Annotated[list[ConfigCode], Meta(min_length=1)] | None = None
    """Operator codes for which it is used. Default: all."""
    order: Annotated[int, Meta(ge=1, le=100)] = 1
    """Gateways with the lowest order are used first; the next ones when these are out."""
    weight: Annotated[int, Meta(ge=1, le=1_000)] | None = None
    """Share of the messages among gateways of the same order. If none of them has a weight, each
    gets as many as it can take."""

    def __repr__(self) -> str:
        return f"GatewayConfig(name={self.name!r}, kind={self.kind!r})"  # no secrets

    __str__ = __repr__
