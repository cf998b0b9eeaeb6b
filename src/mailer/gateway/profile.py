"""Profiles: what the API of an SMS provider expects, and what its responses mean.

A profile is a TOML file. `docs/gateways.md` describes the format for users; the structs here are
its definition. `load_profile` reads a profile that is shipped with mailer or one of the user's own,
and names every mistake of the file at once. `RequestTemplate` and `ResponseRules` compile a
profile's parts for sending.
"""

import re
from collections.abc import Collection, Iterator
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from mailer.gateway.json_path import JsonPath
from mailer.gateway.placeholders import (
    ACCOUNT_KEYS,
    ACCOUNT_PLACEHOLDERS,
    BRACES,
    MAY_BE_EMPTY,
    MESSAGE_PLACEHOLDERS,
    OF_ANY_CHARACTERS,
    PLACEHOLDER,
    SmsText,
)
from mailer.gateway.protocol import AccountTrouble
from mailer.gateway.toml_file import ConfigFileError, convert_table, parse_toml, read_file
from mailer.urls import URL_CHARACTERS

PlaceholderName = Annotated[str, Meta(pattern=r"^[a-z][a-z0-9_]{0,31}$(?!\n)")]
HEADER_NAME = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+")
"""A token of RFC 9110, section 5.6.2."""
OWN_HEADERS = frozenset({"content-length", "host", "transfer-encoding"})
"""Headers that say how a request is sent, which is no matter of a profile."""
STATUS = re.compile(r"[1-5]([0-9]{2}|xx)")
"""A status code of HTTP, or a class of them such as 4xx."""
Scalar = bool | int | float | str
ReasonName = Annotated[str, Meta(pattern=r"^[a-z][a-z0-9_]{0,63}$(?!\n)")]

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

    parts: Annotated[int, Meta(ge=1, le=255)] | None = None
    """Most parts of a text."""
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


class ReceiptPart(_Part, frozen=True, kw_only=True):
    """How to read a delivery receipt."""

    methods: tuple[Literal["GET", "POST"], ...] = ("POST",)
    each: str | None = None
    """Path to the list of receipts, if a request brings several."""
    split: str | None = None
    """Separator of the lines of a receipt at `each` that is a text."""
    id: str
    """Where the gateway's message id is: the name of a field, or a path in JSON."""
    own_id: str | None = None
    """Where mailer's message id is."""
    status: str
    code: str | None = None
    """Where the error code is."""
    statuses: dict[Literal["delivered", "sent", "failed", "expired", "unknown"], list[Scalar]]
    response: str = ""
    """Body of the response that the provider expects."""
    signature: str | None = None
    """Name of the provider's signature; None if it signs nothing."""


class ReplyPart(_Part, frozen=True, kw_only=True):
    """How to read a message from a client. A request that has the field `text` is one."""

    methods: tuple[Literal["GET", "POST"], ...] = ("POST",)
    each: str | None = None
    sender: str
    recipient: str | None = None
    text: str
    id: str | None = None
    encoding: Literal["utf-8", "utf-16be"] = "utf-8"
    response: str = ""


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


def shipped_kinds() -> list[str]:
    """Return the names of the profiles that are shipped with mailer."""
    folder = resources.files("mailer.gateway") / "profiles"
    names = (file.name for file in folder.iterdir())
    return sorted(name.removesuffix(".toml") for name in names if name.endswith(".toml"))


def load_profile(kind: str, folder: Path = Path()) -> GatewayProfile:
    """Return the shipped profile named `kind`, or that of the file at the path `kind`.

    A kind with a slash, or that ends with `.toml`, is a path, relative to `folder`. Raises
    `ConfigFileError`.
    """
    if "/" in kind or kind.endswith(".toml"):
        path = folder / kind
        return read_profile(read_file(path), str(path))
    if kind not in shipped_kinds():
        choices = ", ".join(shipped_kinds())
        raise ConfigFileError([f"kind: is none of {choices}, and not the path of a file"])
    shipped = resources.files("mailer.gateway") / "profiles" / f"{kind}.toml"
    return read_profile(shipped.read_bytes(), f"{kind}.toml")


def read_profile(content: bytes, name: str) -> GatewayProfile:
    """Return the profile in `content`. `name` is the file's, for errors.

    Raises `ConfigFileError`.
    """
    document = parse_toml(content, name)
    try:
        profile = convert_table(document, GatewayProfile)
    except ConfigFileError as error:
        mistakes = error.mistakes
    else:
        mistakes = list(_find_mistakes(profile))
        if not mistakes:
            return profile
    raise ConfigFileError([f"{name}: {mistake}" for mistake in mistakes])


def account_keys(profile: GatewayProfile) -> dict[str, bool]:
    """Return the keys of the account that the profile uses, and whether each is required."""
    keys: dict[str, bool] = {}
    for _, text in _texts(profile):
        for name, optional in PLACEHOLDER.findall(text):
            if name in ACCOUNT_KEYS:
                keys[name] = keys.get(name, False) or not optional
    return keys


def _find_mistakes(profile: GatewayProfile) -> Iterator[str]:
    """Yield each mistake that the types of single fields cannot show."""
    for place, request in _requests(profile):
        yield from (f"{place}.{mistake}" for mistake in _find_request_mistakes(request))
        yield from (f"{place}.url: {mistake}" for mistake in _find_url_mistakes(profile, request))
        yield from (f"{place}.{mistake}" for mistake in _find_header_mistakes(profile, request))
    yield from _find_definition_mistakes(profile)
    for path, text in _texts(profile):
        known = _known_placeholders(profile, path)
        yield from (f"{path}: {mistake}" for mistake in _find_text_mistakes(text, known))
    if profile.limits.validity.min > profile.limits.validity.max:
        yield "limits.validity: min must not be larger than max"
    if profile.balance is not None:
        yield from _find_path_mistakes("balance.path", profile.balance.path)
    for number, rule in enumerate(profile.response, start=1):
        yield from (f"response[{number}].{mistake}" for mistake in _find_rule_mistakes(rule))


def _requests(profile: GatewayProfile) -> Iterator[tuple[str, RequestPart]]:
    """Yield the requests of a profile and their paths."""
    yield "request", profile.request
    if profile.balance is not None:
        yield "balance", profile.balance.request


def _find_request_mistakes(request: RequestPart) -> Iterator[str]:
    if request.method == "GET" and request.body != "none":
        yield 'body: must be "none" with the method GET'
    if request.basic_auth is not None and ":" in BRACES.sub("", request.basic_auth.username):
        yield "basic_auth.username: must have no colon, because the password would begin there"
    if request.body == "none" and request.fields:
        yield "fields: a request without body has none; use request.query"
    if request.body == "form":
        for field, value in request.fields.items():
            if not isinstance(value, str):
                yield f"fields.{field}: must be a text in quotes"


def _find_url_mistakes(profile: GatewayProfile, request: RequestPart) -> Iterator[str]:
    if not request.url.startswith("{url}"):
        yield "must start with {url}, the address of the API"
    constant = BRACES.sub("", request.url)
    if "?" in constant or "#" in constant:
        yield "must have no ? and no #; use query"
    elif not URL_CHARACTERS.fullmatch(constant):
        yield "has a character that a URL cannot have; write it as %XX"
    for name, optional in PLACEHOLDER.findall(request.url):
        if _may_be_empty(profile, name, optional):
            yield f"{{{name}{optional}}} may be empty, so it cannot be in a URL"


def _may_be_empty(profile: GatewayProfile, name: str, optional: str) -> bool:
    """Return whether a placeholder may stand for an empty text."""
    if name in profile.by_text:
        texts = profile.by_text[name]
        return any(
            not text or any(_may_be_empty(profile, *each) for each in PLACEHOLDER.findall(text))
            for text in (texts.gsm, texts.ucs2)
        )
    if name in ACCOUNT_PLACEHOLDERS:
        return bool(optional)
    return name in MAY_BE_EMPTY or name in profile.with_callback


def _find_header_mistakes(profile: GatewayProfile, request: RequestPart) -> Iterator[str]:
    seen: set[str] = set()
    for name, text in request.headers.items():
        place = f"headers.{name}"
        if not HEADER_NAME.fullmatch(name):
            yield f"headers.{name!r}: is not the name of a header"
        elif name.lower() in OWN_HEADERS:
            yield f"{place}: is set by mailer"
        elif name.lower() in seen:
            yield f"{place}: is there twice; capitals make no difference"
        elif name.lower() == "authorization" and request.basic_auth is not None:
            yield f"{place}: cannot be combined with basic_auth"
        seen.add(name.lower())
        parts = list(_defined_texts(profile, text))
        if not all(part.isascii() and part.isprintable() for part in parts):
            yield f"{place}: must be one line of printable ASCII characters"
        placeholders = {found[0] for part in parts for found in PLACEHOLDER.findall(part)}
        for placeholder in sorted(placeholders & OF_ANY_CHARACTERS):
            yield f"{place}: cannot have {{{placeholder}}}, whose characters may be any"


def _defined_texts(profile: GatewayProfile, text: str) -> Iterator[str]:
    """Yield a text and those that the profile defines for the placeholders in it."""
    yield text
    for name, _ in PLACEHOLDER.findall(text):
        if name in profile.by_text:
            yield profile.by_text[name].gsm
            yield profile.by_text[name].ucs2
        elif name in profile.with_callback:
            yield profile.with_callback[name]


def _find_definition_mistakes(profile: GatewayProfile) -> Iterator[str]:
    """Yield the placeholders of the profile that have the name of another one."""
    taken = {*ACCOUNT_PLACEHOLDERS, *MESSAGE_PLACEHOLDERS}
    for name in sorted(taken & profile.by_text.keys()):
        yield f"by_text.{name}: is the name of another placeholder"
    for name in sorted((taken | profile.by_text.keys()) & profile.with_callback.keys()):
        yield f"with_callback.{name}: is the name of another placeholder"


def _known_placeholders(profile: GatewayProfile, path: str) -> Collection[str]:
    """Return the placeholders that the text at a path of the profile may have."""
    if path.startswith("with_callback."):
        return ()
    if path.startswith(("request.basic_auth.", "balance.basic_auth.")):
        return ACCOUNT_KEYS
    if path.startswith("by_text."):
        return (*ACCOUNT_KEYS, *MESSAGE_PLACEHOLDERS)
    return (*ACCOUNT_KEYS, *MESSAGE_PLACEHOLDERS, *profile.by_text, *profile.with_callback)


def _find_text_mistakes(text: str, known: Collection[str]) -> Iterator[str]:
    """Yield what is in braces and none of the placeholders that are `known`."""
    choices = f"possible are {', '.join(sorted(known))}" if known else "none is possible here"
    for found in BRACES.findall(text):
        placeholder = PLACEHOLDER.fullmatch(found)
        if found == "{url}":
            yield "{url} can only be the start of request.url and balance.url"
        elif placeholder is None or placeholder[1] not in known:
            yield f"{found} is not a placeholder; {choices}"


def _texts(profile: GatewayProfile) -> Iterator[tuple[str, str]]:
    """Yield the path and the text of each value that may have placeholders, but not `{url}`."""
    for place, request in _requests(profile):
        yield f"{place}.url", request.url.removeprefix("{url}")
        for name in ("query", "headers", "fields"):
            yield from _nested_texts(f"{place}.{name}", getattr(request, name))
        if request.basic_auth is not None:
            yield f"{place}.basic_auth.username", request.basic_auth.username
            yield f"{place}.basic_auth.password", request.basic_auth.password
    for name, texts in profile.by_text.items():
        yield f"by_text.{name}.gsm", texts.gsm
        yield f"by_text.{name}.ucs2", texts.ucs2
    yield from _nested_texts("with_callback", profile.with_callback)


def _nested_texts(path: str, value: object) -> Iterator[tuple[str, str]]:
    match value:
        case str():
            yield path, value
        case dict():
            for name, entry in value.items():
                yield from _nested_texts(f"{path}.{name}", entry)
        case list():
            for number, entry in enumerate(value, start=1):
                yield from _nested_texts(f"{path}[{number}]", entry)
        case _:  # a number or a truth value has no placeholders
            pass


def _find_rule_mistakes(rule: ResponsePart) -> Iterator[str]:
    if rule.status is not None and not _is_status(rule.status):
        yield 'status: must be codes such as 503, or classes such as "4xx"'
    if rule.values == []:
        yield "values: must not be empty"
    if rule.values and rule.path is None:
        yield "values: need a path"
    if rule.path is not None and not (rule.values or rule.pattern):
        yield "path: needs values or a pattern"
    if rule.pattern == "":
        yield "pattern: must not be empty"
    if rule.every and "[*]" not in (rule.path or ""):
        yield "every: needs a path with [*]"
    yield from _find_useless_keys(rule)
    if (rule.then == "account") != (rule.trouble is not None):
        yield 'trouble: belongs to then = "account", and is required there'
    if rule.id is not None and rule.id_pattern is not None:
        yield "id_pattern: cannot be combined with id"
    yield from _find_path_mistakes("path", rule.path)
    yield from _find_path_mistakes("id", rule.id)
    yield from _find_pattern_mistakes("pattern", rule.pattern, needs_group=False)
    yield from _find_pattern_mistakes("id_pattern", rule.id_pattern, needs_group=True)
    if rule.wait is not None:
        yield from _find_path_mistakes("wait.path", rule.wait.path)
        yield from _find_pattern_mistakes("wait.pattern", rule.wait.pattern, needs_group=True)


def _find_useless_keys(rule: ResponsePart) -> Iterator[str]:
    """Yield each key that has no effect with the rule's verdict."""
    for key, is_given, verdicts in (
        ("other_gateways", rule.other_gateways, ("rejected",)),
        ("whole_gateway", rule.whole_gateway, ("temporary",)),
        ("wait", rule.wait is not None, ("temporary", "account")),
        ("id", rule.id is not None, ("accepted", "duplicate")),
        ("id_pattern", rule.id_pattern is not None, ("accepted", "duplicate")),
    ):
        if is_given and rule.then not in verdicts:
            yield f'{key}: has no effect with then = "{rule.then}"'


def _is_status(status: int | str | list[int | str]) -> bool:
    statuses = status if isinstance(status, list) else [status]
    return bool(statuses) and all(STATUS.fullmatch(str(each)) for each in statuses)


def _find_path_mistakes(name: str, path: str | None) -> Iterator[str]:
    try:
        if path is not None:
            JsonPath(path)
    except ValueError as error:
        yield f"{name}: {error}"


def _find_pattern_mistakes(name: str, pattern: str | None, *, needs_group: bool) -> Iterator[str]:
    if pattern is None:
        return
    try:
        groups = re.compile(pattern).groups
    except re.error as error:
        yield f"{name}: is not a regular expression: {error}"
    else:
        if needs_group and not groups:
            yield f"{name}: must have a group in parentheses"
