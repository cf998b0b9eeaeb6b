"""The soak's checks of opt-outs: what a client gets after a stop word, until a start word.

Each check is a generator that yields descriptions of the violations.
"""

from collections import defaultdict
from collections.abc import Iterator

from soaking.claims import Change, Message, Request
from soaking.evidence import CheckReport, Evidence, moment
from soaking.final import Final
from soaking.journal import LAG, REACTION
from soaking.opt_outs import OptOut


def check_opt_outs(report: CheckReport, evidence: Evidence, final: Final) -> None:
    """Check every request and every scheduled message of clients who have opted out."""
    opt_outs = evidence.opt_outs
    requests = [each for each in evidence.record.requests if each.id in evidence.record.messages]
    report.expect_none(
        "marketing requests to a phone 1 s after its STOP was answered with 200",
        _sent_after_stop(evidence, requests),
        of=len(requests),
    )
    report.expect_none(
        "marketing messages that were scheduled, and not cancelled by a STOP",
        _not_cancelled(evidence),
        of=len(opt_outs),
    )
    report.expect_none(
        "clients whose last STOP or START does not hold",
        _wrong_clients(evidence, final),
        of=len(final.clients),
    )
    cancelled = sum(row["reason"] == "opted_out" for row in final.messages)
    service = sum(_is_service(evidence, request) for request in requests)
    print(f"    opt-outs {len(opt_outs):,}, messages cancelled by them {cancelled:,}")
    print(f"    requests of service mailings to clients who had opted out: {service:,}")


def _is_marketing(evidence: Evidence, mailing_id: int) -> bool:
    return evidence.record.mailings[mailing_id][0].purpose == "marketing"


def _is_service(evidence: Evidence, request: Request) -> bool:
    """Return whether a request was for a service mailing, and its client had opted out."""
    last = evidence.message_of(request).last
    return not _is_marketing(evidence, last.mailing_id) and any(
        each.taken < request.arrived < each.ends for each in evidence.opt_outs_of(last.client_id)
    )


def _sent_after_stop(evidence: Evidence, requests: list[Request]) -> Iterator[str]:
    """Yield the marketing requests to clients who have opted out; `REACTION` is tolerated."""
    for request in requests:
        last = evidence.message_of(request).last
        if not _is_marketing(evidence, last.mailing_id):
            continue
        for each in evidence.opt_outs_of(last.client_id):
            if each.taken + REACTION < request.earliest - LAG and request.arrived < each.ends:
                causes = evidence.possible_causes(each.taken - REACTION, request.arrived)
                yield (
                    f"message {request.id} to {request.gateway} at {moment(request.arrived)},"
                    f" opted out at {moment(each.taken)}; {causes}"
                )


def _not_cancelled(evidence: Evidence) -> Iterator[str]:
    """Yield the messages that were scheduled when their client opted out, and stayed so."""
    by_client: dict[int, list[Message]] = defaultdict(list)
    for message in evidence.record.messages.values():
        if _is_marketing(evidence, message.last.mailing_id):
            by_client[message.last.client_id].append(message)
    for opt_out in evidence.opt_outs:
        for message in by_client[opt_out.client_id]:
            change = _unchanged(message, opt_out)
            if change is not None and _could_be_sent(evidence, change, opt_out):
                yield (
                    f"message {change.message_id} of mailing {change.mailing_id}, scheduled"
                    f" since {moment(change.at)}, opted out at {moment(opt_out.taken)}"
                )


def _unchanged(message: Message, opt_out: OptOut) -> Change | None:
    """Return the last change before an opt-out, if it still held after the opt-out.

    None if the message was not scheduled.
    """
    before = [change for change in message.changes if change.at < opt_out.began - LAG]
    until = opt_out.taken + LAG
    if not before or before[-1].status != "scheduled":
        return None
    changed = any(before[-1].at < change.at <= until for change in message.changes[len(before) :])
    return None if changed else before[-1]


def _could_be_sent(evidence: Evidence, change: Change, opt_out: OptOut) -> bool:
    """Return whether the mailing was running or paused during the whole beginning of an opt-out."""
    versions = evidence.versions(change.mailing_id, opt_out.began - LAG, opt_out.taken + LAG)
    return all(
        version.status in {"running", "paused"} and not version.is_deleted for version in versions
    )


def _wrong_clients(evidence: Evidence, final: Final) -> Iterator[str]:
    """Yield the clients who are opted out, or not, other than their last word says."""
    for client_id, client in final.clients.items():
        opt_outs = evidence.opt_outs_of(client_id)
        is_out = client["opted_out_at"] is not None
        end = float("inf")
        if not opt_outs:
            is_right = not is_out
        elif opt_outs[-1].taken == end or (opt_outs[-1].ends < end == opt_outs[-1].may_end):
            is_right = True  # the last word was not answered before the end
        else:
            is_right = is_out == (opt_outs[-1].ends == end)
        if not is_right:
            yield f"client {client_id}: opted out at {client['opted_out_at']}, {opt_outs[-1:]}"
