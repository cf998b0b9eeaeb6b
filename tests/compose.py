"""The environment that Compose gives a service: interpolation, and variables without a value.

Source: https://github.com/compose-spec/compose-spec, interpolation.md and 05-services.md.
"""

import re
from collections.abc import Mapping
from pathlib import Path

import yaml

REFERENCE = re.compile(r"\$(?:(\$)|(\w+)|\{(\w+)(?:(:?[-?+])([^}]*))?\})")


class RequiredVariableError(Exception):
    """A variable that the file requires is not set."""


def interpolate(value: str, variables: Mapping[str, str]) -> str:
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

    return REFERENCE.sub(replace, value)


def environment_of(file: Path, service: str, variables: Mapping[str, str]) -> dict[str, str]:
    """Return the environment of a service, from the variables of the shell and of `.env`."""
    # all variables required in the file must be set, whichever service uses them
    content = yaml.safe_load(interpolate(file.read_text(), variables))
    environment = content["services"][service]["environment"]
    return {
        name: str(variables[name] if value is None else value)
        for name, value in environment.items()
        if value is not None or name in variables
    }
