"""Checks what is given against a model and names every wrong field at once.

msgspec alone stops at the first wrong field, so that each field is converted on its own.
"""

import functools
import re
from collections.abc import Callable, Iterable, Mapping
from datetime import datetime
from itertools import islice
from typing import Any, TypeVar, get_args

import msgspec

from mailer.errors import FieldError, InvalidError

MAX_ID = 2**53 - 1
"""Largest id: PostgreSQL holds more, JSON readers do not."""

MOST_ERRORS = 100
"""Errors that are told at once: an answer is not to grow with what was asked."""
MOST_ENTRIES = 1_000
"""Of a list that is given; of a longer one no more are looked at."""
LONGEST_NAME, LONGEST_MESSAGE = 64, 200
"""Characters of a field's name, and of what is wrong with it, that are told: either may hold what
was given."""

STORABLE = r"^[^\x00\ud800-\udfff]*$"
"""PostgreSQL stores every character but NUL; lone surrogates are no characters."""


def is_storable(text: str) -> bool:
    """Whether the database can hold a text at all."""
    return re.match(STORABLE, text) is not None


class Input(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What somebody gives to mailer. Unknown fields are refused.

    A field says its rule to people by `Meta(extra={"rule": ...})`, and by `"normalize"` beside it
    what makes the form that is checked and kept of a text.
    """

    @classmethod
    def broken_rules(cls, values: Mapping[str, Any], at: datetime) -> Iterable[FieldError]:  # noqa: ARG003  # a model without such rules looks at nothing
        """Name what types cannot say at the moment `at`, from the fields that are right so far."""
        return ()


Given = TypeVar("Given", bound=Input)


class Checked(msgspec.Struct, frozen=True):
    """How one field of a model is checked."""

    annotation: Any
    required: bool
    rule: str | None
    normalize: Callable[[str], str] | None
    inner: type[Input] | None


def check(model: type[Given], given: object, at: datetime, *, strict: bool = True) -> Given:
    """Return `given` as a `model` at the moment `at`.

    Raises `InvalidError` naming every wrong field, of too many some.

    `strict=False` also reads numbers from text, as in a query.
    """
    if not isinstance(given, Mapping):
        raise InvalidError([FieldError("", "expected an object")])
    fields = _fields(model)
    unknown = islice((name for name in given if name not in fields), MOST_ERRORS)
    errors = [
        FieldError(_shortened(str(name), LONGEST_NAME), "is not a known field") for name in unknown
    ]
    values: dict[str, Any] = {}
    for name, field in fields.items():
        if name in given:
            try:
                values[name] = _convert(field, given[name], at, strict=strict)
            except InvalidError as error:
                errors += (
                    FieldError(f"{name}.{e.field}" if e.field else name, e.message)
                    for e in error.errors
                )
            except msgspec.ValidationError as error:
                errors.append(FieldError(name, field.rule or _first_words(error)))
        elif field.required:
            errors.append(FieldError(name, "is required"))
    wrong = {error.field for error in errors}
    errors += (error for error in model.broken_rules(values, at) if error.field not in wrong)
    if errors:
        raise InvalidError(errors[-MOST_ERRORS:])  # known fields come last
    return model(**values)


def _convert(field: Checked, value: object, at: datetime, *, strict: bool) -> object:
    if field.inner is not None and isinstance(value, Mapping):
        return check(field.inner, value, at, strict=strict)
    if field.normalize is not None and isinstance(value, str):
        value = field.normalize(value)
    if isinstance(value, list) and len(value) > MOST_ENTRIES:
        msgspec.convert(value[:MOST_ENTRIES], field.annotation, strict=strict)
        raise InvalidError([FieldError("", "must have 1,000 entries at most")])
    converted = msgspec.convert(value, field.annotation, strict=strict)
    if isinstance(value, str) and isinstance(converted, int) and str(converted) != value:
        raise msgspec.ValidationError("Expected a whole number")  # msgspec takes 1.0, 1e2 and -0
    return converted


def _first_words(error: msgspec.ValidationError) -> str:
    """Return what msgspec says, without the path, which the field's name stands for."""
    message = str(error).split(" - at ", maxsplit=1)[0].replace("`", "")
    return _shortened(message[0].lower() + message[1:], LONGEST_MESSAGE)


def _shortened(given: str, longest: int) -> str:
    return given if len(given) <= longest else f"{given[: longest - 1]}…"


@functools.cache
def _fields(model: type[Input]) -> dict[str, Checked]:
    return {field.name: _checked(field) for field in msgspec.structs.fields(model)}


def _checked(field: msgspec.structs.FieldInfo) -> Checked:
    told = _told(field.type)
    rule, normalize = told.get("rule"), told.get("normalize")
    return Checked(field.type, field.required, rule, normalize, _inner(field.type))


def rules_of(model: type[Input]) -> Iterable[str]:
    """Return what the fields of a model say of their rules."""
    return (field.rule for field in _fields(model).values() if field.rule)


def _told(annotation: Any) -> Mapping[str, Any]:  # noqa: ANN401  # whatever stands as an annotation
    """Return what an annotation tells beside its type."""
    told: dict[str, Any] = {}
    for part in (annotation, *get_args(annotation)):
        for meta in getattr(part, "__metadata__", ()):
            if isinstance(meta, msgspec.Meta):
                told |= meta.extra or {}
    return told


def _inner(annotation: Any) -> type[Input] | None:  # noqa: ANN401  # whatever stands as an annotation
    for part in get_args(annotation):
        if isinstance(part, type) and issubclass(part, Input):
            return part
    return None
