"""No two modules of the package define a constant, a class or a type of the same name."""

import ast
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

SOURCE = Path(__file__).parents[2] / "src" / "mailer"
SHARED_NAMES = {
    "DAY": "a timedelta of a day",
    "HOUR": "a timedelta of an hour",
    "NOT_DELETED": "the condition that a row of the module's table is not deleted",
    "PATH": "the path of the module's page",
    "Result": "a type variable: what a given function returns",
    "SECTIONS": "the parts of the module's page that are updated while it is open",
    "Shape": "a type variable: the type that JSON is decoded into",
    "log": "the module's logger",
}
"""Names that several modules have, with the one meaning in all of them."""


def names_of_module(file: Path) -> Iterator[str]:
    """Yield the names of the module's constants, types and classes, but not `__all__`."""
    for statement in ast.parse(file.read_text()).body:
        targets: list[ast.expr] = []
        if isinstance(statement, ast.ClassDef):
            yield statement.name
        elif isinstance(statement, ast.Assign):
            targets = statement.targets
        elif isinstance(statement, ast.AnnAssign):
            targets = [statement.target]
        for target in targets:
            names = {node.id for node in ast.walk(target) if isinstance(node, ast.Name)}
            yield from names - {"__all__"}


def find_repeated_names() -> dict[str, list[str]]:
    """Return the names that several modules define, and these modules."""
    modules_by_name: dict[str, set[str]] = defaultdict(set)
    for file in SOURCE.rglob("*.py"):
        for name in names_of_module(file):
            modules_by_name[name].add(str(file.relative_to(SOURCE)))
    return {name: sorted(files) for name, files in modules_by_name.items() if len(files) > 1}


def test_a_name_has_one_meaning_in_all_modules() -> None:
    repeated = find_repeated_names()
    wrong = {name: files for name, files in repeated.items() if name not in SHARED_NAMES}
    assert wrong == {}


def test_every_shared_name_is_still_shared() -> None:
    assert SHARED_NAMES.keys() - find_repeated_names().keys() == set()
