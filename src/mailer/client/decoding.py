"""Incremental decoding of a file whose encoding is detected from its bytes.

A byte order mark (BOM) names the encoding. Without one the encoding is UTF-16 when one of the first
two bytes is NUL, else UTF-8 or windows-1251, in which Excel saves CSV in Russia.
"""

import codecs
from typing import Literal, TypeAlias

Encoding: TypeAlias = Literal["UTF-8", "UTF-16", "windows-1251"]
"""The supported encodings, by their IANA names."""

DETECTION_BYTES = 16 * 1024
"""Bytes from which the encoding, UTF-8 or windows-1251, is detected.

They start near the first non-ASCII byte, because ASCII text is the same in both encodings.
"""
MAX_BOM_LENGTH = 3
"""Bytes of the longest byte order mark."""
BYTE_ORDER_MARKS: tuple[tuple[bytes, Encoding, str], ...] = (
    (codecs.BOM_UTF8, "UTF-8", "utf-8"),
    (codecs.BOM_UTF16_LE, "UTF-16", "utf-16-le"),
    (codecs.BOM_UTF16_BE, "UTF-16", "utf-16-be"),
)
"""Each byte order mark, with the encoding that it names and the codec of Python that reads it."""


class TextDecoder:
    """Decodes a file that arrives in parts of any size.

    Bytes that are invalid in the encoding become lone surrogates, which are no characters. So the
    line with such bytes can be recognized by `is_decoded` and rejected, and the others be read.
    """

    def __init__(self) -> None:
        self.encoding: Encoding = "UTF-8"
        self._pending = b""
        """Bytes that are not decoded yet."""
        self._is_start_checked = False
        """Whether the first bytes were checked for a byte order mark and for UTF-16."""
        self._decoder: codecs.IncrementalDecoder | None = None
        """None as long as the encoding is unknown, which does not matter while all is ASCII."""

    def feed(self, part: bytes) -> str:
        """Add a part of the file; return the text that can be decoded so far."""
        if self._decoder is not None:
            return self._decoder.decode(part)
        self._pending += part
        if not self._is_start_checked:
            if len(self._pending) < MAX_BOM_LENGTH:
                return ""
            self._check_start()
        if self._needs_detection() and len(self._pending) < DETECTION_BYTES:
            return ""
        return self._decode_pending()

    def end(self) -> str:
        """Return the rest of the text."""
        if not self._is_start_checked:
            self._check_start()
        text = self._decode_pending()
        try:
            return text + (self._decoder.decode(b"", final=True) if self._decoder else "")
        except UnicodeDecodeError:  # the file ends with half a character of UTF-16
            return text + "\udc80"  # a lone surrogate, so that the last line is rejected

    def _check_start(self) -> None:
        """Remove the byte order mark and use its encoding; without one, detect UTF-16."""
        self._is_start_checked = True
        for mark, encoding, codec in BYTE_ORDER_MARKS:
            if self._pending.startswith(mark):
                self._pending = self._pending[len(mark) :]
                self._use_encoding(encoding, codec)
                return
        # a header begins with an ASCII letter, one of whose two bytes in UTF-16 is NUL
        nul_index = self._pending[:2].find(b"\0")
        if nul_index >= 0:
            self._use_encoding("UTF-16", "utf-16-be" if nul_index == 0 else "utf-16-le")

    def _needs_detection(self) -> bool:
        """Return whether the encoding is still unknown and the pending bytes depend on it."""
        return self._decoder is None and not self._pending.isascii()

    def _detect_encoding(self) -> None:
        if is_mostly_utf8(self._pending):
            self._use_encoding("UTF-8", "utf-8")
        else:
            self._use_encoding("windows-1251", "cp1251")

    def _use_encoding(self, encoding: Encoding, codec: str) -> None:
        self.encoding = encoding
        # in UTF-16 only lone surrogates are invalid, and stay; elsewhere invalid bytes become some
        errors = "surrogatepass" if encoding == "UTF-16" else "surrogateescape"
        self._decoder = codecs.getincrementaldecoder(codec)(errors)

    def _decode_pending(self) -> str:
        """Decode the pending bytes; detect their encoding first, if it matters."""
        if self._needs_detection():
            self._detect_encoding()
        pending, self._pending = self._pending, b""
        return self._decoder.decode(pending) if self._decoder else pending.decode("ascii")


def is_decoded(text: str) -> bool:
    """Return whether every byte of a text was valid in its encoding (no lone surrogates)."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def is_mostly_utf8(sample: bytes) -> bool:
    """Return whether at most half of the non-ASCII units of a sample are invalid as UTF-8.

    A unit is a decoded character or an invalid byte. The majority decides, because some pairs of
    letters in windows-1251 are valid UTF-8, and a file in UTF-8 may have a few broken bytes. A
    character that is cut off at the end of the sample does not count.
    """
    text = codecs.getincrementaldecoder("utf-8")("surrogateescape").decode(sample)
    ascii_count = len(text.encode("ascii", "ignore"))
    valid_count = len(text.encode("utf-8", "ignore").decode())  # without the lone surrogates
    non_ascii_count, invalid_count = len(text) - ascii_count, len(text) - valid_count
    return 2 * invalid_count <= non_ascii_count
