"""A constant, a class or a type has a name of its own in the whole package."""

import ast
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

SOURCE = Path(__file__).parents[2] / "src" / "mailer"
ALLOWED = {
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
    """Names of the module's constants, types and classes."""
    for statement in ast.parse(file.read_text()).body:
        targets: list[ast.expr] = []
        if isinstance(statement, ast.ClassDef):
            yield statement.name
        elif isinstance(statement, ast.Assign):
            targets = statement.targets
        elif isinstance(statement, ast.AnnAssign):
            targets = [statement.target]
        for target in targets:
            yield from (node.id for node in ast.walk(target) if isinstance(node, ast.Name))


def test_a_name_has_one_meaning_in_all_modules() -> None:
    modules: dict[str, set[str]] = defaultdict(set)
    for file in SOURCE.rglob("*.py"):
        for name in names_of_module(file):
            modules[name].add(str(file.relative_to(SOURCE)))
    repeated = {name: sorted(files) for name, files in modules.items() if len(files) > 1}
    assert {name: files for name, files in repeated.items() if name not in ALLOWED} == {}
    assert ALLOWED.keys() == repeated.keys()
