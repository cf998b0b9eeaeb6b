"""The texts of the pages are in the catalogues, and translated into every language."""

from http import HTTPStatus

import pytest
from babel.messages.catalog import Catalog
from litestar.exceptions import HTTPException
from tests.texts import (
    catalogue_file,
    http_errors,
    is_translated,
    updated_catalogue,
    written,
)

from mailer.admin.language import (
    LANGUAGES,
    choose_language,
    gettext,
    ngettext,
    translate_message,
    use_language,
)

WITHOUT_OBJECT = "the button's label leaves out the object that its question names"
SAME = dict.fromkeys(["Продолжить", "Приостановить", "Отправить повторно"], WITHOUT_OBJECT)
"""Translations of more than one text, with the reason; any other such translation is wrong."""


@pytest.fixture(params=LANGUAGES)
def language(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def catalogue(language: str) -> Catalog:
    return updated_catalogue(language)


def test_catalogue_has_every_text_and_no_other(language: str, catalogue: Catalog) -> None:
    assert catalogue_file(language).read_bytes() == written(catalogue), "run make texts"


def test_every_text_is_translated(catalogue: Catalog) -> None:
    missing = [entry.id for entry in catalogue if entry.id and not is_translated(entry)]
    assert missing == []


def test_translations_have_the_same_placeholders(catalogue: Catalog) -> None:
    errors = {entry.id: list(entry.check(catalogue)) for entry in catalogue if entry.id}
    assert {text: found for text, found in errors.items() if found} == {}


def test_no_two_texts_have_the_same_translation_without_a_reason() -> None:
    ids_by_translation: dict[object, list[object]] = {}
    for entry in updated_catalogue("ru"):
        if entry.id:
            ids_by_translation.setdefault(entry.string, []).append(entry.id)
    assert {text for text, ids in ids_by_translation.items() if len(ids) > 1} == SAME.keys()


def test_error_of_the_api_is_shown_in_the_language_of_the_page() -> None:
    with use_language("ru"):
        assert translate_message("is required") == gettext("is required") != "is required"
        translated = translate_message("has 3 fields, but the header has 2")
        assert "3" in translated
        assert "2" in translated
        assert translated != "has 3 fields, but the header has 2"
        assert translate_message("an unknown {} text with 7") == "an unknown {} text with 7"
    with use_language("en"):
        assert translate_message("must be in the future") == "must be in the future"


@pytest.mark.parametrize(
    "error_class", list(http_errors()), ids=lambda error_class: error_class.__name__
)
def test_detail_of_every_http_error_is_translated(error_class: type[HTTPException]) -> None:
    """An error without its own detail has the status phrase, which pages do not show."""
    detail = getattr(error_class, "detail", None)
    phrase = HTTPStatus(error_class.status_code).phrase
    with use_language("ru"):
        assert detail in {None, phrase} or translate_message(detail) != detail


@pytest.mark.parametrize(("count", "form"), [(1, 0), (2, 1), (5, 2), (11, 2), (21, 0)])
def test_plural_form_depends_on_the_number(count: int, form: int) -> None:
    catalogue = updated_catalogue("ru")
    forms = catalogue["%(n)s client"].string
    assert isinstance(forms, tuple | list)
    with use_language("ru"):
        assert ngettext("%(n)s client", "%(n)s clients", count) == forms[form]


def test_default_language_is_english() -> None:
    assert choose_language(None, []) == "en"
