"""Read the versions of the text of a mailing, with the messages that were sent with each."""

from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncConnection

from mailer.db.tables.mailing import mailing_text
from mailer.mailing.model import MAX_TEXT_VERSIONS, TextVersion
from mailer.message import counters
from mailer.message.counters import Counters


async def list_versions(
    connection: AsyncConnection, mailing_id: int, limit: int = MAX_TEXT_VERSIONS
) -> list[TextVersion]:
    """Return up to `limit` versions of the text of a mailing, the newest first.

    Their counts agree if the transaction is a snapshot.
    """
    columns = (mailing_text.c.version, mailing_text.c.text, mailing_text.c.created_at)
    statement = select(*columns).where(mailing_text.c.mailing_id == mailing_id)
    newest = statement.order_by(mailing_text.c.version.desc()).limit(limit)
    rows = await connection.execute(newest)
    counts = await counters.get_by_text_version(connection, mailing_id)
    return [TextVersion(*row, counts.get(row.version, Counters()).outcomes) for row in rows]
