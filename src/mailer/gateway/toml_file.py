"""Reading of TOML files that users write: every mistake is named at once, with its place."""

import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin

import msgspec

MAX_FILE_BYTES = 256 * 1024
_PLACE = re.compile(r" - at `(?:key` in `)?\$\.?(.*?)`$")
"""The end of a message of msgspec, with the path of the mistake."""

Table = TypeVar("Table", bound=msgspec.Struct)


class ConfigFileError(ValueError):
    """A file that cannot be used. `mistakes` has one line for each mistake."""

    def __init__(self, mistakes: list[str]) -> None:
        super().__init__("; ".join(mistakes))
        self.mistakes = mistakes


def read_file(path: Path) -> bytes:
    """Return the content of a file. Raises `ConfigFileError`."""
    try:
        with path.open("rb") as file:
            content = file.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise ConfigFileError([f"{path}: cannot be read: {error.strerror}"]) from None
    except ValueError:
        raise ConfigFileError([f"{str(path)!r}: is not the path of a file"]) from None
    if len(content) > MAX_FILE_BYTES:
        raise ConfigFileError([f"{path}: is larger than {MAX_FILE_BYTES:,} bytes"])
    return content


def parse_toml(content: bytes, name: str) -> dict[str, Any]:
    """Return the document in `content`. Raises `ConfigFileError` with the line of the mistake."""
    try:
        return tomllib.loads(content.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise ConfigFileError(
            [f"{name}: line {line} is not UTF-8; save the file as UTF-8"]
        ) from None
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise ConfigFileError([f"{name}: {error}"]) from None
    except ValueError:  # of an integer with thousands of digits
        raise ConfigFileError([f"{name}: has a number that is too long"]) from None


def convert_table(table: object, model: type[Table]) -> Table:
    """Return `table` as a `model`. Raises `ConfigFileError` with the path of each mistake."""
    mistakes = list(_find_mistakes(table, model, ""))
    if not mistakes:
        try:
            return msgspec.convert(table, model)
        except msgspec.ValidationError as error:  # a rule of several fields
            mistakes = [_with_place(error)]
    raise ConfigFileError(mistakes)


def _find_mistakes(table: object, model: type[msgspec.Struct], path: str) -> Iterator[str]:
    """Yield each mistake of a table; msgspec itself stops at the first one."""
    if not isinstance(table, dict):
        yield f"{path or 'the file'}: must be a table"
        return
    prefix = f"{path}." if path else ""
    fields = {field.encode_name: field for field in msgspec.structs.fields(model)}
    for name in table.keys() - fields.keys():
        yield f"{prefix}{name}: is not known; possible are {', '.join(sorted(fields))}"
    for name, field in fields.items():
        if name not in table:
            if field.required:
                yield f"{prefix}{name}: is required"
        else:
            yield from _find_value_mistakes(table[name], field.type, f"{prefix}{name}")


def _find_value_mistakes(value: object, annotation: Any, path: str) -> Iterator[str]:  # noqa: ANN401  # an annotation can be anything
    inner = _inner_model(annotation)
    if inner is None:
        yield from _find_simple_mistakes(value, annotation, path)
        return
    model, is_list, is_dict = inner
    if is_list and isinstance(value, list) and value:
        for number, entry in enumerate(value, start=1):
            yield from _find_mistakes(entry, model, f"{path}[{number}]")
    elif is_list:
        yield f"{path}: must be one or more tables [[{path}]]"
    elif is_dict and isinstance(value, dict):
        for name, entry in value.items():
            yield from _find_mistakes(entry, model, f"{path}.{name}")
    else:
        yield from _find_mistakes(value, model, path)


def _find_simple_mistakes(value: object, annotation: Any, path: str) -> Iterator[str]:  # noqa: ANN401  # an annotation can be anything
    """Yield the mistakes of a value without structs, at the entries that have them."""
    try:
        msgspec.convert(value, annotation)
    except msgspec.ValidationError as error:
        mistakes = list(_find_entry_mistakes(value, annotation, path))
        choices = ", ".join(_choices(annotation))
        if not mistakes:
            expected = f"must be one of {choices}" if choices else _rule(annotation)
            mistakes = [f"{path}: {expected or _plain(error)}"]
        yield from mistakes


def _rule(annotation: Any) -> str | None:  # noqa: ANN401  # an annotation can be anything
    """Return the `rule` in the `extra` of an annotation's `Meta`, or of a union's member."""
    for part in (annotation, *get_args(annotation)):
        for meta in getattr(part, "__metadata__", ()):
            if isinstance(meta, msgspec.Meta) and meta.extra and "rule" in meta.extra:
                return str(meta.extra["rule"])
    return None


def _find_entry_mistakes(value: object, annotation: Any, path: str) -> Iterator[str]:  # noqa: ANN401  # an annotation can be anything
    """Yield the mistakes of the entries of a dict or a list; none for another value."""
    for part in _parts(annotation):
        arguments = get_args(part)
        if get_origin(part) is dict and isinstance(value, dict):
            for name, entry in value.items():
                yield from _find_simple_mistakes(name, arguments[0], f"{path}.{name}")
                yield from _find_simple_mistakes(entry, arguments[1], f"{path}.{name}")
        elif get_origin(part) in {list, tuple} and isinstance(value, list):
            for number, entry in enumerate(value, start=1):
                yield from _find_simple_mistakes(entry, arguments[0], f"{path}[{number}]")


def _parts(annotation: Any) -> tuple[Any, ...]:  # noqa: ANN401  # an annotation can be anything
    """Return the types of a union, or the one that an `Annotated` is for; else the type itself."""
    if get_origin(annotation) is Annotated:
        return _parts(get_args(annotation)[0])
    if get_origin(annotation) in {Union, UnionType}:
        return tuple(part for member in get_args(annotation) for part in _parts(member))
    return (annotation,)


def _inner_model(annotation: Any) -> tuple[type[msgspec.Struct], bool, bool] | None:  # noqa: ANN401  # an annotation can be anything
    """Return the struct in an annotation, and whether it is in a list or a dict; None without."""
    for part in (annotation, *get_args(annotation)):
        if isinstance(part, type) and issubclass(part, msgspec.Struct):
            return part, False, False
        origin = getattr(part, "__origin__", None)
        for inner in get_args(part):
            if isinstance(inner, type) and issubclass(inner, msgspec.Struct):
                return inner, origin is list, origin is dict
    return None


def _choices(annotation: Any) -> Iterator[str]:  # noqa: ANN401  # an annotation can be anything
    """Yield the values that a `Literal` in an annotation allows."""
    for part in _parts(annotation):
        if get_origin(part) is Literal:
            yield from map(str, get_args(part))


def _plain(error: msgspec.ValidationError) -> str:
    """Return msgspec's message, shortened to one line, without its own path."""
    message = _PLACE.sub("", str(error)).replace("`", "")
    return message[:1].lower() + message[1:]


def _with_place(error: msgspec.ValidationError) -> str:
    """Return msgspec's message after its path, in which entries are counted from 1."""
    place = _PLACE.search(str(error))
    path = re.sub(r"\d+(?=\])", lambda index: str(int(index[0]) + 1), place[1]) if place else ""
    return f"{path}: {_plain(error)}" if path else _plain(error)
