"""SQL that reads replies and answers, and marks replies. The caller owns the transaction."""

from collections.abc import Mapping
from datetime import datetime
from typing import Any

import msgspec
from sqlalchemy import BigInteger, Row, Select, func, literal_column, select, text
from sqlalchemy.ext.asyncio import AsyncConnection

from mailer.db.paging import Cursor, RowPage, fetch_page
from mailer.db.tables.reply import INBOX_POSITION, answer, reply
from mailer.reply import search
from mailer.reply.model import AnswerDetail, ClientReply, ReplyDetail, ReplyNotFoundError

MAX_COUNTED_REPLIES = 10_000
"""Replies that a list counts exactly; if there are more, its count is one more than this."""
MAX_COUNTED_UNREAD = 100
"""Unread replies that are counted at most."""
MAX_ANSWERS = 100
"""Answers that are shown with a reply: the newest."""

POSITION: Any = literal_column(INBOX_POSITION, BigInteger)
"""Sorts the inbox: unread replies first, each the newest first."""
COLUMNS = [reply.c[name] for name in ClientReply.__struct_fields__]
ANSWER_COLUMNS = [answer.c[name] for name in AnswerDetail.__struct_fields__]


def to_reply(row: Row[Any]) -> ClientReply:
    """Return the reply in a row."""
    return ClientReply(**{name: getattr(row, name) for name in ClientReply.__struct_fields__})


async def page(
    connection: AsyncConnection, cursor: Cursor, filters: Mapping[str, Any], *, inbox: bool = False
) -> RowPage:
    """Return a page of the replies that match all filters, newest first.

    `filters` are values of columns, and `unread`, a bool. With `inbox`, unread replies come first,
    and the positions of the cursor are those of the column `position` instead of ids.
    """
    conditions = dict(filters)
    is_unread = conditions.pop("unread", None)
    rows = select(*COLUMNS, POSITION.label("position")).filter_by(**conditions)
    if is_unread is not None:
        rows = rows.where(reply.c.read_at.is_(None) if is_unread else reply.c.read_at.is_not(None))
    counted = rows.with_only_columns(reply.c.id).limit(MAX_COUNTED_REPLIES + 1).subquery()
    count = (await connection.execute(select(func.count()).select_from(counted))).scalar_one()
    return await fetch_page(
        connection, rows, POSITION if inbox else reply.c.id, cursor, count=count
    )


async def search_page(
    connection: AsyncConnection, cursor: Cursor, words: str, filters: Mapping[str, Any]
) -> RowPage:
    """Return a page of the replies that contain all words, newest first; see `search`.

    `filters` are fields of `SearchFilters`.
    """
    conditions = search.SearchFilters(**filters)
    ids = await search.find(connection, words, conditions, cursor)
    is_newer_page = cursor.after is not None
    shown = ids[: cursor.limit] if is_newer_page else ids[::-1][: cursor.limit]
    found: Select[Any] = select(*COLUMNS, reply.c.id.label("position"))
    found = found.where(reply.c.id.in_(shown)).order_by(reply.c.id.desc())
    rows: list[Row[Any]] = list(await connection.execute(found))
    has_more = len(ids) > cursor.limit
    return RowPage(
        rows,
        await search.count(connection, words, conditions),
        has_older=bool(rows) if is_newer_page else has_more,
        has_newer=has_more if is_newer_page else cursor.before is not None and bool(rows),
    )


async def list_recent(connection: AsyncConnection, limit: int, **filters: int) -> list[ClientReply]:
    """Return the newest replies to a mailing (`mailing_id`) or of a client (`client_id`)."""
    rows = select(*COLUMNS).filter_by(**filters).order_by(reply.c.id.desc()).limit(limit)
    return [to_reply(row) for row in await connection.execute(rows)]


COUNT_UNREAD = text("""
    SELECT count(*) FROM (SELECT FROM reply WHERE read_at IS NULL LIMIT :limit) AS unread""")


async def count_unread(connection: AsyncConnection) -> int:
    """Return the number of unread replies, at most `MAX_COUNTED_UNREAD`."""
    limit = {"limit": MAX_COUNTED_UNREAD}
    return int((await connection.execute(COUNT_UNREAD, limit)).scalar_one())


async def get(connection: AsyncConnection, reply_id: int, *, lock: bool = False) -> ClientReply:
    """Return a reply; raises `ReplyNotFoundError`.

    `lock` keeps other transactions from erasing it until this one ends.
    """
    statement = select(*COLUMNS).where(reply.c.id == reply_id)
    if lock:
        statement = statement.with_for_update()
    row = (await connection.execute(statement)).one_or_none()
    if row is None:
        raise ReplyNotFoundError
    return to_reply(row)


async def get_detail(connection: AsyncConnection, reply_id: int) -> ReplyDetail:
    """Return a reply with its answers; raises `ReplyNotFoundError`."""
    found = await get(connection, reply_id)
    newest = select(*ANSWER_COLUMNS).where(answer.c.reply_id == reply_id)
    newest = newest.order_by(answer.c.id.desc()).limit(MAX_ANSWERS)
    answers = [AnswerDetail(**row) for row in (await connection.execute(newest)).mappings()]
    return ReplyDetail(**msgspec.structs.asdict(found), answers=answers[::-1])


MARK_AS_READ = text("""
    UPDATE reply SET read_at = coalesce(read_at, now()) WHERE id = :id RETURNING read_at""")
MARK_AS_UNREAD = text("UPDATE reply SET read_at = NULL WHERE id = :id AND text IS NOT NULL")


async def mark_as_read(connection: AsyncConnection, reply_id: int) -> datetime:
    """Mark a reply as read, and return since when it is; raises `ReplyNotFoundError`."""
    read_at: datetime | None = await connection.scalar(MARK_AS_READ, {"id": reply_id})
    if read_at is None:
        raise ReplyNotFoundError
    return read_at


async def mark_as_unread(connection: AsyncConnection, reply_id: int) -> None:
    """Mark a reply as unread; raises `ReplyNotFoundError` if there is none, or it is erased."""
    if (await connection.execute(MARK_AS_UNREAD, {"id": reply_id})).rowcount == 0:
        raise ReplyNotFoundError
