"""Do the work of a request once, however often the request is repeated."""

from collections.abc import Awaitable, Callable

from sqlalchemy.ext.asyncio import AsyncConnection

from mailer.idempotency.model import IdempotencyClaim
from mailer.idempotency.store import complete


async def once(
    connection: AsyncConnection,
    claim: IdempotencyClaim | None,
    work: Callable[[], Awaitable[int]],
    *,
    creates_client: bool = False,
) -> int:
    """Do the work of a request and return the id of the object that it created or changed.

    If an earlier attempt of the request did the work, return the id from that attempt instead. The
    work and the record that it is done are parts of the caller's transaction, so that neither is
    ever stored without the other. A request without an Idempotency-Key has no claim. Raises
    `ClaimLostError`; the transaction must then be rolled back.
    """
    if claim is not None and claim.result is not None:
        return int(claim.result["id"])
    object_id = await work()
    await complete(
        connection, claim, {"id": object_id}, client_id=object_id if creates_client else None
    )
    return object_id
