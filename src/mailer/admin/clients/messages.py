"""Messages on the page of a client: everything that was sent to this client, in all mailings."""

from typing import Any

from sqlalchemy.ext.asyncio import AsyncConnection

from mailer.admin.form import Form
from mailer.admin.listing import page_links
from mailer.message import across_mailings
from mailer.message.reading import read_texts
from mailer.web.query import Limit, PageQuery


class ClientMessagesQuery(PageQuery, frozen=True, kw_only=True):
    """The position in the list of a client's messages."""

    limit: Limit = 20


NEWEST_MESSAGES = ClientMessagesQuery()


async def read_messages(
    connection: AsyncConnection, client_id: int, query: ClientMessagesQuery = NEWEST_MESSAGES
) -> dict[str, Any]:
    """Return the template variables of a page of the client's messages, with their texts."""
    page = await across_mailings.page_of_client(connection, query.position, client_id)
    has_default_limit = query.limit == NEWEST_MESSAGES.limit
    link_parameters = {} if has_default_limit else {"limit": str(query.limit)}
    return {
        "messages": page.rows,
        "message_count": page.count,
        "max_counted": across_mailings.MAX_COUNTED_MESSAGES,
        "texts": await read_texts(connection, [row.id for row in page.rows]),
        "message_pages": page_links(page, f"/clients/{client_id}", Form(link_parameters)),
    }
