"""Ask a provider for the receipts of messages, if it does not call mailer."""

from collections.abc import Sequence
from typing import Any

import msgspec
from msgspec.structs import replace

from mailer.gateway.callback import Receipt
from mailer.gateway.callback_body import read_any_json
from mailer.gateway.callback_receipts import ReceiptReader
from mailer.gateway.profile import PollPart, RequestPart
from mailer.gateway.protocol import OutgoingMessage
from mailer.gateway.request_template import RequestTemplate

IDS = "{ids}"
"""Placeholder of a poll: the gateway's ids of the messages, joined by commas."""


class PolledMessage(msgspec.Struct, frozen=True):
    """A message whose receipt is awaited."""

    id: int
    gateway_message_id: str
    """A gateway that gives no ids is asked by mailer's own, and this is ""."""
    phone: str


class PollRules:
    """How to ask a gateway for receipts, and how to read its responses.

    `template` is that of `request_of_ids`. Raises `ValueError` for a wrong path or pattern.
    """

    def __init__(self, part: PollPart, template: RequestTemplate) -> None:
        self._template = template
        self._reader = ReceiptReader(part)
        self.batch = part.batch
        """Most messages in one request."""

    def request(self, messages: Sequence[PolledMessage]) -> bytes:
        """Return the HTTP request for 1 to `batch` messages, as it is written to the network."""
        ids = ",".join(filter(None, (message.gateway_message_id for message in messages)))
        first = messages[0]
        return self._template.render(OutgoingMessage(id=first.id, phone=first.phone, text=ids))

    def read(self, body: bytes, messages: Sequence[PolledMessage]) -> list[Receipt]:
        """Return the receipts in the body of a response, each with mailer's message id.

        What it says about other messages is left out. Raises `UnreadableCallbackError` for a body
        that is not JSON.
        """
        asked = {message.gateway_message_id: message for message in messages}
        only = messages[0] if len(messages) == 1 else None
        receipts = []
        for receipt in self._reader.read(read_any_json(body), only.id if only else None):
            message = asked.get(receipt.gateway_message_id or "")
            if message is None and receipt.gateway_message_id is None:
                message = only
            if message is not None:
                receipts.append(replace(receipt, message_id=message.id))
        return receipts


def request_of_ids(part: PollPart) -> RequestPart:
    """Return the request of a poll, with the placeholder of a text in place of that of the ids.

    So a template can make it: it escapes the ids as their place needs.
    """
    changed: RequestPart = msgspec.convert(
        _with_text(msgspec.to_builtins(part.request)), RequestPart
    )
    return changed


def _with_text(value: Any) -> Any:  # noqa: ANN401  # any value of TOML
    match value:
        case str():
            return value.replace(IDS, "{text}")
        case dict():
            return {name: _with_text(entry) for name, entry in value.items()}
        case list():
            return [_with_text(entry) for entry in value]
        case _:
            return value
