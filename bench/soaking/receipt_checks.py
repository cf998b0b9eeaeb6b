"""The soak's checks of receipts: whether each message ends as its last decisive receipt says.

Each check is a generator that yields descriptions of the violations. The rules of receipts are
implemented here once more, without mailer's code. Messages of deleted mailings are not checked.
"""

import math
from collections import Counter, defaultdict
from collections.abc import Iterator
from typing import Any

import asyncpg
import msgspec

from soaking.claims import ACCEPTED_STATUSES, Message
from soaking.evidence import CheckReport, Evidence, moment
from soaking.final import Final
from soaking.journal import LAG, RECEIPT_WAIT, Receipt

DECISIVE = {"delivered", "failed"}
"""Contents of the receipts that decide about a message."""


def check_receipts(report: CheckReport, evidence: Evidence, final: Final) -> None:
    """Check the final status and the stored receipts of every message against the calls."""
    messages = evidence.record.messages
    receipts = [each for row in final.messages for each in messages[row["id"]].receipts]
    taken = sum(each.is_taken for each in receipts)
    decided = {each.message_id for each in receipts if each.is_taken and each.content in DECISIVE}
    report.expect_none(
        "messages that differ from their last decisive receipt that mailer answered with 200",
        _undecided(evidence, final),
        of=len(decided),
    )
    report.expect_none(
        "delivered, sent or not delivered without a receipt or an answer that says so",
        _unproven(evidence, final),
        of=len(final.messages),
    )
    report.expect_none(
        "receipts answered with 200 that are not in the message's history",
        _lost_receipts(evidence, final),
        of=taken,
    )
    report.expect_none(
        "receipts in a message's history that no gateway has sent",
        _invented_receipts(evidence, final),
        of=len(final.messages),
    )
    report.expect_none(
        "gateways with replies answered with 200 that are not stored",
        _lost_replies(evidence, final),
        of=len(final.reply_counts),
    )
    print_receipts(evidence)


def _describe(message: Message, row: asyncpg.Record) -> str:
    """Return a message's final state, its receipts and its changes as text."""
    state = f"{row['status']}/{row['reason']} {row['gateway']} {row['gateway_message_id']}"
    receipts = ", ".join(
        f"{each.content} {each.gateway} {each.gateway_id} {moment(each.started)} to"
        f" {moment(each.ended)} {each.attempts}{' taken' if each.is_taken else ''}"
        for each in message.receipts
    )
    changes = ", ".join(
        f"{moment(each.at)} {each.status}/{each.reason} {each.gateway} {each.attempts}"
        for each in message.changes
    )
    return f"message {row['id']}: {state}; receipts {receipts}; {changes}"


def _undecided(evidence: Evidence, final: Final) -> Iterator[str]:
    """Yield the messages whose final status contradicts the receipts that mailer has taken.

    A receipt `delivered` always decides. Otherwise a failure does, if it is about the last attempt.
    """
    for row in final.messages:
        message = evidence.record.messages[row["id"]]
        taken = [each for each in message.receipts if each.is_taken]
        is_delivered = any(each.content == "delivered" for each in taken)
        if is_delivered:
            is_right = row["status"] == "delivered"
        elif row["status"] == "sent":
            failures = [each for each in taken if each.content == "failed"]
            is_right = not any(_counts(each, message, row) for each in failures)
        elif row["status"] == "unknown":  # any receipt would show that it was accepted
            is_right = not any(_counts(each, message, row) for each in taken)
        else:
            is_right = True
        if not is_right:
            yield _describe(message, row)


def _counts(receipt: Receipt, message: Message, row: asyncpg.Record) -> bool:
    """Return whether a receipt is certainly about the last attempt.

    It came after the result of this attempt, from its gateway, and names its gateway's id.
    """
    last = message.claims[-1].closed if message.claims else None
    closed_at = math.inf if last is None else last.at
    return (
        receipt.started > closed_at + LAG
        and receipt.gateway == row["gateway"]
        and _is_of_last_id(receipt, row)
    )


def _is_of_last_id(receipt: Receipt, row: asyncpg.Record) -> bool:
    """Return whether a receipt names the gateway's id of a message, or there is none."""
    ids = row["gateway_message_id"]
    return ids is None or any(each.endswith(receipt.gateway_id) for each in _whole_ids(ids))


def _whole_ids(ids: str) -> list[str]:
    """Return the ids of a message's parts, without the number of the part at their end."""
    return [part for each in ids.split(",") for part in (each, each[:-3])]


def _unproven(evidence: Evidence, final: Final) -> Iterator[str]:
    """Yield the messages whose status no receipt and no answer has led to."""
    for row in final.messages:
        message = evidence.record.messages[row["id"]]
        sent = [each for each in message.receipts if each.attempts]
        accepted = {
            claim.request.gateway
            for claim in message.claims
            if claim.request is not None and claim.request.kind == "accepted"
        }
        match row["status"]:
            case "delivered":
                shown = any(each.content == "delivered" for each in sent)
                is_right = shown or any(ACCEPTED_STATUSES[each] == "delivered" for each in accepted)
            case "sent":
                is_right = any(ACCEPTED_STATUSES[each] == "sent" for each in accepted)
            case "undelivered" if message.last.is_receipt_state:
                failures = [each for each in sent if each.content == "failed"]
                is_right = any(
                    each.gateway == row["gateway"] and _is_of_last_id(each, row)
                    for each in failures
                )
            case _:
                is_right = True
        if not is_right:
            yield _describe(message, row)


def _lost_receipts(evidence: Evidence, final: Final) -> Iterator[str]:
    """Yield the receipts that mailer has answered with 200 and not stored with the message."""
    for row in final.messages:
        message = evidence.record.messages[row["id"]]
        stored = _stored(row)
        for receipt in message.receipts:
            if receipt.is_taken and not any(_is_same(receipt, each) for each in stored):
                at = f"{receipt.content} of {receipt.gateway} at {moment(receipt.ended)}"
                yield f"{at}: {_describe(message, row)}"


def _invented_receipts(evidence: Evidence, final: Final) -> Iterator[str]:
    """Yield the stored receipts that are in no gateway's log."""
    for row in final.messages:
        message = evidence.record.messages[row["id"]]
        sent = [each for each in message.receipts if each.attempts]
        for stored in _stored(row):
            if not any(_is_same(each, stored) for each in sent):
                yield f"{stored}: {_describe(message, row)}"


def _stored(row: asyncpg.Record) -> list[dict[str, Any]]:
    """Return the receipts in the history of a message."""
    receipts: list[dict[str, Any]] = msgspec.json.decode(row["receipts"] or "[]")
    return receipts


def _is_same(receipt: Receipt, stored: dict[str, Any]) -> bool:
    """Return whether a stored receipt may be a call of a gateway."""
    content = "failed" if stored["status"] == "expired" else stored["status"]
    part = stored.get("part")
    return (content, stored["gateway"]) == (receipt.content, receipt.gateway) and (
        part is None or part[:-3].endswith(receipt.gateway_id)
    )


def _lost_replies(evidence: Evidence, final: Final) -> Iterator[str]:
    """Yield the gateways of which fewer replies are stored than mailer has answered with 200.

    A reply may be stored although the answer was lost, so more of them are right. A message gets
    at most one reply, of one or several parts.
    """
    parts: dict[tuple[str, int, str], list[bool]] = defaultdict(list)
    for each in evidence.record.replies:
        parts[each.gateway, each.message_id, each.gateway_id].append(each.is_taken)
    taken = Counter(gateway for (gateway, *_), own in parts.items() if all(own))
    for gateway, count in taken.items():
        stored = final.reply_counts.get(gateway, 0)
        if stored < count:
            yield f"{gateway}: {count} replies answered, {stored} stored"


def print_receipts(evidence: Evidence) -> None:
    """Print how many receipts came, and how."""
    messages = evidence.record.messages
    counts: Counter[str] = Counter()
    for receipt in evidence.record.receipts:
        if receipt.is_taken:
            counts[f"{receipt.content} taken"] += 1
            counts["after several attempts"] += receipt.attempts > 1
            message = messages.get(receipt.message_id)
            counts["before the answer was recorded"] += _is_early(receipt, message)
        else:
            counts["sent and not taken" if receipt.attempts else "not sent"] += 1
    decided_again = sum(
        after.is_receipt_state and before.is_receipt_state and before.status == "undelivered"
        for message in messages.values()
        for before, after in message.receipt_changes()
    )
    late = sum(
        before.reason == "no_receipt" and after.status != "sent"
        for message in messages.values()
        for before, after in message.receipt_changes()
    )
    listed = ", ".join(f"{name} {count:,}" for name, count in sorted(counts.items()))
    print(f"    receipts {len(evidence.record.receipts):,}: {listed}")
    print(f"    {decided_again:,} messages were delivered after a failure")
    print(f"    {late:,} receipts came after {RECEIPT_WAIT:g} s")


def _is_early(receipt: Receipt, message: Message | None) -> bool:
    """Return whether a receipt was answered while its message was being sent."""
    claims = [] if message is None else message.claims
    return any(
        claim.opened.at < receipt.ended < (math.inf if claim.closed is None else claim.closed.at)
        for claim in claims
    )
