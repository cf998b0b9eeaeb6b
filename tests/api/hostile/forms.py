"""The forms of pages, as a browser finds them."""

from html.parser import HTMLParser
from urllib.parse import urljoin, urlsplit

import msgspec

TYPED = {"text", "tel", "search"}
NOT_SENT = {"file", "submit", "button"}


class Found(msgspec.Struct):
    """A form: where it goes and how, and what stands in its fields."""

    action: str
    method: str
    values: dict[str, str] = msgspec.field(default_factory=dict)
    typed: set[str] = msgspec.field(default_factory=set)
    """The fields into which people type."""


class _Reader(HTMLParser):
    def __init__(self, path: str) -> None:
        super().__init__()
        self.forms: list[Found] = []
        self._path = path
        self._name = ""
        self._is_text = False

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        if tag == "form":
            action = urlsplit(urljoin(self._path, given.get("action") or self._path)).path
            self.forms.append(Found(action, given.get("method", "get").upper()))
        if tag in {"input", "textarea", "select"} and self.forms and given.get("name"):
            self._add(tag, given)
        if tag == "option" and "selected" in given and self.forms:
            self.forms[-1].values[self._name] = given.get("value", "")

    def _add(self, tag: str, given: dict[str, str]) -> None:
        if given.get("type") in NOT_SENT:
            return
        self._name = given["name"]
        self._is_text = tag == "textarea"
        is_typed = given.get("type", "text") in TYPED and "hidden" not in given
        if tag == "textarea" or (tag == "input" and is_typed):
            self.forms[-1].typed.add(self._name)
        is_off = given.get("type") == "radio" and "checked" not in given
        if not is_off or self._name not in self.forms[-1].values:
            self.forms[-1].values[self._name] = given.get("value", "")

    def handle_data(self, data: str) -> None:
        if self._is_text:
            self.forms[-1].values[self._name] += data.removeprefix("\n")

    def handle_endtag(self, tag: str) -> None:
        if tag == "textarea":
            self._is_text = False


def forms_of(path: str, page: str) -> list[Found]:
    """Return the forms of a page at `path` that have fields."""
    reader = _Reader(path)
    reader.feed(page)
    return [form for form in reader.forms if form.values]
