"""What a mail with notices tells: read from the database when it is sent."""

from collections.abc import Mapping, Sequence
from datetime import datetime

import msgspec
from msgspec import convert
from msgspec.structs import replace
from sqlalchemy.ext.asyncio import AsyncConnection

from mailer.mailing import store as mailings
from mailer.mailing.model import Hold, Mailing
from mailer.message import counters
from mailer.message.counters import Counters
from mailer.notice.model import EXPECTED_REASONS, MAX_DESCRIBED, UnreachedCount
from mailer.notice.queue import Notice
from mailer.statuses import MessageStatus

UNREACHED_STATUSES: tuple[MessageStatus, ...] = ("undelivered", "unknown", "cancelled")


class UnreachedMailing(msgspec.Struct, frozen=True):
    """A mailing that has ended without reaching everybody."""

    mailing: Mailing
    counts: list[UnreachedCount]
    """The largest first."""

    @property
    def unreached(self) -> int:
        """The number of clients who were not reached."""
        return sum(count.messages for count in self.counts)


class GatewayChange(msgspec.Struct, frozen=True):
    """A gateway that is out, or works again."""

    gateway: str
    since: datetime
    reason: str | None = None
    """Why it is out; None when it works again."""
    until: datetime | None = None
    """None while it is out."""


class NoticeContent(msgspec.Struct, frozen=True, kw_only=True):
    """What a mail tells."""

    ended: list[UnreachedMailing]
    more_ended: int
    """Ended mailings that the mail does not describe."""
    held: list[Mailing]
    """With `held` set as it was when the notice was written."""
    more_held: int
    gateways: list[GatewayChange]
    is_test: bool

    def __bool__(self) -> bool:
        return bool(self.ended or self.held or self.gateways or self.is_test)


async def read_content(connection: AsyncConnection, notices: Sequence[Notice]) -> NoticeContent:
    """Return what notices tell; mailings that were deleted since are left out."""
    ended_ids, holds, gateways = dict[int, None](), dict[int, Hold](), list[GatewayChange]()
    is_test = False
    for notice in notices:
        match notice.kind:
            case "mailing_unreached":
                ended_ids.update(dict.fromkeys(notice.data["ids"]))
            case "mailing_held":
                holds.update(
                    {each["id"]: convert(each["hold"], Hold) for each in notice.data["mailings"]}
                )
            case "gateway_down" | "gateway_up":
                gateways.append(convert(notice.data, GatewayChange))
            case "test":
                is_test = True
    ended = await _read_ended(connection, list(ended_ids)[:MAX_DESCRIBED])
    held = await mailings.get_many(connection, list(holds)[:MAX_DESCRIBED]) if holds else []
    return NoticeContent(
        ended=ended,
        more_ended=max(0, len(ended_ids) - MAX_DESCRIBED),
        held=[replace(mailing, held=holds[mailing.id]) for mailing in held],
        more_held=max(0, len(holds) - MAX_DESCRIBED),
        gateways=gateways,
        is_test=is_test,
    )


async def _read_ended(connection: AsyncConnection, ids: Sequence[int]) -> list[UnreachedMailing]:
    """Return the mailings with clients who were not reached and should have been."""
    if not ids:
        return []
    ended = []
    for mailing in await mailings.get_many(connection, ids):
        by_reason = await counters.get_by_reason(connection, mailing.id)
        if counts := count_unreached(mailing, by_reason):
            ended.append(UnreachedMailing(mailing, counts))
    return ended


def count_unreached(mailing: Mailing, by_reason: Mapping[str, Counters]) -> list[UnreachedCount]:
    """Return the clients whom a mailing did not reach, by status and reason, the largest first.

    Clients whom a client's or a user's decision has taken out are left out.
    """
    counts = []
    for status in UNREACHED_STATUSES:
        of_status = {reason: each.count_of(status) for reason, each in by_reason.items()}
        without_reason = getattr(mailing, f"{status}_messages") - sum(of_status.values())
        counts += [
            UnreachedCount(status, reason, messages)
            for reason, messages in of_status.items()
            if reason not in EXPECTED_REASONS
        ]
        counts.append(UnreachedCount(status, None, without_reason))
    return sorted(
        (count for count in counts if count.messages > 0),
        key=lambda count: (-count.messages, count.status, count.reason or ""),
    )
