"""SQL that finds mailings by the words in their texts, newest first.

An index on words alone would return all mailings with a frequent word at once. So mailings are
searched in blocks of 1,000 ids, the newest block first, until a page is full. The indexed function
`mailing_words` puts the number of the block, the id divided by 1,000, before each word. A rare word
costs one index lookup for each block.

The database's locale defines which characters are letters, and their lower case. With the locale
`C`, only ASCII letters are recognized.
"""

import re

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from mailer.db.paging import MAX_BIGINT, Cursor
from mailer.statuses import MailingStatus
from mailer.text import clean_label

MAX_COUNTED_MAILINGS = 1_000
"""Mailings that a search counts at most. A count of one more means that there are more."""
MAX_SEARCH_LENGTH = 200
"""Characters of a search text that are used; the rest is ignored."""
ID_PATTERN = re.compile(r"\s*#?([0-9]{1,18})\s*", re.ASCII)
"""A search for the id of a mailing, such as `17` or `#17`."""

# - `search_word`: the words of the search, at most 50.
# - `block`: the numbers of the blocks to search, in the direction of the page: towards older ids
#   (`:step` -1), or towards newer ids (`:step` 1).
# - `by_words`: for each block, a full-text query (tsquery), and the mailings that match it. The
#   query of "big sale" in block 12 is `'12 big':* & '12 sale':*`; a status adds `& '12 =running'`.
#   Words have only letters and digits, so they contain no operators of a tsquery. Without words the
#   query is null and finds nothing. Other conditions come after OFFSET 0, so that the planner
#   cannot choose another index.
# - The last SELECT finds the mailing whose id is the search.
FIND = text("""
    WITH search_word AS MATERIALIZED (
        SELECT word FROM unnest(words_of(:search)) AS word LIMIT 50
    ), block AS (
        SELECT generate_series(
            CASE WHEN :step < 0 THEN least(:before, newest) ELSE least(:after, newest) END / 1000,
            CASE WHEN :step < 0 THEN greatest(:after, oldest) ELSE newest END / 1000, :step) AS n
        FROM (SELECT min(id) AS oldest, max(id) AS newest FROM mailing) AS ends
        WHERE newest IS NOT NULL
    ), by_words AS (
        SELECT mailing.id FROM block CROSS JOIN LATERAL (
            SELECT (string_agg('''' || n || ' ' || word || ''':*', ' & ')
                || coalesce(' & ''' || n || ' =' || (:status)::text || '''', ''))::tsquery AS words
            FROM search_word
        ) AS query CROSS JOIN LATERAL (
            SELECT id FROM (
                SELECT id, deleted_at FROM mailing
                WHERE mailing_words(id, text::text, status::text) @@ words OFFSET 0) AS any_state
            WHERE deleted_at IS NULL AND id > :after AND id < :before
            ORDER BY id * :step LIMIT :limit
        ) AS mailing
        LIMIT :limit
    )
    SELECT id FROM by_words
    UNION
    SELECT id FROM mailing WHERE id = :number AND deleted_at IS NULL
        AND id > :after AND id < :before AND status = coalesce(:status, status)
    ORDER BY 1""")


async def find(
    connection: AsyncConnection, search: str, status: MailingStatus | None, position: Cursor
) -> list[int]:
    """Return the ids of the mailings of a page, ascending, and one more id if there are more.

    A mailing matches when each word of the search is the beginning of a word in its text,
    regardless of case. A number, with or without `#`, also finds the mailing with that id.
    """
    search = clean_label(search)
    id_match = ID_PATTERN.fullmatch(search)
    values = {
        "search": search[:MAX_SEARCH_LENGTH],
        "status": status,
        "number": int(id_match[1]) if id_match else None,
        "after": position.after or 0,
        "before": position.before or MAX_BIGINT,
        "step": -1 if position.after is None else 1,
        "limit": position.limit + 1,
    }
    return list((await connection.scalars(FIND, values)).all())


async def count(connection: AsyncConnection, search: str, status: MailingStatus | None) -> int:
    """Return how many mailings match, or `MAX_COUNTED_MAILINGS` + 1 when there are more."""
    ids = await find(connection, search, status, Cursor(limit=MAX_COUNTED_MAILINGS))
    return min(len(ids), MAX_COUNTED_MAILINGS + 1)
