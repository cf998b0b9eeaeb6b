"""Do the work of a request once, however often the request is repeated."""

from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Generic, TypeVar

import msgspec

from mailer.db.engine import AnyConnection
from mailer.idempotency.model import IdempotencyClaim
from mailer.idempotency.store import complete

T = TypeVar("T")


class Done(msgspec.Struct, Generic[T], frozen=True):
    """The work of a request, done now or by an earlier attempt."""

    result: Mapping[str, Any]
    """What is stored for repeats of the request, by default the id of an object as `id`."""
    value: T | None
    """What the work returned; None if an earlier attempt did it."""

    @property
    def is_repeat(self) -> bool:
        """Whether an earlier attempt did the work."""
        return self.value is None


def _with_id(object_id: object) -> Mapping[str, Any]:
    """Return the result of work that returns the id of an object."""
    return {"id": object_id}


async def do_once(
    connection: AnyConnection,
    claim: IdempotencyClaim | None,
    work: Callable[[], Awaitable[T]],
    result_of: Callable[[T], Mapping[str, Any]] = _with_id,
    *,
    client_id_of: Callable[[T], int | None] = lambda _: None,
) -> Done[T]:
    """Do the work of a request, unless an earlier attempt of the request did it.

    The value that `work` returns must not be None. `result_of` turns it into the result that is
    stored for repeats. Default: the value is the id of the object that was created or changed, and
    only the id is stored. `client_id_of` returns the id of the client that the response shows, if
    any; erasing the client erases the stored response.

    The work and its result are stored in the caller's transaction, so that neither is ever stored
    without the other. So log what was done only after the commit. A request without an
    Idempotency-Key has no claim: its work is always done. Raises `ClaimLostError`; the transaction
    must then be rolled back.
    """
    if claim is not None and claim.result is not None:
        return Done(result=claim.result, value=None)
    value = await work()
    result = result_of(value)
    await complete(connection, claim, result, client_id=client_id_of(value))
    return Done(result=result, value=value)
