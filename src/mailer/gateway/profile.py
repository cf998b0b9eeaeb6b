"""Profiles: what the API of an SMS provider expects, and what its responses mean.

A profile is a TOML file. `docs/gateways.md` describes the format for users; the structs here are
its definition. `profile_file` reads profiles, and `profile_mistakes` checks what the types cannot
express. `RequestTemplate` and `ResponseRules` compile a profile's parts for sending.
"""

from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from mailer.gateway.callback import ReceiptStatus, SignatureName
from mailer.gateway.placeholders import SmsText
from mailer.gateway.protocol import AccountTrouble

PlaceholderName = Annotated[str, Meta(pattern=r"^[a-z][a-z0-9_]{0,31}$(?!\n)")]
Scalar = bool | int | float | str
ReasonName = Annotated[str, Meta(pattern=r"^[a-z][a-z0-9_]{0,63}$(?!\n)")]

TextEncoding = Literal["utf-8", "utf-16be", "windows-1251", "windows-1252", "iso-8859-1"]

Verdict = Literal[
    "accepted",
    "rejected",
    "opted_out",
    "temporary",
    "account",
    "duplicate",
    "unknown",
    "partly_accepted",
]


class _Part(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A table of the TOML file, in which only known names are allowed."""


class BasicAuth(_Part, frozen=True, kw_only=True):
    """User and password of HTTP Basic authentication; texts with placeholders."""

    username: str
    password: str


class RequestPart(_Part, frozen=True, kw_only=True):
    """The request that sends one message. All texts may contain placeholders."""

    method: Literal["GET", "POST"] = "POST"
    url: str
    query: dict[str, str] = {}
    headers: dict[str, str] = {}
    basic_auth: BasicAuth | None = None
    body: Literal["json", "form", "none"] = "json"
    fields: dict[str, Any] = {}
    """Content of the body: texts for a form; for JSON also numbers, lists and nested tables. A
    field whose text is empty is left out."""


class WaitPart(_Part, frozen=True, kw_only=True):
    """How long a response asks to wait: the number in its text that `pattern` finds."""

    path: str | None = None
    """Where in a JSON body; None for the whole body as text."""
    pattern: str
    """Its first group is the number."""
    unit: Literal["ms", "s", "min", "h"]


class ResponsePart(_Part, frozen=True, kw_only=True):
    """A rule for responses. Of all rules of a profile, the first that matches decides.

    A rule matches when all its conditions do: `status`, and `values` or `pattern` at `path`.
    """

    status: int | str | list[int | str] | None = None
    """Codes such as 503, or classes such as "4xx"."""
    path: str | None = None
    """Where in a JSON body; None for the whole body as text. `[*]` stands for all entries of a
    list: one of them must match, or each with `every`."""
    values: list[Scalar] | None = None
    """Values one of which must be at `path`. Numbers and their texts are equal: 0 and "0"."""
    pattern: str | None = None
    """A regular expression to search for."""
    exact: bool = False
    """Whether a number and its text are different: 0 is not "0"."""
    every: bool = False
    then: Verdict
    reason: ReasonName | None = None
    """Default: the value or status that matched, as in `rejected_21211` and `http_503`."""
    trouble: AccountTrouble | None = None
    """Required with `then = "account"`."""
    other_gateways: bool = False
    """Whether a rejected message may be sent through another gateway: the response speaks of this
    gateway, not of the phone or text."""
    whole_gateway: bool = False
    """Whether a temporary failure concerns all messages, so that the whole gateway waits."""
    wait: WaitPart | None = None
    """How long to wait, if the body says it; a header Retry-After needs no rule."""
    id: str | None = None
    """Path to the gateway's message id in a JSON body. With `[*]`: the ids of several parts."""
    id_pattern: str | None = None
    """Pattern for the gateway's message id in a body of text; its first group is the id."""


class ValidityRange(_Part, frozen=True, kw_only=True):
    """Shortest and longest validity that the provider takes, in seconds."""

    min: Annotated[int, Meta(ge=0)] = 0
    max: Annotated[int, Meta(ge=1)] = 7 * 86_400

    def limit(self, seconds: int) -> int:
        """Return the nearest validity that is allowed."""
        return min(max(seconds, self.min), self.max)


class LimitsPart(_Part, frozen=True, kw_only=True):
    """Limits of the provider."""

    parts: Annotated[int, Meta(ge=1, le=255)] = 255
    """Most parts of a text."""
    concurrency: Annotated[int, Meta(ge=1, le=10_000)] = 50
    """Requests at the same time, unless the configuration sets another number."""
    rate: Annotated[float, Meta(gt=0)] | None = None
    """Messages a second, unless the configuration sets another rate."""
    validity: ValidityRange = ValidityRange()
    recognizes_repeats: bool = False
    """Whether the provider refuses, or accepts without sending, a message id that it has seen."""


class BalancePart(_Part, frozen=True, kw_only=True):
    """A request that returns the account's balance and costs nothing."""

    method: Literal["GET", "POST"] = "GET"
    url: str
    query: dict[str, str] = {}
    headers: dict[str, str] = {}
    basic_auth: BasicAuth | None = None
    path: str
    """Where the balance is in the JSON body of the response."""

    @property
    def request(self) -> RequestPart:
        """The request, as that of a message without a body."""
        return RequestPart(
            method=self.method,
            url=self.url,
            query=self.query,
            headers=self.headers,
            basic_auth=self.basic_auth,
            body="none",
        )


class ConditionPart(_Part, frozen=True, kw_only=True):
    """What must be at `path`: one of `values`, a text with `pattern`, or any value."""

    path: str
    values: list[Scalar] | None = None
    """Numbers and their texts are equal, and so are capital and small letters."""
    pattern: str | None = None
    """A regular expression to search for."""
    missing: bool = False
    """Whether there must be nothing at `path` instead."""


class StatusRulePart(ConditionPart, frozen=True, kw_only=True):
    """A status that another value than that at `status` decides."""

    then: ReceiptStatus


class _ReportPart(_Part, frozen=True, kw_only=True):
    """How to read what a gateway reports about messages.

    A path is the name of a field, or a path in JSON. Of several paths, separated by `|`, the first
    that exists counts.
    """

    each: str | None = None
    """Path to the list of receipts, if there can be several; the other paths begin at an entry. It
    ends with `[*]`, or with `.*` for an object, whose names are then at `@name`."""
    split: str | None = None
    """Separator of the lines of an entry that is a text. Their paths are `0`, `1` and so on."""
    when: list[ConditionPart] = []
    """Conditions that a receipt fulfils."""
    id: str | None = None
    """Where the gateway's message id is."""
    part: str | None = None
    """Where the id of the part is, if there is a receipt for each part of a message."""
    status: str
    rule: list[StatusRulePart] = []
    """The first rule that matches decides before `statuses` does."""
    statuses: dict[ReceiptStatus, list[Scalar]]
    """What the values at `status` mean. An entry with any other value is no receipt."""
    code: str | None = None
    """Where the error code is."""


class ReceiptPart(_ReportPart, frozen=True, kw_only=True):
    """How to read a delivery receipt."""

    methods: tuple[Literal["GET", "POST"], ...] = ("POST",)
    own_id: str | None = None
    """Where mailer's message id is. Default: in the query of the URL that mailer has given."""
    response: str = ""
    """Body of the response that the provider expects."""
    media_type: str = "text/plain"
    """Media type of that body."""
    signature: SignatureName | None = None
    """How the provider signs its calls; None if it signs nothing."""
    may_be_unsigned: bool = False
    """Whether the provider signs only if the account has asked for it, so that a secret in the URL
    is accepted too."""
    max_url_length: Annotated[int, Meta(ge=1)] | None = None
    """Most characters of a URL that the provider takes for receipts."""


class ReplyPart(_Part, frozen=True, kw_only=True):
    """How to read a message from a client. A call that has the field `text` is one.

    Paths are as in `ReceiptPart`.
    """

    methods: tuple[Literal["GET", "POST"], ...] = ("POST",)
    each: str | None = None
    when: list[ConditionPart] = []
    """Conditions that a reply fulfils."""
    sender: str
    recipient: str | None = None
    text: str
    id: str | None = None
    reference: str | None = None
    """Where the number is that all parts of one reply share."""
    part: str | None = None
    """Where the number of the part is, from 1."""
    parts: str | None = None
    """Where the number of parts is."""
    encoding: TextEncoding = "utf-8"
    """Encoding of the text in a form or query, if it is not UTF-8."""
    charset: str | None = None
    """Where the name of the encoding is, if it differs from reply to reply."""
    charsets: dict[str, TextEncoding] = {}
    """What the values at `charset` mean; with any other value, `encoding` counts."""
    response: str = ""
    media_type: str = "text/plain"


class PollPart(_ReportPart, frozen=True, kw_only=True):
    """A request that asks for the receipts of messages, and how to read its response in JSON."""

    method: Literal["GET", "POST"] = "GET"
    url: str
    query: dict[str, str] = {}
    headers: dict[str, str] = {}
    basic_auth: BasicAuth | None = None
    body: Literal["json", "form", "none"] = "none"
    fields: dict[str, Any] = {}
    batch: Annotated[int, Meta(ge=1, le=100)] = 1
    """Most messages in one request."""

    @property
    def request(self) -> RequestPart:
        """The request, as that of a message."""
        return RequestPart(
            method=self.method,
            url=self.url,
            query=self.query,
            headers=self.headers,
            basic_auth=self.basic_auth,
            body=self.body,
            fields=self.fields,
        )


class GatewayProfile(_Part, frozen=True, kw_only=True):
    """One kind of gateway."""

    title: str
    sources: list[str] = []
    """Public sources that confirm the rules; what none confirms is marked in a comment."""
    url: str | None = None
    """Address of the API; None if each installation has its own."""
    request: RequestPart
    by_text: dict[PlaceholderName, SmsText] = {}
    """Further placeholders, whose value depends on the alphabet that the text needs."""
    with_callback: dict[PlaceholderName, str] = {}
    """Further placeholders, which are empty unless the gateway is to send receipts."""
    response: Annotated[list[ResponsePart], Meta(min_length=1)]
    limits: LimitsPart = LimitsPart()
    balance: BalancePart | None = None
    receipt: ReceiptPart | None = None
    reply: ReplyPart | None = None
    poll: PollPart | None = None
