"""Detecting the encoding of a file."""

import codecs

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mailer.client.decoding import DETECTION_BYTES, TextDecoder, is_decoded

SHORT_FILE = "phone,tag\n79160000001,Чётные\n79160000002,Лёд — №5\n"
LONG_FILE = "phone,tag\n" + "79160000001,vip\n" * DETECTION_BYTES + SHORT_FILE
"""A file whose first non-ASCII letter comes after more than `DETECTION_BYTES`."""
BYTE_ORDER_MARKS = st.sampled_from([b"", codecs.BOM_UTF8, codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE])


def decode(content: bytes, chunk_size: int = 65_536) -> tuple[str, str]:
    """Return the text of a file that arrives in chunks, and its detected encoding."""
    decoder = TextDecoder()
    chunks = (content[at : at + chunk_size] for at in range(0, len(content), chunk_size))
    texts = [decoder.feed(chunk) for chunk in chunks]
    return "".join([*texts, decoder.end()]), decoder.encoding


@pytest.mark.parametrize("chunk_size", [1, 2, 3, 512, 65_536])
@pytest.mark.parametrize(
    ("codec", "encoding"),
    [
        ("utf-8", "UTF-8"),
        ("utf-8-sig", "UTF-8"),
        ("cp1251", "windows-1251"),
        ("utf-16", "UTF-16"),
    ],
)
@pytest.mark.parametrize("text", [SHORT_FILE, LONG_FILE], ids=["short", "long"])
def test_encoding_is_detected(text: str, codec: str, encoding: str, chunk_size: int) -> None:
    assert decode(text.encode(codec), chunk_size) == (text, encoding)


@pytest.mark.parametrize(
    ("mark", "codec"), [(codecs.BOM_UTF16_LE, "utf-16-le"), (codecs.BOM_UTF16_BE, "utf-16-be")]
)
def test_byte_order_mark_gives_the_byte_order_and_is_removed(mark: bytes, codec: str) -> None:
    assert decode(mark + SHORT_FILE.encode(codec)) == (SHORT_FILE, "UTF-16")


@pytest.mark.parametrize("codec", ["utf-16-le", "utf-16-be"])
@pytest.mark.parametrize("chunk_size", [1, 3, 65_536])
def test_utf_16_without_a_byte_order_mark_is_detected_by_its_first_letter(
    codec: str, chunk_size: int
) -> None:
    assert decode(SHORT_FILE.encode(codec), chunk_size) == (SHORT_FILE, "UTF-16")


def test_a_few_letters_that_look_like_utf_8_do_not_decide_the_encoding() -> None:
    text = "Лё и ещё\n"  # the two bytes of Лё in windows-1251 are a character of UTF-8
    assert decode(text.encode("cp1251")) == (text, "windows-1251")


@pytest.mark.parametrize("invalid_count", [1, 2])
def test_invalid_bytes_in_utf_8_become_lone_surrogates(invalid_count: int) -> None:
    content = "я ".encode() * 3 + b"\xff" * invalid_count
    assert decode(content) == ("я " * 3 + "\udcff" * invalid_count, "UTF-8")


def test_bytes_after_the_first_ones_do_not_change_the_encoding() -> None:
    beginning, end = "я".encode() * DETECTION_BYTES, "ж".encode("cp1251") * DETECTION_BYTES
    text, encoding = decode(beginning + end)
    assert encoding == "UTF-8"
    assert not is_decoded(text)


@given(st.binary(max_size=64), st.integers(1, 5), BYTE_ORDER_MARKS)
def test_size_of_chunks_does_not_change_the_result(
    content: bytes, chunk_size: int, mark: bytes
) -> None:
    assert decode(mark + content, chunk_size) == decode(mark + content)
