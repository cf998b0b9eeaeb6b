"""A set of message ids in bounded memory."""

from collections import OrderedDict


class RecentIds:
    """Ids of 0 or more in at most 8 MiB: a bitmap of up to 8,192 pages with 8,192 ids each.

    When a page too many is needed, the page that was added to longest ago is evicted. Message ids
    come from a sequence, so pages fill up, and the set holds the last 67 million ids. Of random
    ids, one on each page, it holds 8,192.
    """

    _PAGES = 8_192
    _PAGE_BYTES = 1_024

    def __init__(self) -> None:
        self._pages: OrderedDict[int, bytearray] = OrderedDict()

    def __contains__(self, number: int) -> bool:
        index, bit = divmod(number, self._PAGE_BYTES * 8)
        page = self._pages.get(index)
        return page is not None and bool(page[bit >> 3] & 1 << (bit & 7))

    def add(self, number: int) -> None:
        """Add `number`, which must be 0 or more."""
        index, bit = divmod(number, self._PAGE_BYTES * 8)
        page = self._pages.get(index)
        if page is None:
            page = self._pages[index] = bytearray(self._PAGE_BYTES)
            if len(self._pages) > self._PAGES:
                self._pages.popitem(last=False)
        self._pages.move_to_end(index)
        page[bit >> 3] |= 1 << (bit & 7)
