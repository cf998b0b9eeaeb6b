"""Replies are stored once, find their client and mailing, are joined, and opt phones out and in."""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from sqlalchemy.ext.asyncio import AsyncEngine
from tests.factories import (
    HOUR,
    add_clients,
    add_due_messages,
    add_mailing,
    add_messages,
    do,
    execute,
    rows,
    value,
)

from mailer.access.model import COMMAND_LINE
from mailer.client import store as clients
from mailer.db.paging import Cursor
from mailer.erasure import erase_client
from mailer.gateway.callback import Reply
from mailer.reply import parts, search, store
from mailer.reply.rules import ReplyRules
from mailer.reply.search import SearchFilters
from mailer.settings import Settings

RULES = ReplyRules.of(Settings())
ACKNOWLEDGING = ReplyRules.of(Settings(opt_out_text="You are unsubscribed."))
STRANGER = "79990000000"


async def add(
    engine: AsyncEngine,
    *replies: Reply,
    gateway: str = "main",
    at: datetime | None = None,
    rules: ReplyRules = RULES,
) -> None:
    """Add replies that came through a gateway, in one transaction."""
    received_at = at or datetime.now(UTC)
    await do(engine, lambda db: store.add_replies(db, gateway, replies, received_at, rules))


async def stored(engine: AsyncEngine) -> Sequence[dict[str, Any]]:
    """Return all replies, oldest first."""
    return [dict(row) for row in await rows(engine, "SELECT * FROM reply ORDER BY id")]


async def tuples(engine: AsyncEngine, query: str) -> list[tuple[Any, ...]]:
    """Return the rows of a query as tuples."""
    return [tuple(row.values()) for row in await rows(engine, query)]


async def phone_of(engine: AsyncEngine, client_id: int) -> str:
    async with engine.connect() as connection:
        return (await clients.get(connection, client_id)).phone


async def add_sent(  # noqa: PLR0913  # one line a message
    engine: AsyncEngine,
    client_id: int,
    ago: timedelta,
    *,
    gateway: str = "main",
    sender: str | None = None,
    status: str = "delivered",
) -> int:
    """Add a mailing with a message that a gateway got for a client; return the mailing's id."""
    at = datetime.now(UTC) - ago
    mailing_id = await add_mailing(engine, clients=1, start=at - HOUR, lasts=7 * HOUR)
    await add_messages(engine, mailing_id, [client_id], status, at=at)
    sender_value = "NULL" if sender is None else f"'{sender}'"
    await execute(
        engine,
        f"""UPDATE message SET gateway = '{gateway}', updated_at = '{at}'
            WHERE mailing_id = {mailing_id}""",  # noqa: S608  # values of the test
        f"UPDATE mailing SET sender = {sender_value} WHERE id = {mailing_id}",  # noqa: S608  # likewise
    )
    return mailing_id


# ---- storing --------------------------------------------------------------------------------


async def test_a_reply_is_stored_with_its_client(engine: AsyncEngine) -> None:
    [client_id] = await add_clients(engine, 1)
    phone = await phone_of(engine, client_id)
    await add(engine, Reply(phone, "When do you open?", "15005550006", "SM1"))
    [reply] = await stored(engine)
    assert (reply["phone"], reply["text"], reply["client_id"]) == (
        phone,
        "When do you open?",
        client_id,
    )
    assert (reply["recipient"], reply["gateway_reply_id"]) == ("15005550006", "SM1")
    assert (reply["mailing_id"], reply["message_id"], reply["read_at"]) == (None, None, None)


async def test_a_reply_of_a_stranger_is_stored_without_a_client(engine: AsyncEngine) -> None:
    await add(engine, Reply(STRANGER, "Hello"))
    [reply] = await stored(engine)
    assert (reply["phone"], reply["client_id"]) == (STRANGER, None)


async def test_a_repeat_adds_nothing(engine: AsyncEngine) -> None:
    reply = Reply(STRANGER, "Hello", id="SM1")
    await add(engine, reply, reply)
    await add(engine, reply)
    await add(engine, reply, gateway="spare")
    await add(engine, Reply(STRANGER, "Hello"), Reply(STRANGER, "Hello"))  # without ids
    assert [each["gateway"] for each in await stored(engine)] == ["main", "spare", "main", "main"]


async def test_hostile_texts_are_stored_as_text(engine: AsyncEngine) -> None:
    texts = ["", "\x00\x01\ud800", "'; DROP TABLE reply; --", "😀" * 20_000, "\u202e" * 50]
    await add(engine, *(Reply("\x00", text, "\x00", f"\x00{n}") for n, text in enumerate(texts)))
    assert [each["text"] for each in await stored(engine)] == [
        *("", "\ufffd\x01\ufffd", texts[2], "😀" * 10_000, texts[4]),
    ]


async def test_several_hundred_replies_come_at_once(engine: AsyncEngine) -> None:
    ids = await add_clients(engine, 300)
    mailing_id = await add_mailing(engine, clients=300, start=datetime.now(UTC) - HOUR)
    await add_messages(engine, mailing_id, ids, "delivered", at=datetime.now(UTC) - HOUR)
    await execute(engine, "UPDATE message SET gateway = 'main'")
    phones = [await phone_of(engine, client_id) for client_id in ids[:5]]
    phones += [f"7999{n:07}" for n in range(295)]
    await add(engine, *(Reply(phone, "Yes", id=phone) for phone in phones))
    found = await tuples(
        engine, "SELECT mailing_id, count(*) AS n FROM reply GROUP BY 1 ORDER BY 1"
    )
    assert found == [(mailing_id, 5), (None, 295)]


# ---- which mailing a reply answers ----------------------------------------------------------


async def test_a_reply_answers_the_newest_message_through_its_gateway(engine: AsyncEngine) -> None:
    client_id, other_client = await add_clients(engine, 2)
    await add_sent(engine, client_id, 3 * HOUR)
    newest = await add_sent(engine, client_id, 2 * HOUR)
    await add_sent(engine, client_id, HOUR, gateway="spare")
    await add_sent(engine, other_client, HOUR)
    await add_sent(engine, client_id, -HOUR)  # sent after the reply
    await add(engine, Reply(await phone_of(engine, client_id), "Yes"))
    [reply] = await stored(engine)
    assert reply["mailing_id"] == newest
    assert reply["message_id"] == await value(
        engine,
        f"SELECT id FROM message WHERE mailing_id = {newest}",  # noqa: S608  # a number
    )


@pytest.mark.parametrize(
    ("recipient", "expected"),
    [(None, "newest"), ("15005550006", "numbered"), ("15005550009", "default"), ("1", "default")],
)
async def test_the_number_to_which_a_reply_went_decides(
    engine: AsyncEngine, recipient: str | None, expected: str
) -> None:
    [client_id] = await add_clients(engine, 1)
    mailings = {
        "numbered": await add_sent(engine, client_id, 3 * HOUR, sender="+15005550006"),
        "default": await add_sent(engine, client_id, 2 * HOUR),
        "newest": await add_sent(engine, client_id, HOUR, sender="Acme"),
    }
    await add(engine, Reply(await phone_of(engine, client_id), "Yes", recipient))
    [reply] = await stored(engine)
    assert reply["mailing_id"] == mailings[expected]


@pytest.mark.parametrize(
    ("status", "is_found"),
    [("sending", True), ("unknown", True), ("scheduled", False), ("cancelled", False)],
)
async def test_only_a_message_that_the_gateway_may_have_counts(
    engine: AsyncEngine, status: str, *, is_found: bool
) -> None:
    [client_id] = await add_clients(engine, 1)
    mailing_id = await add_sent(
        engine, client_id, HOUR, status="scheduled" if status == "sending" else status
    )
    if status == "sending":
        await execute(
            engine,
            "UPDATE message SET status = 'sending', lease_owner = gen_random_uuid(),"
            " lease_expires_at = now()",
        )
    await add(engine, Reply(await phone_of(engine, client_id), "Yes"))
    [reply] = await stored(engine)
    assert (reply["mailing_id"] == mailing_id) is is_found


async def test_a_finished_mailing_is_answered_for_thirty_days(engine: AsyncEngine) -> None:
    [client_id] = await add_clients(engine, 1)
    phone = await phone_of(engine, client_id)
    mailing_id = await add_sent(engine, client_id, 20 * 24 * HOUR)
    ended = "status = 'finished', is_closed = true, is_settled = true"
    await execute(
        engine,
        f"UPDATE mailing SET {ended}, datetime_end = now() - interval '20 days',"  # noqa: S608  # a constant
        " updated_at = now() - interval '20 days'",
    )
    await add(engine, Reply(phone, "Yes"))
    await execute(
        engine,
        "UPDATE mailing SET datetime_start = datetime_start - interval '20 days',"
        " datetime_end = now() - interval '31 days', updated_at = now() - interval '31 days'",
    )
    await add(engine, Reply(phone, "Yes"))
    assert [reply["mailing_id"] for reply in await stored(engine)] == [mailing_id, None]


# ---- parts ----------------------------------------------------------------------------------


def part(number: int, text: str, parts: int = 3, reference: str = "7") -> Reply:
    return Reply(STRANGER, text, "1500", f"id-{reference}-{number}", reference, number, parts)


async def join(engine: AsyncEngine) -> int:
    return await do(engine, lambda db: store.join_parts(db, RULES, 100))


async def make_old(engine: AsyncEngine) -> None:
    await execute(engine, "UPDATE reply_part SET received_at = now() - interval '11 minutes'")


async def test_parts_in_any_order_become_one_reply(engine: AsyncEngine) -> None:
    await add(engine, part(3, "c"))
    await add(engine, part(1, "a"), part(1, "x", parts=2, reference="8"))
    assert await stored(engine) == []
    await add(engine, part(2, "b"))
    [reply] = await stored(engine)
    assert (reply["text"], reply["gateway_reply_id"], reply["recipient"]) == (
        *("abc", "id-7-1"),
        "1500",
    )


async def test_repeats_of_parts_add_nothing(engine: AsyncEngine) -> None:
    await add(engine, part(1, "a"), part(1, "a"))
    await add(engine, part(2, "b"), part(3, "c"))
    for n, text in enumerate("abc", start=1):
        await add(engine, part(n, text))
    await make_old(engine)
    assert await join(engine) == 0
    assert len(await stored(engine)) == 1
    assert await value(engine, "SELECT count(text) FROM reply_part") == 0


async def test_a_reference_that_is_used_again_makes_another_reply(engine: AsyncEngine) -> None:
    for text in ("abc", "def"):
        await add(engine, *(part(n, letter) for n, letter in enumerate(text, start=1)))
    assert [reply["text"] for reply in await stored(engine)] == ["abc"]  # the id is known
    await execute(engine, "DELETE FROM reply", "DELETE FROM reply_part")
    for n, text in enumerate(("abc", "def")):
        await add(
            engine,
            *(
                Reply(STRANGER, letter, None, f"{n}{number}", "7", number, 3)
                for number, letter in enumerate(text, start=1)
            ),
        )
    assert [reply["text"] for reply in await stored(engine)] == ["abc", "def"]


async def test_an_incomplete_reply_is_joined_after_ten_minutes(engine: AsyncEngine) -> None:
    await add(engine, part(2, "b", parts=5), part(3, "c", parts=5))
    assert await join(engine) == 0
    await make_old(engine)
    assert await join(engine) == 1
    assert [reply["text"] for reply in await stored(engine)] == [
        f"{parts.MISSING_PART}bc{parts.MISSING_PART}"
    ]
    await execute(engine, "UPDATE reply_part SET joined_at = now() - interval '25 hours'")
    await join(engine)
    assert await value(engine, "SELECT count(*) FROM reply_part") == 0


async def test_a_stop_word_in_two_parts_opts_out(engine: AsyncEngine) -> None:
    await add(engine, part(1, "ST", parts=2), part(2, "OP", parts=2))
    assert [reply["action"] for reply in await stored(engine)] == ["opted_out"]


@pytest.mark.parametrize(("number", "parts"), [(0, 2), (3, 2), (1, 1), (1, 256), (-1, -1)])
async def test_a_part_with_impossible_numbers_is_a_whole_reply(
    engine: AsyncEngine, number: int, parts: int
) -> None:
    await add(engine, part(number, "a", parts=parts))
    assert [reply["text"] for reply in await stored(engine)] == ["a"]


# ---- stop and start words -------------------------------------------------------------------


async def answers(engine: AsyncEngine) -> list[tuple[Any, ...]]:
    return await tuples(
        engine, "SELECT reply_id, kind, gateway, phone, text FROM answer ORDER BY id"
    )


async def test_a_stop_word_opts_a_client_out_and_a_start_word_in(engine: AsyncEngine) -> None:
    mailing_id = await add_due_messages(engine, 2)
    opted_out = "SELECT phone FROM client WHERE opted_out_at IS NOT NULL"
    phone = await value(engine, "SELECT phone FROM client ORDER BY id LIMIT 1")
    await add(engine, Reply(phone, "Стоп!"))
    assert await value(engine, opted_out) == phone
    states = (
        f"SELECT status, reason FROM message WHERE mailing_id = {mailing_id} ORDER BY client_id"  # noqa: S608  # a number
    )
    assert await tuples(engine, states) == [
        ("cancelled", "opted_out"),
        ("scheduled", None),
    ]
    assert [
        tuple(r.values()) for r in await rows(engine, "SELECT source, gateway FROM opt_out")
    ] == [("reply", "main")]
    await add(engine, Reply(phone, "start"))
    assert await rows(engine, opted_out) == []
    assert [reply["action"] for reply in await stored(engine)] == ["opted_out", "opted_in"]


async def test_an_opt_out_is_acknowledged_once(engine: AsyncEngine) -> None:
    [client_id] = await add_clients(engine, 1)
    phones = [await phone_of(engine, client_id), STRANGER]
    for text in ("STOP", "stop", "Unsubscribe"):
        await add(engine, *(Reply(phone, text) for phone in phones), rules=ACKNOWLEDGING)
    text = "You are unsubscribed."
    assert await answers(engine) == [
        (n, "acknowledgement", "main", phone, text) for n, phone in enumerate(phones, start=1)
    ]
    assert [reply["action"] for reply in await stored(engine)] == ["opted_out"] * 2 + [None] * 4
    await add(engine, Reply(STRANGER, "START"), Reply(STRANGER, "STOP"), rules=ACKNOWLEDGING)
    assert len(await answers(engine)) == 3


async def test_words_of_one_call_are_obeyed_in_their_order(engine: AsyncEngine) -> None:
    [client_id] = await add_clients(engine, 1)
    phone = await phone_of(engine, client_id)
    await add(engine, *(Reply(phone, text) for text in ("STOP", "START", "STOP", "START")))
    assert await value(engine, "SELECT count(*) FROM opt_out") == 0
    assert [reply["action"] for reply in await stored(engine)] == [
        *("opted_out", "opted_in") * 2,
    ]


async def test_without_a_text_nothing_is_acknowledged(engine: AsyncEngine) -> None:
    await add(engine, Reply(STRANGER, "STOP"))
    assert await answers(engine) == []


async def test_a_repeat_of_a_stop_word_opts_nobody_out_again(engine: AsyncEngine) -> None:
    stop = Reply(STRANGER, "STOP", id="SM1")
    await add(engine, stop, rules=ACKNOWLEDGING)
    await add(engine, Reply(STRANGER, "START", id="SM2"))
    await add(engine, stop, rules=ACKNOWLEDGING)
    assert await value(engine, "SELECT count(*) FROM opt_out") == 0
    assert len(await answers(engine)) == 1


# ---- erasing and retention ------------------------------------------------------------------


async def test_erasing_a_client_erases_phone_and_text_of_replies_and_answers(
    engine: AsyncEngine,
) -> None:
    [client_id] = await add_clients(engine, 1)
    phone = await phone_of(engine, client_id)
    await add(engine, Reply(phone, "A secret", "1500", "SM1"), rules=ACKNOWLEDGING)
    await add(engine, Reply(phone, "STOP"), Reply(STRANGER, "Hello"), rules=ACKNOWLEDGING)
    await add(engine, Reply(phone, "Half a secret", None, "x", "7", 1, 2))
    await execute(
        engine, "UPDATE reply SET client_id = NULL WHERE id = 1"
    )  # came before the client
    await erase_client(engine, client_id, COMMAND_LINE)
    erased = await stored(engine)
    assert [(each["phone"], each["text"]) for each in erased] == [
        *((None, None), (None, None)),
        (STRANGER, "Hello"),
    ]
    assert all(each["read_at"] is not None for each in erased[:2])
    found = await tuples(engine, "SELECT phone, text, status, reason FROM answer")
    assert found == [(None, None, "failed", "client_deleted")]
    assert await value(engine, "SELECT count(*) FROM reply_part") == 0
    everything = SearchFilters()
    assert await do(engine, lambda db: search.find(db, "secret", everything, Cursor(10))) == []


async def test_replies_are_deleted_with_their_answers_after_the_retention(
    engine: AsyncEngine,
) -> None:
    now = datetime.now(UTC)
    await add(engine, Reply(STRANGER, "STOP"), at=now - 31 * 24 * HOUR, rules=ACKNOWLEDGING)
    await add(engine, Reply(STRANGER, "Hello"), at=now - 29 * 24 * HOUR)
    assert await do(engine, lambda db: store.delete_expired(db, 30, 100)) == 1
    assert [reply["text"] for reply in await stored(engine)] == ["Hello"]
    assert await answers(engine) == []
