"""Pages of the messages of a mailing: list, downloads, and the history of one message."""

from collections.abc import Iterable, Mapping
from datetime import timedelta
from typing import Any

from litestar import Controller, Request, Response, get
from litestar.di import NamedDependency
from litestar.params import FromPath
from msgspec import UNSET, UnsetType
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from mailer.access.model import Actor
from mailer.admin.downloads import chosen_separator, default_separator
from mailer.admin.formats import message_status_label
from mailer.admin.labels import reason_label
from mailer.admin.language import gettext, gettext_noop, use_language
from mailer.admin.listing import EMPTY_PAGE, page_links, read_list_query
from mailer.admin.mailings.history import events_of
from mailer.admin.render import PageContext
from mailer.client import store as clients
from mailer.client.phone_search import PhoneSearch
from mailer.clock import database_clock
from mailer.db.paging import RowPage
from mailer.forecast.cost import part_prices
from mailer.gateway.channel import Channels
from mailer.mailing import store
from mailer.mailing.actions import allowed_actions
from mailer.mailing.activity import with_holds
from mailer.mailing.api import MailingId, MessageQuery, read_count
from mailer.mailing.model import Mailing
from mailer.message import counters
from mailer.message import reading as messages
from mailer.message.spreadsheet import (
    Separator,
    SpreadsheetColumn,
    SpreadsheetExport,
    SpreadsheetWords,
)
from mailer.settings import Settings
from mailer.statuses import MESSAGE_STATUSES
from mailer.validation import MAX_ID
from mailer.web.download import Download, csv_answer
from mailer.web.query import read_query
from mailer.web.workbook import workbook_answer

COLUMN_LABELS: Mapping[SpreadsheetColumn, str] = {
    "phone": gettext_noop("Phone"),
    "tag": gettext_noop("Tag"),
    "time_zone": gettext_noop("Time zone"),
    "sent_at": gettext_noop("Sent at, local time"),
    "status": gettext_noop("Status"),
    "reason": gettext_noop("Reason"),
    "gateway": gettext_noop("Gateway"),
    "parts": gettext_noop("Parts"),
    "cost": gettext_noop("Cost"),
    "text": gettext_noop("Text"),
}
"""Header of a download."""
MESSAGE_FILTER_FIELDS = ("status", "reason", "gateway", "phone", "limit")


class MessageListQuery(MessageQuery, frozen=True, kw_only=True):
    """Filters of the list of messages: those of the API, and the phone of the client."""

    phone: PhoneSearch | UnsetType = UNSET

    async def find_client_ids(self, connection: AsyncConnection) -> list[int] | None:
        """Return the ids of the clients with the phone; None if there is no filter by phone."""
        if self.phone is UNSET:
            return None
        return await clients.find_ids_by_phone(connection, self.phone)

    def filters(self) -> dict[str, Any]:
        """Return the given filters of the API."""
        return {
            name: value
            for name, value in super().filters().items()
            if name in MessageQuery.__struct_fields__
        }


class MessageDownloadQuery(MessageListQuery, frozen=True, kw_only=True):
    """Filters of a download, and what separates its cells; that depends on the language."""

    separator: Separator | UnsetType = UNSET


def spreadsheet_words(
    reasons: Iterable[str], prices: Mapping[str, float | None]
) -> SpreadsheetWords:
    """Return the words of a download in the current language, with words for `reasons`."""
    return SpreadsheetWords(
        header={column: gettext(label) for column, label in COLUMN_LABELS.items()},
        statuses={status: message_status_label(status) for status in MESSAGE_STATUSES},
        reasons={reason: reason_label(reason) for reason in reasons},
        prices=prices,
    )


async def find_messages(
    connection: AsyncConnection, mailing: Mailing, query: MessageListQuery
) -> RowPage:
    """Return the page of a mailing's messages that match a query."""
    client_ids = await query.find_client_ids(connection)
    is_counted = client_ids is None or mailing.created_messages == 0
    count = await read_count(connection, mailing, query) if is_counted else None
    return await messages.page(
        connection, mailing.id, query.position, count, client_ids=client_ids, **query.filters()
    )


async def _prepare_export(  # noqa: PLR0913, PLR0917  # what is exported, for whom, in what words
    engine: AsyncEngine,
    channels: Channels,
    mailing_id: int,
    actor: Actor,
    query: MessageListQuery,
    language: str,
) -> SpreadsheetExport:
    """Return the export of the messages that match a query; raises `MailingNotFoundError`."""
    async with engine.connect() as connection:
        await store.get(connection, mailing_id)
        filters = query.filters()
        if (client_ids := await query.find_client_ids(connection)) is not None:
            filters["client_id"] = client_ids
        reasons = await counters.get_by_reason(connection, mailing_id)
    with use_language(language):
        words = spreadsheet_words(reasons, part_prices(channels))
    return SpreadsheetExport(engine, mailing_id, actor, words, filters)


class MessageList(Controller):
    """Messages of a mailing, newest first."""

    path = "/mailings/{mailing_id:int}"

    @get("/messages", required_scope="read")
    async def list_messages(
        self,
        request: Request[Any, Any, Any],
        engine: NamedDependency[AsyncEngine],
        context: NamedDependency[PageContext],
        mailing_id: MailingId,
    ) -> Response[str]:
        """List the messages that match the filters."""
        form, query = read_list_query(request, MessageListQuery, *MESSAGE_FILTER_FIELDS)
        async with engine.connect() as connection:
            mailing = await store.get(connection, mailing_id)
            page = EMPTY_PAGE
            if query is not None:
                page = await find_messages(connection, mailing, query)
            reasons = await counters.get_by_reason(connection, mailing_id)
            by_gateway = await counters.get_by_gateway(connection, mailing_id)
        path = f"/mailings/{mailing_id}/messages"
        return await context.render_page(
            "mailings/messages.html",
            200 if query else 400,
            form=form,
            mailing=mailing,
            messages=page.rows,
            count=page.count,
            reasons=reasons,
            gateways=list(by_gateway),
            pages=page_links(page, path, form),
            separator=default_separator(context.viewer.language),
        )

    @get("/messages.csv", required_scope="read")
    async def download_messages(  # noqa: PLR0913, PLR0917  # Litestar passes its dependencies so
        self,
        request: Request[Any, Any, Any],
        engine: NamedDependency[AsyncEngine],
        by: NamedDependency[Actor],
        context: NamedDependency[PageContext],
        channels: NamedDependency[Channels],
        mailing_id: MailingId,
    ) -> Download:
        """Download all messages that match the filters, as CSV in the viewer's language."""
        query = read_query(request, MessageDownloadQuery, blank_is_absent=True)
        language = context.viewer.language
        export = await _prepare_export(engine, channels, mailing_id, by, query, language)
        separator = chosen_separator(query.separator, language)
        return await csv_answer(f"mailing-{mailing_id}.csv", export.as_csv(separator), by.quota_key)

    @get("/messages.xlsx", required_scope="read")
    async def download_workbook(  # noqa: PLR0913, PLR0917  # Litestar passes its dependencies so
        self,
        request: Request[Any, Any, Any],
        engine: NamedDependency[AsyncEngine],
        by: NamedDependency[Actor],
        context: NamedDependency[PageContext],
        channels: NamedDependency[Channels],
        mailing_id: MailingId,
    ) -> Download:
        """Download all messages that match the filters, as an Excel workbook."""
        query = read_query(request, MessageDownloadQuery, blank_is_absent=True)
        language = context.viewer.language
        export = await _prepare_export(engine, channels, mailing_id, by, query, language)
        with use_language(language):
            layout = export.workbook_layout(gettext("Messages"))
        return await workbook_answer(
            f"mailing-{mailing_id}.xlsx", export.rows(), layout, by.quota_key
        )

    @get("/messages/{message_id:int}", required_scope="read")
    async def show_message(  # noqa: PLR0913, PLR0917  # Litestar passes its dependencies so
        self,
        engine: NamedDependency[AsyncEngine],
        channels: NamedDependency[Channels],
        context: NamedDependency[PageContext],
        settings: NamedDependency[Settings],
        mailing_id: MailingId,
        message_id: FromPath[int],
    ) -> Response[str]:
        """Show the history of a message, and what happens to it next."""
        async with engine.connect() as connection:
            mailing = await store.get(connection, mailing_id)
            [mailing] = await with_holds(connection, [mailing], channels)
            # PostgreSQL refuses a larger id; that no message has MAX_ID makes this 404
            history = await messages.get_history(connection, mailing_id, min(message_id, MAX_ID))
        now = database_clock.now()
        return await context.render_page(
            "mailings/message.html",
            mailing=mailing,
            message=history,
            events=events_of(history),
            receipt_deadline=(
                history.sent_at + timedelta(seconds=settings.receipt_wait)
                if history.is_awaiting_receipt and history.sent_at
                else None
            ),
            now=now,
            may_retry="retry" in allowed_actions(mailing, now),  # the mailing's failed messages
        )
