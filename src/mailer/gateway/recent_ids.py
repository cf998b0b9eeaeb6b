"""A set of message ids in bounded memory, with which the sandbox gateway recognizes repeats."""

from collections import OrderedDict


class RecentIds:
    """A set of ids (0 or more) in at most 8 MiB; the ids that were added longest ago are evicted.

    It is a bitmap in up to 8,192 pages. Each page has one bit for each of 8,192 consecutive ids.
    When another page is needed, the page to which nothing was added for the longest time is
    evicted. Message ids come from a sequence, so pages fill up, and the set holds the last 67
    million ids. Of ids that are far apart, one on each page, it holds 8,192.
    """

    _MAX_PAGES = 8_192
    _PAGE_BYTES = 1_024

    def __init__(self) -> None:
        self._pages: OrderedDict[int, bytearray] = OrderedDict()

    def __contains__(self, number: int) -> bool:
        page_number, bit = divmod(number, self._PAGE_BYTES * 8)
        page = self._pages.get(page_number)
        return page is not None and bool(page[bit // 8] & 1 << bit % 8)

    def add(self, number: int) -> None:
        """Add `number`, which must be 0 or more."""
        page_number, bit = divmod(number, self._PAGE_BYTES * 8)
        page = self._pages.get(page_number)
        if page is None:
            page = self._pages[page_number] = bytearray(self._PAGE_BYTES)
            if len(self._pages) > self._MAX_PAGES:
                self._pages.popitem(last=False)
        self._pages.move_to_end(page_number)
        page[bit // 8] |= 1 << bit % 8
