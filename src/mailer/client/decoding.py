"""The text of a file whose encoding nobody names, decoded as its bytes arrive.

A byte order mark says what the encoding is. Without one it is UTF-16 when half of the first
character is NUL, else UTF-8, or windows-1251, in which Excel saves CSV in Russia.
"""

import codecs
from typing import Literal, TypeAlias

Encoding: TypeAlias = Literal["UTF-8", "UTF-16", "windows-1251"]
"""By the names that IANA has for them."""

SAMPLE = 16 * 1024
"""Bytes, from about the first that is not ASCII, by which UTF-8 and windows-1251 are told apart."""
LONGEST_MARK = 3
"""Bytes of the longest byte order mark."""
MARKS: tuple[tuple[bytes, Encoding, str], ...] = (
    (codecs.BOM_UTF8, "UTF-8", "utf-8"),
    (codecs.BOM_UTF16_LE, "UTF-16", "utf-16-le"),
    (codecs.BOM_UTF16_BE, "UTF-16", "utf-16-be"),
)


class TextDecoder:
    """Decodes a file that is fed to it in parts of any size.

    What the encoding does not allow becomes lone surrogates, so that only its line is lost.
    """

    def __init__(self) -> None:
        self.encoding: Encoding = "UTF-8"
        self._held = b""
        """What has come but could not be decoded yet."""
        self._is_begun = False
        self._decoder: codecs.IncrementalDecoder | None = None

    def feed(self, part: bytes) -> str:
        """Return the text that is known by now."""
        if self._decoder is not None:
            return self._decoder.decode(part)
        self._held += part
        if not self._is_begun:
            if len(self._held) < LONGEST_MARK:
                return ""
            self._begin()
        if self._is_open() and len(self._held) < SAMPLE:
            return ""
        return self._take()

    def end(self) -> str:
        """Return the rest of the text."""
        if not self._is_begun:
            self._begin()
        text = self._take()
        try:
            return text + (self._decoder.decode(b"", final=True) if self._decoder else "")
        except UnicodeDecodeError:  # half a character of UTF-16
            return text + "\udc80"

    def _begin(self) -> None:
        """Take the byte order mark away, if there is one, and obey it; else find UTF-16."""
        self._is_begun = True
        for mark, encoding, codec in MARKS:
            if self._held.startswith(mark):
                self._held = self._held[len(mark) :]
                self._decode_as(encoding, codec)
                return
        half = self._held[:2].find(b"\0")  # a header begins with a letter of ASCII
        if half >= 0:
            self._decode_as("UTF-16", "utf-16-be" if half == 0 else "utf-16-le")

    def _is_open(self) -> bool:
        """Return whether what is held must decide the encoding."""
        return self._decoder is None and not self._held.isascii()

    def _choose(self) -> None:
        if is_mostly_utf8(self._held):
            self._decode_as("UTF-8", "utf-8")
        else:
            self._decode_as("windows-1251", "cp1251")

    def _decode_as(self, encoding: Encoding, codec: str) -> None:
        self.encoding = encoding
        errors = "surrogatepass" if encoding == "UTF-16" else "surrogateescape"
        self._decoder = codecs.getincrementaldecoder(codec)(errors)

    def _take(self) -> str:
        if self._is_open():
            self._choose()
        held, self._held = self._held, b""
        return self._decoder.decode(held) if self._decoder else held.decode("ascii")


def is_decoded(text: str) -> bool:
    """Return whether all of a text was as its encoding allows."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def is_mostly_utf8(sample: bytes) -> bool:
    """Return whether no more bytes are out of place in UTF-8 than characters are in theirs.

    A few pairs of letters in windows-1251 look like UTF-8, and a few bytes of a file in UTF-8 may
    be broken: so all of them have a say. A character that the sample cuts off has none.
    """
    text = codecs.getincrementaldecoder("utf-8")("surrogateescape").decode(sample)
    others = len(text) - len(text.encode("ascii", "ignore"))
    wrong = len(text) - len(text.encode("utf-8", "ignore").decode())
    return 2 * wrong <= others
