"""Variables that hold the settings: from the environment and from a `.env` file."""

import io
import re
from collections import ChainMap
from collections.abc import Iterator, Mapping
from pathlib import Path

from dotenv.parser import Binding, parse_stream
from dotenv.variables import Variable, parse_variables

from mailer.errors import StartError

PREFIX = "MAILER_"
MAX_FILE_SIZE = 1024 * 1024  # bytes
MAX_VARIABLE_NAME_LENGTH = 100  # characters of a name in an error message

ADDRESS = r"[0-9A-Fa-f.:\[\]]+"
PLATFORM_VARIABLE = re.compile(
    rf"""
    [A-Z0-9_]+ (?:
        _SERVICE_HOST = {ADDRESS}
        | _SERVICE_PORT (?:_[A-Z0-9_]+)? = [0-9]+
        | _PORT (?:_[0-9]+_(?:TCP|UDP|SCTP))? = (?:tcp|udp|sctp)://{ADDRESS}:[0-9]+
        | _PORT_[0-9]+_(?:TCP|UDP|SCTP)_PROTO = (?:tcp|udp|sctp)
        | _PORT_[0-9]+_(?:TCP|UDP|SCTP)_PORT = [0-9]+
        | _PORT_[0-9]+_(?:TCP|UDP|SCTP)_ADDR = {ADDRESS}
    )""",
    re.VERBOSE,
)
"""`NAME=value` of a variable that Kubernetes adds for each Service, and Docker for each link
(https://kubernetes.io/docs/concepts/services-networking/service/#environment-variables).
A Service named `mailer` or `mailer-api` has names that look like settings."""
SINGLE_QUOTED = re.compile(r"[^=]*=\s*'")


def read_variables(environ: Mapping[str, str], env_file: Path) -> dict[str, str]:
    """Return the variables with the prefix, by full name; `environ` overrides the file.

    Variables that the platform adds to `environ` are left out. Raises `StartError` with one line
    when the file exists but cannot be read.
    """
    return _file_variables(environ, env_file) | {
        name: value
        for name, value in environ.items()
        if name.startswith(PREFIX) and not PLATFORM_VARIABLE.fullmatch(f"{name}={value}")
    }


def find_unreadable(variables: Mapping[str, str]) -> list[str]:
    """Return an error message for each variable that is not a text.

    A variable is not a text when it is not UTF-8 or has control characters.
    """
    return [
        f"{printable_name(name)}: {fault}"
        for name, value in variables.items()
        if (fault := _find_fault(name + value))
    ]


def printable_name(name: str) -> str:
    """Return a variable's name for an error message: in ASCII, on one line, of limited length."""
    return ascii(name)[1:-1][:MAX_VARIABLE_NAME_LENGTH]


def _find_fault(text: str) -> str | None:
    if any("\ud800" <= character <= "\udfff" for character in text):
        return "is not UTF-8"
    if any(character < " " or character == "\x7f" for character in text):
        return "holds a line end or another control character"
    return None


def _file_variables(environ: Mapping[str, str], env_file: Path) -> dict[str, str]:
    """Return the variables of the file that have the prefix.

    `${NAME}` in a value is replaced by the environment's value of NAME, else by that of an earlier
    line; inside single quotes it is not replaced. The last of two lines with the same name counts.
    """
    values: dict[str, str] = {}
    known = ChainMap(dict(environ), values)
    for line in parse_stream(io.StringIO(_read(env_file))):
        number = line.original.line + _count_leading_lines(line)
        if line.error and PREFIX in line.original.string:
            raise StartError(f"{env_file}: line {number} is not NAME=value")
        if line.key is not None:
            values[line.key] = "".join(_resolve(line, known, env_file, number))
    return {name: value for name, value in values.items() if name.startswith(PREFIX)}


def _count_leading_lines(line: Binding) -> int:
    """Return the number of empty lines before a line, which the parser returns as part of it."""
    text = line.original.string
    return text[: len(text) - len(text.lstrip())].count("\n")


def _resolve(line: Binding, known: Mapping[str, str], env_file: Path, number: int) -> Iterator[str]:
    """Yield the parts of a line's value, each `${NAME}` replaced by its value in `known`."""
    if SINGLE_QUOTED.match(line.original.string):
        yield line.value or ""
        return
    for part in parse_variables(line.value or ""):
        is_unknown = isinstance(part, Variable) and not known.get(part.name) and not part.default
        if is_unknown and line.key is not None and line.key.startswith(PREFIX):
            raise StartError(
                f"{env_file}: line {number} uses a ${{NAME}} that is not set;"
                " put the value in single quotes to keep it as it is"
            )
        yield part.resolve(known)


def _read(env_file: Path) -> str:
    """Return the text of the file; "" when the file does not exist."""
    try:
        with env_file.open("rb") as file:
            content = file.read(MAX_FILE_SIZE + 1)
    except FileNotFoundError:
        if not env_file.is_symlink():
            return ""
        raise StartError(f"{env_file}: is a link to a file that does not exist") from None
    except OSError as error:
        raise StartError(f"{env_file}: cannot be read: {error.strerror}") from None
    if len(content) > MAX_FILE_SIZE:
        raise StartError(f"{env_file}: is larger than {MAX_FILE_SIZE:,} bytes")
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        number = content.count(b"\n", 0, error.start) + 1
        raise StartError(
            f"{env_file}: line {number} is not UTF-8; save the file in that encoding"
        ) from None
    if "\0" in text:  # UTF-16 without a byte order mark
        raise StartError(f"{env_file}: holds zero bytes; save the file as UTF-8")
    return text
