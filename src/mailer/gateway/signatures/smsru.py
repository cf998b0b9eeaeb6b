"""SMS.ru: SHA-256 of the api_id and all entries `data[...]`, in the field `hash`, without a time.

Source: the PHP code that several public integrations share, by its comments an example of SMS.ru.
SMS.ru repeats a call for days.
"""

import hashlib
import re
from datetime import datetime

from mailer.gateway.callback import Callback
from mailer.gateway.signatures.checks import fits
from mailer.gateway.signatures.fields import Field, add_fields, all_fields, single_value

_SMSRU_ENTRY = re.compile(rb"data\[\d*\]")


def verify(callback: Callback, secret: str, _now: datetime) -> bool:
    """Return whether the signature fits, however old it is."""
    fields = all_fields(callback)
    return fits(_signature(fields, secret), single_value(fields, b"hash") or b"")


def sign(callback: Callback, secret: str, _now: datetime) -> Callback:
    """Add the hash."""
    return add_fields(callback, {"hash": _signature(all_fields(callback), secret)})


def _signature(fields: list[Field], secret: str) -> str:
    """Return the hash. Raises `ValueError` for a call that could pretend to be signed.

    The hash of a secret and a text can be extended to that of a longer text without the secret; the
    extension has a byte that is not valid in UTF-8 there. A field such as `data` is not signed, but
    a reader could take it for an entry.
    """
    named_data = [(name, value) for name, value in fields if name.startswith(b"data")]
    entries = [value for name, value in named_data if _SMSRU_ENTRY.fullmatch(name)]
    if not entries or len(entries) < len(named_data):
        raise ValueError("there is no entry, or a field that looks like one")
    for entry in entries:
        entry.decode()
    return hashlib.sha256(secret.encode() + b"".join(entries)).hexdigest()
