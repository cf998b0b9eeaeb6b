"""SQL that finds mailings by the words in their texts, newest first.

`mailing_words`, which the index holds, names each word with the thousand of ids that its mailing is
of: a page reads the newest thousands until it is full, and what few mailings have costs one look
into the index for every thousand mailings there are. What is a letter, and its lower case, says the
database's locale: with `C` the letters of ASCII alone are known.
"""

import re

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from mailer.db.paging import Position
from mailer.mailing.model import Status
from mailer.text import clean_label

MOST_COUNTED = 1_000
"""Mailings that are counted; one more stands for "more than that"."""
LONGEST = 200
"""Characters of a search that are looked at."""
BEYOND = 2**63 - 1
"""No id is as large."""
NUMBER = re.compile(r"\s*#?([0-9]{1,18})\s*", re.ASCII)

# A word has nothing but letters and digits, and so nothing that means anything to a tsquery; where
# there is none, the query is null and finds nothing. The words are named as `mailing_words` does.
# What else is asked stands behind OFFSET 0, so that no other index looks like the way to find it.
FOUND = text("""
    WITH typed AS MATERIALIZED (
        SELECT word FROM unnest(words_of(:search)) AS word LIMIT 50
    ), thousand AS (
        SELECT generate_series(
            CASE WHEN :step < 0 THEN least(:before, newest) ELSE least(:after, newest) END / 1000,
            CASE WHEN :step < 0 THEN greatest(:after, oldest) ELSE newest END / 1000, :step) AS n
        FROM (SELECT min(id) AS oldest, max(id) AS newest FROM mailing) AS ends
        WHERE newest IS NOT NULL
    ), worded AS (
        SELECT mailing.id FROM thousand CROSS JOIN LATERAL (
            SELECT (string_agg('''' || n || ' ' || word || ''':*', ' & ')
                || coalesce(' & ''' || n || ' =' || (:status)::text || '''', ''))::tsquery AS words
            FROM typed
        ) AS wanted CROSS JOIN LATERAL (
            SELECT id FROM (
                SELECT id, deleted_at FROM mailing
                WHERE mailing_words(id, text::text, status::text) @@ words OFFSET 0) AS any_state
            WHERE deleted_at IS NULL AND id > :after AND id < :before
            ORDER BY id * :step LIMIT :limit
        ) AS mailing
        LIMIT :limit
    )
    SELECT id FROM worded
    UNION
    SELECT id FROM mailing WHERE id = :number AND deleted_at IS NULL
        AND id > :after AND id < :before AND status = coalesce(:status, status)
    ORDER BY 1""")


async def find(
    connection: AsyncConnection, search: str, status: Status | None, position: Position
) -> list[int]:
    """Return the mailings of a page, and one more if there is more, in ascending order.

    A mailing is found when its text has a word for each that was typed, which begins with it;
    upper and lower case are alike. A number, with or without `#`, finds the mailing of that id too.
    """
    search = clean_label(search)
    number = NUMBER.fullmatch(search)
    values = {
        "search": search[:LONGEST],
        "status": status,
        "number": int(number[1]) if number else None,
        "after": position.after or 0,
        "before": position.before or BEYOND,
        "step": -1 if position.after is None else 1,
        "limit": position.limit + 1,
    }
    found = (await connection.scalars(FOUND, values)).all()
    return list(found)


async def count(connection: AsyncConnection, search: str, status: Status | None) -> int:
    """Return how many mailings are found, `MOST_COUNTED` + 1 when they are more than that."""
    found = await find(connection, search, status, Position(MOST_COUNTED))
    return min(len(found), MOST_COUNTED + 1)
