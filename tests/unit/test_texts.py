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

REASON = "the label of the button leaves out the object: the question above it names it"
SHARED_TRANSLATIONS = dict.fromkeys(["Продолжить", "Приостановить", "Отправить повторно"], REASON)
"""Translations that more than one text may have, with the reason."""


@pytest.fixture(params=LANGUAGES)
def language(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def catalogue(language: str) -> Catalog:
    """The catalogue of a language as `make texts` would write it."""
    return updated_catalogue(language)


def test_catalogue_has_every_text_and_no_other(language: str, catalogue: Catalog) -> None:
    assert catalogue_file(language).read_bytes() == written(catalogue), "run make texts"


def test_every_text_is_translated(catalogue: Catalog) -> None:
    missing = [entry.id for entry in catalogue if entry.id and not is_translated(entry)]
    assert missing == []


def test_translations_have_the_same_placeholders(catalogue: Catalog) -> None:
    errors = {entry.id: list(entry.check(catalogue)) for entry in catalogue if entry.id}
    assert {text: text_errors for text, text_errors in errors.items() if text_errors} == {}


def test_no_two_texts_have_the_same_translation_without_a_reason() -> None:
    ids_by_translation: dict[object, list[object]] = {}
    for entry in updated_catalogue("ru"):
        if entry.id:
            ids_by_translation.setdefault(entry.string, []).append(entry.id)
    shared = {translation for translation, ids in ids_by_translation.items() if len(ids) > 1}
    assert shared == SHARED_TRANSLATIONS.keys()


def test_error_of_the_api_is_shown_in_the_language_of_the_page() -> None:
    with use_language("ru"):
        assert translate_message("is required") == gettext("is required") != "is required"
        with_numbers = "has 3 fields, but the header has 2"
        translated = translate_message(with_numbers)
        assert "3" in translated
        assert "2" in translated
        assert translated != with_numbers
        assert translate_message("an unknown {} text with 7") == "an unknown {} text with 7"
    with use_language("en"):
        assert translate_message("must be in the future") == "must be in the future"


@pytest.mark.parametrize(
    "error_class", list(http_errors()), ids=lambda error_class: error_class.__name__
)
def test_detail_of_every_http_error_is_translated(error_class: type[HTTPException]) -> None:
    """An error without its own detail has the phrase of its status, which pages do not show."""
    detail = getattr(error_class, "detail", None)
    status_phrase = HTTPStatus(error_class.status_code).phrase
    is_shown = detail not in {None, status_phrase}
    with use_language("ru"):
        assert not is_shown or translate_message(str(detail)) != detail


ONE, FEW, MANY = 0, 1, 2
"""The plural forms of Russian, by their position in the catalogue."""


@pytest.mark.parametrize(("count", "form"), [(1, ONE), (2, FEW), (5, MANY), (11, MANY), (21, ONE)])
def test_plural_form_depends_on_the_number(count: int, form: int) -> None:
    forms = updated_catalogue("ru")["%(n)s client"].string
    assert isinstance(forms, tuple | list)
    with use_language("ru"):
        assert ngettext("%(n)s client", "%(n)s clients", count) == forms[form]


def test_default_language_is_english() -> None:
    assert choose_language(None, []) == "en"
