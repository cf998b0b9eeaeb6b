"""Private parts of libraries are used in one file each, of a capped version (decision 14).

`tests/integration/test_*_private_parts.py` test the parts themselves.
"""

import ast
import inspect
import pkgutil
import re
import textwrap
import tomllib
from collections.abc import Iterator
from functools import cache
from importlib.metadata import version
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SOURCE = ROOT / "src" / "mailer"
FILES = {
    "aiohttp": "gateway/aiohttp_connection.py",
    "httptools": "web/server/uvicorn_server.py",
    "litestar": "web/litestar_internals.py",
    "uvicorn": "web/server/uvicorn_server.py",
}
"""The one file for the private parts of each library."""
PUBLIC_MODULES = {
    "aiohttp": re.compile(r"aiohttp(\.web)?"),
    "httptools": re.compile(r"httptools"),
    "litestar": re.compile(r"litestar(\.(?!_)\w+)*"),
    "uvicorn": re.compile(r"uvicorn"),
}
"""Modules that are documented. Litestar marks its private modules by an underscore."""
PUBLIC_NAMES = frozenset({"_asdict", "_replace", "_mapping", "_current_frames"})
"""Documented, although they begin with an underscore: of namedtuple, SQLAlchemy's Row and sys."""
OWN = frozenset({"self", "cls"})


# ---- versions -------------------------------------------------------------------------------


@pytest.mark.parametrize("library", FILES)
def test_a_library_is_capped_to_the_tested_minor_version(library: str) -> None:
    dependencies = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    [bounds] = [rest for name, rest in map(_split, dependencies) if name == library]
    major, minor, patch = (int(part) for part in version(library).split(".")[:3])
    match = re.fullmatch(r">=(\d+)\.(\d+)(?:\.(\d+))?,<(\d+)\.(\d+)", bounds)
    assert match, f"{library}{bounds}: give the tested minor version as >=X.Y,<X.(Y+1)"
    low = (int(match[1]), int(match[2]))
    assert low == (major, minor), f"{library} {version(library)} is installed, not {bounds}"
    assert int(match[3] or 0) <= patch
    assert (int(match[4]), int(match[5])) == (major, minor + 1), f"{library}{bounds}"
    assert f"\n{library}=={version(library)} " in (ROOT / "requirements.lock").read_text()


def _split(dependency: str) -> tuple[str, str]:
    name = re.match(r"[a-z-]+", dependency)
    assert name
    return name[0], dependency[name.end() :]


# ---- places ---------------------------------------------------------------------------------


def private_uses(code: str, file: str) -> Iterator[str]:
    """Find private modules, private attributes, and private names of base classes."""
    tree = ast.parse(code)
    origins = dict(_imports(tree))
    for node in ast.walk(tree):
        match node:
            case ast.Import(names=names):
                modules = [alias.name for alias in names]
            case ast.ImportFrom(module=str(module), level=0, names=names):
                modules = [module]
                modules += [f"{module}.{a.name}" for a in names if a.name.startswith("_")]
            case ast.Attribute(value=value, attr=attr):
                if _is_private(attr) and not (isinstance(value, ast.Name) and value.id in OWN):
                    yield f"{file}:{node.lineno} {ast.unparse(node)}"
                continue
            case ast.ClassDef():
                shared = _private_names(node) & _inherited_names(node, tree, origins)
                yield from (f"{file}:{node.lineno} {node.name}.{name}" for name in sorted(shared))
                continue
            case _:
                continue
        for name in modules:
            library = name.split(".", maxsplit=1)[0]
            if library in FILES and not PUBLIC_MODULES[library].fullmatch(name):
                yield f"{file}:{node.lineno} {name}"


def _is_private(name: str) -> bool:
    return name.startswith("_") and not name.endswith("__") and name not in PUBLIC_NAMES


def _imports(tree: ast.Module) -> Iterator[tuple[str, str]]:
    """Yield the imported names of a module, and the full name of each."""
    for node in ast.walk(tree):
        match node:
            case ast.Import(names=names):
                for each in names:
                    bound = each.asname or each.name.partition(".")[0]
                    yield bound, each.name if each.asname else bound
            case ast.ImportFrom(module=str(module), level=0, names=names):
                yield from ((each.asname or each.name, f"{module}.{each.name}") for each in names)
            case _:
                pass


def _private_names(node: ast.ClassDef) -> set[str]:
    """Return the private names that a class defines, or that it uses of itself."""
    names = set()
    for part in ast.walk(node):
        match part:
            case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name):
                names.add(name)
            case ast.Attribute(value=ast.Name(id=owner), attr=name) if owner in OWN:
                names.add(name)
            case ast.Name(id=name, ctx=ast.Store()):
                names.add(name)
            case _:
                pass
    return {name for name in names if _is_private(name)}


def _inherited_names(node: ast.ClassDef, tree: ast.Module, origins: dict[str, str]) -> set[str]:
    """Return the private names that a class inherits from libraries, also through other classes."""
    names = set()
    for base in node.bases:
        path = ast.unparse(base).partition("[")[0]
        first, dot, rest = path.partition(".")
        if first in origins:
            found = pkgutil.resolve_name(origins[first] + dot + rest)
            names |= _names_of(found) if isinstance(found, type) else set()
        for own in ast.walk(tree):
            if isinstance(own, ast.ClassDef) and own.name == path and own is not node:
                names |= _inherited_names(own, tree, origins)
    return names


@cache
def _names_of(base: type) -> set[str]:
    """Return the private names of a class of a library: its members, and what it sets on itself."""
    names = set()
    for each in base.__mro__:
        if each.__module__.partition(".")[0] == "mailer":
            continue
        names |= {name for name in vars(each) if _is_private(name)}
        try:
            source = inspect.getsource(each)
        except (OSError, TypeError):  # written in C, or created at run time
            continue
        [tree] = ast.parse(textwrap.dedent(source)).body
        names |= _private_names(tree) if isinstance(tree, ast.ClassDef) else set()
    return names


def test_only_one_file_for_each_library_leans_on_its_private_parts() -> None:
    found = [
        use
        for path in sorted(SOURCE.rglob("*.py"))
        if (file := str(path.relative_to(SOURCE))) not in FILES.values()
        for use in private_uses(path.read_text(), file)
    ]
    places = ", ".join(dict.fromkeys(FILES.values()))
    assert found == [], f"move these uses to the file of their library: {places}"


SUBCLASS = "import aiohttp\nclass Mine(aiohttp.TCPConnector):\n"
OWN_SUBCLASS = """
from mailer.gateway.aiohttp_connection import GatewayConnector
class Mine(GatewayConnector):
"""


@pytest.mark.parametrize(
    "code",
    [
        "from aiohttp.client_proto import ResponseHandler",
        "from litestar._openapi.schema_generation import SchemaCreator",
        "import uvicorn.server",
        "import httptools.parser",
        "from aiohttp import _cookie_helpers",
        "connector._factory = None",
        SUBCLASS + "    def free(self): return self._available_connections",
        SUBCLASS + "    def __init__(self): self._factory = None",
        SUBCLASS + "    def _release(self, key, protocol): pass",
        SUBCLASS + "    _factory = None",
        SUBCLASS + "    def free(self): return super()._available_connections",
        SUBCLASS + "    pass\nclass Other:\n    def __init__(self): self._factory = None\n"
        "class Next(Mine):\n    def factory(self): return self._factory",
        OWN_SUBCLASS + "    def factory(self): return self._factory",
    ],
)
def test_a_private_use_elsewhere_is_found(code: str) -> None:
    assert len(list(private_uses(code, "x.py"))) == 1


@pytest.mark.parametrize(
    "code",
    [
        SUBCLASS + "    def __init__(self): self._own = None",
        "class Other:\n    def __init__(self): self._factory = None",
        "from mailer.validation import Input\nclass Mine(Input):\n    def _own(self): pass",
    ],
)
def test_a_private_name_of_our_own_is_no_private_use(code: str) -> None:
    assert list(private_uses(code, "x.py")) == []
