"""Paths into a JSON document, such as `messages[0].status` or `messages[*].message-id`."""

import re
from collections.abc import Iterable
from typing import Any, TypedDict

MAX_VALUES = 300
"""More parts than a text has; a response with more entries must not block the event loop."""
Step = str | int | None
"""A name, a position, `*` for all values of an object, or None for all entries of a list."""
STARS = ("*", None)
_STEP = re.compile(r"(?:^|\.)([A-Za-z0-9_@-]+|\*)|\[(\d{1,4}|\*)\]")


class JsonPath:
    """A path of names, separated by dots, and of positions in lists, in brackets.

    `[*]` stands for all entries of a list, and a name `*` for all values of an object. Raises
    `ValueError` for a text that is no path.
    """

    def __init__(self, text: str) -> None:
        steps: list[Step] = []
        end = 0
        while step := _STEP.match(text, end):
            name, position = step.groups()
            steps.append(name or (None if position == "*" else int(position)))
            end = step.end()
        if end != len(text) or not text:
            raise ValueError("is not a path such as messages[0].status")
        stars = (position for position, step in enumerate(steps) if step in STARS)
        start = next(stars, len(steps))
        self.steps, self._start, self._rest = steps, steps[:start], steps[start:]

    def find(self, document: object) -> list[object]:
        """Return the values at the path: none if it does not exist, several with `[*]`.

        At most `MAX_VALUES` are returned.
        """
        for step in self._start:  # for speed, one value is no list of them
            if isinstance(document, dict):
                if step not in document:
                    return []
                document = document[step]
            elif isinstance(document, list) and isinstance(step, int) and step < len(document):
                document = document[step]
            else:
                return []
        return self._find_all([document]) if self._rest else [document]

    def _find_all(self, found: list[object]) -> list[object]:
        """Return the values at the rest of the path, which begins with `[*]`."""
        for step in self._rest:
            values: list[object] = []
            if step in STARS:
                for parent in found:
                    if isinstance(parent, list):
                        values += parent
                    elif isinstance(parent, dict):
                        values += parent.values()
            else:
                for parent in found:
                    if isinstance(parent, dict):
                        if step in parent:
                            values.append(parent[step])
                    elif isinstance(parent, list) and isinstance(step, int) and step < len(parent):
                        values.append(parent[step])
            found = values if len(values) <= MAX_VALUES else values[:MAX_VALUES]
        return found


def shape_of(paths: Iterable[JsonPath]) -> Any:  # noqa: ANN401  # there is no type for types
    """Return the type of a document that has nothing but what can be at the paths.

    A decoder of this type skips the rest of a document, which is several times faster than to
    decode it. A document with a value of another type is a mistake for such a decoder.
    """
    return _shape([path.steps for path in paths])


def _shape(paths: list[list[Step]]) -> Any:  # noqa: ANN401  # see `shape_of`
    names = {steps[0] for steps in paths if steps and isinstance(steps[0], str)}
    rest = {name: [steps[1:] for steps in paths if steps[:1] == [name]] for name in names}
    if paths and sum(map(len, rest.values())) == len(paths):  # all begin with names
        if names == {"*"}:
            return dict[str, _shape(rest["*"])]  # type: ignore[misc]
        if "*" not in names:
            shapes = {name: _shape(rest[name]) for name in names}
            return TypedDict("Shape", shapes, total=False)  # type: ignore[operator]
    if paths and all(steps and not isinstance(steps[0], str) for steps in paths):
        return list[_shape([steps[1:] for steps in paths])]  # type: ignore[misc]
    return Any
