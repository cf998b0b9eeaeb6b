"""The texts of the pages are in their catalogues, and said in every language."""

from http import HTTPStatus

import pytest
from babel.messages.catalog import Catalog
from litestar.exceptions import HTTPException
from tests.texts import (
    brought_up_to_date,
    catalogue_file,
    http_errors,
    is_translated,
    written,
)

from mailer.admin.language import LANGUAGES, choose, gettext, ngettext, say, speaking

NO_IT = "a button needs no word for what its question is about"
SAME = {"Отозвать": NO_IT, "Продолжить": NO_IT, "Приостановить": NO_IT, "Отправить повторно": NO_IT}
"""What stands for two texts, and why: else one of them is wrong."""


@pytest.fixture(params=LANGUAGES)
def language(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def catalogue(language: str) -> Catalog:
    return brought_up_to_date(language)


def test_catalogue_has_every_text_and_no_other(language: str, catalogue: Catalog) -> None:
    assert catalogue_file(language).read_bytes() == written(catalogue), "run make texts"


def test_every_text_is_translated(catalogue: Catalog) -> None:
    missing = [each.id for each in catalogue if each.id and not is_translated(each)]
    assert missing == []


def test_translations_have_the_same_values_in_them(catalogue: Catalog) -> None:
    wrong = {each.id: list(each.check(catalogue)) for each in catalogue if each.id}
    assert {text: errors for text, errors in wrong.items() if errors} == {}


def test_no_two_texts_are_translated_alike_without_a_reason() -> None:
    found: dict[object, list[object]] = {}
    for each in brought_up_to_date("ru"):
        if each.id:
            found.setdefault(each.string, []).append(each.id)
    assert {said for said, ids in found.items() if len(ids) > 1} == SAME.keys()


def test_what_the_api_says_is_said_in_the_language_of_the_page() -> None:
    with speaking("ru"):
        assert say("is required") == gettext("is required") != "is required"
        said = say("has 3 fields, and the header 2")
        assert "3" in said
        assert "2" in said
        assert said != "has 3 fields, and the header 2"
        assert say("nobody ever {} said 7 of this") == "nobody ever {} said 7 of this"
    with speaking("en"):
        assert say("must be in the future") == "must be in the future"


@pytest.mark.parametrize("kind", list(http_errors()), ids=lambda kind: kind.__name__)
def test_every_error_of_http_is_said_in_the_language_of_the_page(
    kind: type[HTTPException],
) -> None:
    """A detail that a raise does not give is the title, which pages do not show."""
    detail = getattr(kind, "detail", None)
    with speaking("ru"):
        assert detail in {None, HTTPStatus(kind.status_code).phrase} or say(detail) != detail


@pytest.mark.parametrize(("count", "form"), [(1, 0), (2, 1), (5, 2), (11, 2), (21, 0)])
def test_counts_take_the_form_that_goes_with_them(count: int, form: int) -> None:
    catalogue = brought_up_to_date("ru")
    forms = catalogue["%(n)s client"].string
    assert isinstance(forms, tuple | list)
    with speaking("ru"):
        assert ngettext("%(n)s client", "%(n)s clients", count) == forms[form]


def test_language_that_nobody_asked_for_is_english() -> None:
    assert choose(None, []) == "en"
