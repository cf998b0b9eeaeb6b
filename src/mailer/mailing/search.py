"""SQL that finds mailings by the words of their texts, names and labels, newest first.

An index on words alone would return all mailings with a frequent word at once. So mailings are
searched in blocks of 1,000 ids, the newest block first, until a page is full. The indexed function
`mailing_words` puts the number of the block, the id divided by 1,000, before each word, and also
before the status and each label. A rare word costs one index lookup for each block.

The database's locale defines which characters are letters, and their lower case. With the locale
`C`, only ASCII letters are recognized.
"""

import re
from collections.abc import Sequence
from datetime import datetime

import msgspec
from sqlalchemy import ARRAY, DateTime, String, bindparam, text
from sqlalchemy.ext.asyncio import AsyncConnection

from mailer.db.paging import MAX_BIGINT, Cursor
from mailer.mailing.model import FIRST_MOMENT, LAST_MOMENT
from mailer.statuses import MailingStatus
from mailer.text import clean_label, fold_label

MAX_SEARCH_LENGTH = 200
"""Characters of a search text that are used; the rest is ignored."""
ID_PATTERN = re.compile(r"\s*#?([0-9]{1,18})\s*", re.ASCII)
"""A search for the id of a mailing, such as `17` or `#17`."""


class MailingFilter(msgspec.Struct, frozen=True, kw_only=True):
    """Which mailings a list shows: those that meet every condition that is given."""

    search: str | None = None
    """Beginnings of words of the text, the name or the labels, or an id."""
    statuses: Sequence[MailingStatus] = ()
    """The mailing has one of them, each of which is given once; empty: any status."""
    label: str | None = None
    """The mailing has it, regardless of case."""
    ends_after: datetime | None = None
    starts_before: datetime | None = None

    @property
    def has_words(self) -> bool:
        """Whether the index of words finds the mailings: by a search or by a label."""
        return self.search is not None or self.label is not None

    @property
    def has_period(self) -> bool:
        """Whether only mailings are shown whose period overlaps another one."""
        return self.ends_after is not None or self.starts_before is not None


# - `search_word`: the words of the search, at most 50.
# - `block`: the numbers of the blocks to search, in the direction of the page: towards older ids
#   (`:step` -1), or towards newer ids (`:step` 1).
# - `by_words`: for each block, a full-text query (tsquery), and the mailings that match it. The
#   query of "big sale" in block 12 is `'12 big':* & '12 sale':*`; a label adds `& '12 #vip'`, and
#   statuses add `& ('12 =running' | '12 =paused')`. Words have only letters and digits, so they
#   contain no operators of a tsquery; `:label` is escaped. Without words the query of a search is
#   null and finds nothing. Other conditions come after OFFSET 0, so that the planner cannot choose
#   another index.
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
            SELECT '''' || n || ' #' || (:label)::text || '''' AS label,
                (SELECT string_agg('''' || n || ' ' || word || ''':*', ' & ') FROM search_word)
                    AS words,
                (SELECT '(' || string_agg('''' || n || ' =' || status || '''', ' | ') || ')'
                    FROM unnest(:statuses) AS status) AS status
        ) AS term CROSS JOIN LATERAL (
            SELECT (CASE WHEN (:search)::text IS NULL THEN term.label
                    ELSE term.words || coalesce(' & ' || term.label, '') END
                || coalesce(' & ' || term.status, ''))::tsquery AS words
        ) AS query CROSS JOIN LATERAL (
            SELECT id FROM (
                SELECT id, deleted_at, datetime_start, datetime_end FROM mailing
                WHERE mailing_words(id, text::text, status::text, name::text, label_keys::text[])
                    @@ query.words OFFSET 0) AS any_state
            WHERE deleted_at IS NULL AND id > :after AND id < :before
                AND datetime_start < :starts_before AND datetime_end > :ends_after
            ORDER BY id * :step LIMIT :limit
        ) AS mailing
        LIMIT :limit
    )
    SELECT id FROM by_words
    UNION
    SELECT id FROM mailing WHERE id = :number AND deleted_at IS NULL
        AND id > :after AND id < :before
        AND (cardinality(:statuses) = 0 OR status = ANY (:statuses))
        AND ((:label_key)::text IS NULL OR :label_key = ANY (label_keys))
        AND datetime_start < :starts_before AND datetime_end > :ends_after
    ORDER BY 1""").bindparams(
    bindparam("statuses", type_=ARRAY(String)),
    bindparam("label_key", type_=String),
    bindparam("starts_before", type_=DateTime(timezone=True)),
    bindparam("ends_after", type_=DateTime(timezone=True)),
)


async def find(
    connection: AsyncConnection, conditions: MailingFilter, position: Cursor
) -> list[int]:
    """Return the ids of the mailings of a page, ascending, and one more id if there are more.

    A mailing matches when each word of the search is the beginning of a word of its text, its name
    or its labels, regardless of case. A number, with or without `#`, also finds the mailing with
    that id. `conditions` must have a search or a label.
    """
    search = None if conditions.search is None else clean_label(conditions.search)
    id_match = ID_PATTERN.fullmatch(search or "")
    label_key = None if conditions.label is None else fold_label(conditions.label)
    values = {
        "search": None if search is None else search[:MAX_SEARCH_LENGTH],
        "label": None if label_key is None else _escape(label_key),
        "label_key": label_key,
        "statuses": list(conditions.statuses),
        "starts_before": conditions.starts_before or LAST_MOMENT,
        "ends_after": conditions.ends_after or FIRST_MOMENT,
        "number": int(id_match[1]) if id_match else None,
        "after": position.after or 0,
        "before": position.before or MAX_BIGINT,
        "step": -1 if position.after is None else 1,
        "limit": position.limit + 1,
    }
    return list((await connection.scalars(FIND, values)).all())


def _escape(word: str) -> str:
    """Return a word as it is written between the quotes of a tsquery."""
    return word.replace("\\", "\\\\").replace("'", "''")
