"""Validation of user input against a model, a class of fields with types; used for JSON and forms.

msgspec stops at the first wrong field. Here each field is converted on its own, so that the error
names every wrong field at once.
"""

import functools
import re
from collections.abc import Callable, Iterable, Mapping
from datetime import datetime
from itertools import islice
from typing import Annotated, Any, TypeVar, get_args, get_origin

import msgspec

from mailer.errors import FieldError, InvalidError

MAX_ID = 2**53 - 1
"""Largest id: PostgreSQL could store larger ones, but JSON readers lose their last digits."""

MAX_ERRORS = 100
"""Errors in one response: its size must not grow with the request."""
MAX_LIST_ENTRIES = 1_000
"""Entries of a list in the input; the entries beyond are not checked."""
MAX_FIELD_NAME_LENGTH, MAX_MESSAGE_LENGTH = 64, 200
"""Characters of a field's name and of an error message in a response: both may quote the input."""

STORABLE = r"^[^\x00\ud800-\udfff]*$"
"""A pattern for texts that PostgreSQL can store: without NUL, and without lone surrogates."""


def is_storable(text: str) -> bool:
    """Return whether the database can store a text."""
    return re.match(STORABLE, text) is not None


class Input(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Base of the models of user input. Unknown fields are refused.

    A field's annotation may have `Meta(extra={"rule": ..., "normalize": ...})`. `rule` is the error
    message for a wrong value. `normalize` is a function that returns the form in which a text is
    validated and stored; `normalize_list` is one for a list, whose entries may be wrong.
    `check_object` is a function that validates an object: it returns the form in which the object
    is stored, or raises `InvalidError` with every wrong name and value in it.
    """

    @classmethod
    def broken_rules(cls, values: Mapping[str, Any], at: datetime) -> Iterable[FieldError]:  # noqa: ARG003  # a model without further rules ignores them
        """Yield the errors that types cannot express, such as a time before `at`.

        `values` has the fields whose types are right; `at` is the time of the request.
        """
        return ()


Model = TypeVar("Model", bound=Input)


class FieldRule(msgspec.Struct, frozen=True):
    """How one field of a model is validated."""

    annotation: Any
    is_required: bool
    error_message: str | None
    """The message for a wrong value; None: that of msgspec."""
    normalize: Callable[[str], str] | None
    normalize_list: Callable[[list[Any]], list[Any]] | None
    check_object: Callable[[Mapping[str, Any]], Mapping[str, Any]] | None
    is_list: bool
    """Whether the value is a list."""
    attribute: str
    """The name of the field in Python; it differs for a name that is a keyword there."""
    inner_model: type[Input] | None
    """The model of the field's value if the value is an object."""


def check(model: type[Model], raw: object, at: datetime, *, strict: bool = True) -> Model:
    """Validate the input `raw`, received at `at`, and return it as a `model`.

    Raises `InvalidError` that names every wrong field, at most `MAX_ERRORS` of them. With
    `strict=False`, as in the query of a URL, the text of a number is also valid as a number, and
    entries separated by commas are valid as a list.
    """
    if not isinstance(raw, Mapping):
        raise InvalidError([FieldError("", "expected an object")])
    fields = _field_rules(model)
    unknown = islice((name for name in raw if name not in fields), MAX_ERRORS)
    errors = [
        FieldError(_truncate(str(name), MAX_FIELD_NAME_LENGTH), "is not a known field")
        for name in unknown
    ]
    values: dict[str, Any] = {}
    for name, field in fields.items():
        if name in raw:
            try:
                values[name] = _convert(field, raw[name], at, strict=strict)
            except InvalidError as error:
                errors += (
                    FieldError(f"{name}.{inner.field}" if inner.field else name, inner.message)
                    for inner in error.errors
                )
            except msgspec.ValidationError as error:
                errors.append(FieldError(name, field.error_message or _plain_message(error)))
        elif field.is_required:
            errors.append(FieldError(name, "is required"))
    wrong_fields = {error.field for error in errors}
    errors += (error for error in model.broken_rules(values, at) if error.field not in wrong_fields)
    if errors:
        raise InvalidError(errors[-MAX_ERRORS:])  # errors of known fields are at the end
    return model(**{fields[name].attribute: value for name, value in values.items()})


def _convert(field: FieldRule, value: object, at: datetime, *, strict: bool) -> object:
    """Return a value in the type of its field.

    Raises `msgspec.ValidationError`, and `InvalidError` for an object or a list that is too long.
    """
    if field.inner_model is not None and isinstance(value, Mapping):
        return check(field.inner_model, value, at, strict=strict)
    if field.check_object is not None and isinstance(value, Mapping):
        return field.check_object(value)
    if field.normalize is not None and isinstance(value, str):
        value = field.normalize(value)
    if field.is_list and not strict:
        value = _split_list(value)
    if isinstance(value, list) and len(value) > MAX_LIST_ENTRIES:
        # an error of the first entries is reported rather than the length
        msgspec.convert(value[:MAX_LIST_ENTRIES], field.annotation, strict=strict)
        raise InvalidError([FieldError("", "must have 1,000 entries at most")])
    if field.normalize_list is not None and isinstance(value, list):
        value = field.normalize_list(value)
    converted = msgspec.convert(value, field.annotation, strict=strict)
    is_number = isinstance(converted, int) and not isinstance(converted, bool)
    if isinstance(value, str) and is_number and str(converted) != value:
        raise msgspec.ValidationError("Expected a whole number")  # msgspec accepts 1.0, 1e2 and -0
    return converted


def _split_list(value: object) -> list[str]:
    """Return the entries of a list in the query of a URL: commas separate them, or it is repeated.

    So `a,b` and `["a", "b"]` both give a and b. Raises `msgspec.ValidationError` for a text that is
    not UTF-8.
    """
    texts = [str(text) for text in (value if isinstance(value, list) else [value])]
    if not all(map(is_storable, texts)):
        raise msgspec.ValidationError("Expected text in UTF-8")
    return [entry.strip() for text in texts for entry in text.split(",")]


def _plain_message(error: msgspec.ValidationError) -> str:
    """Return msgspec's message without the path, which the name of the field replaces."""
    message = str(error).split(" - at ", maxsplit=1)[0].replace("`", "")
    return _truncate(message[0].lower() + message[1:], MAX_MESSAGE_LENGTH)


def _truncate(text: str, max_length: int) -> str:
    return text if len(text) <= max_length else f"{text[: max_length - 1]}…"


@functools.cache
def _field_rules(model: type[Input]) -> dict[str, FieldRule]:
    return {field.encode_name: _field_rule(field) for field in msgspec.structs.fields(model)}


def _field_rule(field: msgspec.structs.FieldInfo) -> FieldRule:
    extra = _meta_extra(field.type)
    return FieldRule(
        annotation=field.type,
        is_required=field.required,
        error_message=extra.get("rule"),
        normalize=extra.get("normalize"),
        normalize_list=extra.get("normalize_list"),
        check_object=extra.get("check_object"),
        is_list=_is_list(field.type),
        attribute=field.name,
        inner_model=_inner_model(field.type),
    )


def rule_texts(model: type[Input]) -> Iterable[str]:
    """Return the error messages of a model's fields, such as "must be three digits"."""
    messages = (field.error_message for field in _field_rules(model).values())
    return filter(None, messages)


def _meta_extra(annotation: Any) -> Mapping[str, Any]:  # noqa: ANN401  # an annotation can be anything
    """Return the `extra` of an annotation's `Meta`, merged over the members of a union."""
    extra: dict[str, Any] = {}
    for part in (annotation, *get_args(annotation)):
        for meta in getattr(part, "__metadata__", ()):
            if isinstance(meta, msgspec.Meta):
                extra |= meta.extra or {}
    return extra


def _is_list(annotation: Any) -> bool:  # noqa: ANN401  # an annotation can be anything
    """Return whether an annotation is a list, or a union with one."""
    parts = (annotation, *get_args(annotation))
    return any(get_origin(part) is list or _has_list(part) for part in parts)


def _has_list(annotation: Any) -> bool:  # noqa: ANN401  # an annotation can be anything
    """Return whether an annotation is `Annotated[list[...], ...]`."""
    return get_origin(annotation) is Annotated and get_origin(get_args(annotation)[0]) is list


def _inner_model(annotation: Any) -> type[Input] | None:  # noqa: ANN401  # an annotation can be anything
    """Return the model in a union such as `str | Address`; None if there is none."""
    for part in get_args(annotation):
        if isinstance(part, type) and issubclass(part, Input):
            return part
    return None
