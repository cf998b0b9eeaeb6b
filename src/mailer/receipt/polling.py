"""Ask gateways for receipts, if they do not send them.

Each run asks for a bounded number of messages, and the next one goes on behind them. When all
messages that await a receipt have been asked for, a new round starts, at most once in a while. The
workers share the position, so that they do not ask for the same messages.
"""

import asyncio
from collections.abc import Iterator, Sequence
from datetime import timedelta

import aiohttp
import structlog
from sqlalchemy import Interval, bindparam, text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from mailer.gateway.aiohttp_connection import UnreadableResponseError
from mailer.gateway.callback import CallbackContent, Receipt, UnreadableCallbackError
from mailer.gateway.channel import Channel, Channels
from mailer.gateway.http import HttpGateway
from mailer.gateway.poll_rules import PolledMessage, PollRules
from mailer.receipt.inbox import Inbox

log = structlog.get_logger()

REQUESTS_PER_RUN = 10
"""Most requests to one gateway in one run, one after the other."""
MAX_SCANNED = 5_000
"""Messages that await a receipt, of any gateway, that one run reads."""
MIN_ROUND_INTERVAL = timedelta(seconds=30)
"""Least time between the starts of two rounds."""

NEXT_POSITION = text("""
    INSERT INTO receipt_poll AS poll (gateway) VALUES (:gateway)
    ON CONFLICT (gateway) DO UPDATE SET round_started_at = poll.round_started_at
    RETURNING mailing_id, sent_at, message_id, round_started_at > now() - :interval AS is_recent
    """).bindparams(bindparam("interval", type_=Interval))
SELECT_AWAITING = text("""
    SELECT awaiting.id, awaiting.gateway_message_id, awaiting.mailing_id, awaiting.sent_at,
        awaiting.gateway = :gateway AS is_wanted,
        CASE WHEN awaiting.gateway = :gateway
            THEN (SELECT phone FROM client WHERE client.id = client_id) END AS phone
    FROM (
        SELECT id, gateway_message_id, mailing_id, sent_at, gateway, client_id FROM message
        WHERE status = 'sent' AND reason IS NULL
            AND (mailing_id, sent_at, id) > (:mailing_id, :sent_at, :message_id)
        ORDER BY mailing_id, sent_at, id LIMIT :scanned
    ) AS awaiting
    ORDER BY awaiting.mailing_id, awaiting.sent_at, awaiting.id""")
MOVE_POSITION = text("""
    UPDATE receipt_poll SET mailing_id = :mailing_id, sent_at = :sent_at, message_id = :message_id
    WHERE gateway = :gateway""")
START_ROUND = text("""
    UPDATE receipt_poll SET mailing_id = 0, sent_at = '-infinity', message_id = 0,
        round_started_at = now()
    WHERE gateway = :gateway""")


class Polling:
    """Asks the gateways that must be asked for receipts."""

    def __init__(self, engine: AsyncEngine, channels: Channels, inbox: Inbox) -> None:
        self._engine = engine
        self._channels = channels
        self._inbox = inbox

    async def run(self) -> None:
        """Ask each of these gateways for the next messages. An error of one affects no other."""
        polled = [channel for channel in self._channels if _is_polled(channel)]
        async with asyncio.TaskGroup() as tasks:
            for channel in polled:
                tasks.create_task(self._poll(channel))

    async def _poll(self, channel: Channel) -> None:
        """Ask one gateway. If it does not answer, its messages are asked for in the next round."""
        async with HttpGateway(channel.configured) as gateway:
            rules = channel.configured.poll_rules(gateway.headers)
            if rules is None:
                return
            async with self._engine.begin() as connection:
                messages = await _next_messages(connection, channel.name, rules.batch)
            try:
                async with asyncio.timeout(channel.limits.timeout * REQUESTS_PER_RUN):
                    for batch in _batches(messages, rules.batch):
                        receipts = await _ask(gateway, rules, batch)
                        await self._inbox.store(channel.name, CallbackContent(receipts, []))
            except (
                aiohttp.ClientError,
                UnreadableResponseError,
                UnreadableCallbackError,
                OSError,  # also a timeout
            ) as error:
                log.warning("poll_failed", gateway=channel.name, error=type(error).__name__)


def _is_polled(channel: Channel) -> bool:
    return channel.receipts.is_awaited and channel.configured.profile.poll is not None


async def _ask(
    gateway: HttpGateway, rules: PollRules, batch: Sequence[PolledMessage]
) -> list[Receipt]:
    return rules.read(await gateway.exchange(rules.request(batch)), batch)


def _batches(messages: Sequence[PolledMessage], size: int) -> Iterator[Sequence[PolledMessage]]:
    for start in range(0, len(messages), size):
        yield messages[start : start + size]


async def _next_messages(
    connection: AsyncConnection, gateway: str, batch: int
) -> list[PolledMessage]:
    """Return the messages to ask for in this run, and move the position behind them."""
    values = {"gateway": gateway, "interval": MIN_ROUND_INTERVAL}
    position = (await connection.execute(NEXT_POSITION, values)).one()
    is_start = position.mailing_id == 0
    if is_start and position.is_recent:
        return []
    parameters = {
        "gateway": gateway,
        "mailing_id": position.mailing_id,
        "sent_at": position.sent_at,
        "message_id": position.message_id,
        "scanned": MAX_SCANNED,
    }
    rows = (await connection.execute(SELECT_AWAITING, parameters)).all()
    limit = batch * REQUESTS_PER_RUN
    messages: list[PolledMessage] = []
    end = None
    for row in rows:
        if row.is_wanted:
            if len(messages) == limit:
                break
            messages.append(PolledMessage(row.id, row.gateway_message_id or "", row.phone or ""))
        end = row
    if is_start or end is None:
        await connection.execute(START_ROUND, {"gateway": gateway})
    if end is not None:
        values = {"mailing_id": end.mailing_id, "sent_at": end.sent_at, "message_id": end.id}
        await connection.execute(MOVE_POSITION, {"gateway": gateway, **values})
    return messages
