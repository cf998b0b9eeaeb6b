"""The samples of responses from which the sandbox gateway speaks for each provider."""

import random

import pytest
from msgspec.structs import replace

from mailer.gateway.profile import GatewayProfile
from mailer.gateway.profile_file import load_profile, shipped_kinds
from mailer.gateway.protocol import Accepted, Outcome, Rejected, TemporaryFailure
from mailer.gateway.response import MAX_RESPONSE_BODY_BYTES
from mailer.gateway.response_rule import Response
from mailer.gateway.response_rules import ResponseRules
from mailer.gateway.sandbox_records import SandboxMessage
from mailer.gateway.sandbox_responses import (
    SAMPLE_NAMES,
    SampleName,
    SandboxResponse,
    SandboxResponses,
    load_samples,
)

MESSAGE = SandboxMessage(id=12, phone=79161234567, text="Hello")
SAMPLES = [
    (kind, name, index)
    for kind in shipped_kinds()
    for name in SAMPLE_NAMES
    if name != "balance"  # not the response to a message
    for index in range(len(load_samples(kind).named(name)))
]


def read(profile: GatewayProfile, response: SandboxResponse) -> Outcome:
    """Return the outcome that the rules of a profile give a response."""
    rules = ResponseRules(profile.response, recognizes_repeats=profile.limits.recognizes_repeats)
    # a client stops reading at the limit, and has no body then
    body = response.body if len(response.body) <= MAX_RESPONSE_BODY_BYTES else b""
    retry_after = response.headers.get("Retry-After")
    return rules.outcome(
        Response(
            response.status,
            body,
            None if retry_after is None else float(retry_after),
            response.headers["Content-Type"],
        )
    )


def name_of(outcome: Outcome) -> str:
    """Return what the outcome means, in the words of the samples."""
    match outcome:
        case Accepted():
            return "accepted"
        case Rejected(is_opt_out=True):
            return "opted_out"
        case Rejected():
            return "rejected"
        case TemporaryFailure(trouble=None):
            return "temporary"
        case TemporaryFailure(trouble=trouble):
            return str(trouble)
        case _:
            return "unknown"


ALLOWED = {
    "duplicate": {"accepted"},
    "invalid": {"rejected"},
    "limited": {"temporary"},
    "malformed": {"temporary", "unknown"},
}
"""What the outcome of a sample may be, if it is not its name."""


def create_responses(kind: str) -> SandboxResponses:
    return SandboxResponses(kind, random.Random(1))  # noqa: S311  # to be repeatable, not secret


@pytest.mark.parametrize(("kind", "name", "index"), SAMPLES)
def test_sample_has_the_outcome_that_it_is_named_after(
    kind: str, name: SampleName, index: int
) -> None:
    response = create_responses(kind).create(name, MESSAGE, index=index)
    outcome = read(load_profile(kind), response)
    assert name_of(outcome) in ALLOWED.get(name, {name})


@pytest.mark.parametrize("kind", sorted({*shipped_kinds()} - {"json", "kannel"}))
def test_each_accepted_message_has_an_id_of_its_own(kind: str) -> None:
    responses, profile = create_responses(kind), load_profile(kind)
    ids = set()
    for message_id in (12, 13):
        message = replace(MESSAGE, id=message_id)
        outcome = read(profile, responses.accept(message, is_repeat=False))
        assert isinstance(outcome, Accepted)
        ids.add(outcome.gateway_message_id)
    assert None not in ids
    assert len(ids) == 2


@pytest.mark.parametrize("kind", shipped_kinds())
def test_refusal_has_the_status_of_a_sample_if_there_is_one(kind: str) -> None:
    invalid = {sample.status for sample in load_samples(kind).invalid}
    for status in invalid:
        assert create_responses(kind).respond(status).status == status
    assert create_responses(kind).respond(418).status in invalid


@pytest.mark.parametrize(
    ("kind", "pause"), [("json", 7), ("infobip", 7), ("vonage", 7), ("twilio", None)]
)
def test_limit_says_how_long_to_wait_if_the_provider_does(kind: str, pause: float | None) -> None:
    outcome = read(load_profile(kind), create_responses(kind).limit(MESSAGE, 7))
    assert isinstance(outcome, TemporaryFailure)
    assert outcome.affects_all
    assert outcome.retry_after == pause
