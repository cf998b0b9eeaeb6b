"""The gateways that a company uses, read from the TOML file that `MAILER_GATEWAYS` names."""

from collections.abc import Iterator, Mapping
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import Self

import msgspec
from msgspec.structs import replace

from mailer.gateway.callback import Callback
from mailer.gateway.callback_rules import CallbackRules
from mailer.gateway.config_callbacks import Callbacks
from mailer.gateway.config_secrets import read_secrets
from mailer.gateway.config_table import GatewayConfig
from mailer.gateway.placeholders import ACCOUNT_KEYS
from mailer.gateway.poll_rules import PollRules, request_of_ids
from mailer.gateway.profile import GatewayProfile, RequestPart
from mailer.gateway.profile_file import load_profile
from mailer.gateway.profile_mistakes import account_keys
from mailer.gateway.protocol import ReceiptUse
from mailer.gateway.proxy import Proxy, find_proxy
from mailer.gateway.request_template import RequestTemplate
from mailer.gateway.response_rules import ResponseRules
from mailer.gateway.template import Texts
from mailer.gateway.toml_file import ConfigFileError, convert_table, parse_toml, read_file
from mailer.settings import LEASE_SLACK, Settings
from mailer.urls import GatewayUrl, read_gateway_url

MAX_GATEWAYS = 100


class ConfiguredGateway(msgspec.Struct, frozen=True, dict=True):
    """A gateway of the file with its profile, both checked."""

    config: GatewayConfig
    profile: GatewayProfile
    url: GatewayUrl
    proxy: Proxy | None = None
    """The proxy through which it is reached; None to connect directly."""

    @property
    def rate(self) -> float:
        """Most messages a second; 0 for no limit."""
        return self.profile.limits.rate or 0.0 if self.config.rate is None else self.config.rate

    @property
    def concurrency(self) -> int:
        """Most requests at the same time."""
        return self.config.concurrency or self.profile.limits.concurrency

    @property
    def parts(self) -> int:
        """Most parts of a text."""
        return self.config.parts or self.profile.limits.parts

    @cached_property
    def callbacks(self) -> Callbacks:
        """What the file and the profile say about calls of the provider."""
        config = self.config
        return Callbacks(
            gateway=config.name,
            profile=self.profile,
            receipts=config.receipts,
            secret=config.callback_secret,
            previous_secret=config.previous_callback_secret,
            token=config.token,
        )

    def awaits_receipts(self, public_url: str | None) -> bool:
        """Return whether a message is delivered only when a receipt says so.

        `public_url` is the address at which providers reach mailer; None if they cannot.
        """
        return self.callbacks.are_awaited(public_url)

    def callback_url(self, public_url: str | None) -> str:
        """Return the URL for receipts without its end, the id of the message; "" for none."""
        return self.callbacks.url(public_url)

    def receipt_use(self, public_url: str | None) -> ReceiptUse:
        """Return whether and how receipts come."""
        return ReceiptUse(
            is_awaited=self.awaits_receipts(public_url),
            url=self.callback_url(public_url),
            name_gateway_id=self.callbacks.name_gateway_id,
        )

    def authenticates(self, callback: Callback, now: datetime) -> bool:
        """Return whether a call is the provider's: by a secret in its URL, or by a signature."""
        return self.callbacks.authenticate(callback, now)

    def callback_rules(self) -> CallbackRules:
        """Return the rules for the calls of the provider."""
        is_given_url = self.callbacks.is_given_url
        return CallbackRules(self.profile.receipt, self.profile.reply, is_given_url=is_given_url)

    def poll_rules(self, headers: Mapping[str, str]) -> PollRules | None:
        """Return the requests that ask for receipts; None if the provider has none.

        Raises `ValueError`.
        """
        part = self.profile.poll
        if part is None:
            return None
        return PollRules(part, self._template(request_of_ids(part), headers))

    def request_template(self, headers: Mapping[str, str]) -> RequestTemplate:
        """Return the template of its requests; `headers` are added to those of the profile.

        Raises `ValueError`.
        """
        return self._template(self.profile.request, headers)

    def connects_like(self, other: Self) -> bool:
        """Return whether a channel of `other` can also serve this gateway.

        What the router and the composition of messages read may differ: they read it each time.
        """
        config = replace(
            self.config,
            sender=other.config.sender,
            receipts=other.config.receipts,
            callback_secret=other.config.callback_secret,
            previous_callback_secret=other.config.previous_callback_secret,
            price=other.config.price,
            operator_codes=other.config.operator_codes,
            order=other.config.order,
            weight=other.config.weight,
        )
        return replace(self, config=config) == other

    def find_mistakes(self) -> Iterator[str]:
        """Yield what prevents requests or rules of this profile with the values of this account."""
        requests = [self.profile.request]
        if self.profile.balance is not None:
            requests.append(self.profile.balance.request)
        if self.profile.poll is not None:
            requests.append(request_of_ids(self.profile.poll))
        try:
            for request in requests:
                self._template(request, {})
        except ValueError as error:
            yield str(error)
        yield from self.callbacks.find_key_mistakes()
        try:
            ResponseRules(self.profile.response)
        except ValueError as error:
            yield f"kind: {error}"

    def _template(self, request: RequestPart, headers: Mapping[str, str]) -> RequestTemplate:
        account = {
            name: value
            for name in ACCOUNT_KEYS
            if (value := getattr(self.config, name)) is not None
        }
        texts = Texts(account, self.profile.by_text, self.profile.with_callback)
        if self.proxy is None or self.url.before.lower().startswith("https:"):
            return RequestTemplate(request, self.url, texts, headers)
        # without TLS the proxy reads each request: it needs the whole URL, and its own password
        headers = {**headers, **self.proxy.headers}
        return RequestTemplate(request, self.url, texts, headers, has_whole_url=True)


def configured_gateways(settings: Settings, environ: Mapping[str, str]) -> list[ConfiguredGateway]:
    """Return the gateways of the file that the settings name, or the one of `gateway_url`.

    Raises `ConfigFileError`.
    """
    if settings.gateways is not None:
        gateways = read_gateways(Path(settings.gateways), environ)
        max_timeout = settings.lease - LEASE_SLACK
        mistakes = [
            f"{settings.gateways}: the timeout of {gateway.config.name} must be at most"
            f" {max_timeout:g} s: MAILER_LEASE minus {LEASE_SLACK} s"
            for gateway in gateways
            if gateway.config.timeout > max_timeout
        ]
        mistakes += (
            f"{settings.gateways}: {gateway.config.name}: {mistake}"
            for gateway in gateways
            for mistake in gateway.callbacks.find_mistakes(settings.public_url)
        )
        if mistakes:
            raise ConfigFileError(mistakes)
        return gateways
    return [] if settings.gateway_url is None else [default_gateway(settings)]


def default_gateway(settings: Settings) -> ConfiguredGateway:
    """Return the gateway of kind `json` that the settings `gateway_...` describe."""
    url = settings.gateway_url or "http://127.0.0.1/"
    config = GatewayConfig(
        name="default",
        kind="json",
        url=url,
        token=settings.gateway_token,
        concurrency=settings.gateway_concurrency,
        rate=settings.gateway_rate,
        timeout=settings.gateway_timeout,
    )
    return ConfiguredGateway(config, load_profile("json"), read_gateway_url(url))


def read_gateways(path: Path, environ: Mapping[str, str]) -> list[ConfiguredGateway]:
    """Return the gateways of the file at `path`, in its order.

    A secret may be `"${NAME}"`, the environment's variable NAME, or `"file:PATH"`, the content of a
    file relative to the folder of `path`. Raises `ConfigFileError`, which names every mistake.
    """
    document = parse_toml(read_file(path), str(path))
    tables = document.get("gateway")
    if document.keys() != {"gateway"} or not isinstance(tables, list) or not tables:
        raise ConfigFileError(
            [f"{path}: must have one or more tables [[gateway]] and nothing else"]
        )
    if len(tables) > MAX_GATEWAYS:
        raise ConfigFileError([f"{path}: must have at most {MAX_GATEWAYS} gateways"])
    mistakes: list[str] = []
    gateways: list[ConfiguredGateway] = []
    for number, table in enumerate(tables, start=1):
        place = f"{path}: gateway[{number}]"
        try:
            gateways.append(_read_gateway(table, path.parent, environ))
        except ConfigFileError as error:
            mistakes += (f"{place}.{mistake}" for mistake in error.mistakes)
    names = [table.get("name") for table in tables if isinstance(table, dict)]
    mistakes += (
        f"{path}: the name {name!r} is used more than once"
        for name in sorted({str(name) for name in names if name and names.count(name) > 1})
    )
    if mistakes:
        raise ConfigFileError(mistakes)
    return gateways


def _read_gateway(table: object, folder: Path, environ: Mapping[str, str]) -> ConfiguredGateway:
    """Return one gateway of the file. Raises `ConfigFileError` with paths inside its table."""
    secrets, mistakes = read_secrets(table, folder, environ)
    values = table | secrets if isinstance(table, dict) else table
    config, profile = None, None
    try:
        config = convert_table(values, GatewayConfig)
    except ConfigFileError as error:
        mistakes += error.mistakes
    if isinstance(values, dict) and isinstance(kind := values.get("kind"), str):
        try:
            profile = load_profile(kind, folder)
            mistakes += _find_key_mistakes(values, profile)
        except ConfigFileError as error:
            mistakes += error.mistakes
    if config is None or profile is None:
        raise ConfigFileError(mistakes)
    return _connect_config(config, profile, environ, mistakes)


def _connect_config(
    config: GatewayConfig, profile: GatewayProfile, environ: Mapping[str, str], mistakes: list[str]
) -> ConfiguredGateway:
    """Return the gateway of a table and its profile; raises `ConfigFileError` with all mistakes.

    `mistakes` are those that are known already.
    """
    try:
        url = _read_url(config, profile)
    except ValueError as error:
        mistake = f"url: {error}"
        known = any(each.startswith("url:") for each in mistakes)  # it is a secret without a value
        raise ConfigFileError(mistakes if known else [*mistakes, mistake]) from None
    try:
        proxy = find_proxy(url.before, environ) if config.proxy else None
    except ValueError as error:
        raise ConfigFileError([*mistakes, f"proxy: {error}"]) from None
    gateway = ConfiguredGateway(config, profile, url, proxy)
    if mistakes := mistakes or list(gateway.find_mistakes()):
        raise ConfigFileError(mistakes)
    return gateway


def _read_url(config: GatewayConfig, profile: GatewayProfile) -> GatewayUrl:
    """Return the address of the API; raises `ValueError` if there is none, or a wrong one."""
    address = config.url or profile.url
    if address is None:
        raise ValueError(f"is required for the kind {config.kind}")
    return read_gateway_url(address)


def _find_key_mistakes(table: Mapping[str, object], profile: GatewayProfile) -> Iterator[str]:
    """Yield each key of the account that the profile needs and lacks, or has and does not use."""
    used = account_keys(profile)
    for key in ACCOUNT_KEYS:
        if key not in table and used.get(key):
            yield f"{key}: is required for the kind {table['kind']}"
        elif key in table and key not in used:
            yield f"{key}: is not used by the kind {table['kind']}"
