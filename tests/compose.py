"""What Compose gives a service of a file: interpolation and variables without a value.

By https://github.com/compose-spec/compose-spec, interpolation.md and 05-services.md.
"""

import re
from collections.abc import Mapping
from pathlib import Path

import yaml

REFERENCE = re.compile(r"\$(?:(\$)|(\w+)|\{(\w+)(?:(:?[-?+])([^}]*))?\})")


class RequiredVariableError(Exception):
    """A variable that the file requires is not set."""


def interpolate(value: str, variables: Mapping[str, str]) -> str:
    def replace(found: re.Match[str]) -> str:
        escaped, short, name, operator, word = found.groups()
        if escaped:
            return "$"
        given = variables.get(short or name)
        is_there = bool(given) if (operator or "").startswith(":") else given is not None
        match (operator or "-")[-1]:
            case "?" if not is_there:
                raise RequiredVariableError(name)
            case "+":
                return word if is_there else ""
            case "-" if not is_there:
                return word or ""
        return given or ""

    return REFERENCE.sub(replace, value)


def environment_of(file: Path, service: str, variables: Mapping[str, str]) -> dict[str, str]:
    """Return the environment of a service, given the variables of the shell and of `.env`."""
    # every required variable of the file is asked for, whichever service uses it
    content = yaml.safe_load(interpolate(file.read_text(), variables))
    environment = content["services"][service]["environment"]
    return {
        name: str(variables[name] if value is None else value)
        for name, value in environment.items()
        if value is not None or name in variables
    }
