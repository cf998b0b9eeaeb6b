"""Words that docs/glossary.md forbids are in no name, comment, docstring, page text or document."""

import ast
import io
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from babel.messages.pofile import read_po

ROOT = Path(__file__).parents[2]
GLOSSARY = ROOT / "docs" / "glossary.md"
PYTHON = ("src/**/*.py", "tests/**/*.py", "bench/**/*.py", "alembic/versions/*.py", "docs/**/*.py")
DOCUMENTS = (
    *("*.md", "docs/**/*.md", "deploy/**/*", "src/**/*.md", "bench/**/*.md"),
    *("alembic/versions/*.sql", "docs/**/*.sql", "Makefile", "Containerfile", "pyproject.toml"),
)
CATALOGUES = "src/mailer/admin/locale/*/LC_MESSAGES/*.po"

NAME_WORD = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|[0-9]+")
ADDRESS = re.compile(r"\S*/\S*")
"""A path, a route or a URL in a text."""
METRIC_OR_ROUTE = re.compile(r"mailer_[a-z_]+|(?:/[a-z_-]+|/\{[a-z_:]+\})+")
SQL_COMMENT = re.compile(r"--[ \t]+(.+)$", re.MULTILINE)
NAMING_CALLS = frozenset({"debug", "info", "warning", "error", "critical", "exception", "Job"})
"""Functions whose first argument is a name: of a log event, or of a periodic job."""


class Term(NamedTuple):
    """A forbidden word or phrase of the column "not"."""

    words: str
    pattern: re.Pattern[str]
    in_texts: bool

    def is_in(self, text: str) -> bool:
        return self.pattern.search(text) is not None


class Part(NamedTuple):
    """A name or a text of a file."""

    file: str
    line: int
    value: str
    is_name: bool

    @property
    def words(self) -> str:
        """The words of a name, or of a text without its addresses."""
        if self.is_name:
            return " ".join(NAME_WORD.findall(self.value))
        return " ".join(ADDRESS.sub(" ", self.value).replace("_", " ").split())


class Finding(NamedTuple):
    """A forbidden term in a part."""

    term: str
    part: Part

    def __str__(self) -> str:
        kind = "name" if self.part.is_name else "text"
        return f"{self.part.file}:{self.part.line}: {kind} {self.part.value[:80]!r}: {self.term}"


class Allowance(NamedTuple):
    """A row of the section "Exceptions": a term that one name or one file may contain."""

    term: str
    where: str
    reason: str

    def covers(self, finding: Finding) -> bool:
        return self.term == finding.term and self.where in {finding.part.file, finding.part.value}


def rows(section: str) -> list[list[str]]:
    """Return the cells of all table rows of a text, without headings."""
    cells = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in section.splitlines()
        if line.startswith("|")
    ]
    return [row for row in cells if row[0] not in {"use", "word"} and not set(row[0]) <= {"-"}]


def inflected(word: str) -> str:
    """Return a pattern of a word with its usual endings."""
    match word[-1]:
        case "e":
            return f"{word[:-1]}(?:e|es|ed|en|ing)"
        case "y":
            return f"{word[:-1]}(?:y|ies|ied|ying)"
        case _:
            return f"{word}(?:s|es|ed|ing)?"


def term(entry: str) -> Term:
    """Return the term of one entry of the column "not"."""
    words = entry.strip("`")
    if words.isupper():  # a word of a constant's name
        return Term(words, re.compile(rf"\b{words}\b"), in_texts=False)
    alternatives = ["|".join(map(inflected, word.split("/"))) for word in words.split()]
    pattern = r"[ -]".join(f"(?:{each})" for each in alternatives)
    return Term(
        words, re.compile(rf"\b{pattern}\b", re.IGNORECASE), in_texts=not entry.startswith("`")
    )


def glossary() -> tuple[list[Term], list[Allowance]]:
    """Return what the glossary forbids, and its exceptions."""
    table, _, exceptions = GLOSSARY.read_text().partition("\n## Exceptions\n")
    entries = [
        entry.strip()
        for row in rows(table)
        for entry in re.sub(r"\*[^*]+\*", "", row[2]).split(",")
    ]
    terms = {each.words: each for each in map(term, filter(None, entries))}
    allowances = [
        Allowance(word.strip("`"), where.strip("`"), reason)
        for word, where, reason in rows(exceptions)
    ]
    return list(terms.values()), allowances


TERMS, ALLOWANCES = glossary()
ANY_TERM = re.compile("|".join(f"(?:{each.pattern.pattern})" for each in TERMS), re.IGNORECASE)


def names(nodes: list[ast.AST]) -> Iterator[tuple[int, str]]:
    """Yield the names that a module defines, also of log events, metrics, routes and jobs."""
    for node in nodes:
        match node:
            case ast.FunctionDef() | ast.AsyncFunctionDef() | ast.ClassDef():
                if not node.name.startswith("test_"):
                    yield node.lineno, node.name
            case ast.arg(arg=name):
                yield node.lineno, name
            case ast.Name(id=name, ctx=ast.Store()) | ast.Attribute(attr=name, ctx=ast.Store()):
                yield node.lineno, name
            case ast.alias(asname=str(name)) if node.asname != node.name:
                yield node.lineno, name
            case ast.ExceptHandler(name=str(name)) | ast.MatchAs(name=str(name)):
                yield node.lineno, name
            case ast.Call(
                func=ast.Attribute(attr=function) | ast.Name(id=function),
                args=[ast.Constant(value=str(name)), *_],
            ) if function in NAMING_CALLS:
                yield node.lineno, name
            case ast.Constant(value=str(text)) if METRIC_OR_ROUTE.fullmatch(text):
                yield node.lineno, text


def texts(nodes: list[ast.AST], source: str) -> Iterator[tuple[int, str]]:
    """Yield a module's docstrings, help texts, names of tests, and comments, also those in SQL."""
    for node in nodes:
        match node:
            case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name) if name.startswith(
                "test_"
            ):
                yield node.lineno, name
            case ast.Expr(value=ast.Constant(value=str(text))):  # also below an attribute
                yield node.lineno, text
            case ast.keyword(arg="help" | "description" | "summary", value=ast.Constant(str(text))):
                yield node.value.lineno, text
            case ast.Constant(value=str(text)):
                yield from ((node.lineno, comment) for comment in SQL_COMMENT.findall(text))
            case _:
                pass
    yield from comments(source)


def comments(source: str) -> Iterator[tuple[int, str]]:
    """Yield the comments of a module; comments on consecutive lines are one text."""
    block: list[str] = []
    start = end = 0
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type != tokenize.COMMENT:
            continue
        line = token.start[0]
        if block and line == end + 1:
            block.append(token.string.lstrip("# "))
        else:
            if block:
                yield start, " ".join(block)
            block, start = [token.string.lstrip("# ")], line
        end = line
    if block:
        yield start, " ".join(block)


def python_parts(file: Path, name: str) -> Iterator[Part]:
    source = file.read_text()
    nodes = list(ast.walk(ast.parse(source)))
    yield Part(name, 1, file.parent.name if file.stem == "__init__" else file.stem, is_name=True)
    yield from (Part(name, line, value, is_name=True) for line, value in names(nodes))
    yield from (Part(name, line, value, is_name=False) for line, value in texts(nodes, source))


def document_parts(file: Path, name: str) -> Iterator[Part]:
    text = file.read_text()
    if file == GLOSSARY:  # without the column "not" and the exceptions
        text = text.partition("\n## Exceptions\n")[0].partition("\n## ")[2]
        text = re.sub(r"^(\|[^|]*\|[^|]*\|).*$", r"\1", text, flags=re.MULTILINE)
    for number, paragraph in paragraphs(text):
        yield Part(name, number, paragraph, is_name=False)


def paragraphs(text: str) -> Iterator[tuple[int, str]]:
    """Yield each run of lines between empty lines, and the number of its first line."""
    for found in re.finditer(r"(?:^.*\S.*$\n?)+", text, re.MULTILINE):
        yield text.count("\n", 0, found.start()) + 1, re.sub(r"\n[#\s]*", " ", found[0])


def catalogue_parts(file: Path, name: str) -> Iterator[Part]:
    with file.open("rb") as content:
        for message in read_po(content):
            ids = message.id if isinstance(message.id, tuple | list) else [message.id]
            yield from (
                Part(name, message.lineno or 0, each, is_name=False) for each in ids if each
            )


def parts(package: str | None = None) -> Iterator[Part]:
    """Yield every name and text of the project."""
    readers = (
        *((pattern, python_parts) for pattern in PYTHON),
        *((pattern, document_parts) for pattern in DOCUMENTS),
        (CATALOGUES, catalogue_parts),
    )
    for pattern, read in readers:
        for file in sorted(ROOT.glob(pattern)):
            name = str(file.relative_to(ROOT))
            if file.is_file() and (package is None or name.startswith(package)):
                yield from read(file, name)


def find(parts: Iterator[Part]) -> Iterator[Finding]:
    """Yield each forbidden term in each part, without exceptions."""
    for part in parts:
        words = part.words
        for each in TERMS if ANY_TERM.search(words) else ():
            if (part.is_name or each.in_texts) and each.is_in(words):
                yield Finding(each.words, part)


@pytest.fixture(scope="module")
def findings() -> list[Finding]:
    return list(find(parts()))


def test_forbidden_words_are_nowhere(findings: list[Finding]) -> None:
    wrong = [
        str(finding)
        for finding in findings
        if not any(allowance.covers(finding) for allowance in ALLOWANCES)
    ]
    assert wrong == []


def test_every_exception_is_needed_and_has_a_reason(findings: list[Finding]) -> None:
    needless = [
        allowance
        for allowance in ALLOWANCES
        if not allowance.reason or not any(allowance.covers(finding) for finding in findings)
    ]
    assert needless == []


def test_glossary_is_read() -> None:
    forbidden = {each.words: each.in_texts for each in TERMS}
    assert forbidden["tally"]
    assert not forbidden["turn"]
    assert not forbidden["PATIENCE"]
    assert "hours" not in forbidden


@pytest.mark.parametrize(
    ("value", "is_name", "found"),
    [
        ("fold_tallies", True, ["tally"]),
        ("took_back", True, ["take/took back"]),
        ("next_turn", True, ["turn"]),
        ("it is their turn", False, []),
        ("the message was given\n    back", False, ["give/gave back"]),
        ("GIVE_UP_PATIENCE", True, ["PATIENCE"]),
        ("patience", True, []),
        ("/" + "people/new", True, ["people"]),
        ("see /people/new", False, []),
        ("New people", False, ["people"]),
    ],
)
def test_words_are_found_in_all_their_forms(value: str, is_name: bool, found: list[str]) -> None:  # noqa: FBT001  # a case of the table
    part = Part("example", 1, value, is_name)
    assert {each.term for each in find(iter([part]))} == set(found)
