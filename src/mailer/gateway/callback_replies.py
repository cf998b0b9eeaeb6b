"""Read the replies of clients in a call of a provider."""

from collections.abc import Mapping

from mailer.gateway.callback import Reply, UnreadableCallbackError
from mailer.gateway.callback_body import decode
from mailer.gateway.callback_receipts import Entries, Entry
from mailer.gateway.callback_values import (
    Condition,
    compile_optional,
    compile_paths,
    read_id,
    read_number,
    read_phone,
    read_text,
    text_of,
)
from mailer.gateway.profile import ReplyPart, TextEncoding

MAX_REPLY_CHARACTERS = 10_000
"""Characters of a reply; the rest is cut. 255 parts, the most that there can be, have 39,015."""
MAX_PARTS = 255
"""Parts of the longest reply (3GPP TS 23.040, section 9.2.3.24.1)."""


class ReplyReader:
    """Reads replies by a profile. Raises `ValueError` for a wrong path or pattern."""

    def __init__(self, part: ReplyPart) -> None:
        self._entries = Entries(part.each)
        self._when = [Condition(condition).holds for condition in part.when]
        self._sender = compile_paths(part.sender)
        self._recipient = compile_optional(part.recipient)
        self._text = compile_paths(part.text)
        self._id = compile_optional(part.id)
        self._reference = compile_optional(part.reference)
        self._part = compile_optional(part.part)
        self._parts = compile_optional(part.parts)
        self._charset = compile_optional(part.charset)
        self._charsets: Mapping[str, TextEncoding] = {
            name.upper(): encoding for name, encoding in part.charsets.items()
        }
        self._encoding = part.encoding

    def read(self, document: object) -> list[Reply]:
        """Return the replies in a document.

        Raises `UnreadableCallbackError` if no reply has a phone, or if there are too many.
        """
        replies: list[Reply] = []
        lacks_phone = False
        for entry in self._entries.find(document):
            text = self._find_text(entry)
            if text is None or not all(holds(entry) for holds in self._when):
                continue
            phone = read_phone(self._sender(entry))
            if phone is None:
                lacks_phone = True
                continue
            reference, part, parts = self._find_part(entry)
            replies.append(
                Reply(
                    phone=phone,
                    text=read_text(text, MAX_REPLY_CHARACTERS),
                    recipient=read_id(self._recipient(entry)),
                    id=read_id(self._id(entry)),
                    reference=reference,
                    part=part,
                    parts=parts,
                )
            )
        if lacks_phone and not replies:
            raise UnreadableCallbackError("the reply has no phone")
        return replies

    def _find_text(self, entry: Entry) -> str | None:
        """Return the text of an entry; None without one. In a form it is in bytes."""
        text = self._text(entry)
        if isinstance(text, bytes):
            charset = text_of(self._charset(entry)).upper()
            encoding = self._charsets.get(charset)
            if encoding is not None and encoding != "utf-8":
                return text.decode(encoding, errors="replace")
            return decode(text, self._encoding)
        return text_of(text) if isinstance(text, str | int | float) else None

    def _find_part(self, entry: Entry) -> tuple[str | None, int, int]:
        """Return reference, number and count of the parts; those of a whole reply without them."""
        reference = read_id(self._reference(entry))
        part, parts = read_number(self._part(entry)), read_number(self._parts(entry))
        if reference is None or part is None or parts is None or not part <= parts <= MAX_PARTS:
            return None, 1, 1
        return (reference, part, parts) if parts > 1 else (None, 1, 1)
