"""The names and texts of the project, in which `test_glossary.py` searches for forbidden words."""

import ast
import io
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from babel.messages.pofile import read_po

ROOT = Path(__file__).parents[1]
GLOSSARY = ROOT / "docs" / "glossary.md"
# patterns of the files that are read
PYTHON = ("src/**/*.py", "tests/**/*.py", "bench/**/*.py", "alembic/versions/*.py", "docs/**/*.py")
DOCUMENTS = (
    *("*.md", "docs/**/*.md", "deploy/**/*", "src/**/*.md", "bench/**/*.md"),
    *("alembic/versions/*.sql", "docs/**/*.sql", "Makefile", "Containerfile", "pyproject.toml"),
)
MARKUP = ("src/**/templates/**/*.html", "src/mailer/web/static/*.css", "src/mailer/web/static/*.js")
"""Templates, style sheets and scripts; vendored ones are in folders of their own."""
CATALOGUES = "src/mailer/admin/locale/*/LC_MESSAGES/*.po"

NAME_WORD = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|[0-9]+")
"""One word of a name in any style: three_words, ThreeWordsHere, THREE_WORDS, three-words."""
ADDRESS = re.compile(r"\S*/\S*")
"""A path, a route or a URL in a text."""
METRIC_OR_ROUTE = re.compile(r"mailer_[a-z_]+|(?:/[a-z_-]+|/\{[a-z_:]+\})+")
"""A string that is the name of a metric, or a route such as `/clients/{client_id:int}`."""
MARKUP_NAME = re.compile(
    r"""(?<![\w.])(?:class|id|name|for|(?:data|aria)-[\w-]+)="([^"]*)"  # attributes of HTML
    |(?<![\w)\]])[.#]([a-z][\w-]*)(?=[^;}]*\{)|--([a-z][\w-]*)       # selectors, variables of CSS
    |\b(?:const|let|function|class)\ (\w+)                          # declarations of JavaScript
    """,
    re.VERBOSE,
)
"""Names that are defined in templates, style sheets and scripts."""
IDENTIFIER = re.compile(r"[a-z]+(?:[_-][a-z]+)*")
"""A string that is a name, such as that of a column."""
SQL_COMMENT = re.compile(r"--[ \t]+(.+)$", re.MULTILINE)
NAMING_CALLS = frozenset({"debug", "info", "warning", "error", "critical", "exception", "Job"})
"""Functions whose first argument is a name: of a log event, or of a periodic job."""


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


def names(nodes: list[ast.AST]) -> Iterator[tuple[int, str]]:
    """Yield line and text of each name that a module defines, also of log events, jobs, routes."""
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
    """Yield line and text of a module's docstrings, help texts, names of tests, and comments.

    Comments in SQL count too.
    """
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


def strings(nodes: list[ast.AST]) -> Iterator[tuple[int, str, bool]]:
    """Yield line and text of all strings, such as messages of errors, and whether it is a name."""
    for node in nodes:
        match node:
            case ast.Constant(value=str(text)):
                yield node.lineno, text, IDENTIFIER.fullmatch(text) is not None
            case _:
                pass


def comments(source: str) -> Iterator[tuple[int, str]]:
    """Yield first line and text of each comment of a module, with all its consecutive lines."""
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
    """Yield the names and texts of a module; all strings only of the program itself."""
    source = file.read_text()
    nodes = list(ast.walk(ast.parse(source)))
    yield Part(name, 1, file.parent.name if file.stem == "__init__" else file.stem, is_name=True)
    yield from (Part(name, line, value, is_name=True) for line, value in names(nodes))
    yield from (Part(name, line, value, is_name=False) for line, value in texts(nodes, source))
    if name.startswith("src/"):
        yield from (Part(name, line, value, is_name) for line, value, is_name in strings(nodes))


def document_parts(file: Path, name: str) -> Iterator[Part]:
    """Yield the paragraphs of a document."""
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


def markup_parts(file: Path, name: str) -> Iterator[Part]:
    """Yield the names and the texts of a template, a style sheet or a script."""
    text = file.read_text()
    yield Part(name, 1, file.stem, is_name=True)
    for found in MARKUP_NAME.finditer(text):
        line = text.count("\n", 0, found.start()) + 1
        yield from (
            Part(name, line, each, is_name=True) for each in "".join(found.groups("")).split()
        )
    yield from document_parts(file, name)


def catalogue_parts(file: Path, name: str) -> Iterator[Part]:
    """Yield the English page texts of a gettext catalogue; some have a singular and a plural."""
    with file.open("rb") as content:
        for message in read_po(content):
            english = message.id if isinstance(message.id, tuple | list) else [message.id]
            yield from (
                Part(name, message.lineno or 0, text, is_name=False) for text in english if text
            )


def parts() -> Iterator[Part]:
    """Yield every name and text of the project."""
    readers = (
        *((pattern, python_parts) for pattern in PYTHON),
        *((pattern, document_parts) for pattern in DOCUMENTS),
        *((pattern, markup_parts) for pattern in MARKUP),
        (CATALOGUES, catalogue_parts),
    )
    for pattern, read in readers:
        for file in sorted(ROOT.glob(pattern)):
            name = str(file.relative_to(ROOT))
            if file.is_file():
                yield from read(file, name)
