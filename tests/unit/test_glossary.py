"""Words that docs/glossary.md forbids are in no name, string, comment, page text or document."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from tests.glossary_parts import GLOSSARY, Part, markup_parts, parts


class Term(NamedTuple):
    """A forbidden word or phrase of the column "not"."""

    words: str
    pattern: re.Pattern[str]
    is_forbidden_in_texts: bool
    """Whether it is forbidden in texts too, and not only in names."""

    def is_in(self, text: str) -> bool:
        return self.pattern.search(text) is not None


class Finding(NamedTuple):
    """A forbidden term in a name or text, a part of a file."""

    term: str
    part: Part

    def __str__(self) -> str:
        kind = "name" if self.part.is_name else "text"
        return f"{self.part.file}:{self.part.line}: {kind} {self.part.value[:80]!r}: {self.term}"


class Allowance(NamedTuple):
    """A row of the section "Exceptions": a term that one name, or all of one file, may contain."""

    term: str
    where: str
    reason: str

    def covers(self, finding: Finding) -> bool:
        return self.term == finding.term and self.where in {finding.part.file, finding.part.value}


def table_rows(section: str) -> list[list[str]]:
    """Return the rows of all tables in a Markdown text, each as its cells, without headings."""
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in section.splitlines()
        if line.startswith("|")
    ]
    headings = {"use", "word"}  # first cells of the two kinds of tables in the glossary
    return [row for row in rows if row[0] not in headings and not set(row[0]) <= {"-"}]


def inflected(word: str) -> str:
    """Return a pattern of a word with or without its usual endings, such as `-ed` and `-ing`."""
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
        return Term(words, re.compile(rf"\b{words}\b"), is_forbidden_in_texts=False)
    # one pattern for each word of the phrase; a slash separates alternatives
    alternatives = ["|".join(map(inflected, word.split("/"))) for word in words.split()]
    pattern = r"[ -]".join(f"(?:{each})" for each in alternatives)
    is_in_code_marks = entry.startswith("`")
    return Term(
        words,
        re.compile(rf"\b{pattern}\b", re.IGNORECASE),
        is_forbidden_in_texts=not is_in_code_marks,
    )


def glossary() -> tuple[list[Term], list[Allowance]]:
    """Return what the glossary forbids, and its exceptions."""
    tables, _, exceptions = GLOSSARY.read_text().partition("\n## Exceptions\n")
    words_in_italics = re.compile(r"\*[^*]+\*")
    entries = [
        entry.strip()
        for _use, _for, forbidden in table_rows(tables)
        for entry in words_in_italics.sub("", forbidden).split(",")
    ]
    terms = {each.words: each for each in map(term, filter(None, entries))}
    allowances = [
        Allowance(word.strip("`"), where.strip("`"), reason)
        for word, where, reason in table_rows(exceptions)
    ]
    return list(terms.values()), allowances


TERMS, ALLOWANCES = glossary()
# matches if any term matches
ANY_TERM = re.compile("|".join(f"(?:{each.pattern.pattern})" for each in TERMS), re.IGNORECASE)


def find(parts: Iterator[Part]) -> Iterator[Finding]:
    """Yield each forbidden term in each part; the glossary's exceptions are not considered."""
    for part in parts:
        words = part.words
        if not ANY_TERM.search(words):  # one search is faster than one for each term
            continue
        for each in TERMS:
            if (part.is_name or each.is_forbidden_in_texts) and each.is_in(words):
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


def test_marks_of_a_word_in_the_glossary_say_where_it_is_forbidden() -> None:
    is_forbidden_in_texts = {each.words: each.is_forbidden_in_texts for each in TERMS}
    assert is_forbidden_in_texts["tally"]  # a plain word
    assert not is_forbidden_in_texts["turn"]  # marked as code
    assert not is_forbidden_in_texts["PATIENCE"]  # marked as code, in capitals
    assert "hours" not in is_forbidden_in_texts  # in italics


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
        ("/" + "people/new", True, ["people"]),  # a route; in two parts for the test of this file
        ("see /people/new", False, []),
        ("New people", False, ["people"]),
    ],
)
def test_words_are_found_in_all_their_forms(value: str, is_name: bool, found: list[str]) -> None:  # noqa: FBT001  # a case of the table
    part = Part("example", 1, value, is_name)
    assert {each.term for each in find(iter([part]))} == set(found)


@pytest.mark.parametrize(
    ("file", "text", "found"),
    [
        ("a.html", '<p class="card people">', ["card", "people"]),
        ("a.html", '<h2 id="looks">', ["looks"]),
        ("a.css", ".people a, #main { color: #abc; --tally: 1px }", ["people", "main", "tally"]),
        ("a.js", "const tally = 1; function tellPeople() {}", ["tally", "tellPeople"]),
    ],
)
def test_names_of_templates_styles_and_scripts_are_read(
    tmp_path: Path, file: str, text: str, found: list[str]
) -> None:
    (tmp_path / file).write_text(text)
    name_of_file, *names = (
        part.value for part in markup_parts(tmp_path / file, file) if part.is_name
    )
    assert name_of_file == "a"
    assert names == found
