"""Why a running mailing does not send: a gateway outage, or no configured gateway."""

import msgspec

from mailer.gateway.breaker import Breaker, Outage
from mailer.mailing.model import Mailing

NO_GATEWAY = "no_gateway"


def with_outage(mailing: Mailing, breaker: Breaker | None) -> Mailing:
    """Return a mailing with `held` set when it runs but cannot send.

    `breaker` is None when no gateway is configured. A mailing that is held because its database
    was restored stays as it is.
    """
    if mailing.status != "running" or mailing.held:
        return mailing
    held = Outage(mailing.datetime_start, NO_GATEWAY) if breaker is None else breaker.outage
    return mailing if held is None else msgspec.structs.replace(mailing, held=held)
