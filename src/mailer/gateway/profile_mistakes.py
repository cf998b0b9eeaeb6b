"""Find the mistakes of a profile that the types of its fields cannot show."""

import re
from collections.abc import Collection, Iterator

from mailer.gateway.json_path import JsonPath
from mailer.gateway.placeholders import (
    ACCOUNT_KEYS,
    ACCOUNT_PLACEHOLDERS,
    BRACES,
    MAY_BE_EMPTY,
    MESSAGE_PLACEHOLDERS,
    OF_ANY_CHARACTERS,
    PLACEHOLDER,
)
from mailer.gateway.profile import GatewayProfile, RequestPart, ResponsePart
from mailer.gateway.profile_callback_mistakes import POLL_PLACEHOLDERS, find_callback_mistakes
from mailer.urls import URL_CHARACTERS

HEADER_NAME = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+")
"""A token of RFC 9110, section 5.6.2."""
OWN_HEADERS = frozenset({"content-length", "host", "transfer-encoding"})
"""Headers that say how a request is sent, which is no matter of a profile."""
STATUS = re.compile(r"[1-5]([0-9]{2}|xx)")
"""A status code of HTTP, or a class of them such as 4xx."""


def account_keys(profile: GatewayProfile) -> dict[str, bool]:
    """Return the keys of the account that the profile uses, and whether each is required."""
    keys: dict[str, bool] = {}
    for _, text in _texts(profile):
        for name, optional in PLACEHOLDER.findall(text):
            if name in ACCOUNT_KEYS:
                keys[name] = keys.get(name, False) or not optional
    return keys


def find_mistakes(profile: GatewayProfile) -> Iterator[str]:
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
    yield from find_callback_mistakes(profile)
    for number, rule in enumerate(profile.response, start=1):
        yield from (f"response[{number}].{mistake}" for mistake in _find_rule_mistakes(rule))


def _requests(profile: GatewayProfile) -> Iterator[tuple[str, RequestPart]]:
    """Yield the requests of a profile and their paths."""
    yield "request", profile.request
    if profile.balance is not None:
        yield "balance", profile.balance.request
    if profile.poll is not None:
        yield "poll", profile.poll.request


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
    if path.startswith(("request.basic_auth.", "balance.basic_auth.", "poll.basic_auth.")):
        return ACCOUNT_KEYS
    if path.startswith("poll."):
        return (*ACCOUNT_KEYS, *POLL_PLACEHOLDERS)
    if path.startswith("by_text."):
        return (*ACCOUNT_KEYS, *MESSAGE_PLACEHOLDERS)
    return (*ACCOUNT_KEYS, *MESSAGE_PLACEHOLDERS, *profile.by_text, *profile.with_callback)


def _find_text_mistakes(text: str, known: Collection[str]) -> Iterator[str]:
    """Yield what is in braces and none of the placeholders that are `known`."""
    choices = f"possible are {', '.join(sorted(known))}" if known else "none is possible here"
    for found in BRACES.findall(text):
        placeholder = PLACEHOLDER.fullmatch(found)
        if found == "{url}":
            yield "{url} can only be the start of request.url, balance.url and poll.url"
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
