"""The soak's checks of the tables at the end, and the figures that it prints."""

from collections import Counter, defaultdict
from collections.abc import Iterator
from typing import Any

import asyncpg
import msgspec

from mailer.db.engine import create_engine
from mailer.db.sql import add_up
from mailer.loop_monitor import MIN_REPORTED_BLOCK
from mailer.statistics.verify import find_differences
from mailer.statuses import MESSAGE_STATUSES
from soaking.evidence import CheckReport, Evidence, matches
from soaking.journal import Journal
from soaking.opt_outs import RECIPIENT
from soaking.record import Record

SELECT_CLIENTS = "SELECT id, operator_code, tag, time_zone, opted_out_at FROM client"
SELECT_MESSAGES = """
    SELECT id, mailing_id, client_id, status, reason, attempts, gateway, gateway_message_id,
        receipts::text
    FROM message ORDER BY id"""
SELECT_REPLY_COUNTS = """
    SELECT gateway, count(*) FROM reply WHERE recipient IS DISTINCT FROM $1 GROUP BY gateway"""
SELECT_MAILINGS = f"""
    SELECT id, status, clients_count, audience_until IS NOT NULL AS has_started,
        deleted_at IS NOT NULL AS is_deleted,
        {add_up(MESSAGE_STATUSES)} AS counted
    FROM mailing JOIN mailing_counts ON mailing_id = id ORDER BY id"""  # noqa: S608  # names of statuses
COUNT_UNFINISHED = """
    SELECT (SELECT count(*) FROM mailing
            WHERE status NOT IN ('finished', 'cancelled') OR deleted_at IS NOT NULL)
        + (SELECT count(*) FROM message
            WHERE status IN ('scheduled', 'sending') OR status = 'sent' AND reason IS NULL)
        + (SELECT count(*) FROM early_receipt JOIN message ON message.id = message_id)"""


async def count_unfinished(connection: asyncpg.Connection) -> int:
    """Return the number of mailings, messages and receipts that still wait for something.

    A deleted mailing counts until mailer has removed its row.
    """
    count: int = await connection.fetchval(COUNT_UNFINISHED)
    return count


class Final(msgspec.Struct):
    """The tables at the end."""

    clients: dict[int, dict[str, Any]]
    """The clients by id."""
    messages: list[asyncpg.Record]
    mailings: list[asyncpg.Record]
    reply_counts: dict[str, int]
    """The number of replies by gateway, without those that the soak itself has sent."""
    differences: list[str]
    """The output of `mailer verify`."""


async def read_final(connection: asyncpg.Connection, database_url: str) -> Final:
    """Read the tables, and let mailer compare all its counts with the rows."""
    engine = create_engine(database_url)
    wrong_counts = [str(difference) for difference in await find_differences(engine)]
    await engine.dispose()
    clients = {row["id"]: dict(row) for row in await connection.fetch(SELECT_CLIENTS)}
    messages = await connection.fetch(SELECT_MESSAGES)
    mailings = await connection.fetch(SELECT_MAILINGS)
    reply_counts = {
        row[0]: row[1] for row in await connection.fetch(SELECT_REPLY_COUNTS, RECIPIENT)
    }
    return Final(clients, messages, mailings, reply_counts, wrong_counts)


def check_final(report: CheckReport, evidence: Evidence, final: Final, noise: float) -> None:
    """Check the tables at the end, the event loop and the violations in the journal.

    `noise`: seconds that the machine may add to the processor time of a step of the event loop.
    """
    messages, mailings = len(final.messages), len(final.mailings)
    report.expect_none("counters that differ from the rows", final.differences, of=mailings)
    report.expect_none("counts that differ from the audience", _wrong_sums(final), of=mailings)
    report.expect_none(
        "audiences that differ from the filter", _wrong_audiences(evidence, final), of=mailings
    )
    report.expect_none("mailings that did not end", _unfinished_mailings(final), of=mailings)
    report.expect_none("messages that did not end", _unfinished_messages(final), of=messages)
    report.expect_none(
        "sent and delivered messages that name another gateway than the one that accepted them",
        _wrong_acceptors(evidence, final),
        of=sum(row["status"] in {"sent", "delivered"} for row in final.messages),
    )
    report.expect_none(
        "messages that differ from their last recorded change",
        _changed_unrecorded(evidence, final),
        of=messages,
    )
    blocks = evidence.journal.blocks
    limit = MIN_REPORTED_BLOCK + noise
    check = (
        f"event loop steps over {MIN_REPORTED_BLOCK:g} s plus {noise:.3f} s of the machine's noise"
    )
    report.expect_none(check, _long_steps(evidence, limit), of=len(blocks))
    violations = evidence.journal.violations
    calls = len(evidence.journal.calls)
    report.expect_none("answers, log lines or exits that are not allowed", violations, of=calls)


def _long_steps(evidence: Evidence, limit: float) -> Iterator[str]:
    """Yield the blocks with a single step of more than `limit` seconds of processor time.

    Other blocks are no fault of mailer: the machine was busy, or hostile requests made many short
    steps due together. A step that seems longer than its block is ignored too: the wall clock was
    set during the block, and libfaketime then falsifies the processor time.
    """
    for worker, block in evidence.journal.blocks:
        if limit < block.step_seconds <= block.seconds + MIN_REPORTED_BLOCK:
            yield f"{worker}: {block.step_seconds:.3f} of {block.seconds:.3f} s in {block.frames}"


def _wrong_sums(final: Final) -> Iterator[str]:
    """Yield the started mailings whose counts do not add up to the number of their messages."""
    messages_by_mailing = Counter(row["mailing_id"] for row in final.messages)
    for row in final.mailings:
        messages = messages_by_mailing[row["id"]]
        counts = row["counted"], row["clients_count"]
        if row["has_started"] and counts != (messages, messages):
            yield f"mailing {row['id']}: {messages} messages, counters and clients_count {counts}"


def _wrong_audiences(evidence: Evidence, final: Final) -> Iterator[str]:
    """Yield finished mailings whose messages do not fit their filter.

    Each matching client must have a message. Another client may have one only if the filter was
    changed later: the message was sent before, or is cancelled.
    """
    messages: dict[int, dict[int, asyncpg.Record]] = defaultdict(dict)  # by mailing and client
    for row in final.messages:
        messages[row["mailing_id"]][row["client_id"]] = row
    for mailing in final.mailings:
        if mailing["status"] != "finished" or mailing["is_deleted"]:
            continue
        client_filter = evidence.record.mailings[mailing["id"]][-1].client_filter
        audience = {key for key, client in final.clients.items() if matches(client_filter, client)}
        rows = messages[mailing["id"]]
        if missing := audience - rows.keys():
            yield f"mailing {mailing['id']} {mailing['status']}: {len(missing)} clients missing"
        for row in (rows[client] for client in rows.keys() - audience):
            last = evidence.record.messages[row["id"]].last
            was_sent = row["attempts"] > 0 or last.is_accepted or last.status == "unknown"
            if not was_sent and row["status"] != "cancelled":
                yield f"message {row['id']}: {row['status']}/{row['reason']}, not in the audience"


def _unfinished_mailings(final: Final) -> Iterator[str]:
    """Yield the mailings that have not ended, and the deleted ones that are not removed."""
    for row in final.mailings:
        if row["is_deleted"] or row["status"] not in {"finished", "cancelled"}:
            deleted = ", deleted" if row["is_deleted"] else ""
            yield f"mailing {row['id']}: {row['status']}{deleted}"


def _unfinished_messages(final: Final) -> Iterator[str]:
    """Yield the messages that are still open, or still await a receipt."""
    for row in final.messages:
        is_awaited = (row["status"], row["reason"]) == ("sent", None)
        if is_awaited or row["status"] in {"scheduled", "sending"}:
            yield f"message {row['id']} of mailing {row['mailing_id']}: {row['status']}"


def _wrong_acceptors(evidence: Evidence, final: Final) -> Iterator[str]:
    """Yield the accepted messages whose last accepted request went to another gateway."""
    for row in final.messages:
        if row["status"] in {"sent", "delivered"}:
            requests = [claim.request for claim in evidence.record.messages[row["id"]].claims]
            acceptors = [each.gateway for each in requests if each and each.kind == "accepted"]
            if acceptors[-1:] != [row["gateway"]]:
                yield f"message {row['id']}: names {row['gateway']}, accepted by {acceptors}"


def _changed_unrecorded(evidence: Evidence, final: Final) -> Iterator[str]:
    """Yield the messages that changed without a recorded change: the record would be incomplete."""
    for row in final.messages:
        last = evidence.record.messages[row["id"]].last
        if (row["status"], row["reason"], row["attempts"]) != (
            last.status,
            last.reason,
            last.attempts,
        ):
            yield f"message {row['id']}: {row['status']}, last recorded {last.status}"


def print_figures(journal: Journal, record: Record, created_count: int, minutes: float) -> None:
    """Print what was done, and the resulting numbers of mailings, messages and requests.

    `created_count` is the number of mailings whose creation the API confirmed.
    """
    print(f"\n{minutes:g} minutes, faults: {journal.fault_counts()}")
    calls = Counter(f"{call.action} {call.status or 'lost'}" for call in journal.calls)
    print(f"calls {len(journal.calls):,}: {_listed(calls)}")
    deleted = sum(versions[-1].is_deleted for versions in record.mailings.values())
    unconfirmed = len(record.mailings) - created_count
    print(f"mailings {len(record.mailings):,}, {deleted} deleted, {unconfirmed} whose 201 was lost")
    remaining = [
        message.last
        for message in record.messages.values()
        if not record.mailings[message.last.mailing_id][-1].is_deleted
    ]
    states = Counter(
        f"{last.status}/{last.reason}" if last.reason else last.status for last in remaining
    )
    removed = len(record.messages) - len(remaining)
    print(f"messages {len(remaining):,}: {_listed(states)}; {removed:,} of deleted mailings")
    kinds = Counter(f"{request.gateway} {request.kind}" for request in record.requests)
    print(f"requests {len(record.requests):,}: {_listed(kinds)}")
    outcomes = Counter(
        claim.closed.reason or claim.closed.status
        for message in record.messages.values()
        for claim in message.claims
        if claim.closed is not None and claim.is_counted
    )
    print(f"attempts {sum(outcomes.values()):,}: {_listed(outcomes)}")
    print(f"warnings of mailer: {_listed(journal.warnings)}")


def _listed(counts: Counter[str]) -> str:
    """Return counts as text, in alphabetical order."""
    return ", ".join(f"{name} {count:,}" for name, count in sorted(counts.items())) or "none"
