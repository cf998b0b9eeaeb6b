"""What the sandbox gateway reports about an accepted message, and when: a plan made by chance."""

import random
from collections.abc import Iterator
from itertools import count

import msgspec

from mailer.gateway.callback import Callback, ReceiptStatus
from mailer.gateway.callback_body import MESSAGE_FIELD
from mailer.gateway.profile import GatewayProfile
from mailer.gateway.sandbox_call_samples import CallSample, CallSamples
from mailer.gateway.sandbox_options import CallContent, CallOptions
from mailer.gateway.sandbox_records import SandboxMessage
from mailer.gateway.sms_parts import PART_CAPACITY, count_parts

STOP_REPLIES = ("STOP", "СТОП", "stop", "Отписаться", " Стоп. ")
REPLIES = (
    "Thank you!",
    "Спасибо, приду в субботу 👍",
    "Is it 50% off on Monday, too? I need 2+1 sets & a bag",
    "Можно прийти вдвоём? Хотим купить ещё один набор, если они не закончатся к вечеру субботы.",
    """I could not find the shop: the map shows another street. Please call me back after six,
or write where the entrance is and until what time you are open today. Thank you!""",
)
DEFAULT_SENDER = "1008"
"""The number to which a client replies if the message has no sender."""
OWN_FIELD = f"{MESSAGE_FIELD}="
"""Start of the field of the URL for receipts that names the message."""


class PlannedCall(msgspec.Struct, frozen=True, kw_only=True):
    """A call that is to be made `delay` seconds after the message was accepted."""

    delay: float
    content: CallContent
    callback: Callback
    """Without a signature."""
    message_id: int | None
    new_id: int
    """The gateway's id of the message."""
    part: int | None = None
    """Number of the part; None for the whole message."""
    is_stop: bool = False
    """Whether it is a reply with a stop word."""
    is_repeat: bool = False
    is_early: bool = False
    """Whether it is made before the response to the request."""


class CallPlan(msgspec.Struct, frozen=True):
    """All calls about a message."""

    status: ReceiptStatus
    """The status that the message gets."""
    delay: float
    """Seconds until it gets this status."""
    calls: list[PlannedCall]
    lost: int = 0
    """Receipts that are not sent."""


class CallPlanner:
    """Plans the calls of one kind of gateway. `random_source` decides what happens."""

    def __init__(
        self,
        profile: GatewayProfile,
        samples: CallSamples,
        options: CallOptions,
        random_source: random.Random,
    ) -> None:
        self._samples = samples
        self._options = options
        self._random = random_source
        self._has_parts = profile.receipt is not None and profile.receipt.part is not None
        """Whether the provider reports each part of a message."""
        self._reply_numbers = count(1)

    def receipts_url(self, message: SandboxMessage) -> str | None:
        """Return the URL for receipts of a message; None if there is none."""
        return message.callback or self._options.receipts_url

    def plan(self, message: SandboxMessage, new_id: int) -> CallPlan:
        """Return the plan for an accepted message, with the gateway's id of it."""
        options = self._options
        is_early = self._happens(options.receipt_early)
        status: ReceiptStatus = "failed" if self._happens(options.receipt_failed) else "delivered"
        delay = 0.0 if is_early else self._delay()
        url = self.receipts_url(message)
        if url is None:
            is_lost = self._happens(options.receipt_loss)
            return CallPlan("sent" if is_lost else status, delay, [])
        receipts = list(self._receipts(message, new_id, url, status, delay))
        if is_early:
            receipts = [msgspec.structs.replace(call, is_early=True) for call in receipts]
        kept = [call for call in receipts if not self._happens(options.receipt_loss)]
        is_lost = not any(call.content == status for call in kept)
        repeats = [
            msgspec.structs.replace(
                call, is_repeat=True, is_early=False, delay=call.delay + self._delay()
            )
            for call in kept
            if self._happens(options.receipt_repeat)
        ]
        replies = self._replies(message, new_id, delay)
        calls = sorted([*kept, *repeats, *replies], key=lambda call: call.delay)
        lost = len(receipts) - len(kept)
        return CallPlan("sent" if is_lost else status, delay, calls, lost)

    def _receipts(
        self,
        message: SandboxMessage,
        new_id: int,
        url: str,
        status: ReceiptStatus,
        delay: float,
    ) -> Iterator[PlannedCall]:
        """Yield the receipts: for each part, one that it is on its way, and one that decides.

        If a message of several parts fails, its first part does.
        """
        parts = count_parts(message.text).parts if self._has_parts else 1
        is_disordered = self._happens(self._options.receipt_disorder)
        for part in range(1, parts + 1):
            values = _values(message, new_id, part, parts)
            final: ReceiptStatus = status if part == 1 else "delivered"
            sent_delay = self._random.random() * delay
            statuses: list[tuple[ReceiptStatus, float]] = [("sent", sent_delay), (final, delay)]
            if is_disordered:
                statuses = [(final, delay), ("sent", delay + self._delay())]
            for content, seconds in statuses:
                sample = self._choose(content)
                if sample is not None:
                    yield PlannedCall(
                        delay=seconds,
                        content=content,
                        callback=sample.fill(url, values),
                        message_id=message.id or _find_message_id(url),
                        new_id=new_id,
                        part=part if self._has_parts else None,
                    )

    def _choose(self, content: ReceiptStatus) -> CallSample | None:
        """Return one of the samples of a receipt; of a failure also one that it has expired."""
        samples = self._samples.named(content)
        if content == "failed":
            samples = samples + self._samples.expired
        return self._random.choice(samples) if samples else None

    def _replies(self, message: SandboxMessage, new_id: int, delay: float) -> Iterator[PlannedCall]:
        """Yield the parts of a reply, if the client replies."""
        if not self._samples.reply or not self._happens(self._options.reply_share):
            return
        is_stop = self._happens(self._options.stop_share)
        text = self._random.choice(STOP_REPLIES if is_stop else REPLIES)
        seconds = delay + self._delay()
        url = self._options.receipts_url or find_reply_url(message.callback)
        for callback in self.create_reply(message, text, url):
            yield PlannedCall(
                delay=seconds,
                content="reply",
                callback=callback,
                message_id=message.id or _find_message_id(message.callback),
                new_id=new_id,
                is_stop=is_stop,
            )

    def create_reply(self, message: SandboxMessage, text: str, url: str) -> Iterator[Callback]:
        """Yield the calls that bring a client's reply to a message, one for each part."""
        number = next(self._reply_numbers)
        reply_id = self._random.randrange(10**14, 10**15)
        texts = _split(text) if self._samples.reply_part else [text]
        samples = self._samples.reply_part if len(texts) > 1 else self._samples.reply
        sample = next(sample for sample in samples if sample.fits(text))
        for part, part_text in enumerate(texts, 1):
            values = _values(message, reply_id, part, len(texts))
            # the reference of parts is a byte (3GPP TS 23.040, section 9.2.3.24.1)
            yield sample.fill(url, values | {"text": part_text, "reference": str(number % 256)})

    def _happens(self, share: float) -> bool:
        return bool(share) and self._random.random() < share

    def _delay(self) -> float:
        mean = self._options.receipt_delay
        return self._random.expovariate(1 / mean) if mean else 0.0


def find_reply_url(url: str) -> str:
    """Return the URL for replies: that for receipts without what is about one message."""
    path, question_mark, query = url.partition("?")
    if path.endswith("/receipts"):
        path = path.removesuffix("receipts") + "inbound"
    kept = [field for field in query.split("&") if field and not field.startswith(OWN_FIELD)]
    return path + (question_mark + "&".join(kept) if kept else "")


def _find_message_id(url: str) -> int | None:
    """Return the message id that mailer has put into the URL for receipts."""
    for field in url.partition("?")[2].split("&"):
        if field.startswith(OWN_FIELD) and field.removeprefix(OWN_FIELD).isdecimal():
            return int(field.removeprefix(OWN_FIELD))
    return None


def message_values(message: SandboxMessage, new_id: int) -> dict[str, str]:
    """Return the values of the placeholders for a message that the gateway knows as `new_id`."""
    return _values(message, new_id, part=1, parts=1)


def _values(message: SandboxMessage, new_id: int, part: int, parts: int) -> dict[str, str]:
    return {
        "id": str(message.id or 0),
        "phone": str(message.phone),
        "sender": message.sender or DEFAULT_SENDER,
        "new_id": str(new_id),
        "part": str(part),
        "parts": str(parts),
        "part_id": find_part_id(new_id, part),
    }


def find_part_id(new_id: int, part: int) -> str:
    """Return the gateway's id of a part."""
    return f"{new_id}{part:03}"


def _split(text: str) -> list[str]:
    """Split a text into parts, as a phone does. No character takes two units in `REPLIES`."""
    size = count_parts(text)
    if size.parts == 1:
        return [text]
    length = PART_CAPACITY[size.encoding].joined
    return [text[start : start + length] for start in range(0, len(text), length)]
