"""SQL of the outbox of answers: create, claim and record. The caller owns the transaction.

An answer is never sent twice. A worker that claims an answer may write its request; if it then
stops without a result, delivery is unknown, and nobody sends the answer again.
"""

from datetime import timedelta
from uuid import UUID

import msgspec
from sqlalchemy import Interval, Uuid, bindparam, text
from sqlalchemy.ext.asyncio import AsyncConnection

from mailer.opt_out.service import opt_out_phone
from mailer.reply.model import AnswerStatus

ANSWER_LIFETIME = timedelta(hours=24)
"""How long an answer waits for its gateway at most; then it has failed."""

INSERT_ANSWER = text("""
    INSERT INTO answer (id, reply_id, kind, gateway, phone, text, created_by)
    SELECT nextval('message_id_seq'), id, 'answer', gateway, phone, :text, :created_by
    FROM reply WHERE id = :reply_id RETURNING id""")


async def create(connection: AsyncConnection, reply_id: int, answer: str, created_by: str) -> int:
    """Create an answer to a reply, which must not be erased, and return its id."""
    values = {"reply_id": reply_id, "text": answer, "created_by": created_by}
    return int((await connection.execute(INSERT_ANSWER, values)).scalar_one())


# A restored database sends nothing until a person allows it.
SELECT_DUE = text("""
    SELECT DISTINCT gateway FROM answer
    WHERE status = 'waiting' AND due_at <= now() AND sending_is_allowed()""")


async def find_due(connection: AsyncConnection) -> list[str]:
    """Return the gateways for which answers are due."""
    return list((await connection.scalars(SELECT_DUE)).all())


class ClaimedAnswer(msgspec.Struct, frozen=True):
    """An answer that this worker has claimed, and nobody else sends.

    `attempts` includes the current attempt. Its result is recorded only while the lease is the one
    of the claim.
    """

    id: int
    attempts: int
    gateway: str
    phone: str
    text: str
    recipient: str | None
    """The number to which the client has sent the reply."""
    mailing_sender: str | None
    """The sender of the mailing that the reply answers."""


# MATERIALIZED: a plan that ran the SELECT again for each row would claim more than the limit.
CLAIM = text("""
    WITH due AS MATERIALIZED (
        SELECT answer.id, recipient, sender FROM answer
        JOIN reply ON reply.id = reply_id LEFT JOIN mailing ON mailing.id = mailing_id
        WHERE answer.status = 'waiting' AND answer.gateway = :gateway AND due_at <= now()
            AND sending_is_allowed()
        ORDER BY due_at, answer.id LIMIT :limit FOR UPDATE OF answer SKIP LOCKED)
    UPDATE answer SET status = 'sending', reason = NULL, attempts = attempts + 1,
        lease_owner = :owner, lease_expires_at = clock_timestamp() + :lease, updated_at = now()
    FROM due WHERE answer.id = due.id
    RETURNING answer.id, attempts, gateway, phone, text, recipient, sender""").bindparams(
    bindparam("owner", type_=Uuid), bindparam("lease", type_=Interval)
)


async def claim(
    connection: AsyncConnection, gateway: str, owner: UUID, lease: timedelta, limit: int
) -> list[ClaimedAnswer]:
    """Claim up to `limit` due answers through a gateway for the worker `owner`."""
    values = {"gateway": gateway, "owner": owner, "lease": lease, "limit": limit}
    return [ClaimedAnswer(*row) for row in await connection.execute(CLAIM, values)]


class AnswerResult(msgspec.Struct, frozen=True, kw_only=True):
    """The result to record for a claimed answer."""

    status: AnswerStatus
    attempts: int
    """The number to store: one less than that of the claim if the attempt does not count."""
    reason: str | None = None
    pause: float = 0.0
    """Seconds until an answer that waits again is due."""
    gateway_message_id: str | None = None
    parts: int | None = None
    is_opt_out: bool = False
    """Whether the gateway says that the client has opted out; this is recorded, too."""


RECORD = text("""
    UPDATE answer SET status = :status, reason = :reason, attempts = :attempts,
        due_at = now() + :pause, gateway_message_id = :gateway_message_id, parts = :parts,
        lease_owner = NULL, lease_expires_at = NULL, updated_at = now()
    WHERE id = :id AND status = 'sending' AND lease_owner = :owner""").bindparams(
    bindparam("owner", type_=Uuid), bindparam("pause", type_=Interval)
)
# The text of an answer whose client was erased meanwhile is gone.
FAIL_ERASED = text("""
    UPDATE answer SET status = 'failed', reason = 'client_deleted'
    WHERE id = :id AND status = 'waiting' AND text IS NULL""")


async def record(
    connection: AsyncConnection, answer: ClaimedAnswer, owner: UUID, result: AnswerResult
) -> bool:
    """Record the result of a claimed answer; return False if the lease was lost."""
    values = msgspec.structs.asdict(result) | {"id": answer.id, "owner": owner}
    values["pause"] = timedelta(seconds=result.pause)
    is_recorded = (await connection.execute(RECORD, values)).rowcount == 1
    if is_recorded and result.status == "waiting":
        await connection.execute(FAIL_ERASED, {"id": answer.id})
    if is_recorded and result.is_opt_out:
        await opt_out_phone(connection, answer.phone, "gateway", answer.gateway)
    return is_recorded


EXPIRE = text("""
    UPDATE answer SET status = 'failed', reason = 'expired', updated_at = now()
    WHERE id = ANY (ARRAY(
        SELECT id FROM answer WHERE status = 'waiting' AND created_at < now() - :lifetime
        LIMIT :limit FOR UPDATE SKIP LOCKED))""").bindparams(bindparam("lifetime", type_=Interval))
# The worker has stopped, or could not record the result in time.
END_LOST = text("""
    UPDATE answer SET status = 'unknown', reason = 'lease_expired', lease_owner = NULL,
        lease_expires_at = NULL, updated_at = now()
    WHERE id = ANY (ARRAY(
        SELECT id FROM answer WHERE status = 'sending' AND lease_expires_at < now()
        LIMIT :limit FOR UPDATE SKIP LOCKED))""")
# The original database may have sent, after the backup, what waits in a restored one.
END_RESTORED = text("""
    UPDATE answer SET status = 'unknown', reason = 'restored', updated_at = now()
    WHERE id = ANY (ARRAY(
        SELECT answer.id FROM answer JOIN origin ON answer.created_at < origin.held_since
        WHERE status = 'waiting' LIMIT :limit FOR UPDATE OF answer SKIP LOCKED))""")


async def end_overdue(connection: AsyncConnection, limit: int) -> None:
    """End answers that nobody will send: expired, of stopped workers, or of a restored database.

    At most `limit` of each.
    """
    await connection.execute(END_LOST, {"limit": limit})
    await connection.execute(END_RESTORED, {"limit": limit})
    await connection.execute(EXPIRE, {"limit": limit, "lifetime": ANSWER_LIFETIME})
