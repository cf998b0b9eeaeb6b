"""The environment variables of a service in a Compose file, without starting Compose.

In the file, references such as `${NAME:-default}` are replaced, which is called interpolation. A
variable without a value is passed on from the shell. Source:
https://github.com/compose-spec/compose-spec, interpolation.md and 05-services.md.
"""

import re
from collections.abc import Mapping
from pathlib import Path

import yaml

REFERENCE = re.compile(r"\$(?:(\$)|(\w+)|\{(\w+)(?:(:?[-?+])([^}]*))?\})")
"""Matches `$$` (a dollar sign), `$NAME` and `${NAME}`. In braces, an operator may follow the name:
`-` and a default, `?` and an error message, or `+` and a replacement. With a colon before the
operator, an empty variable counts as not set."""


class RequiredVariableError(Exception):
    """A variable that the file requires is not set."""


def interpolate(content: str, variables: Mapping[str, str]) -> str:
    """Replace all references in a text; raises `RequiredVariableError`."""

    def replace(reference: re.Match[str]) -> str:
        escaped, short, name, operator, word = reference.groups()
        if escaped:
            return "$"
        value = variables.get(short or name)
        is_set = bool(value) if (operator or "").startswith(":") else value is not None
        match (operator or "-")[-1]:
            case "?" if not is_set:
                raise RequiredVariableError(name)
            case "+":
                return word if is_set else ""
            case "-" if not is_set:
                return word or ""
        return value or ""

    return REFERENCE.sub(replace, content)


def environment_of(file: Path, service: str, variables: Mapping[str, str]) -> dict[str, str]:
    """Return the environment of a service; `variables` are those of the shell and of `.env`.

    Raises `RequiredVariableError`, also for a variable that only another service requires.
    """
    content = yaml.safe_load(interpolate(file.read_text(), variables))
    environment = content["services"][service]["environment"]
    return {
        name: str(variables[name] if value is None else value)
        for name, value in environment.items()
        if value is not None or name in variables
    }
