"""Which encoding a file is in, without its saying so."""

import codecs

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mailer.client.decoding import SAMPLE, TextDecoder, is_decoded

TEXT = "phone,tag\n79160000001,Чётные\n79160000002,Лёд — №5\n"
MARKS = st.sampled_from([b"", codecs.BOM_UTF8, codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE])
HEAD = "phone,tag\n" + "79160000001,vip\n" * SAMPLE


def decoded(content: bytes, part: int = 1 << 16) -> tuple[str, str]:
    decoder = TextDecoder()
    texts = [decoder.feed(content[at : at + part]) for at in range(0, len(content), part)]
    return "".join([*texts, decoder.end()]), decoder.encoding


@pytest.mark.parametrize("part", [1, 2, 3, 512, 1 << 16])
@pytest.mark.parametrize(
    ("codec", "encoding"),
    [
        ("utf-8", "UTF-8"),
        ("utf-8-sig", "UTF-8"),
        ("cp1251", "windows-1251"),
        ("utf-16", "UTF-16"),
    ],
)
@pytest.mark.parametrize("text", [TEXT, HEAD + TEXT], ids=["short", "long"])
def test_encoding_is_found(text: str, codec: str, encoding: str, part: int) -> None:
    assert decoded(text.encode(codec), part) == (text, encoding)


@pytest.mark.parametrize(
    ("mark", "codec"), [(codecs.BOM_UTF16_LE, "utf-16-le"), (codecs.BOM_UTF16_BE, "utf-16-be")]
)
def test_byte_order_mark_is_obeyed(mark: bytes, codec: str) -> None:
    assert decoded(mark + TEXT.encode(codec)) == (TEXT, "UTF-16")


@pytest.mark.parametrize("codec", ["utf-16-le", "utf-16-be"])
@pytest.mark.parametrize("part", [1, 3, 1 << 16])
def test_utf_16_without_a_byte_order_mark_is_known_by_its_first_letter(
    codec: str, part: int
) -> None:
    assert decoded(TEXT.encode(codec), part) == (TEXT, "UTF-16")


def test_letters_that_look_like_utf8_do_not_decide_alone() -> None:
    text = "Лё и ещё\n"
    assert decoded(text.encode("cp1251")) == (text, "windows-1251")


@pytest.mark.parametrize("broken", [1, 2])
def test_broken_bytes_in_utf8_cost_their_place_alone(broken: int) -> None:
    content = "я ".encode() * 3 + b"\xff" * broken
    assert decoded(content) == ("я " * 3 + "\udcff" * broken, "UTF-8")


def test_after_utf8_has_been_seen_windows_1251_is_not_believed() -> None:
    text, encoding = decoded("я".encode() * SAMPLE + "ж".encode("cp1251") * SAMPLE)
    assert encoding == "UTF-8"
    assert not is_decoded(text)


@given(st.binary(max_size=64), st.integers(1, 5), MARKS)
def test_any_bytes_are_decoded_in_parts_as_in_one(content: bytes, part: int, mark: bytes) -> None:
    assert decoded(mark + content, part) == decoded(mark + content)
