"""Variables that hold the settings: from the environment and from a `.env` file.

`mailer.settings` checks their values and converts them to settings.
"""

import io
import re
from collections import ChainMap
from collections.abc import Iterator, Mapping
from pathlib import Path

from dotenv.parser import Binding, parse_stream
from dotenv.variables import Variable, parse_variables

from mailer.errors import StartError

PREFIX = "MAILER_"
"""The start of the names of all variables with settings."""
MAX_FILE_SIZE = 1024 * 1024  # bytes
MAX_SHOWN_NAME_LENGTH = 100  # characters of a name in an error message

ADDRESS = r"[0-9A-Fa-f.:\[\]]+"
"""Pattern of an IP address; an IPv6 address may be in brackets."""
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
"""A variable, as `NAME=value`, of those that Kubernetes adds for each Service, and Docker for each
link (https://kubernetes.io/docs/concepts/services-networking/service/#environment-variables).

Those of a Service named `mailer` or `mailer-api` look like settings: MAILER_PORT=tcp://10.0.0.1:80.
"""
SINGLE_QUOTED = re.compile(r"[^=]*=\s*'")
"""The start of a line whose value is in single quotes."""


def read_variables(environ: Mapping[str, str], env_file: Path) -> dict[str, str]:
    """Return the variables whose names start with `PREFIX`; `environ` overrides the file.

    Variables that Kubernetes or Docker adds to `environ` are left out. Raises `StartError`, whose
    message has one line, when the file cannot be read or is wrong.
    """
    return _file_variables(environ, env_file) | {
        name: value
        for name, value in environ.items()
        if name.startswith(PREFIX) and not PLATFORM_VARIABLE.fullmatch(f"{name}={value}")
    }


def find_wrong_characters(variables: Mapping[str, str]) -> list[str]:
    """Return an error message for each variable that is not UTF-8 or has control characters."""
    return [
        f"{printable_name(name)}: {error}"
        for name, value in variables.items()
        if (error := _find_wrong_character(name + value))
    ]


def printable_name(name: str) -> str:
    """Return a variable's name for an error message: in ASCII, on one line, of limited length."""
    return ascii(name)[1:-1][:MAX_SHOWN_NAME_LENGTH]


def _find_wrong_character(text: str) -> str | None:
    """Return what is wrong with the characters of a text; None when nothing is."""
    # Python represents bytes of the environment that are not UTF-8 as surrogates
    if any("\ud800" <= character <= "\udfff" for character in text):
        return "is not UTF-8"
    if any(character < " " or character == "\x7f" for character in text):
        return "contains a line end or another control character"
    return None


def _file_variables(environ: Mapping[str, str], env_file: Path) -> dict[str, str]:
    """Return the variables of the file whose names start with `PREFIX`.

    `${NAME}` in a value is replaced by the environment's value of NAME, else by that of an earlier
    line; inside single quotes it is not replaced. The last of two lines with the same name counts.
    Only errors in lines of settings matter: the file may have lines for other programs.
    """
    values: dict[str, str] = {}
    replacements = ChainMap(dict(environ), values)
    for line in parse_stream(io.StringIO(_read(env_file))):
        number = line.original.line + _count_leading_lines(line)
        if line.error and PREFIX in line.original.string:
            raise StartError(f"{env_file}: line {number} is not NAME=value")
        if line.key is not None:
            values[line.key] = "".join(_resolve(line, replacements, env_file, number))
    return {name: value for name, value in values.items() if name.startswith(PREFIX)}


def _count_leading_lines(line: Binding) -> int:
    """Return the number of empty lines before a line: the parser returns them as a part of it."""
    text = line.original.string
    return text[: len(text) - len(text.lstrip())].count("\n")


def _resolve(
    line: Binding, replacements: Mapping[str, str], env_file: Path, number: int
) -> Iterator[str]:
    """Yield the parts of a line's value, with the value in `replacements` for each `${NAME}`.

    Raises `StartError` when a setting uses a NAME without a value; `number` is that of the line.
    """
    if SINGLE_QUOTED.match(line.original.string):
        yield line.value or ""
        return
    is_setting = line.key is not None and line.key.startswith(PREFIX)
    for part in parse_variables(line.value or ""):
        is_missing = (
            isinstance(part, Variable) and not replacements.get(part.name) and not part.default
        )
        if is_missing and is_setting:
            raise StartError(
                f"{env_file}: line {number} uses a ${{NAME}} that is not set or empty;"
                " put the value in single quotes to keep it as it is"
            )
        yield part.resolve(replacements)


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
        raise StartError(f"{env_file}: contains NUL characters; save the file as UTF-8")
    return text
