"""Which mailings wait for the gateway."""

import msgspec

from mailer.gateway.breaker import Breaker
from mailer.mailing.model import Mailing


def with_hold(mailing: Mailing, breaker: Breaker | None) -> Mailing:
    """Return a mailing that also says since when and why it waits for the gateway.

    A restored database sends nothing, however the gateway is.
    """
    if breaker is None or breaker.hold is None or mailing.status != "running" or mailing.held:
        return mailing
    return msgspec.structs.replace(mailing, held=breaker.hold)
