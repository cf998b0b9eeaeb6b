"""Samples of the calls of each provider: receipts, replies, and the status that it is asked for."""

import json
import re
from collections.abc import Mapping, Sequence
from typing import Literal
from urllib.parse import urlencode

import msgspec

from mailer.gateway.callback import Callback
from mailer.gateway.placeholders import needs_ucs2
from mailer.gateway.profile import TextEncoding
from mailer.gateway.request_template import CONTENT_TYPES
from mailer.gateway.sandbox_options import CallContent

CALL_PLACEHOLDER = re.compile(
    r"\{(id|new_id|phone|sender|text|part|parts|part_id|reference|entries)\}"
)


class CallSample(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A call of a provider.

    Its texts may have placeholders: `{id}`, `{phone}` and `{sender}` are those of the message,
    `{new_id}` is the gateway's id of the message or of the reply, `{part}` the number of a part,
    `{parts}` the count of parts, `{part_id}` the gateway's id of a part, `{text}` the text of a
    reply, and `{reference}` the number that its parts share.
    """

    method: Literal["GET", "POST"] = "POST"
    query: dict[str, str] = {}
    """Fields that are added to the query of the URL."""
    form: dict[str, str] = {}
    json: str = ""
    """The body, if it is no form."""
    alphabet: Literal["gsm", "ucs2"] | None = None
    """The alphabet of the texts that are sent like this; None for any text."""
    encoding: TextEncoding = "utf-8"
    """Encoding of the text in a query or form."""

    def fits(self, text: str) -> bool:
        """Return whether a reply with this text is sent like this."""
        return self.alphabet is None or needs_ucs2(text) == (self.alphabet == "ucs2")

    def fill(self, url: str, values: Mapping[str, str]) -> Callback:
        """Return the call to a URL with the values of its placeholders, without a signature."""
        if self.query:
            url += ("&" if "?" in url else "?") + self._encode(self.query, values)
        if self.form:
            body, media_type = self._encode(self.form, values).encode(), CONTENT_TYPES["form"]
        elif self.json:
            body, media_type = fill_json(self.json, values).encode(), CONTENT_TYPES["json"]
        else:
            return Callback(self.method, url, {}, b"")
        return Callback(self.method, url, {"content-type": media_type}, body)

    def _encode(self, fields: Mapping[str, str], values: Mapping[str, str]) -> str:
        def encode(text: str) -> bytes:
            filled = CALL_PLACEHOLDER.sub(lambda found: values[found[1]], text)
            return filled.encode(self.encoding if "{text}" in text else "utf-8", errors="replace")

        return urlencode({name: encode(text) for name, text in fields.items()})


def fill_json(text: str, values: Mapping[str, str]) -> str:
    """Return a JSON text with the values of its placeholders, which are inside of quotes."""
    return CALL_PLACEHOLDER.sub(
        lambda found: json.dumps(values[found[1]], ensure_ascii=False)[1:-1], text
    )


class CallSamples(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The samples of the calls of one kind of gateway, by what they bring."""

    sent: list[CallSample] = []
    """On its way."""
    delivered: list[CallSample] = []
    failed: list[CallSample] = []
    expired: list[CallSample] = []
    unknown: list[CallSample] = []
    """The gateway will not find out. The sandbox sends none."""
    reply: list[CallSample] = []
    reply_part: list[CallSample] = []
    """A part of a long reply, if the provider does not join them."""

    def named(self, content: CallContent | Literal["reply_part"]) -> list[CallSample]:
        """Return the samples of this content."""
        samples: list[CallSample] = getattr(self, content)
        return samples


class PollSamples(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The response to a request for the status of messages.

    Texts have the placeholders of `CallSample`; `{entries}` stands for all messages, joined by
    commas.
    """

    body: str = "{entries}"
    sent: str
    delivered: str
    failed: str

    def fill(self, found: Sequence[tuple[CallContent, Mapping[str, str]]]) -> str:
        """Return the body for messages with these statuses and values."""
        entries = [fill_json(getattr(self, status), values) for status, values in found]
        return self.body.replace("{entries}", ",".join(entries))
