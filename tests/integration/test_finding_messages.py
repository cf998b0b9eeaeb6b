"""Messages of all mailings, and searches for phones: what they cost, and what a list counts."""

from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from functools import partial

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine
from tests.factories import NOON, add_clients, add_mailing, add_mailings, add_messages, do, execute
from tests.statements import plans_of

from mailer.client import store as clients
from mailer.db.paging import Cursor, RowPage
from mailer.message import across_mailings, reading
from mailer.opt_out import store as opt_outs
from mailer.reply import search
from mailer.reply.search import SearchFilters
from mailer.sample_data import SampleMailing
from mailer.statuses import MESSAGE_STATUSES, MessageStatus

CLIENTS, MAILINGS = 100, 60
"""Enough mailings for an index of mailings to cost more than one of a client's messages."""
CLIENT = 7
"""Id of the client whose messages are read."""
Step = Callable[[AsyncConnection], Awaitable[object]]


async def add_history(engine: AsyncEngine) -> None:
    """Create mailings, of which one still sends, and some replies."""
    ids = await add_clients(engine, CLIENTS)
    ended = SampleMailing(start=NOON, clients=CLIENTS, status="finished")
    mailings = await add_mailings(engine, *[ended] * (MAILINGS - 1))
    for mailing_id in mailings:
        await add_messages(engine, mailing_id, ids, "undelivered" if mailing_id % 5 else "sent")
    mailing_id = await add_mailing(engine, clients=CLIENTS, start=datetime.now(UTC))
    await add_messages(engine, mailing_id, ids, "scheduled")
    await execute(
        engine,
        """INSERT INTO reply (gateway, gateway_reply_id, phone, text, received_at)
        SELECT 'main', id, phone, 'Hello', now() FROM client""",
        "ANALYZE client, mailing, message, reply",
    )


def page_of_client(status: MessageStatus | None = None, before: int | None = None) -> Step:
    """Return the reading of a page of a client's messages."""
    cursor = Cursor(limit=20, before=before)
    return lambda db: across_mailings.page_of_client(db, cursor, CLIENT, status)


async def find_replies(connection: AsyncConnection) -> list[int]:
    return await search.find(connection, "0007", SearchFilters(), Cursor(limit=20))


async def find_in_mailing(connection: AsyncConnection) -> object:
    ids = await clients.find_ids_by_phone(connection, "0007")
    return await reading.page(connection, 1, Cursor(limit=20), client_ids=ids)


STEPS: dict[str, tuple[Step, set[str]]] = {
    "messages of a client": (
        page_of_client(),
        {"message_client_id_status_id_idx", "message_mailing_id_client_id_key"},
    ),
    "older messages": (page_of_client(before=4_000), {"message_client_id_status_id_idx"}),
    "messages with an outcome": (
        page_of_client("undelivered"),
        {"message_client_id_status_id_idx"},
    ),
    "open messages": (page_of_client("scheduled"), {"message_mailing_id_client_id_key"}),
    "all messages": (lambda db: across_mailings.page(db, Cursor(20)), {"message_pkey"}),
    "messages by status": (
        lambda db: across_mailings.page(db, Cursor(20), "undelivered"),
        {"message_mailing_id_status_id_idx"},
    ),
    "clients": (
        lambda db: clients.page(db, Cursor(20), phone="0007"),
        {"client_reversed_phone_idx", "client_pkey"},
    ),
    "clients and another filter": (
        lambda db: clients.page(db, Cursor(20), phone="0007", operator_code="916"),
        {"client_reversed_phone_idx"},
    ),
    "whole phone": (
        lambda db: clients.page(db, Cursor(20), phone="79160000007"),
        {"client_phone_key"},
    ),
    "opt-outs": (
        lambda db: opt_outs.page(db, Cursor(20), phone="0007"),
        {"client_reversed_phone_idx"},
    ),
    "replies": (find_replies, {"reply_reversed_phone_idx"}),
    "messages of a mailing": (
        find_in_mailing,
        {"client_reversed_phone_idx", "message_mailing_id_client_id_key"},
    ),
}
"""What is read, and the indexes that must be used for it."""


async def test_lists_and_searches_read_indexes(engine: AsyncEngine) -> None:
    await add_history(engine)
    for name, (step, indexes) in STEPS.items():
        plans = "\n".join(await plans_of(engine, step))
        for table in ("message", "client", "reply"):
            assert f"Seq Scan on {table} " not in plans, name
        assert [index for index in indexes if f" {index} " not in plans] == [], (name, plans)


async def test_every_status_is_read_once(engine: AsyncEngine) -> None:
    [client_id] = await add_clients(engine, 1)
    mailings = await add_mailings(engine, *[SampleMailing(start=NOON, clients=1)] * 7)
    for mailing_id, status in zip(mailings, MESSAGE_STATUSES, strict=True):
        is_sending = status == "sending"
        await add_messages(engine, mailing_id, [client_id], "scheduled" if is_sending else status)
    await execute(
        engine,
        "UPDATE message SET status = 'sending', lease_owner = gen_random_uuid(),"
        " lease_expires_at = now() WHERE mailing_id = 2",
    )
    page = await do(engine, lambda db: across_mailings.page_of_client(db, Cursor(10), client_id))
    assert [row.status for row in page.rows] == list(reversed(MESSAGE_STATUSES))
    assert page.count == len(MESSAGE_STATUSES)
    for status in MESSAGE_STATUSES:
        of_client = await do(
            engine,
            partial(
                across_mailings.page_of_client,
                cursor=Cursor(10),
                client_id=client_id,
                status=status,
            ),
        )
        of_all = await do(engine, partial(across_mailings.page, cursor=Cursor(10), status=status))
        assert [row.status for row in of_client.rows] == [status]
        assert of_all == of_client


async def test_pages_of_one_status_lead_through_several_mailings(engine: AsyncEngine) -> None:
    ids = await add_clients(engine, 4)
    mailings = await add_mailings(engine, *[SampleMailing(start=NOON, clients=4)] * 3)
    for client_id in ids:  # the messages of the mailings are mixed
        for mailing_id in mailings:
            await add_messages(engine, mailing_id, [client_id], "delivered")
    cursor, seen = Cursor(limit=5), list[int]()
    for _ in range(3):
        page = await do(engine, partial(across_mailings.page, cursor=cursor, status="delivered"))
        seen += [row.id for row in page.rows]
        cursor = Cursor(limit=5, before=seen[-1])
    assert seen == list(range(12, 0, -1))
    assert not page.has_older
    newer = await do(
        engine, lambda db: across_mailings.page(db, Cursor(limit=5, after=2), "delivered")
    )
    assert [row.id for row in newer.rows] == [7, 6, 5, 4, 3]
    assert (newer.has_newer, newer.has_older, newer.count) == (True, True, 12)


async def test_a_list_counts_up_to_a_maximum(engine: AsyncEngine) -> None:
    many = across_mailings.MAX_COUNTED_MESSAGES + 5
    ids = await add_clients(engine, many)
    mailing_id = await add_mailing(engine, clients=many)
    await add_messages(engine, mailing_id, ids, "delivered")
    statuses: tuple[MessageStatus | None, ...] = (None, "delivered")
    for status in statuses:
        page = await do(engine, partial(across_mailings.page, cursor=Cursor(1), status=status))
        assert page.count == across_mailings.MAX_COUNTED_MESSAGES + 1  # means: more than that


ROWS_READ = text("""
    SELECT coalesce(sum(seq_tup_read + idx_tup_fetch), 0)::bigint
    FROM pg_stat_xact_user_tables WHERE relname = 'message'""")


async def test_messages_of_a_deleted_mailing_are_not_read_one_by_one(engine: AsyncEngine) -> None:
    many = 20_000
    ids = await add_clients(engine, many)
    kept, deleted = await add_mailings(engine, *[SampleMailing(start=NOON, clients=many)] * 2)
    await add_messages(engine, kept, ids[:30], "delivered")
    await add_messages(engine, kept, ids[30:40], "cancelled", "expired")
    await add_messages(engine, deleted, ids, "delivered")
    await execute(
        engine,
        "UPDATE mailing SET deleted_at = now() WHERE id = (SELECT max(id) FROM mailing)",
        "ANALYZE message",
    )

    async def read(connection: AsyncConnection) -> tuple[RowPage, RowPage, int]:
        before = await connection.scalar(ROWS_READ)  # by earlier transactions too
        first = await across_mailings.page(connection, Cursor(limit=15))
        second = await across_mailings.page(connection, Cursor(limit=15, before=first.rows[-1].id))
        return first, second, int(await connection.scalar(ROWS_READ)) - int(before)

    first, second, rows_read = await do(engine, read)
    assert [row.id for row in (*first.rows, *second.rows)] == list(range(40, 10, -1))
    assert (first.count, second.has_older, second.has_newer) == (40, True, True)
    assert rows_read < many / 10
