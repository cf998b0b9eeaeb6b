"""The responses of the sandbox gateway, made from samples of what each provider sends."""

import random
import re
import time
from collections.abc import Mapping, Sequence
from http import HTTPStatus
from importlib import resources
from itertools import count
from typing import Annotated, Literal, assert_never, get_args

import msgspec
from msgspec import Meta

from mailer.gateway.faults import Fault, RequestKind
from mailer.gateway.protocol import AccountTrouble
from mailer.gateway.sandbox_call_samples import CallSamples, PollSamples
from mailer.gateway.sandbox_options import CallContent
from mailer.gateway.sandbox_plans import find_part_id
from mailer.gateway.sandbox_records import SandboxMessage
from mailer.gateway.sms_parts import count_parts
from mailer.gateway.toml_file import convert_table, parse_toml

SampleName = Literal[
    "accepted",
    "duplicate",
    "rejected",
    "opted_out",
    "invalid",
    "temporary",
    "limited",
    "unknown",
    "malformed",
    "balance",
    AccountTrouble,
]
"""What a sample means to the profile of its kind."""
SAMPLE_NAMES: tuple[SampleName, ...] = get_args(SampleName)
SAMPLE_PLACEHOLDER = re.compile(r"\{(id|new_id|phone|retry_after|parts|part_id|entries)\}")
PADDING = "x" * 65_536
"""More than a client reads of a response."""
_KINDS: dict[SampleName, RequestKind] = {
    "accepted": "accepted",
    "duplicate": "accepted",
    "rejected": "reject",
    "opted_out": "reject",
    "invalid": "invalid",
    "temporary": "error",
    "limited": "limited",
    "unknown": "error",
    "malformed": "malformed",
    "balance": "balance",
    "bad_credentials": "unauthorized",
}
"""How a request with such a response is counted; `account` for the others."""

_NAMES: dict[int, SampleName] = {
    HTTPStatus.OK: "balance",
    HTTPStatus.UNAUTHORIZED: "bad_credentials",
}
"""Samples for requests that are none for a message, by the status that the reader gives them."""


class Sample(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A response of a provider.

    Body and headers may have placeholders: `{new_id}` is an id of the gateway that was not used
    before, `{id}` and `{phone}` are those of the message, `{retry_after}` is the number of seconds
    to wait, and `{padding}` is longer than what a client reads. If the response has an entry for
    each part of the text, `{parts}` is their number, `{entries}` stands for all of them, joined by
    commas, and `{part_id}` is the gateway's id of a part.
    """

    status: Annotated[int, Meta(ge=200, le=599)]
    headers: dict[str, str] = {}
    body: str = ""
    entry: str = ""
    """The entry of a part."""


SomeSamples = Annotated[list[Sample], Meta(min_length=1)]


class Samples(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The samples of one kind of gateway, by the outcome that its profile gives them."""

    content_type: str = "application/json"
    """Content type of the samples that have no such header."""
    accepted: SomeSamples
    rejected: SomeSamples
    temporary: SomeSamples
    limited: SomeSamples
    """The rate limit is exceeded: a temporary failure."""
    bad_credentials: SomeSamples
    invalid: SomeSamples
    """The request does not follow the protocol: a rejection."""
    malformed: SomeSamples
    """Not what the provider sends: a temporary failure or unknown."""
    duplicate: list[Sample] = []
    """A message id that was accepted before: counts as accepted."""
    opted_out: list[Sample] = []
    unknown: list[Sample] = []
    no_credit: list[Sample] = []
    sender_refused: list[Sample] = []
    account_blocked: list[Sample] = []
    balance: list[Sample] = []
    """The response to a request for the balance."""
    poll: PollSamples | None = None
    """The response to a request for the status of messages."""
    call: CallSamples = CallSamples()
    """The provider's calls to mailer."""

    def named(self, name: SampleName) -> list[Sample]:
        """Return the samples of this name."""
        samples: list[Sample] = getattr(self, name)
        return samples


class SandboxResponse(msgspec.Struct, frozen=True):
    """The response to one request, and the kind under which the request is counted."""

    kind: RequestKind
    status: int
    body: bytes = b""
    headers: dict[str, str] = {}
    new_id: int = 0
    """The gateway's id of the message; 0 if the response contains none."""


def load_samples(kind: str) -> Samples:
    """Return the samples of a kind that is shipped with mailer."""
    file = resources.files("mailer.gateway") / "profiles" / "samples" / f"{kind}.toml"
    return convert_table(parse_toml(file.read_bytes(), f"{kind}.toml"), Samples)


class _ResponseSample:
    """A sample, prepared to become the response to a request."""

    def __init__(self, kind: RequestKind, sample: Sample, content_type: str) -> None:
        self.status = sample.status
        self._kind = kind
        self._body = sample.body.replace("{padding}", PADDING)
        self._entry = sample.entry
        self._headers = {"Content-Type": content_type, **sample.headers}
        self.is_constant = not any(
            map(SAMPLE_PLACEHOLDER.search, (self._body, *self._headers.values()))
        )
        self.constant = SandboxResponse(kind, sample.status, self._body.encode(), self._headers)
        """The response, if it has no placeholders."""
        self.has_entries = bool(sample.entry)

    def fill(self, values: Mapping[str, object], parts: int, new_id: int) -> SandboxResponse:
        """Return the response with the values of its placeholders, for a text of some parts."""

        def fill(text: str, values: Mapping[str, object]) -> str:
            return SAMPLE_PLACEHOLDER.sub(lambda placeholder: str(values[placeholder[1]]), text)

        values = {**values, "new_id": new_id, "parts": parts}
        part_ids = [find_part_id(new_id, part) for part in range(1, parts + 1)]
        entries = [fill(self._entry, {**values, "part_id": part_id}) for part_id in part_ids]
        values["entries"] = ",".join(entries)
        headers = {name: fill(value, values) for name, value in self._headers.items()}
        body = fill(self._body, values).encode()
        return SandboxResponse(self._kind, self.status, body, headers, new_id)


class SandboxResponses:
    """Creates the responses of one kind of gateway. `random_source` chooses among samples."""

    def __init__(self, kind: str, random_source: random.Random) -> None:
        samples = load_samples(kind)
        self.calls = samples.call
        self._poll = samples.poll
        self._random = random_source
        self._samples = {
            name: [
                _ResponseSample(_KINDS.get(name, "account"), sample, samples.content_type)
                for sample in samples.named(name)
            ]
            for name in SAMPLE_NAMES
        }
        self._new_ids = count(time.time_ns() // 1_000)
        """New even after a restart, as long as there are less than a million a second."""

    def has(self, name: SampleName) -> bool:
        """Return whether there are responses of this name."""
        return bool(self._samples[name])

    def accept(self, message: SandboxMessage, *, is_repeat: bool) -> SandboxResponse:
        """Return the response that accepts a message, or says that it was accepted before."""
        return self.create(
            "duplicate" if is_repeat and self.has("duplicate") else "accepted", message
        )

    def respond(self, status: int) -> SandboxResponse:
        """Return the response to a request that is none for a message.

        The status 200 means a request for the balance, 401 wrong credentials, and any other a
        request that does not follow the profile; then the response has this status if there is such
        a sample.
        """
        name = _NAMES.get(status, "invalid")
        statuses = [sample.status for sample in self._samples[name]]
        return self.create(name, None, index=statuses.index(status) if status in statuses else 0)

    def limit(self, message: SandboxMessage, retry_after: int) -> SandboxResponse:
        """Return the response that refuses a message for some seconds."""
        return self.create("limited", message, retry_after=retry_after)

    def create_fault(self, fault: Fault, message: SandboxMessage) -> SandboxResponse:
        """Return a response with a fault; for `hang` and `reset`, one that is never sent."""
        match fault:
            case "error":
                return self.choose("temporary", message)
            case "reject":
                return self.choose("rejected", message)
            case "malformed":
                return self.choose("malformed", message)
            case "hang" | "reset":
                return SandboxResponse(fault, 0)
            case _:
                assert_never(fault)

    def choose(self, name: SampleName, message: SandboxMessage) -> SandboxResponse:
        """Return one of the responses of this name."""
        return self.create(name, message, index=self._random.randrange(len(self._samples[name])))

    def create(
        self,
        name: SampleName,
        message: SandboxMessage | None,
        *,
        index: int = 0,
        retry_after: int = 1,
    ) -> SandboxResponse:
        """Return the response made from one of the samples of this name."""
        sample = self._samples[name][index]
        if sample.is_constant:
            return sample.constant
        values = {
            "id": message.id if message else 0,
            "phone": message.phone if message else 0,
            "retry_after": retry_after,
        }
        parts = count_parts(message.text).parts if message and sample.has_entries else 1
        return sample.fill(values, parts, self.create_id())

    def create_id(self) -> int:
        """Return a new id of the gateway."""
        return next(self._new_ids)

    def answer_poll(
        self, found: Sequence[tuple[CallContent, Mapping[str, str]]]
    ) -> SandboxResponse:
        """Return the response with the status and the values of each message that is known."""
        if self._poll is None or not found:
            return msgspec.structs.replace(self.create("invalid", None), kind="poll")
        headers = {"Content-Type": "application/json"}
        return SandboxResponse("poll", HTTPStatus.OK, self._poll.fill(found).encode(), headers)
