"""The events in the history of a message, as its page shows them."""

from datetime import datetime
from typing import Literal, NamedTuple

from mailer.message.model import FailedAttempt, MessageHistory, StoredReceipt


class Event(NamedTuple):
    """Something that has happened to a message."""

    at: datetime
    kind: Literal["failure", "accepted", "receipt", "no_receipt", "status"]
    """`accepted`: by the gateway. `no_receipt`: none came in time. `status`: the message got its
    current status in another way."""
    failure: FailedAttempt | None = None
    receipt: StoredReceipt | None = None


def events_of(message: MessageHistory) -> list[Event]:
    """Return the events after the creation of a message, oldest first.

    Events of the same time are in the order in which they depend on each other.
    """
    events = [Event(each.ended_at, "failure", failure=each) for each in message.failures]
    if message.is_accepted:
        events.append(Event(message.sent_at or message.updated_at, "accepted"))
    elif message.status == "sending":
        events.append(Event(message.claimed_at or message.updated_at, "status"))
    elif message.status != "scheduled":
        events.append(Event(message.sent_at or message.updated_at, "status"))
    events += [Event(each.at, "receipt", receipt=each) for each in message.receipts]
    if message.status == "sent" and message.reason is not None:
        events.append(Event(message.updated_at, "no_receipt"))
    return sorted(events, key=lambda event: event.at)
