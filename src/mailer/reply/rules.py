"""What a reply does: a stop word opts its phone out, a start word opts it in again. No I/O."""

from typing import Self

import msgspec

from mailer.reply.model import ReplyAction
from mailer.settings import Settings, fold_keywords
from mailer.text import fold_keyword


class ReplyRules(msgspec.Struct, frozen=True):
    """The stop and start words, and the text that acknowledges an opt-out."""

    stop_words: frozenset[str]
    """In the form of `fold_keyword`, as are the start words."""
    start_words: frozenset[str]
    opt_out_text: str | None = None
    """The text that is sent once after an opt-out; None for none."""

    @classmethod
    def of(cls, settings: Settings) -> Self:
        """Return the rules that the settings define."""
        return cls(
            fold_keywords(settings.stop_words),
            fold_keywords(settings.start_words),
            settings.opt_out_text,
        )

    def action_of(self, text: str) -> ReplyAction | None:
        """Return what a reply with this text does; None for most replies.

        Only a text that is exactly one of the words does something: `STOP 12345` and `don't stop`
        do not.
        """
        word = fold_keyword(text)
        if word in self.stop_words:
            return "opted_out"
        return "opted_in" if word in self.start_words else None


def sender_of_answer(recipient: str | None, mailing_sender: str | None, default_sender: str) -> str:
    """Return the sender of an answer: that of the message to which the client has replied.

    `recipient` is the number that the client has written to, `mailing_sender` the sender of the
    mailing that the reply answers, and `default_sender` that of the gateway. A gateway sends from
    the senders that it knows, so the recipient itself is not used: it may be a number that the
    provider maps to one of these.
    """
    if mailing_sender is None or (recipient and _same_number(recipient, default_sender)):
        return default_sender
    return mailing_sender


def _same_number(one: str, other: str) -> bool:
    return one.removeprefix("+") == other.removeprefix("+")
