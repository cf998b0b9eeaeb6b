"""Parse the forms of a page."""

from html.parser import HTMLParser
from urllib.parse import urljoin, urlsplit

import msgspec

TYPED = {"text", "tel", "search"}
NOT_SENT = {"file", "submit", "button"}


class Form(msgspec.Struct):
    """A form: URL, method, and the values of its fields."""

    action: str
    method: str
    values: dict[str, str] = msgspec.field(default_factory=dict)
    typed: set[str] = msgspec.field(default_factory=set)
    """Names of the fields into which users type text."""


class _Reader(HTMLParser):
    def __init__(self, path: str) -> None:
        super().__init__()
        self.forms: list[Form] = []
        self._path = path
        self._name = ""
        self._is_text = False

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        attributes = {name: value or "" for name, value in attrs}
        if tag == "form":
            action = urlsplit(urljoin(self._path, attributes.get("action") or self._path)).path
            self.forms.append(Form(action, attributes.get("method", "get").upper()))
        if tag in {"input", "textarea", "select"} and self.forms and attributes.get("name"):
            self._add(tag, attributes)
        if tag == "option" and "selected" in attributes and self.forms:
            self.forms[-1].values[self._name] = attributes.get("value", "")

    def _add(self, tag: str, attributes: dict[str, str]) -> None:
        if attributes.get("type") in NOT_SENT:
            return
        self._name = attributes["name"]
        self._is_text = tag == "textarea"
        is_typed = attributes.get("type", "text") in TYPED and "hidden" not in attributes
        if tag == "textarea" or (tag == "input" and is_typed):
            self.forms[-1].typed.add(self._name)
        is_off = attributes.get("type") == "radio" and "checked" not in attributes
        if not is_off or self._name not in self.forms[-1].values:
            self.forms[-1].values[self._name] = attributes.get("value", "")

    def handle_data(self, data: str) -> None:
        if self._is_text:
            self.forms[-1].values[self._name] += data.removeprefix("\n")

    def handle_endtag(self, tag: str) -> None:
        if tag == "textarea":
            self._is_text = False


def forms_of(path: str, page: str) -> list[Form]:
    """Return the forms with fields in a page at `path`."""
    reader = _Reader(path)
    reader.feed(page)
    return [form for form in reader.forms if form.values]
