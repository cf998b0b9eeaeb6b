"""Secrets in the file of gateways: values from the environment or from files."""

import re
from collections.abc import Mapping
from pathlib import Path

from mailer.gateway.placeholders import ACCOUNT_PLACEHOLDERS

MAX_SECRET_BYTES = 64 * 1024
_VARIABLE = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)\}")
_SECRETS = (*ACCOUNT_PLACEHOLDERS, "callback_secret", "previous_callback_secret")
"""Keys whose value may be taken from the environment or from a file."""


def read_secrets(
    table: object, folder: Path, environ: Mapping[str, str]
) -> tuple[dict[str, str], list[str]]:
    """Return the values of the secrets in a table by their keys, and the mistakes in them."""
    secrets: dict[str, str] = {}
    mistakes: list[str] = []
    for key in _SECRETS:
        if isinstance(table, dict) and isinstance(value := table.get(key), str):
            try:
                secrets[key] = _resolve(value, folder, environ)
            except ValueError as error:
                mistakes.append(f"{key}: {error}")
    return secrets, mistakes


def _resolve(value: str, folder: Path, environ: Mapping[str, str]) -> str:
    """Return a secret's value. Raises `ValueError` if its variable or file cannot be read."""
    if variable := _VARIABLE.fullmatch(value):
        resolved = environ.get(variable[1])
        if not resolved:
            raise ValueError(f"the environment variable {variable[1]} is not set or empty")
        if any("\ud800" <= character <= "\udfff" for character in resolved):
            raise ValueError(f"the environment variable {variable[1]} is not UTF-8")
        return resolved
    if "${" in value:
        raise ValueError(
            'must be "${NAME}" and nothing else, with letters, digits and _ in the name; a value'
            ' that itself has ${ can be in a file: "file:PATH"'
        )
    if not value.startswith("file:"):
        return value
    path = folder / value.removeprefix("file:")
    try:
        with path.open("rb") as file:
            content = file.read(MAX_SECRET_BYTES + 1)
        text = content.decode().rstrip("\r\n")
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise ValueError(f"{path} is not UTF-8") from None
    if not text or len(content) > MAX_SECRET_BYTES:
        raise ValueError(f"{path} must have 1 to {MAX_SECRET_BYTES:,} bytes")
    return text
