"""SQL that finds mailings by the words in their texts, newest first.

The indexed function `mailing_words` prefixes each word with its mailing's id divided by 1,000. A
page searches blocks of 1,000 ids, newest first, until it is full. A rare word therefore costs one
index lookup per 1,000 mailings. The database's locale defines which characters are letters, and
their lower case. With the locale `C`, only ASCII letters are recognized.
"""

import re

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from mailer.db.paging import MAX_BIGINT, Cursor
from mailer.statuses import MailingStatus
from mailer.text import clean_label

MAX_COUNTED_MAILINGS = 1_000
"""Mailings that are counted. A count of one more means "more than that"."""
MAX_SEARCH_LENGTH = 200
"""Characters of a search text that are used."""
ID_PATTERN = re.compile(r"\s*#?([0-9]{1,18})\s*", re.ASCII)

# Words have only letters and digits, so they contain no operators of a tsquery. Without words the
# query is null and finds nothing. The words are prefixed as in `mailing_words`. Other conditions
# come after OFFSET 0, so that the planner cannot choose another index.
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

    A mailing matches when for each word of the search, its text has a word that starts with it,
    regardless of case. A number, with or without `#`, also finds the mailing with that id.
    """
    search = clean_label(search)
    number = ID_PATTERN.fullmatch(search)
    values = {
        "search": search[:MAX_SEARCH_LENGTH],
        "status": status,
        "number": int(number[1]) if number else None,
        "after": position.after or 0,
        "before": position.before or MAX_BIGINT,
        "step": -1 if position.after is None else 1,
        "limit": position.limit + 1,
    }
    return list((await connection.scalars(FIND, values)).all())


async def count(connection: AsyncConnection, search: str, status: MailingStatus | None) -> int:
    """Return how many mailings match, or `MAX_COUNTED_MAILINGS` + 1 when there are more."""
    ids = await find(connection, search, status, Cursor(MAX_COUNTED_MAILINGS))
    return min(len(ids), MAX_COUNTED_MAILINGS + 1)
