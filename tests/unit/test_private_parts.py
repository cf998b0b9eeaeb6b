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
    "aiohttp": re.compile(r"aiohttp(\.(web|abc))?"),
    "httptools": re.compile(r"httptools"),
    "litestar": re.compile(r"litestar(\.(?!_)\w+)*"),
    "uvicorn": re.compile(r"uvicorn"),
}
"""Modules that are documented. Litestar marks its private modules by an underscore."""
PUBLIC_NAMES = frozenset({"_asdict", "_replace", "_mapping", "_current_frames"})
"""Documented, although they begin with an underscore: of namedtuple, SQLAlchemy's Row and sys."""
OWN = frozenset({"self", "cls"})
"""Variables through which a class uses its own attributes."""


# ---- versions -------------------------------------------------------------------------------


@pytest.mark.parametrize("library", FILES)
def test_a_library_is_capped_to_the_tested_minor_version(library: str) -> None:
    """For example `>=0.54,<0.55` or `>=0.54.2,<0.55`, with 0.54.3 installed and locked."""
    dependencies = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    [bounds] = [bounds for name, bounds in map(_split, dependencies) if name == library]
    installed = version(library)
    major, minor, patch = (int(part) for part in installed.split(".")[:3])
    match = re.fullmatch(r">=(\d+)\.(\d+)(?:\.(\d+))?,<(\d+)\.(\d+)", bounds)
    assert match, f"{library}{bounds}: give the tested minor version as >=X.Y,<X.(Y+1)"
    low_major, low_minor, low_patch, cap_major, cap_minor = (
        int(part or 0) for part in match.groups()
    )
    assert (low_major, low_minor) == (major, minor), f"{library} {installed} is installed"
    assert low_patch <= patch
    assert (cap_major, cap_minor) == (major, minor + 1), f"{library}{bounds}"
    assert f"\n{library}=={installed} " in (ROOT / "requirements.lock").read_text()


def _split(dependency: str) -> tuple[str, str]:
    """Return the name of a dependency, and the bounds of its version."""
    name = re.match(r"[a-z-]+", dependency)
    assert name
    return name[0], dependency[name.end() :]


# ---- places ---------------------------------------------------------------------------------


def private_uses(code: str, file: str) -> Iterator[str]:
    """Yield place and name of each use of a private part of a library in the module `code`.

    Such a use is an import of a private module, a private attribute of another object, or a private
    name that a class defines or uses and that a base class from a library has too.
    """
    tree = ast.parse(code)
    origins = dict(_imports(tree))
    for node in ast.walk(tree):
        match node:
            case ast.Import(names=names):
                modules = [alias.name for alias in names]
            case ast.ImportFrom(module=str(module), level=0, names=names):
                modules = [module]
                modules += [
                    f"{module}.{alias.name}" for alias in names if alias.name.startswith("_")
                ]
            case ast.Attribute(value=value, attr=attr):
                if _is_private(attr) and not (isinstance(value, ast.Name) and value.id in OWN):
                    yield f"{file}:{node.lineno} {ast.unparse(node)}"
                continue
            case ast.ClassDef():
                inherited = _private_names(node) & _inherited_names(node, tree, origins)
                for name in sorted(inherited):
                    yield f"{file}:{node.lineno} {node.name}.{name}"
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
    """Yield the names that a module imports, and what each stands for.

    For `import a.b` that is a and a; for `import a.b as c` and `from a import b as c`, c and a.b.
    """
    for node in ast.walk(tree):
        match node:
            case ast.Import(names=names):
                for alias in names:
                    name = alias.asname or alias.name.partition(".")[0]
                    yield name, alias.name if alias.asname else name
            case ast.ImportFrom(module=str(module), level=0, names=names):
                for alias in names:
                    yield alias.asname or alias.name, f"{module}.{alias.name}"
            case _:
                pass


def _private_names(node: ast.ClassDef) -> set[str]:
    """Return the private names that a class defines, or uses as attributes of itself."""
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
        base_name = ast.unparse(base).partition("[")[0]  # without the type in Generic[Type]
        imported_name, dot, attribute = base_name.partition(".")
        if imported_name in origins:
            found = pkgutil.resolve_name(origins[imported_name] + dot + attribute)
            names |= _names_of(found) if isinstance(found, type) else set()
        for other in ast.walk(tree):  # a base class in the same module
            if isinstance(other, ast.ClassDef) and other.name == base_name and other is not node:
                names |= _inherited_names(other, tree, origins)
    return names


@cache
def _names_of(base: type) -> set[str]:
    """Return the private names of a class: those of libraries in it and in its base classes.

    They are members of the class, and attributes that its methods set.
    """
    names = set()
    for ancestor in base.__mro__:
        if ancestor.__module__.partition(".")[0] == "mailer":
            continue
        names |= {name for name in vars(ancestor) if _is_private(name)}
        try:
            source = inspect.getsource(ancestor)
        except (OSError, TypeError):  # written in C, or created at run time
            continue
        [tree] = ast.parse(textwrap.dedent(source)).body
        names |= _private_names(tree) if isinstance(tree, ast.ClassDef) else set()
    return names


def test_only_one_file_for_each_library_uses_its_private_parts() -> None:
    found = [
        use
        for path in sorted(SOURCE.rglob("*.py"))
        if (file := str(path.relative_to(SOURCE))) not in FILES.values()
        for use in private_uses(path.read_text(), file)
    ]
    places = ", ".join(dict.fromkeys(FILES.values()))
    assert found == [], f"move these uses to the file of their library: {places}"


SUBCLASS = "import aiohttp\nclass Mine(aiohttp.TCPConnector):\n"
"""A subclass of a class that has the private attributes `_factory` and `_available_connections`."""
# a subclass of our own class for the private parts, outside the file of that class
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
