"""Read the receipts in a call of a provider, or in its response to a poll."""

from collections.abc import Iterator, Mapping
from typing import Any

from mailer.gateway.callback import Receipt, ReceiptStatus, UnreadableCallbackError
from mailer.gateway.callback_values import (
    ENTRY_NAME,
    Condition,
    compile_optional,
    compile_paths,
    find_at,
    read_code,
    read_id,
    read_message_id,
    split_paths,
    text_of,
)
from mailer.gateway.json_path import STARS, JsonPath
from mailer.gateway.profile import ConditionPart, PollPart, ReceiptPart, ReplyPart
from mailer.gateway.response_rule import scalar_text

MAX_ENTRIES = 1_000
"""Most receipts or replies in one call."""
MAX_LINES = 10
"""Lines of an entry that are read."""
GOOD_STATUSES = frozenset({"delivered", "sent"})
"""Statuses whose code is no error; some providers give the status itself as the code."""
_LINE_NAMES = tuple(map(str, range(MAX_LINES)))

Entry = Mapping[str, Any]


class Entries:
    """Where the receipts or replies of a document are. Raises `ValueError` for a wrong path."""

    def __init__(self, each: str | None, split: str | None = None) -> None:
        self._steps = None if each is None else JsonPath(each).steps[:-1]
        self._split = split

    def find(self, document: object) -> Iterator[Entry]:
        """Yield the entries of a document. Raises `UnreadableCallbackError` if there are too many.

        An entry of an object has its name at `@name`. A text is split into lines, if the profile
        says so; anything else is no entry.
        """
        if self._steps is None:
            if isinstance(document, dict):
                yield document
            return
        found = find_at(self._steps, document)
        if not isinstance(found, list | dict):
            return
        if len(found) > MAX_ENTRIES:
            raise UnreadableCallbackError(f"there are more than {MAX_ENTRIES:,} entries")
        if isinstance(found, dict):
            found = [
                {**entry, ENTRY_NAME: name}
                for name, entry in found.items()
                if isinstance(entry, dict)
            ]
        for entry in found:
            if isinstance(entry, dict):
                yield entry
            elif isinstance(entry, str) and self._split is not None:
                yield dict(zip(_LINE_NAMES, entry.split(self._split, MAX_LINES), strict=False))


def document_paths(part: ReceiptPart | ReplyPart | PollPart) -> Iterator[str]:
    """Yield all paths of a part of a profile, from the start of a document."""
    if part.each is not None and getattr(part, "split", None) is not None:
        yield part.each
        return
    for text in entry_paths(part):
        for path in split_paths(text):
            if path == ENTRY_NAME:
                continue
            if part.each is None:
                yield path
            else:
                yield f"{part.each}{path}" if path.startswith("[") else f"{part.each}.{path}"


def entry_paths(part: ReceiptPart | ReplyPart | PollPart) -> Iterator[str]:
    """Yield the paths of a part of a profile, from the start of an entry."""
    conditions: list[ConditionPart] = list(part.when)
    texts: tuple[str | None, ...]
    if isinstance(part, ReplyPart):
        texts = (part.sender, part.recipient, part.text, part.id)
        texts += (part.reference, part.part, part.parts, part.charset)
    else:
        conditions += part.rule
        own_id = part.own_id if isinstance(part, ReceiptPart) else None
        texts = (part.id, own_id, part.part, part.status, part.code)
    yield from filter(None, texts)
    yield from (condition.path for condition in conditions)


def ends_with_star(each: str) -> bool:
    """Return whether a path stands for the entries of a list or an object, and nothing else."""
    steps = JsonPath(each).steps
    return steps[-1] in STARS and not any(step in STARS for step in steps[:-1])


class ReceiptReader:
    """Reads receipts by a profile. Raises `ValueError` for a wrong path or pattern."""

    def __init__(self, part: ReceiptPart | PollPart) -> None:
        self._entries = Entries(part.each, part.split)
        self._when = [Condition(condition).holds for condition in part.when]
        self._rules = [(Condition(rule).holds, rule.then) for rule in part.rule]
        self._id = compile_optional(part.id)
        own_id = part.own_id if isinstance(part, ReceiptPart) else None
        self._own_id = None if own_id is None else compile_paths(own_id)
        self._part = None if part.part is None else compile_paths(part.part)
        self._status = compile_paths(part.status)
        self._code = compile_optional(part.code)
        self._statuses: dict[str, ReceiptStatus] = {}
        for status, values in part.statuses.items():
            for value in values:
                text = scalar_text(value)
                self._statuses |= {text: status, text.lower(): status}

    @property
    def has_own_id(self) -> bool:
        """Whether the receipts have mailer's message id, so that the URL need not have it."""
        return self._own_id is not None

    def read(self, document: object, url_id: int | None) -> list[Receipt]:
        """Return the receipts in a document. `url_id` is the message id in the URL.

        Raises `UnreadableCallbackError` if no receipt has an id of its message, or if there are too
        many receipts.
        """
        receipts: list[Receipt] = []
        lacks_id = False
        for entry in self._entries.find(document):
            if self._when and not all(holds(entry) for holds in self._when):
                continue
            status = self._find_status(entry)
            if status is None:
                continue
            own_id = url_id if self._own_id is None else read_message_id(self._own_id(entry))
            gateway_id = read_id(self._id(entry))
            if own_id is None and gateway_id is None:
                lacks_id = True
                continue
            code = None if status in GOOD_STATUSES else read_code(self._code(entry))
            part = None if self._part is None else read_id(self._part(entry))
            receipts.append(Receipt(status, own_id, gateway_id, code, part))
        if lacks_id and not receipts:
            raise UnreadableCallbackError("the receipt has no id of a message")
        return receipts

    def _find_status(self, entry: Entry) -> ReceiptStatus | None:
        for holds, status in self._rules:
            if holds(entry):
                return status
        text = text_of(self._status(entry))
        return self._statuses.get(text) or self._statuses.get(text.strip().lower())
