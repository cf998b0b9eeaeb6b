"""The soak's checks of what is left at the end: rows, ledgers, audiences; and its figures."""

from collections import Counter, defaultdict
from collections.abc import Iterator
from typing import Any

import asyncpg
import msgspec

from mailer.db.engine import create_engine
from mailer.loop_monitor import LIMIT
from mailer.report.verify import differences
from soaking.evidence import Audit, Evidence, matches
from soaking.journal import Journal
from soaking.record import Record

CLIENTS = "SELECT id, operator_code, tag, time_zone FROM client"
MESSAGES = "SELECT id, mailing_id, client_id, status, reason, attempts FROM message ORDER BY id"
MAILINGS = """
    SELECT id, status, clients_count, audience_until IS NOT NULL AS has_begun,
        deleted_at IS NOT NULL AS is_deleted,
        scheduled + sending + delivered + undelivered + "unknown" + cancelled AS counted
    FROM mailing JOIN ledger ON mailing_id = id ORDER BY id"""
UNSETTLED = """
    SELECT (SELECT count(*) FROM mailing
            WHERE status NOT IN ('finished', 'cancelled') OR deleted_at IS NOT NULL)
        + (SELECT count(*) FROM message WHERE status IN ('scheduled', 'sending'))"""


async def count_unsettled(connection: asyncpg.Connection) -> int:
    """Return how many mailings and messages have not ended."""
    left: int = await connection.fetchval(UNSETTLED)
    return left


class Final(msgspec.Struct):
    """The tables at the end."""

    clients: dict[int, dict[str, Any]]
    messages: list[asyncpg.Record]
    mailings: list[asyncpg.Record]
    differences: list[str]
    """What `mailer verify` has to say."""


async def read_final(connection: asyncpg.Connection, database_url: str) -> Final:
    """Read the tables, and have mailer compare its ledgers with its messages."""
    engine = create_engine(database_url)
    found = [str(difference) for difference in await differences(engine)]
    await engine.dispose()
    clients = {row["id"]: dict(row) for row in await connection.fetch(CLIENTS)}
    messages = await connection.fetch(MESSAGES)
    return Final(clients, messages, await connection.fetch(MAILINGS), found)


def check_final(audit: Audit, evidence: Evidence, final: Final, noise: float) -> None:
    """Check what is left; `noise` is what the machine added to the processor time of a step."""
    total, mailings = len(final.messages), len(final.mailings)
    audit.none("ledgers that differ from their messages", final.differences, of=mailings)
    audit.none("sums that are not the audience", _wrong_sums(final), of=mailings)
    audit.none("audiences that are not the filter's", _audiences(evidence, final), of=mailings)
    audit.none("mailings that did not end", _unended(final), of=mailings)
    audit.none("messages that did not end", _unsettled(final), of=total)
    audit.none("messages that differ from their history", _rewritten(evidence, final), of=total)
    blocks = evidence.journal.blocks
    limit = LIMIT + noise
    what = f"steps of a loop over {LIMIT:g} s and {noise:.3f} s of the machine's noise"
    audit.none(what, _long_steps(evidence, limit), of=len(blocks))
    complaints = evidence.journal.complaints
    calls = len(evidence.journal.calls)
    audit.none("answers, log lines, exits that may not be", complaints, of=calls)


def _long_steps(evidence: Evidence, limit: float) -> Iterator[str]:
    """Yield the blocks with a step that took more than `limit` seconds of processor time.

    A block may also be a wait for a busy machine, or many short steps that strangers made due
    together. libfaketime shifts processor time, too: a clock that steps within a block makes it
    more than the block itself.
    """
    for life, block in evidence.journal.blocks:
        if limit < block.step_seconds <= block.seconds + LIMIT:
            yield f"{life}: {block.step_seconds:.3f} of {block.seconds:.3f} s in {block.frames}"


def _wrong_sums(final: Final) -> Iterator[str]:
    created = Counter(row["mailing_id"] for row in final.messages)
    for row in final.mailings:
        has, counts = created[row["id"]], (row["counted"], row["clients_count"])
        if row["has_begun"] and counts != (has, has):
            yield f"mailing {row['id']}: {has} messages, ledger and clients_count {counts}"


def _audiences(evidence: Evidence, final: Final) -> Iterator[str]:
    """Yield mailings that lack a client, or would have sent to one that the filter leaves out."""
    messages: dict[int, dict[int, asyncpg.Record]] = defaultdict(dict)
    for row in final.messages:
        messages[row["mailing_id"]][row["client_id"]] = row
    for mailing in final.mailings:
        if mailing["status"] != "finished" or mailing["is_deleted"]:
            continue
        wanted = evidence.record.mailings[mailing["id"]][-1].client_filter
        audience = {key for key, client in final.clients.items() if matches(wanted, client)}
        rows = messages[mailing["id"]]
        if missing := audience - rows.keys():
            yield f"mailing {mailing['id']} {mailing['status']}: {len(missing)} clients left out"
        for row in (rows[client] for client in rows.keys() - audience):
            was_sent = row["attempts"] > 0 or row["status"] in {"delivered", "unknown"}
            if not was_sent and row["status"] != "cancelled":
                yield f"message {row['id']}: {row['status']}/{row['reason']}, not in the audience"


def _unended(final: Final) -> Iterator[str]:
    for row in final.mailings:
        if row["is_deleted"] or row["status"] not in {"finished", "cancelled"}:
            yield f"mailing {row['id']}: {row['status']}{', deleted' * row['is_deleted']}"


def _unsettled(final: Final) -> Iterator[str]:
    for row in final.messages:
        if row["status"] in {"scheduled", "sending"}:
            yield f"message {row['id']} of mailing {row['mailing_id']}: {row['status']}"


def _rewritten(evidence: Evidence, final: Final) -> Iterator[str]:
    for row in final.messages:
        last = evidence.record.messages[row["id"]].last
        if (row["status"], row["reason"], row["attempts"]) != (
            last.status,
            last.reason,
            last.attempts,
        ):
            yield f"message {row['id']}: {row['status']}, last seen {last.status}"


def tell_figures(journal: Journal, record: Record, made: int, minutes: float) -> None:
    """Print what was done, and what became of it."""
    print(f"\n{minutes:g} minutes of trouble: {journal.counts()}")
    calls = Counter(f"{call.action} {call.status or 'lost'}" for call in journal.calls)
    print(f"calls {len(journal.calls):,}: {_listed(calls)}")
    deleted = sum(versions[-1].is_deleted for versions in record.mailings.values())
    unheard = len(record.mailings) - made
    print(f"mailings {len(record.mailings):,}, {deleted} deleted, {unheard} whose 201 was lost")
    left = [
        message.last
        for message in record.messages.values()
        if not record.mailings[message.last.mailing_id][-1].is_deleted
    ]
    states = Counter(f"{m.status}/{m.reason}" if m.reason else m.status for m in left)
    gone = len(record.messages) - len(left)
    print(f"messages {len(left):,}: {_listed(states)}; {gone:,} deleted with their mailings")
    kinds = Counter(request.kind for request in record.requests)
    print(f"requests {len(record.requests):,}: {_listed(kinds)}")
    ends = Counter(
        claim.closed.reason or claim.closed.status
        for message in record.messages.values()
        for claim in message.claims
        if claim.closed is not None and claim.is_counted
    )
    print(f"attempts {sum(ends.values()):,}: {_listed(ends)}")
    print(f"warnings of mailer: {_listed(journal.events)}")


def _listed(counts: Counter[str]) -> str:
    return ", ".join(f"{what} {count:,}" for what, count in sorted(counts.items())) or "none"
