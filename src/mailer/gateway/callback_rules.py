"""Read the calls of a provider by a profile: delivery receipts and replies of clients."""

from itertools import chain

from mailer.gateway.callback import Callback, CallbackContent, UnreadableCallbackError
from mailer.gateway.callback_body import MESSAGE_FIELD, BodyReader, FormFields, query_of
from mailer.gateway.callback_receipts import ReceiptReader, document_paths
from mailer.gateway.callback_replies import ReplyReader
from mailer.gateway.callback_values import read_message_id
from mailer.gateway.json_path import JsonPath
from mailer.gateway.profile import ReceiptPart, ReplyPart


class CallbackRules:
    """The rules of a profile for the calls of its provider, compiled.

    One call may bring receipts and replies, whichever of the two URLs it comes to: its fields
    decide. `is_given_url` says whether each request gives the provider a URL with the message's id,
    which is read if the receipt itself has none. Raises `ValueError` for a wrong path or pattern.
    """

    def __init__(
        self,
        receipt: ReceiptPart | None,
        reply: ReplyPart | None,
        *,
        is_given_url: bool = True,
    ) -> None:
        self._is_given_url = is_given_url
        self._receipts = None if receipt is None else ReceiptReader(receipt)
        self._replies = None if reply is None else ReplyReader(reply)
        parts: list[ReceiptPart | ReplyPart] = [part for part in (receipt, reply) if part]
        self.methods = frozenset(chain.from_iterable(part.methods for part in parts))
        """Methods of HTTP that a call may have."""
        encoding = "utf-8" if reply is None or reply.encoding == "utf-16be" else reply.encoding
        self._body = BodyReader(
            chain.from_iterable(map(document_paths, parts)),
            octets=None if reply is None else reply.text,
            encoding=encoding,
        )
        self._url_fields = FormFields([JsonPath(MESSAGE_FIELD)])
        self._receipt_response = _response_of(receipt or reply)
        self._reply_response = _response_of(reply or receipt)

    def read(self, callback: Callback) -> CallbackContent:
        """Return the receipts and replies of a call: none, if it reports another event.

        Raises `UnreadableCallbackError`.
        """
        if callback.method not in self.methods:
            raise UnreadableCallbackError("the method is not one that the provider uses")
        document = self._body.read(callback)
        receipts = replies = None
        if self._receipts is not None:
            needs_url = self._is_given_url and not self._receipts.has_own_id
            receipts = self._receipts.read(document, self._url_id(callback) if needs_url else None)
        if self._replies is not None:
            replies = self._replies.read(document)
        return CallbackContent(receipts or [], replies or [])

    def response(self, content: CallbackContent) -> tuple[bytes, str]:
        """Return the body of the response that the provider expects, and its media type."""
        return self._reply_response if content.replies else self._receipt_response

    def _url_id(self, callback: Callback) -> int | None:
        """Return the message id in the URL, which mailer has put there."""
        return read_message_id(self._url_fields.read(query_of(callback)).get(MESSAGE_FIELD))


def _response_of(part: ReceiptPart | ReplyPart | None) -> tuple[bytes, str]:
    return (b"", "text/plain") if part is None else (part.response.encode(), part.media_type)
