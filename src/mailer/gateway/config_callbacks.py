"""The configuration of a provider's calls: whether they come, where to, and what proves them."""

import hmac
import re
from collections.abc import Iterator
from datetime import datetime
from functools import cached_property

import msgspec

from mailer.gateway.callback import Callback
from mailer.gateway.callback_body import MESSAGE_FIELD, SECRET_FIELD, FormFields, query_of
from mailer.gateway.json_path import JsonPath
from mailer.gateway.placeholders import PLACEHOLDER
from mailer.gateway.profile import GatewayProfile
from mailer.gateway.signatures import SIGNATURE_SCHEMES, verify
from mailer.validation import MAX_ID

MIN_SECRET_LENGTH = 16
"""Characters of a secret for calls; fewer could be guessed."""
URL_SECRET = re.compile(r"[A-Za-z0-9._~-]+")
"""A secret that needs no escape in a URL (RFC 3986, section 2.3): Kannel would replace %XX."""


class Callbacks(msgspec.Struct, frozen=True, dict=True, kw_only=True):
    """What a gateway's configuration and its profile say about calls of the provider."""

    gateway: str
    profile: GatewayProfile
    receipts: bool | None
    """The key `receipts`; None if it is not given."""
    secret: str | None
    previous_secret: str | None
    """Accepted too, while `secret` is replaced."""
    token: str | None

    def __repr__(self) -> str:
        return f"Callbacks(gateway={self.gateway!r})"  # no secrets

    __str__ = __repr__

    @cached_property
    def _signature_secrets(self) -> tuple[str, ...]:
        """Secrets for signatures; empty if the provider signs nothing or none is known."""
        receipt = self.profile.receipt
        if receipt is None or receipt.signature is None:
            return ()
        of_account = self.token if SIGNATURE_SCHEMES[receipt.signature].account_key else None
        secrets = (self.secret or of_account, self.previous_secret)
        return tuple(secret for secret in secrets if secret)

    @cached_property
    def _url_secrets(self) -> tuple[str, ...]:
        """Secrets in the URL; empty if the provider always signs, or none is given."""
        receipt = self.profile.receipt
        always_signs = receipt is not None and receipt.signature and not receipt.may_be_unsigned
        if always_signs or self.secret is None:
            return ()
        return tuple(secret for secret in (self.secret, self.previous_secret) if secret)

    @cached_property
    def is_given_url(self) -> bool:
        """Whether each request gives the provider a URL for receipts."""
        profile = self.profile
        texts = repr((profile.request.url, profile.request.query, profile.request.headers))
        texts += repr((profile.request.fields, profile.by_text))
        return any(name == "callback" for name, _ in PLACEHOLDER.findall(texts))

    @property
    def name_gateway_id(self) -> bool:
        """Whether receipts name a message by the gateway's id only."""
        receipt = self.profile.receipt
        return receipt is not None and receipt.own_id is None and not self.is_given_url

    @cached_property
    def _url_fields(self) -> FormFields:
        return FormFields([JsonPath(SECRET_FIELD)])

    @cached_property
    def can_be_proved(self) -> bool:
        """Whether a secret is known with which a call can be proved to be the provider's."""
        return bool(self._signature_secrets or self._url_secrets)

    def authenticate(self, callback: Callback, now: datetime) -> bool:
        """Return whether a call is the provider's: by a secret in its URL, or by a signature."""
        if self._url_secrets:
            try:
                given = self._url_fields.read(query_of(callback)).get(SECRET_FIELD, "")
            except ValueError:  # a field is there twice
                return False
            if any(_is_equal(secret, given) for secret in self._url_secrets):
                return True
        receipt = self.profile.receipt
        if receipt is None or receipt.signature is None or not self._signature_secrets:
            return False
        return verify(receipt.signature, callback, self._signature_secrets, now)

    def url(self, public_url: str | None) -> str:
        """Return the URL for receipts, to which a message's id is to be appended.

        It is "" if the provider is to be given none.
        """
        if public_url is None or not self.are_awaited(public_url) or not self.is_given_url:
            return ""
        return "" if self._find_obstacle_of_calls(public_url) else self._url(public_url)

    def _url(self, public_url: str) -> str:
        secret = f"{SECRET_FIELD}={self._url_secrets[0]}&" if self._url_secrets else ""
        return f"{self._path(public_url)}?{secret}{MESSAGE_FIELD}="

    def _path(self, public_url: str | None) -> str:
        return f"{(public_url or '').rstrip('/')}/gateways/{self.gateway}/receipts"

    def are_awaited(self, public_url: str | None) -> bool:
        """Return whether a message is delivered only when a receipt says so."""
        if self.receipts is None:
            is_wanted = self.is_given_url or (
                self.profile.poll is not None and self.profile.receipt is None
            )
        else:
            is_wanted = self.receipts
        return is_wanted and self._find_obstacle(public_url) is None

    def find_mistakes(self, public_url: str | None) -> Iterator[str]:
        """Yield why receipts cannot come that the configuration asks for, and what to do."""
        obstacle = self._find_obstacle(public_url)
        if self.receipts and obstacle is not None:
            yield f"receipts: {obstacle}"

    def describe(self, public_url: str | None) -> str | None:
        """Return in words how receipts come, or what is missing; None if nobody wants to know."""
        if self.receipts is False or (public_url is None and not self.receipts):
            return None
        obstacle = self._find_obstacle_of_calls(public_url)
        if self.are_awaited(public_url):
            if obstacle is not None:
                return "receipts: mailer asks the provider for them"
            return f"receipts: the provider calls {self._path(public_url)}"
        return f"no receipts: {self._find_obstacle(public_url) or 'set receipts = true'}"

    def find_key_mistakes(self) -> Iterator[str]:
        """Yield the mistakes in the keys themselves."""
        profile = self.profile
        keys = {"callback_secret": self.secret, "previous_callback_secret": self.previous_secret}
        for key, secret in keys.items():
            if secret is None:
                continue
            if profile.receipt is None and profile.reply is None:
                yield f"{key}: is not used by this kind, which has neither receipts nor replies"
            elif len(secret) < MIN_SECRET_LENGTH:
                yield f"{key}: must have {MIN_SECRET_LENGTH} characters or more"
            elif secret in self._url_secrets and not URL_SECRET.fullmatch(secret):
                yield (
                    f"{key}: may only have letters of ASCII, digits and - . _ ~, because it is a"
                    " part of a URL"
                )
        is_alone = self.previous_secret is not None and self.secret is None
        if is_alone and len(self._signature_secrets) < len(keys):  # the token is not the other one
            yield "previous_callback_secret: needs a callback_secret, which replaces it"
        if self.receipts and profile.receipt is None and profile.poll is None:
            yield "receipts: this kind has none"

    def _find_obstacle(self, public_url: str | None) -> str | None:
        """Return why no receipt can come, and what to do; None if they can."""
        if self.profile.poll is not None:
            return None
        return self._find_obstacle_of_calls(public_url)

    def _find_obstacle_of_calls(self, public_url: str | None) -> str | None:
        """Return why the provider cannot call mailer, and what to do; None if it can."""
        receipt = self.profile.receipt
        if receipt is None:
            return "this kind has none"
        if public_url is None:
            return "set MAILER_PUBLIC_URL to the address at which the provider reaches mailer"
        if not self.can_be_proved:
            return "set callback_secret, so that mailer can tell the provider's calls from others"
        length = len(self._url(public_url)) + len(str(MAX_ID))
        if self.is_given_url and receipt.max_url_length and length > receipt.max_url_length:
            return (
                f"the URL for receipts would have {length} characters, and the provider takes"
                f" {receipt.max_url_length}: shorten MAILER_PUBLIC_URL, name or callback_secret"
            )
        return None


def _is_equal(secret: str, given: str) -> bool:
    """Return whether a secret was given; the time does not depend on the first difference."""
    return hmac.compare_digest(secret.encode(errors="replace"), given.encode(errors="replace"))
