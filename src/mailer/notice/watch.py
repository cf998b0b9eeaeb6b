"""Write notices: the periodic job that finds ended mailings, gateways in trouble and held mailings.

One worker at a time runs it. What it has seen and reported is in the database, so that a restart
forgets nothing and repeats nothing.
"""

from collections.abc import Iterable
from datetime import datetime
from typing import Any, NamedTuple

import structlog
from msgspec import to_builtins
from sqlalchemy import ARRAY, BigInteger, DateTime, String, bindparam, text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from mailer import metrics
from mailer.gateway.channel import PAUSED, Channels
from mailer.mailing import store as mailings
from mailer.mailing.activity import with_holds
from mailer.mailing.model import Hold
from mailer.notice import queue
from mailer.notice.model import DIGEST_TIME, OVER_AFTER, REPORT_AFTER, REPORT_AGAIN_AFTER

log = structlog.get_logger()

MAX_IN_NOTICE = 1_000
"""Most ended mailings of one notice; the next run continues."""
MAX_WATCHED = 1_000
"""Most running mailings, the newest first, that are watched."""
MAX_EXPIRED = 1_000
"""Most notices past their retention that one run deletes."""

# Returns whether this worker is to run: something may be reported, and no other worker runs. The
# lock ends with the transaction.
HAS_WORK_AND_LOCK = text("""
    SELECT (EXISTS (SELECT FROM notice_recipient) OR EXISTS (SELECT FROM notice_trouble)
            OR EXISTS (SELECT FROM notice_ended_mailing))
        AND pg_try_advisory_xact_lock(hashtext('notice'))""")
CHOSEN_KINDS = text("""
    SELECT DISTINCT unnest(kinds) FROM notice_recipient
    JOIN app_user ON app_user.id = user_id WHERE disabled_at IS NULL""")


class NoticeWatch:
    """Writes the notices of what has ended, or lasted for some minutes. A periodic job."""

    def __init__(self, engine: AsyncEngine, channels: Channels) -> None:
        self._engine = engine
        self._channels = channels

    async def run(self) -> None:
        """Write the notices of this moment."""
        async with self._engine.begin() as connection:
            if not (await connection.execute(HAS_WORK_AND_LOCK)).scalar_one():
                return
            choices = set((await connection.scalars(CHOSEN_KINDS)).all())
            await _report_ended(connection)
            gateways = await _find_outages(connection) if "gateway_trouble" in choices else []
            await _report_gateways(connection, gateways)
            held = await _find_held(connection, self._channels) if "mailing_held" in choices else {}
            await _report_held(connection, held)
            expired = await queue.delete_expired(connection, MAX_EXPIRED)
        if expired:
            metrics.notices_mailed("expired", expired)
            log.warning("notices_expired", notices=expired)


# ---- mailings that have ended ----------------------------------------------------------------

# The mailings that have ended are reported together as soon as the first of them has waited for
# `DIGEST_TIME`. Only those with a message that is not delivered are reported.
TAKE_ENDED = text(f"""
    WITH taken AS (
        DELETE FROM notice_ended_mailing WHERE mailing_id = ANY (ARRAY(
            SELECT mailing_id FROM notice_ended_mailing
            WHERE EXISTS (SELECT FROM notice_ended_mailing
                WHERE ended_at <= now() - make_interval(secs => {DIGEST_TIME.total_seconds()}))
            ORDER BY mailing_id LIMIT {MAX_IN_NOTICE}))
        RETURNING mailing_id
    )
    SELECT mailing_id FROM taken JOIN mailing_counts USING (mailing_id)
    WHERE undelivered + unknown + cancelled > 0 ORDER BY mailing_id""")  # noqa: S608  # numbers


async def _report_ended(connection: AsyncConnection) -> None:
    """Write a notice of the mailings that have ended without reaching everybody."""
    ids = (await connection.scalars(TAKE_ENDED)).all()
    if ids:
        await queue.add(connection, "mailing_unreached", "mailing_unreached", {"ids": list(ids)})


# ---- trouble that lasts ----------------------------------------------------------------------


class Trouble(NamedTuple):
    """A gateway that is out, or a mailing that is held."""

    subject: str
    since: datetime


# - `SEEN` stores what is there now: trouble that has been absent for a short time goes on.
# - `ABSENT` stores since when trouble has not been seen.
# - `OVER` ends trouble that has been absent for `OVER_AFTER`; returns it if it was reported.
# - `MARK_REPORTED` returns the trouble that is to be reported now, and marks it as reported.
# - `FORGET_TROUBLE` deletes what is over and may be reported again.
SEEN = text("""
    INSERT INTO notice_trouble AS known (kind, subject, since)
    SELECT :kind, subject, since FROM unnest(:subjects, :sinces) AS seen (subject, since)
    ON CONFLICT (kind, subject) DO UPDATE SET since = coalesce(known.since, excluded.since),
        absent_since = NULL
    WHERE known.since IS NULL OR known.absent_since IS NOT NULL""").bindparams(
    bindparam("kind", type_=String),
    bindparam("subjects", type_=ARRAY(String)),
    bindparam("sinces", type_=ARRAY(DateTime(timezone=True))),
)
ABSENT = text("""
    UPDATE notice_trouble SET absent_since = now()
    WHERE kind = :kind AND subject <> ALL (:subjects) AND since IS NOT NULL
        AND absent_since IS NULL""").bindparams(bindparam("subjects", type_=ARRAY(String)))
OVER = text(f"""
    WITH over AS (
        SELECT kind, subject, since, absent_since, is_reported FROM notice_trouble
        WHERE kind = :kind
            AND absent_since <= now() - make_interval(secs => {OVER_AFTER.total_seconds()})
    ), changed AS (
        UPDATE notice_trouble AS known SET since = NULL, absent_since = NULL, is_reported = false
        FROM over WHERE known.kind = over.kind AND known.subject = over.subject
    )
    SELECT subject, since, absent_since FROM over WHERE is_reported ORDER BY subject""")  # noqa: S608  # a number
MARK_REPORTED = text(f"""
    UPDATE notice_trouble SET is_reported = true, reported_at = now()
    WHERE kind = :kind AND NOT is_reported AND absent_since IS NULL
        AND since <= now() - make_interval(secs => {REPORT_AFTER.total_seconds()})
        AND (reported_at IS NULL
            OR reported_at <= now() - make_interval(secs => {REPORT_AGAIN_AFTER.total_seconds()}))
    RETURNING subject, since""")  # noqa: S608  # numbers
FORGET_TROUBLE = text(f"""
    DELETE FROM notice_trouble WHERE kind = :kind AND since IS NULL AND (reported_at IS NULL
        OR reported_at <= now() - make_interval(secs => {REPORT_AGAIN_AFTER.total_seconds()}))""")  # noqa: S608  # a number


class Changes(NamedTuple):
    """What is to be reported of one kind of trouble."""

    begun: list[Trouble]
    over: list[tuple[str, datetime, datetime]]
    """Subject, since when the trouble was there, and until when."""


async def _track(connection: AsyncConnection, kind: str, present: Iterable[Trouble]) -> Changes:
    """Store the trouble of this moment; return what is to be reported of it."""
    ordered = sorted(present)
    values: dict[str, Any] = {"kind": kind, "subjects": [trouble.subject for trouble in ordered]}
    sinces = [trouble.since for trouble in ordered]
    if ordered:
        await connection.execute(SEEN, values | {"sinces": sinces})
    await connection.execute(ABSENT, values)
    over = [tuple(row) for row in await connection.execute(OVER, {"kind": kind})]
    begun = sorted(Trouble(*row) for row in await connection.execute(MARK_REPORTED, {"kind": kind}))
    await connection.execute(FORGET_TROUBLE, {"kind": kind})
    return Changes(begun, over)


# A pause is a decision of a user, and no trouble.
OUTAGES = text("""
    SELECT gateway, reason, since FROM gateway_outage
    WHERE gateway <> '' AND reason <> :paused""")


class GatewayOutage(NamedTuple):
    """A gateway that a worker does not use, because of trouble."""

    gateway: str
    reason: str
    since: datetime


async def _find_outages(connection: AsyncConnection) -> list[GatewayOutage]:
    rows = await connection.execute(OUTAGES, {"paused": PAUSED})
    return [GatewayOutage(*row) for row in rows]


async def _report_gateways(connection: AsyncConnection, outages: list[GatewayOutage]) -> None:
    """Write notices of gateways that have been out for some minutes, and of those back again."""
    present = [Trouble(outage.gateway, outage.since) for outage in outages]
    changes = await _track(connection, "gateway", present)
    reasons = {outage.gateway: outage.reason for outage in outages}
    for gateway, since in changes.begun:
        data = {"gateway": gateway, "reason": reasons[gateway], "since": since}
        await queue.add(connection, "gateway_trouble", "gateway_down", data)
    for gateway, since, until in changes.over:
        data = {"gateway": gateway, "since": since, "until": until}
        await queue.add(connection, "gateway_trouble", "gateway_up", data)


# `now` is the time of the transaction, from which the duration of a hold is measured: it is not
# always known since when a mailing could not send.
RUNNING = text(f"""
    SELECT id, now() AS now FROM mailing
    WHERE status = 'running' AND NOT is_closed AND deleted_at IS NULL
    ORDER BY id DESC LIMIT {MAX_WATCHED}""")  # noqa: S608  # a number
# Of a held mailing, this worker may see what is true for itself alone.
SENT_LATELY = text(f"""
    SELECT mailing_id FROM mailing_counts WHERE mailing_id = ANY (:ids)
        AND last_sent_at > now() - make_interval(
            secs => {REPORT_AFTER.total_seconds()})""").bindparams(  # noqa: S608  # a number
    bindparam("ids", type_=ARRAY(BigInteger))
)


class HeldMailing(NamedTuple):
    """Why a mailing is held, and when that was seen."""

    hold: Hold
    seen_at: datetime


async def _find_held(connection: AsyncConnection, channels: Channels) -> dict[int, HeldMailing]:
    """Return the running mailings that a fault has kept from sending for some minutes, by id."""
    running = {row.id: row.now for row in await connection.execute(RUNNING)}
    if not running:
        return {}
    all_running = await mailings.get_many(connection, list(running))
    held = {
        mailing.id: HeldMailing(mailing.held, running[mailing.id])
        for mailing in await with_holds(connection, all_running, channels)
        if mailing.held is not None and mailing.held.is_fault
    }
    sent_lately = await connection.scalars(SENT_LATELY, {"ids": list(held)}) if held else ()
    for mailing_id in sent_lately:
        del held[mailing_id]
    return held


async def _report_held(connection: AsyncConnection, held: dict[int, HeldMailing]) -> None:
    """Write a notice of the mailings that have been held for some minutes."""
    present = [Trouble(str(mailing_id), seen.seen_at) for mailing_id, seen in held.items()]
    changes = await _track(connection, "mailing", present)
    if changes.begun:
        reported = [
            {"id": int(subject), "hold": to_builtins(held[int(subject)].hold)}
            for subject, _ in changes.begun
        ]
        await queue.add(connection, "mailing_held", "mailing_held", {"mailings": reported})
