"""Read profiles: those that are shipped with mailer, and the user's own."""

from functools import cache
from importlib import resources
from pathlib import Path

from mailer.gateway.profile import GatewayProfile
from mailer.gateway.profile_mistakes import find_mistakes
from mailer.gateway.toml_file import ConfigFileError, convert_table, parse_toml, read_file


@cache
def shipped_kinds() -> list[str]:
    """Return the names of the profiles that are shipped with mailer."""
    folder = resources.files("mailer.gateway") / "profiles"
    names = (file.name for file in folder.iterdir())
    return sorted(name.removesuffix(".toml") for name in names if name.endswith(".toml"))


def load_profile(kind: str, folder: Path = Path()) -> GatewayProfile:
    """Return the shipped profile named `kind`, or that of the file at the path `kind`.

    A kind with a slash, or that ends with `.toml`, is a path, relative to `folder`. Raises
    `ConfigFileError`.
    """
    if "/" in kind or kind.endswith(".toml"):
        path = folder / kind
        try:
            return read_profile(read_file(path), str(path))
        except ConfigFileError as error:
            raise ConfigFileError([f"kind: {mistake}" for mistake in error.mistakes]) from None
    if kind not in shipped_kinds():
        choices = ", ".join(shipped_kinds())
        raise ConfigFileError([f"kind: is none of {choices}, and not the path of a file"])
    return _load_shipped(kind)


@cache
def _load_shipped(kind: str) -> GatewayProfile:
    """Return a shipped profile. It is kept, because a reload must not block the event loop."""
    shipped = resources.files("mailer.gateway") / "profiles" / f"{kind}.toml"
    return read_profile(shipped.read_bytes(), f"{kind}.toml")


def read_profile(content: bytes, name: str) -> GatewayProfile:
    """Return the profile in `content`. `name` is the file's, for errors.

    Raises `ConfigFileError`.
    """
    document = parse_toml(content, name)
    try:
        profile = convert_table(document, GatewayProfile)
    except ConfigFileError as error:
        mistakes = error.mistakes
    else:
        mistakes = list(find_mistakes(profile))
        if not mistakes:
            return profile
    raise ConfigFileError([f"{name}: {mistake}" for mistake in mistakes])
