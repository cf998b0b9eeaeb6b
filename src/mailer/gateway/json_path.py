"""Paths into a JSON document, such as `messages[0].status` or `messages[*].message-id`."""

import re
from collections.abc import Iterable
from itertools import islice

MAX_VALUES = 300
"""More parts than a text has; a response with more entries must not block the event loop."""
_STEP = re.compile(r"(?:^|\.)([A-Za-z0-9_@-]+|\*)|\[(\d{1,4}|\*)\]")


class JsonPath:
    """A path of names, separated by dots, and of positions in lists, in brackets.

    `[*]` stands for all entries of a list, and a name `*` for all values of an object. Raises
    `ValueError` for a text that is no path.
    """

    def __init__(self, text: str) -> None:
        self._steps: list[str | int | None] = []
        """Names, positions, or None for all entries."""
        end = 0
        while step := _STEP.match(text, end):
            name, position = step.groups()
            self._steps.append(None if "*" in (name, position) else name or int(position))
            end = step.end()
        if end != len(text) or not text:
            raise ValueError("is not a path such as messages[0].status")

    def find(self, document: object) -> list[object]:
        """Return the values at the path: none if it does not exist, several with `[*]`.

        At most `MAX_VALUES` are returned.
        """
        found = [document]
        for step in self._steps:
            values = (value for parent in found for value in _children(parent, step))
            found = list(islice(values, MAX_VALUES))
        return found


def _children(parent: object, step: str | int | None) -> Iterable[object]:
    match parent, step:
        case dict(), str():
            return (parent[step],) if step in parent else ()
        case list(), int():
            return (parent[step],) if step < len(parent) else ()
        case dict(), None:
            return parent.values()
        case list(), None:
            return parent
        case _:
            return ()
