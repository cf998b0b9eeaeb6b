"""Placeholders in texts: what they are, what is refused with its place, and what they stand for."""

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mailer.mailing.text_template import (
    MissingField,
    Placeholder,
    TemplateError,
    TextTemplate,
    parse,
    parse_stored,
    render,
)

NAMES = st.from_regex(r"[a-z][a-z0-9_]{0,31}", fullmatch=True)
BLANKS = st.text(" \t\n\u00a0", max_size=3)
LITERALS = st.text(st.characters(exclude_characters="{}", exclude_categories=["Cs"]), min_size=1)
DEFAULTS = st.from_regex(r"[A-Za-z0-9][^{}|\s\0]*", fullmatch=True)
VALUES = st.text(st.characters(exclude_categories=["Cs"]), max_size=20).map(lambda text: f"x{text}")
PLACEHOLDERS = st.builds(Placeholder, NAMES, st.none() | DEFAULTS)


@st.composite
def written(draw: st.DrawFn, placeholder: Placeholder) -> str:
    """Return a placeholder as a user may write it, with any blanks."""
    around = [draw(BLANKS) for _ in range(4)]
    default = "" if placeholder.default is None else f"|{around[2]}{placeholder.default}"
    return f"{{{{{around[0]}{placeholder.field}{around[1]}{default}{around[3]}}}}}"


@st.composite
def texts(draw: st.DrawFn) -> tuple[str, list[Placeholder]]:
    """Return a text, and its placeholders."""
    pieces = draw(st.lists(st.one_of(LITERALS, PLACEHOLDERS), max_size=8))
    text = "".join(each if isinstance(each, str) else draw(written(each)) for each in pieces)
    return text, [each for each in pieces if isinstance(each, Placeholder)]


@given(texts())
def test_placeholders_are_found_however_they_are_spaced(
    given_text: tuple[str, list[Placeholder]],
) -> None:
    text, placeholders = given_text
    assert parse(text).placeholders == placeholders


@given(texts(), st.dictionaries(NAMES, VALUES))
def test_rendered_text_has_each_value_as_it_is_and_all_literal_parts(
    given_text: tuple[str, list[Placeholder]], others: dict[str, str]
) -> None:
    template = parse(given_text[0])
    values = {name: f"<{name}: {{{{ x }}}}>" for name in template.field_names}
    expected = "".join(
        piece if isinstance(piece, str) else values[piece.field] for piece in template.pieces
    )
    assert render(template, others | values) == expected


@given(texts())
def test_text_is_missing_its_first_field_without_a_default(
    given_text: tuple[str, list[Placeholder]],
) -> None:
    template = parse(given_text[0])
    missing = [each.field for each in template.placeholders if each.default is None]
    rendered = render(template, {})
    assert rendered == MissingField(missing[0]) if missing else isinstance(rendered, str)


@given(texts())
def test_stored_template_is_read_as_it_was(given_text: tuple[str, list[Placeholder]]) -> None:
    template = parse(given_text[0])
    stored = template.stored
    if stored is None:
        assert not template.placeholders
    else:
        assert parse_stored(msgspec.json.encode(stored)) == template


@given(st.text(st.sampled_from("{}| name_Ж1"), max_size=30))
def test_any_text_is_parsed_or_refused_with_a_place_in_it(text: str) -> None:
    message = ""
    try:
        template = parse(text)
    except TemplateError as error:
        message = str(error)
    if message:
        place = message.partition("at character ")[2].partition(":")[0]
        assert 1 <= int(place) <= len(text)
        assert "{" not in message  # so that the pages can translate it
    else:
        assert "{{" not in "".join(piece for piece in template.pieces if isinstance(piece, str))


def test_text_without_placeholders_is_literal() -> None:
    assert parse("Price: 5 { } :-{ €") == TextTemplate(("Price: 5 { } :-{ €",))
    assert parse("Price").stored is None
    assert parse_stored(None) is None


@pytest.mark.parametrize("value", ["", " ", "\u00a0", "\u200b"])
def test_blank_value_is_a_missing_one(value: str) -> None:
    template = parse("Dear {{ name | friend }}")
    assert render(template, {"name": value}) == "Dear friend"
    assert render(parse("{{name}}"), {"name": value}) == MissingField("name")


def test_fields_of_a_text_are_named_once_in_its_order() -> None:
    template = parse("{{ b }} {{ a | x }} {{ b | y }}")
    assert template.field_names == ["b", "a"]
    assert str(template.placeholders[1]) == "{{ a | x }}"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("Dear {{ name", "has opening braces without closing ones at character 6"),
        ("Dear {{", "has opening braces without closing ones at character 6"),
        ("Dear name }}", "has closing braces without opening ones at character 11"),
        ("{{ a }} }} {{", "has closing braces without opening ones at character 9"),
        ("Dear {{ }}", "has a placeholder without a name at character 6"),
        ("Dear {{}}", "has a placeholder without a name at character 6"),
        ("Dear {{ | friend }}", "has a placeholder without a name at character 6"),
        ("{{ name | }}", "has a placeholder with an empty default at character 1"),
        ("{{ name | \u200b }}", "has a placeholder with an empty default at character 1"),
        ("{{ a | b | c }}", "has a placeholder with two defaults at character 1"),
        ("{{ {{ a }} }}", "has braces inside a placeholder at character 4"),
        ("{{ {a} }}", "has braces inside a placeholder at character 4"),
        ("{{ a | {b }}", "has braces inside a placeholder at character 8"),
        ("{{ a | {1 }}", "has braces inside a placeholder at character 1"),
        ("{{{ a }}", "has more than two braces in a row at character 1"),
        ("{{ a }}}", "has braces inside a placeholder at character 6"),
        ("{ {name} }", "has single braces at character 3: a placeholder has two"),
        ("Dear {name}", "has single braces at character 6: a placeholder has two"),
        ("Dear { имя | друг }", "has single braces at character 6: a placeholder has two"),
        ("{name}}", "has single braces at character 1: a placeholder has two"),
    ],
)
def test_what_looks_like_a_placeholder_and_is_none_is_refused_with_its_place(
    text: str, message: str
) -> None:
    with pytest.raises(TemplateError) as refused:
        parse(text)
    assert str(refused.value) == message


@pytest.mark.parametrize(
    "name", ["Name", "имя", "1a", "_a", "a-b", "a b", "a.b", "7*7", "a" * 33, "name\u200b"]
)
def test_name_that_no_field_has_is_refused(name: str) -> None:
    with pytest.raises(TemplateError, match="wrong name at character 1: use up to 32 of a-z"):
        parse(f"{{{{ {name} }}}}")
