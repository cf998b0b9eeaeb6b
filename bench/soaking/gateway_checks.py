"""The soak's checks of the gateways: routing, pauses, and the gateway that a message names.

Each check is a generator that yields descriptions of the violations. The rules of routing are
implemented here once more, without mailer's code.
"""

from collections import Counter
from collections.abc import Iterator

from soaking.changes import describe_history
from soaking.claims import Change, Claim, Message
from soaking.evidence import CheckReport, Evidence, moment
from soaking.journal import LAG, REACTION

CHOICE_AGE = 3.0
"""Seconds before a claim in which mailer may have chosen its gateway."""

CAUSE_AGE = 15.0
"""Seconds before a wrong claim in which its cause may lie."""


def check_gateways(report: CheckReport, evidence: Evidence) -> None:
    """Check for each claim and each request whether its gateway was allowed."""
    record = evidence.record
    messages = record.messages.values()
    claims = [claim for message in messages for claim in message.claims]
    sent = [claim for claim in claims if claim.request is not None]
    report.expect_none(
        "requests 1 s after the gateway was paused", _while_paused(evidence), of=len(sent)
    )
    report.expect_none(
        "messages sent through another gateway after an unknown outcome",
        _left_gateway(evidence),
        of=len(sent),
    )
    report.expect_none(
        "claims for a gateway that the routing forbids", _misrouted(evidence), of=len(claims)
    )
    report.expect_none(
        "claims for a gateway of a higher order while a lower one was usable",
        _out_of_order(evidence),
        of=len(claims),
    )
    report.expect_none(
        "results of another gateway than the one that got the request",
        _wrong_gateways(sent),
        of=len(sent),
    )
    used = Counter(claim.opened.gateway for claim in sent)
    passed_on = sum(_was_passed_on(message) for message in messages)
    listed = ", ".join(f"{name} {count:,}" for name, count in sorted(used.items()))
    print(f"    requests by gateway: {listed}; {passed_on:,} messages went to a second gateway")


def _describe(change: Change) -> str:
    message = f"message {change.message_id} of mailing {change.mailing_id}"
    return f"{message}, claimed {moment(change.at)} by {change.worker} for {change.gateway}"


def _was_passed_on(message: Message) -> bool:
    """Return whether requests for a message went to several gateways."""
    return len({claim.request.gateway for claim in message.claims if claim.request}) > 1


def _while_paused(evidence: Evidence) -> Iterator[str]:
    """Yield the requests to a paused gateway; `REACTION` is tolerated after the pause began."""
    for request in evidence.record.requests:
        for pause in evidence.record.pauses:
            if (
                pause.gateway == request.gateway
                and pause.since + REACTION < request.earliest - LAG
                and request.arrived < pause.until
            ):
                at = f"message {request.id} at {moment(request.arrived)}"
                yield f"{at}, {pause.gateway} paused since {moment(pause.since)}"


def _left_gateway(evidence: Evidence) -> Iterator[str]:
    """Yield the claims for another gateway than the one that may have the message already."""
    for claims in _lives(evidence):
        keeper = None
        for claim in claims:
            if keeper is not None and claim.opened.gateway != keeper:
                message = evidence.record.messages[claim.opened.message_id]
                history = describe_history(message.changes)
                yield f"{_describe(claim.opened)}, though {keeper} may have it; {history}"
            if claim.is_unknown:
                keeper = claim.opened.gateway


def _misrouted(evidence: Evidence) -> Iterator[str]:
    """Yield the claims for a gateway that takes no messages of the mailing to the client."""
    for claim in _routed_claims(evidence):
        allowed = _allowed_gateways(evidence, claim.opened)
        if claim.opened.gateway not in allowed:
            at = claim.opened.at
            since = evidence.rerouting_since(at)
            versions = evidence.record.mailings[claim.opened.mailing_id]
            own = [f"{moment(each.since)} {each.gateway}" for each in versions]
            yield (
                f"{_describe(claim.opened)}, allowed {sorted(allowed)} since {moment(since)};"
                f" gateways of the mailing: {own};"
                f" {evidence.route_events(since - CAUSE_AGE, at + CAUSE_AGE)};"
                f" {evidence.possible_causes(since - CAUSE_AGE, at)}"
            )


def _routed_claims(evidence: Evidence) -> Iterator[Claim]:
    """Yield the claims of messages that no gateway may have already."""
    for claims in _lives(evidence):
        for claim in claims:
            yield claim
            if claim.is_unknown:
                break


def _lives(evidence: Evidence) -> Iterator[list[Claim]]:
    """Yield the claims of each life of each message."""
    for message in evidence.record.messages.values():
        for claims, _ in message.lives():
            yield claims


def _allowed_gateways(evidence: Evidence, change: Change) -> set[str]:
    """Return the gateways that may take a message at a change.

    They are those by every configuration, and every gateway of the mailing, that may still apply.
    """
    since = evidence.rerouting_since(change.at)
    versions = evidence.versions(change.mailing_id, since, change.at)
    own = {version.gateway for version in versions}
    allowed = {name for name in own if name is not None}
    if None in own:
        code = evidence.clients[change.client_id]["operator_code"]
        for configuration in evidence.journal.configurations_during(since, change.at):
            entries = configuration.entries.items()
            allowed |= {name for name, entry in entries if entry.takes(code)}
    return allowed


def _out_of_order(evidence: Evidence) -> Iterator[str]:
    """Yield the claims for a gateway although one of a lower order was usable all the time.

    Nothing is known of a worker that was frozen or without the database between choice and claim.
    """
    for claim in _routed_claims(evidence):
        change = claim.opened
        start, end = change.at - CHOICE_AGE, change.at + LAG
        if evidence.was_database_faulty(start, end):
            continue
        if evidence.was_frozen(change.worker, start, end):
            continue
        for name in _gateways_before(evidence, change):
            was_paused = evidence.was_paused(name, start, end)
            if not was_paused and not evidence.was_breaker_open(change.worker, start, end, name):
                yield f"{_describe(change)}, {name} was usable"


def _gateways_before(evidence: Evidence, change: Change) -> set[str]:
    """Return the gateways that have the message before the one for which it is claimed.

    They have a lower order by every configuration that may still apply. None if the mailing has a
    gateway of its own.
    """
    since = evidence.rerouting_since(change.at)
    if any(v.gateway for v in evidence.versions(change.mailing_id, since, change.at)):
        return set()
    code = evidence.clients[change.client_id]["operator_code"]
    before: set[str] | None = None
    for configuration in evidence.journal.configurations_during(since, change.at + LAG):
        entries = configuration.entries
        own = entries.get(change.gateway or "")
        lower = {
            name
            for name, entry in entries.items()
            if entry.takes(code) and own is not None and entry.order < own.order
        }
        before = lower if before is None else before & lower
    return before or set()


def _wrong_gateways(sent: list[Claim]) -> Iterator[str]:
    """Yield the results that name another gateway than the one that got the request."""
    for claim in sent:
        closed, request = claim.closed, claim.request
        if closed is None or request is None or not claim.is_counted:
            continue
        if closed.gateway != request.gateway:
            yield f"{_describe(claim.opened)}, {closed.status} names {closed.gateway}"
