"""How a mailing overlaps with others: clients who got messages lately, and shared audiences.

Only marketing mailings count. The numbers of clients who got messages are exact for audiences of up
to `MAX_EXACT` clients. For larger ones they are estimates from a sample.
"""

import math
from collections.abc import Sequence
from datetime import datetime, timedelta

import msgspec
from sqlalchemy import (
    FromClause,
    Select,
    and_,
    bindparam,
    func,
    literal_column,
    select,
    text,
    true,
)
from sqlalchemy.ext.asyncio import AsyncConnection

from mailer.client.lists.conditions import clients_on_any
from mailer.client.lists.sampling import read_share
from mailer.contact_cap import ContactCap
from mailer.db.tables.client import client
from mailer.db.tables.mailing import mailing
from mailer.db.tables.message import HAS_OUTCOME, message
from mailer.mailing import audience
from mailer.mailing.audience import field_condition, filter_condition
from mailer.mailing.client_filter import ClientFilter, list_name_keys
from mailer.mailing.model import FIRST_MOMENT, LAST_MOMENT
from mailer.mailing.shared_counts import (
    FilterPair,
    count_by_lists,
    count_by_segments,
    has_lists,
)

MAX_EXACT = 10_000
"""Clients of an audience up to which the numbers are exact."""
SAMPLE_SIZE = 2_000
"""Clients that a sample should have."""
MIN_SAMPLED_CLIENTS = 200
"""Clients below which a sample of the directory says too little."""
MIN_PAGES, MAX_PAGES = 100, 2_000
"""Pages of the table of clients that a sample reads, at least and at most."""
MAX_COMPARED_CLIENTS = 20_000
"""Clients on lists that are read to compare audiences, about and at most."""
MAX_LISTED_SAMPLE = 50_000
"""Clients on lists that are read for a sample of those who match, about and at most."""
MAX_COMPARED = 20
"""Other mailings whose audience is compared: those that start first."""
DAY = timedelta(days=1)
REACHED = ("sent", "delivered", "unknown")
"""Statuses of messages that clients have got, or may have. Those being sent are left out."""


class SharedAudience(msgspec.Struct, frozen=True):
    """Another mailing, scheduled or running, and the clients whom it shares with this one."""

    id: int
    name: str | None
    text: str
    datetime_start: datetime
    clients: int
    is_estimate: bool = False
    """Whether `clients` comes from a sample."""


class AudienceOverlap(msgspec.Struct, frozen=True, kw_only=True):
    """How the audience of a marketing mailing overlaps with those of others."""

    clients: int
    """Clients of the audience, without those who have opted out."""
    contacted: int
    """Those of them who got a marketing message in the last 24 hours, or may have."""
    at_cap: int | None
    """Those of them who have reached the contact cap now; None without a cap."""
    is_estimate: bool
    """Whether `contacted` and `at_cap` come from a sample."""
    shared: tuple[SharedAudience, ...] = ()
    """Other mailings that share clients, the largest number first."""


# The index of messages by client has no times. But messages that were sent since a moment have ids
# from that of the first message of the mailings that were active since then.
FIRST_MESSAGE_SINCE = text("""
    SELECT min(first.id)
    FROM mailing CROSS JOIN unnest('{sent,delivered,unknown}'::text[]) AS reached (status)
    CROSS JOIN LATERAL (
        SELECT id FROM message WHERE mailing_id = mailing.id AND message.status = reached.status
        ORDER BY id LIMIT 1) AS first
    WHERE purpose = 'marketing' AND deleted_at IS NULL
        AND tstzrange(datetime_start, datetime_end) && tstzrange(:since, now(), '[]')""")
COUNT_PAGES = text("""
    SELECT pg_relation_size('client') / current_setting('block_size')::bigint""")


async def read_overlap(
    connection: AsyncConnection,
    client_filter: ClientFilter,
    cap: ContactCap | None,
    *,
    mailing_id: int | None = None,
    period: tuple[datetime | None, datetime | None] = (None, None),
) -> AudienceOverlap:
    """Return how the audience of a filter overlaps with other marketing mailings now.

    `mailing_id` is the mailing itself, if it exists. Only other mailings whose time overlaps with
    `period`, from start to end, are compared; None for an end that is not known.
    """
    clients = await audience.count(connection, client_filter, opted_out=False)
    shared = await find_shared(connection, client_filter, mailing_id=mailing_id, period=period)
    is_estimate = clients > MAX_EXACT
    contacted = at_cap = 0
    since = func.now() - max(DAY, DAY if cap is None else cap.span)
    since_at = (await connection.execute(select(since))).scalar_one()
    first_id = (await connection.execute(FIRST_MESSAGE_SINCE, {"since": since_at})).scalar_one()
    if clients and first_id is not None:
        chosen = await _choose(connection, client_filter, clients)
        counts = _count_contacts(chosen, cap)
        values = {"since": since_at, "first_id": first_id}
        examined, contacted, at_cap = (await connection.execute(counts, values)).one()
        if is_estimate:
            contacted, at_cap = (_scale(n, examined, clients) for n in (contacted, at_cap))
    return AudienceOverlap(
        clients=clients,
        contacted=contacted,
        at_cap=None if cap is None else at_cap,
        is_estimate=is_estimate,
        shared=shared,
    )


def _scale(number: int, examined: int, clients: int) -> int:
    """Return the estimate for all clients, in two significant digits, of a number in a sample."""
    estimate = number * clients / max(1, examined)
    if estimate < 1:
        return 0
    digits = 1 - math.floor(math.log10(estimate))
    return min(clients, round(round(estimate, digits)))


async def _choose(
    connection: AsyncConnection, client_filter: ClientFilter, clients: int
) -> Select[int]:
    """Return a select of the ids of all clients of an audience, or of a sample of them."""
    if (name_keys := list_name_keys(client_filter)) is not None:
        return await _choose_on_lists(connection, client_filter, name_keys, clients)
    everybody = _reached_by(client_filter)
    if clients <= MAX_EXACT:
        return everybody
    pages = (await connection.execute(COUNT_PAGES)).scalar_one()
    wanted = SAMPLE_SIZE * pages / clients
    percent = min(100.0, 100 * min(MAX_PAGES, max(MIN_PAGES, wanted)) / max(1, pages))
    # the same pages each time, so that a preview does not change while a user types
    some_pages = client.tablesample(func.system(percent), seed=literal_column("0"))
    sample = _reached_by(client_filter, some_pages).limit(MAX_EXACT)
    found = await connection.scalar(select(func.count()).select_from(sample.subquery()))
    # a small part of a large directory may be together in a few pages, as one import wrote it
    return sample if (found or 0) >= MIN_SAMPLED_CLIENTS else everybody.limit(MAX_EXACT)


async def _choose_on_lists(
    connection: AsyncConnection,
    client_filter: ClientFilter,
    name_keys: Sequence[str],
    clients: int,
) -> Select[int]:
    """Do the same as `_choose` for a filter with lists."""
    share = 1.0
    if clients > MAX_EXACT:
        share = await read_share(
            connection, name_keys, wanted=SAMPLE_SIZE / clients, max_read=MAX_LISTED_SAMPLE
        )
    listed = clients_on_any(name_keys, share)
    conditions = (listed.c.opted_out_at.is_(None), field_condition(client_filter, listed))
    return select(listed.c.id).where(*conditions)


def _reached_by(client_filter: ClientFilter, clients: FromClause = client) -> Select[int]:
    """Return a select of the ids of the clients whom a filter matches, without opt-outs."""
    return select(clients.c.id).where(
        clients.c.deleted_at.is_(None),
        clients.c.opted_out_at.is_(None),
        filter_condition(client_filter, clients),
    )


def _count_contacts(chosen: Select[int], cap: ContactCap | None) -> Select[int, int, int]:
    """Return a select of the number of the chosen clients, of those contacted, and at the cap."""
    clients = chosen.cte("chosen").prefix_with("MATERIALIZED")
    span = DAY if cap is None else cap.span
    contact = (
        select(
            func.count().filter(message.c.sent_at > func.now() - DAY).label("last_day"),
            func.count().filter(message.c.sent_at > func.now() - span).label("in_span"),
        )
        .select_from(message.join(mailing, mailing.c.id == message.c.mailing_id))
        .where(
            message.c.client_id == clients.c.id,
            message.c.status.in_([literal_column(f"'{status}'") for status in REACHED]),
            text(HAS_OUTCOME.replace("status", "message.status")),
            message.c.id >= bindparam("first_id"),
            message.c.sent_at > bindparam("since"),
            mailing.c.purpose == "marketing",
        )
        .lateral("contact")
    )
    limit = 1 if cap is None else cap.messages
    return select(
        func.count(),
        func.count().filter(contact.c.last_day > 0),
        func.count().filter(contact.c.in_span >= limit),
    ).select_from(clients.join(contact, true()))


async def find_shared(
    connection: AsyncConnection,
    client_filter: ClientFilter,
    *,
    mailing_id: int | None = None,
    period: tuple[datetime | None, datetime | None] = (None, None),
) -> tuple[SharedAudience, ...]:
    """Return the scheduled and running marketing mailings that share clients with a filter.

    At most `MAX_COMPARED` mailings are compared, those that start first; see `read_overlap` for the
    parameters. The numbers are exact, unless lists with more than `MAX_COMPARED_CLIENTS` clients in
    all must be read; then a mailing that shares a few clients may be missed.
    """
    start, end = period
    columns = (mailing.c.id, mailing.c.name, mailing.c.text, mailing.c.datetime_start)
    others = await connection.execute(
        select(*columns, mailing.c.client_filter)
        .where(
            and_(~mailing.c.is_closed, mailing.c.deleted_at.is_(None)),
            mailing.c.status.in_(["scheduled", "running", "paused"]),
            mailing.c.purpose == "marketing",
            mailing.c.id != (mailing_id or 0),
            mailing.c.datetime_end > (start or FIRST_MOMENT),
            mailing.c.datetime_start < (end or LAST_MOMENT),
        )
        .order_by(mailing.c.datetime_start, mailing.c.id)
        .limit(MAX_COMPARED)
    )
    known = [
        (row, pair)
        for row in others
        for pair in _pair_with_stored(client_filter, row.client_filter)
    ]
    with_lists = [(row, pair) for row, pair in known if has_lists(pair)]
    without_lists = [(row, pair) for row, pair in known if not has_lists(pair)]
    counts = [
        *await count_by_lists(
            connection,
            [pair for _, pair in with_lists],
            max_read=MAX_COMPARED_CLIENTS,
            opted_out=False,
        ),
        *await count_by_segments(connection, [pair for _, pair in without_lists], opted_out=False),
    ]
    shared = [
        SharedAudience(row.id, row.name, row.text, row.datetime_start, *count)
        for (row, _), count in zip([*with_lists, *without_lists], counts, strict=True)
        if count.clients
    ]
    return tuple(sorted(shared, key=lambda other: (-other.clients, other.id)))


def _pair_with_stored(client_filter: ClientFilter, stored_filter: object) -> list[FilterPair]:
    """Return the pair of two filters.

    There is none if the stored filter cannot be read, as after a change by hand.
    """
    try:
        return [(client_filter, msgspec.convert(stored_filter, ClientFilter))]
    except msgspec.ValidationError:
        return []
