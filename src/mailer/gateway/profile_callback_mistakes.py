"""Find the mistakes in the parts of a profile about receipts and replies."""

import re
from collections.abc import Iterator

from mailer.gateway.callback_receipts import ends_with_star
from mailer.gateway.callback_values import ENTRY_NAME, split_paths
from mailer.gateway.json_path import STARS, JsonPath
from mailer.gateway.placeholders import PLACEHOLDER
from mailer.gateway.profile import (
    ConditionPart,
    GatewayProfile,
    PollPart,
    ReceiptPart,
    ReplyPart,
)

POLL_PLACEHOLDERS = ("ids", "id", "phone.digits", "phone.plus")
"""Placeholders of the request of a poll, besides those of the account."""
MEDIA_TYPE_FORM = re.compile(r"[a-z]+/[a-z0-9.+-]+")


def find_callback_mistakes(profile: GatewayProfile) -> Iterator[str]:
    """Yield each mistake in the parts `receipt`, `reply` and `poll` of a profile."""
    if profile.receipt is not None:
        yield from (f"receipt.{mistake}" for mistake in _find_receipt_mistakes(profile.receipt))
    if profile.reply is not None:
        yield from (f"reply.{mistake}" for mistake in _find_reply_mistakes(profile.reply))
    if profile.poll is not None:
        yield from (f"poll.{mistake}" for mistake in _find_poll_mistakes(profile.poll))


def _find_receipt_mistakes(part: ReceiptPart) -> Iterator[str]:
    yield from _find_report_mistakes(part)
    yield from _find_path_mistakes("own_id", part.own_id)
    yield from _find_response_mistakes(part)
    if part.may_be_unsigned and part.signature is None:
        yield "may_be_unsigned: needs a signature"


def _find_report_mistakes(part: ReceiptPart | PollPart) -> Iterator[str]:
    yield from _find_each_mistakes(part.each)
    if part.split is not None and (part.each is None or not part.split):
        yield "split: must not be empty, and needs each"
    for name in ("id", "part", "status", "code"):
        yield from _find_path_mistakes(name, getattr(part, name))
    if not part.statuses.get("delivered") and not any(r.then == "delivered" for r in part.rule):
        yield "statuses: must say which values mean delivered"
    for name, conditions in (("when", part.when), ("rule", part.rule)):
        for number, condition in enumerate(conditions, start=1):
            yield from _find_condition_mistakes(f"{name}[{number}]", condition)


def _find_reply_mistakes(part: ReplyPart) -> Iterator[str]:
    yield from _find_each_mistakes(part.each)
    names = ("sender", "recipient", "text", "id", "reference", "part", "parts", "charset")
    for name in names:
        yield from _find_path_mistakes(name, getattr(part, name))
    for number, condition in enumerate(part.when, start=1):
        yield from _find_condition_mistakes(f"when[{number}]", condition)
    numbers = (part.reference, part.part, part.parts)
    if any(numbers) and not all(numbers):
        yield "reference: is needed together with part and parts"
    if (part.charset is None) != (not part.charsets):
        yield "charset: is needed together with charsets"
    yield from _find_response_mistakes(part)


def _find_poll_mistakes(part: PollPart) -> Iterator[str]:
    yield from _find_report_mistakes(part)
    request = part.request
    texts = repr((request.url, request.query, request.headers, request.fields))
    names = {name for name, _ in PLACEHOLDER.findall(texts)}
    if not names & {"ids", "id"}:
        yield "url: the request must have {ids}, or {id}"
    if part.batch > 1 and ("ids" not in names or (names - {"ids"}) & set(POLL_PLACEHOLDERS)):
        yield "batch: of several messages the request can only have {ids}"
    if part.batch > 1 and part.id is None:
        yield "id: is required with a batch"


def _find_each_mistakes(each: str | None) -> Iterator[str]:
    if each is None:
        return
    mistakes = list(_find_path_mistakes("each", each, allows_stars=True))
    yield from mistakes
    if not mistakes and not ends_with_star(each):
        yield "each: must end with [*] or .*, and have no other star"


def _find_path_mistakes(
    name: str, text: str | None, *, allows_stars: bool = False
) -> Iterator[str]:
    """Yield what is wrong with the paths in a text, which are separated by `|`."""
    for path in [] if text is None else split_paths(text):
        if path == ENTRY_NAME:
            continue
        try:
            steps = JsonPath(path).steps
        except ValueError as error:
            yield f"{name}: {error}"
        else:
            if not allows_stars and any(step in STARS for step in steps):
                yield f"{name}: must have no star; use each for a list"


def _find_condition_mistakes(name: str, condition: ConditionPart) -> Iterator[str]:
    yield from _find_path_mistakes(f"{name}.path", condition.path)
    if condition.missing and (condition.values or condition.pattern):
        yield f"{name}.missing: cannot be combined with values or a pattern"
    if condition.values == []:
        yield f"{name}.values: must not be empty"
    if condition.pattern is not None:
        try:
            re.compile(condition.pattern)
        except re.error as error:
            yield f"{name}.pattern: is not a regular expression: {error}"


def _find_response_mistakes(part: ReceiptPart | ReplyPart) -> Iterator[str]:
    if not MEDIA_TYPE_FORM.fullmatch(part.media_type):
        yield "media_type: must be one such as text/plain"
    if not part.methods:
        yield "methods: must not be empty"
