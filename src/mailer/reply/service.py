"""Use cases of replies: read them, mark them as read, and answer them.

An answer writes its audit log entry in the transaction that creates it, without phone and text.
"""

import structlog
from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from mailer.access import audit
from mailer.access.model import Actor
from mailer.db.tables.reply import answer as answer_table
from mailer.errors import FieldError, InvalidError
from mailer.gateway.channel import Channels
from mailer.gateway.sms_parts import count_parts
from mailer.idempotency.do_once import do_once
from mailer.idempotency.model import IdempotencyClaim
from mailer.reply import outbox, reading
from mailer.reply.model import (
    Answer,
    ClientReply,
    NewAnswer,
    ReadReply,
    ReplyDetail,
    ReplyErasedError,
    ReplyGatewayError,
    ReplyNotFoundError,
)

log = structlog.get_logger()


async def get(engine: AsyncEngine, reply_id: int) -> ReplyDetail:
    """Return a reply with its answers; raises `ReplyNotFoundError`."""
    async with engine.connect() as connection:
        return await reading.get_detail(connection, reply_id)


async def mark_as_read(engine: AsyncEngine, reply_id: int) -> ReadReply:
    """Mark a reply as read; raises `ReplyNotFoundError`."""
    async with engine.begin() as connection:
        return ReadReply(reply_id, await reading.mark_as_read(connection, reply_id))


async def mark_as_unread(engine: AsyncEngine, reply_id: int) -> None:
    """Mark a reply as unread; raises `ReplyNotFoundError`."""
    async with engine.begin() as connection:
        await reading.mark_as_unread(connection, reply_id)


async def create_answer(  # noqa: PLR0913, PLR0917  # the parts of a change that is made once
    engine: AsyncEngine,
    channels: Channels,
    reply_id: int,
    new: NewAnswer,
    actor: Actor,
    claim: IdempotencyClaim | None = None,
) -> Answer:
    """Answer a reply, which also marks it as read; a worker sends the answer within a second.

    Raises `ReplyNotFoundError`, `ReplyErasedError`, `ReplyGatewayError`, and `InvalidError` for a
    text that has more parts than the gateway takes.
    """

    async def create(connection: AsyncConnection) -> int:
        reply = await reading.get(connection, reply_id, lock=True)
        _check(reply, new, channels)
        await reading.mark_as_read(connection, reply_id)
        answer_id = await outbox.create(connection, reply_id, new.text, actor.name)
        target = audit.Target("reply", reply_id)
        await audit.record(connection, actor, "reply_answered", target)
        return answer_id

    async with engine.begin() as connection:
        done = await do_once(
            connection,
            claim,
            lambda: create(connection),
            # a form that is sent twice is redirected to the page of the reply
            result_of=lambda answer_id: {"id": reply_id, "answer_id": answer_id},
        )
        created = await _get_answer(connection, done.result["answer_id"])
    if not done.is_repeat:
        log.info("reply_answered", reply_id=reply_id, answer_id=created.id)
    return created


def _check(reply: ClientReply, new: NewAnswer, channels: Channels) -> None:
    """Raise the error of a reply that cannot be answered with this text."""
    channel = channels.get(reply.gateway)
    if channel is None:
        raise ReplyGatewayError
    if reply.phone is None:
        raise ReplyErasedError
    if count_parts(new.text).parts > channel.limits.parts:
        most = channel.limits.parts
        raise InvalidError([FieldError("text", f"has more than {most} parts, the gateway's limit")])


async def _get_answer(connection: AsyncConnection, answer_id: int) -> Answer:
    """Return an answer; raises `ReplyNotFoundError` if it was deleted with its reply."""
    columns = [answer_table.c[name] for name in Answer.__struct_fields__]
    found = select(*columns).where(answer_table.c.id == answer_id)
    row = (await connection.execute(found)).mappings().one_or_none()
    if row is None:
        raise ReplyNotFoundError
    return Answer(**row)
