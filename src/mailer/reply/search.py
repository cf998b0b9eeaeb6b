"""SQL that finds replies by the words in their texts or by their phones, newest first.

Replies are searched in blocks of 1,000 ids, as mailings are; `mailer.mailing.search` says why.
"""

import msgspec
from sqlalchemy import select, text
from sqlalchemy.ext.asyncio import AsyncConnection

from mailer.client.phone import normalize_phone_search
from mailer.client.phone_search import is_phone_search, phone_matches
from mailer.db.paging import MAX_BIGINT, Cursor
from mailer.db.tables.reply import reply
from mailer.text import clean_label

MAX_COUNTED_FOUND = 1_000
"""Replies that a search counts at most. A count of one more means that there are more."""
MAX_WORDS_LENGTH = 200
"""Characters of a search text that are used; the rest is ignored."""

# The parts are those of the same statement for mailings.
FIND_REPLIES = text("""
    WITH search_word AS MATERIALIZED (
        SELECT word FROM unnest(words_of(:search)) AS word LIMIT 50
    ), block AS (
        SELECT generate_series(
            CASE WHEN :step < 0 THEN least(:before, newest) ELSE least(:after, newest) END / 1000,
            CASE WHEN :step < 0 THEN greatest(:after, oldest) ELSE newest END / 1000, :step) AS n
        FROM (SELECT min(id) AS oldest, max(id) AS newest FROM reply) AS ends
        WHERE newest IS NOT NULL
    )
    SELECT id FROM (
        SELECT reply.id FROM block CROSS JOIN LATERAL (
            SELECT string_agg('''' || n || ' ' || word || ''':*', ' & ')::tsquery AS words
            FROM search_word
        ) AS query CROSS JOIN LATERAL (
            SELECT id FROM (
                SELECT id, client_id, mailing_id, read_at FROM reply
                WHERE reply_words(id, phone::text, text::text) @@ words OFFSET 0) AS of_block
            WHERE id > :after AND id < :before
                AND client_id IS NOT DISTINCT FROM coalesce((:client_id)::bigint, client_id)
                AND mailing_id IS NOT DISTINCT FROM coalesce((:mailing_id)::bigint, mailing_id)
                AND (read_at IS NULL) = coalesce((:unread)::boolean, read_at IS NULL)
            ORDER BY id * :step LIMIT :limit
        ) AS reply
        LIMIT :limit) AS found
    ORDER BY id""")


class SearchFilters(msgspec.Struct, frozen=True, kw_only=True):
    """What the replies that are found must have, too; None for anything."""

    client_id: int | None = None
    mailing_id: int | None = None
    unread: bool | None = None


async def find(
    connection: AsyncConnection, search: str, filters: SearchFilters, position: Cursor
) -> list[int]:
    """Return the ids of the replies of a page, ascending, and one more id if there are more.

    A reply matches when each word of the search is the beginning of a word in its text or of its
    phone, regardless of case. A search for the last digits of a phone also finds its replies.
    """
    values = msgspec.structs.asdict(filters) | {
        "search": clean_label(search)[:MAX_WORDS_LENGTH],
        "after": position.after or 0,
        "before": position.before or MAX_BIGINT,
        "step": -1 if position.after is None else 1,
        "limit": position.limit + 1,
    }
    ids = set((await connection.scalars(FIND_REPLIES, values)).all())
    searched = normalize_phone_search(search)
    if is_phone_search(searched):
        ids |= await _find_by_phone(connection, searched, filters, position)
    count = position.limit + 1
    return sorted(ids)[-count:] if position.after is None else sorted(ids)[:count]


async def _find_by_phone(
    connection: AsyncConnection, searched: str, filters: SearchFilters, position: Cursor
) -> set[int]:
    """Return the ids of the first replies of a page, and one more, whose phones match a search."""
    # OFFSET keeps the planner from reading all replies in the order of their ids instead
    of_phones = (
        select(reply).where(phone_matches(reply.c.phone, searched), reply.c.phone.is_not(None))
    ).offset(0)
    found = of_phones.subquery().c
    rows = select(found.id).where(
        found.id > (position.after or 0), found.id < (position.before or MAX_BIGINT)
    )
    if filters.client_id is not None:
        rows = rows.where(found.client_id == filters.client_id)
    if filters.mailing_id is not None:
        rows = rows.where(found.mailing_id == filters.mailing_id)
    if filters.unread is not None:
        rows = rows.where(found.read_at.is_(None) == filters.unread)
    order = found.id.desc() if position.after is None else found.id.asc()
    return set((await connection.scalars(rows.order_by(order).limit(position.limit + 1))).all())


async def count(connection: AsyncConnection, search: str, filters: SearchFilters) -> int:
    """Return how many replies match, or `MAX_COUNTED_FOUND` + 1 when there are more."""
    ids = await find(connection, search, filters, Cursor(limit=MAX_COUNTED_FOUND))
    return min(len(ids), MAX_COUNTED_FOUND + 1)
