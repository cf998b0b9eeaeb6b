"""Which running mailings wait, for the gateway or for one to be configured."""

import msgspec

from mailer.gateway.breaker import Breaker, Hold
from mailer.mailing.model import Mailing

NO_GATEWAY = "no_gateway"


def with_hold(mailing: Mailing, breaker: Breaker | None) -> Mailing:
    """Return a mailing that also says since when and why it waits; `breaker` is None without one.

    A restored database sends nothing, however the gateway is.
    """
    if mailing.status != "running" or mailing.held:
        return mailing
    held = Hold(mailing.datetime_start, NO_GATEWAY) if breaker is None else breaker.hold
    return mailing if held is None else msgspec.structs.replace(mailing, held=held)
