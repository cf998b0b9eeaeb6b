"""What a text with placeholders becomes for an audience: parts, and clients who lack a field."""

from collections import Counter
from collections.abc import Generator
from typing import NamedTuple
from weakref import WeakKeyDictionary

import msgspec
from sqlalchemy.ext.asyncio import AsyncEngine

from mailer.clock import elapsed
from mailer.gateway.sms_parts import count_parts
from mailer.mailing.client_filter import ClientFilter
from mailer.mailing.field_sample import FieldSample, read_fields
from mailer.mailing.field_types import Purpose
from mailer.mailing.model import excluded_opt_outs
from mailer.mailing.text_template import MAX_CHARACTERS, MissingField, TextTemplate, render
from mailer.time_slices import run_in_slices

MAX_SHOWN_CLIENTS = 5
"""Clients who lack a field that are named: the first ones by their ids."""
MAX_REACH_AGE = 30.0
"""Seconds for which a reach is kept, for pages that are shown again."""
MAX_KEPT_REACHES = 100
"""Reaches that are kept at most: those that were read last."""


class PartsCount(msgspec.Struct, frozen=True):
    """How many clients get the text in so many parts."""

    parts: int
    clients: int


class TextReach(msgspec.Struct, frozen=True, kw_only=True):
    """How many clients of an audience get a text with placeholders, and in how many parts.

    Clients who have opted out of the mailing are not counted. The numbers are estimates if not all
    clients were read.
    """

    clients: int
    """Clients of the audience."""
    read_clients: int
    """Clients whose fields were read."""
    by_parts: tuple[PartsCount, ...]
    """The clients who get the text, by parts, the fewest first."""
    in_unicode: int
    """Those of them whose text needs Unicode, which has less room in a part."""
    missing: int
    """Clients who lack a field that has no default."""
    too_long: int
    """Clients for whom the text has too many characters."""
    missing_ids: tuple[int, ...]
    """Ids of some clients who lack a field."""
    missing_fields: tuple[str, ...]
    """The fields that clients lack, the one that most of them lack first."""

    @property
    def is_estimate(self) -> bool:
        """Whether the numbers are estimates."""
        return self.read_clients < self.clients

    @property
    def unreached(self) -> int:
        """The clients who do not get the text, because of their fields."""
        return self.missing + self.too_long

    @property
    def average_parts(self) -> float:
        """The parts of a message, on average; those who do not get it count as 0."""
        return self.total_parts / max(1, self.clients)

    @property
    def total_parts(self) -> int:
        """The parts of all messages together."""
        return sum(row.parts * row.clients for row in self.by_parts)


class KeptReach(NamedTuple):
    """A reach that is kept for pages that are shown again."""

    read_at: float
    """When it was read, on the clock `elapsed`."""
    reach: TextReach


async def read_text_reach(
    engine: AsyncEngine,
    template: TextTemplate,
    client_filter: ClientFilter,
    purpose: Purpose,
) -> TextReach:
    """Return the reach of a text with placeholders now. It is kept for `recent_text_reach`."""
    opted_out = excluded_opt_outs(purpose)
    async with engine.connect() as connection:
        sample = await read_fields(connection, client_filter, opted_out=opted_out)
    reach = await run_in_slices(count_reach(template, sample))
    kept, key = kept_reaches(engine), _key(template, client_filter, purpose)
    kept.pop(key, None)
    kept[key] = KeptReach(elapsed(), reach)
    if len(kept) > MAX_KEPT_REACHES:
        del kept[next(iter(kept))]  # the one that was read first
    return reach


async def recent_text_reach(
    engine: AsyncEngine,
    template: TextTemplate,
    client_filter: ClientFilter,
    purpose: Purpose,
) -> TextReach:
    """Return the reach of a text with placeholders, at most `MAX_REACH_AGE` seconds old.

    It is for what is shown again and again. A question before sending reads it anew.
    """
    key = _key(template, client_filter, purpose)
    if (kept := kept_reaches(engine).get(key)) and elapsed() - kept.read_at < MAX_REACH_AGE:
        return kept.reach
    return await read_text_reach(engine, template, client_filter, purpose)


_KEPT: WeakKeyDictionary[AsyncEngine, dict[bytes, KeptReach]] = WeakKeyDictionary()


def kept_reaches(engine: AsyncEngine) -> dict[bytes, KeptReach]:
    """Return the reaches that were read last from a database, in this order, by `_key`."""
    return _KEPT.setdefault(engine, {})


def _key(template: TextTemplate, client_filter: ClientFilter, purpose: Purpose) -> bytes:
    """Return what a reach depends on, besides the clients."""
    return msgspec.json.encode((template, client_filter, purpose))


def count_reach(template: TextTemplate, sample: FieldSample) -> Generator[None, None, TextReach]:
    """Return the reach of a text for a sample of clients. Yields after each step."""
    by_parts, missing_fields = Counter[int](), Counter[str]()
    missing_ids, too_long, in_unicode = list[int](), 0, 0
    decode = msgspec.json.Decoder(dict[str, str]).decode
    for number, (client_id, fields) in enumerate(sample.rows):
        if number % 10 == 0:
            yield
        text = render(template, decode(fields))
        if isinstance(text, MissingField):
            missing_fields[text.field] += 1
            missing_ids.append(client_id)
        elif len(text) > MAX_CHARACTERS:
            too_long += 1
        else:
            size = count_parts(text)
            by_parts[size.parts] += 1
            in_unicode += size.forced_by is not None
    factor = sample.audience_size / max(1, len(sample.rows))

    def of_all(clients: int) -> int:
        """Return the number in the audience for one in the sample; not 0 unless that is 0."""
        return max(min(1, clients), round(clients * factor))

    return TextReach(
        clients=sample.audience_size,
        read_clients=len(sample.rows),
        by_parts=tuple(PartsCount(parts, of_all(by_parts[parts])) for parts in sorted(by_parts)),
        in_unicode=of_all(in_unicode),
        missing=of_all(missing_fields.total()),
        too_long=of_all(too_long),
        missing_ids=tuple(sorted(missing_ids)[:MAX_SHOWN_CLIENTS]),
        missing_fields=tuple(name for name, _ in missing_fields.most_common()),
    )
