"""Send the text of a mailing to given phones as a test: outside the mailing, and counted nowhere.

The messages go through the gateway and with the sender of the mailing, or through a gateway for the
phone's operator code. Gateways that are out or paused are not used. Placeholders stand for the
fields of the client with the phone, or for their defaults.
"""

import asyncio
from collections.abc import Sequence
from typing import NamedTuple

import msgspec
import structlog
from sqlalchemy import ARRAY, String, bindparam, text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from mailer.access import audit
from mailer.access.model import Actor
from mailer.clock import database_clock, elapsed
from mailer.gateway.channel import Channel, Channels
from mailer.gateway.protocol import Outcome, OutgoingMessage, Rejected
from mailer.gateway.router import Router
from mailer.gateway.single_message import send_single, single_message
from mailer.gateway.sms_parts import count_parts
from mailer.gateway_control.testing_model import TEST_MARK, PhoneResult
from mailer.idempotency.do_once import do_once
from mailer.idempotency.model import IdempotencyClaim
from mailer.mailing import store as mailings
from mailer.mailing.actions import ensure_allowed
from mailer.mailing.model import Mailing
from mailer.mailing.text_template import (
    MAX_CHARACTERS,
    MISSING_FIELD,
    TEXT_TOO_LONG,
    MissingField,
    parse,
    render,
)
from mailer.opt_out.service import opt_out_phone
from mailer.opt_out.store import DIGEST

log = structlog.get_logger()

MAX_RATE_WAIT = 20.0
"""Seconds that a test waits for the rate of its gateway at most, because a user waits for it."""


class Recipient(NamedTuple):
    """A phone to which a test is sent, as far as the database knows it."""

    phone: str
    operator_code: str
    has_opted_out: bool
    message_id: int
    """A new id, which no other message has."""
    may_send: bool
    """False after a restore, until an admin has allowed sending."""
    fields: str
    """The fields of the client with the phone, as JSON; without a client, there are none."""


class TestMessage(NamedTuple):
    """A test message and the gateway that gets it."""

    channel: Channel
    message: OutgoingMessage


# The id comes from the sequence of all messages: no gateway has got it in another message. A phone
# that is not a client's has the operator code of its digits.
FIND_RECIPIENTS = text(f"""
    SELECT given.phone, coalesce(client.operator_code, substr(given.phone, 2, 3)),
        EXISTS (SELECT FROM opt_out WHERE phone_digest = digest),
        nextval('message_id_seq'), sending_is_allowed(), coalesce(client.fields, '{{}}')::text
    FROM (SELECT phone, {DIGEST} AS digest FROM unnest(:phones) AS phone CROSS JOIN opt_out_key)
        AS given
    LEFT JOIN client ON client.phone = given.phone""").bindparams(  # noqa: S608  # our own SQL
    bindparam("phones", type_=ARRAY(String))
)


async def send_mailing_test(  # noqa: PLR0913, PLR0917  # the parts of a change that is made once
    engine: AsyncEngine,
    channels: Channels,
    mailing_id: int,
    phones: Sequence[str],
    actor: Actor,
    claim: IdempotencyClaim | None = None,
) -> list[PhoneResult] | None:
    """Send the text of a mailing to `phones` now, marked as a test; return a result for each.

    The audit log records how many phones, and none of them. A phone that has opted out of the
    mailing gets nothing. Return None if an earlier attempt of the request may have sent the
    messages. Raises `MailingNotFoundError` and `MailingEndedError`.
    """
    async with engine.begin() as connection:
        mailing = await mailings.get(connection, mailing_id)
        done = await do_once(
            connection,
            claim,
            lambda: _prepare(connection, mailing, phones, actor),
            result_of=lambda _: {"id": mailing_id},
        )
    if done.value is None:
        return None
    router = Router()
    prepared = [_create(mailing, channels, recipient, router) for recipient in done.value]
    async with asyncio.TaskGroup() as tasks:
        sending = [tasks.create_task(_send(engine, test)) for test in prepared]
    results = [task.result() for task in sending]
    log.info(
        "mailing_tested",
        mailing_id=mailing_id,
        messages=len(results),
        accepted=sum(result.outcome == "accepted" for result in results),
    )
    return results


async def _prepare(
    connection: AsyncConnection, mailing: Mailing, phones: Sequence[str], actor: Actor
) -> list[Recipient]:
    """Record a test in the audit log, and return its recipients in the order of `phones`."""
    ensure_allowed("test", mailing, database_clock.now())
    rows = await connection.execute(FIND_RECIPIENTS, {"phones": list(phones)})
    recipients = {row[0]: Recipient(*row) for row in rows}
    target = audit.Target("mailing", mailing.id)
    await audit.record(connection, actor, "mailing_tested", target, after={"phones": len(phones)})
    return [recipients[phone] for phone in phones]


def _create(
    mailing: Mailing, channels: Channels, recipient: Recipient, router: Router
) -> TestMessage | PhoneResult:
    """Return the test message to a recipient, or the result if it must not be sent."""
    phone = recipient.phone
    if not recipient.may_send:
        return PhoneResult.not_sent(phone, "restored")
    if recipient.has_opted_out and mailing.purpose == "marketing":
        return PhoneResult.not_sent(phone, "opted_out")
    text = _render(mailing, recipient)
    if isinstance(text, PhoneResult):
        return text
    taking = _taking(mailing, channels, recipient.operator_code)
    channel = _choose(router, taking)
    if channel is None:
        outages = [channel.outage for channel in taking if channel.outage is not None]
        reason = max(outages, key=lambda outage: outage.since).reason if outages else "no_gateway"
        return PhoneResult.not_sent(phone, reason)
    marked = TEST_MARK + text
    if count_parts(marked).parts > channel.limits.parts:
        return PhoneResult.not_sent(phone, "too_many_parts", channel.name)
    message = single_message(
        channel.configured,
        phone,
        marked,
        message_id=recipient.message_id,
        sender=mailing.sender,
    )
    return TestMessage(channel, message)


def _render(mailing: Mailing, recipient: Recipient) -> str | PhoneResult:
    """Return the text for a recipient, or the result if there is none."""
    if not mailing.placeholders:
        return mailing.text
    fields = msgspec.json.decode(recipient.fields, type=dict[str, str])
    text = render(parse(mailing.text), fields)
    if isinstance(text, MissingField):
        return PhoneResult.not_sent(recipient.phone, MISSING_FIELD)
    if len(text) > MAX_CHARACTERS:
        return PhoneResult.not_sent(recipient.phone, TEXT_TOO_LONG)
    return text


def _taking(mailing: Mailing, channels: Channels, operator_code: str) -> list[Channel]:
    """Return the channels that may take a mailing's messages to an operator code."""
    if mailing.gateway is not None:
        return channels.usable_by(mailing.gateway)
    return [
        channel
        for channel in channels
        if channel.config.operator_codes is None or operator_code in channel.config.operator_codes
    ]


def _choose(router: Router, channels: Sequence[Channel]) -> Channel | None:
    """Return the channel for the next message, like for those of mailings; None if all are out."""
    choice = router.choose(
        channel.candidate(1 if channel.outage is None else 0) for channel in channels
    )
    if choice is None:
        return None
    router.record(choice, 1)
    return next(channel for channel in channels if channel.name == choice.name)


async def _send(engine: AsyncEngine, test: TestMessage | PhoneResult) -> PhoneResult:
    """Send a test message, unless it has a result already; return its result.

    It takes a slot of the gateway's rate. If the gateway answers that the client has opted out,
    that is recorded.
    """
    if isinstance(test, PhoneResult):
        return test
    channel, message = test
    if channel.pacer is not None:
        pause = channel.pacer.reserve(elapsed())
        if pause > MAX_RATE_WAIT:
            return PhoneResult.not_sent(message.phone, "rate_limit", channel.name)
        await asyncio.sleep(pause)
    outcome: Outcome = await send_single(channel.configured, message, channel.limits.timeout)
    if isinstance(outcome, Rejected) and outcome.is_opt_out:
        await _record_opt_out(engine, channel, message)
    return PhoneResult.of(message.phone, channel.name, outcome)


async def _record_opt_out(engine: AsyncEngine, channel: Channel, message: OutgoingMessage) -> None:
    """Record that a gateway answered that the phone of a message has opted out.

    An error is logged only: the test was sent, so its results must be shown. The gateway will give
    the same answer to the next message.
    """
    try:
        async with engine.begin() as connection:
            await opt_out_phone(connection, message.phone, "gateway", channel.name)
    except Exception as error:  # noqa: BLE001  # a lost database raises errors of several libraries
        log.warning(
            "opt_out_not_recorded",
            gateway=channel.name,
            message_id=message.id,
            error=type(error).__name__,
        )
