"""The forms of a page, as a browser would send them, read from its HTML."""

from html.parser import HTMLParser
from urllib.parse import urljoin, urlsplit

import msgspec

TYPED = {"text", "tel", "search"}
"""Types of inputs into which users type text."""
NOT_SENT = {"file", "submit", "button"}
"""Types of inputs without a value of their own."""


class Form(msgspec.Struct):
    """A form: URL, method, and the values of its fields."""

    action: str
    method: str
    values: dict[str, str] = msgspec.field(default_factory=dict)
    typed: set[str] = msgspec.field(default_factory=set)
    """Names of the fields into which users type text."""


class _FormReader(HTMLParser):
    """Collects the forms of the page at `path`."""

    def __init__(self, path: str) -> None:
        super().__init__()
        self.forms: list[Form] = []
        self._path = path
        self._field = ""
        """Name of the last field."""
        self._is_in_text_area = False

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        attributes = {name: value or "" for name, value in attrs}
        if tag == "form":
            action = urlsplit(urljoin(self._path, attributes.get("action") or self._path)).path
            self.forms.append(Form(action, attributes.get("method", "get").upper()))
        if tag in {"input", "textarea", "select"} and self.forms and attributes.get("name"):
            self._add_field(tag, attributes)
        if tag == "option" and "selected" in attributes and self.forms:
            self.forms[-1].values[self._field] = attributes.get("value", "")

    def _add_field(self, tag: str, attributes: dict[str, str]) -> None:
        if attributes.get("type") in NOT_SENT:
            return
        self._field = attributes["name"]
        self._is_in_text_area = tag == "textarea"
        is_typed = attributes.get("type", "text") in TYPED and "hidden" not in attributes
        if tag == "textarea" or (tag == "input" and is_typed):
            self.forms[-1].typed.add(self._field)
        is_unchecked = attributes.get("type") == "radio" and "checked" not in attributes
        # of several radio buttons, the checked one counts, or else the first one
        if not is_unchecked or self._field not in self.forms[-1].values:
            self.forms[-1].values[self._field] = attributes.get("value", "")

    def handle_data(self, data: str) -> None:
        if self._is_in_text_area:
            self.forms[-1].values[self._field] += data.removeprefix("\n")

    def handle_endtag(self, tag: str) -> None:
        if tag == "textarea":
            self._is_in_text_area = False


def forms_of(path: str, page: str) -> list[Form]:
    """Return the forms of a page that have fields; `path` is the path of the page."""
    reader = _FormReader(path)
    reader.feed(page)
    return [form for form in reader.forms if form.values]
