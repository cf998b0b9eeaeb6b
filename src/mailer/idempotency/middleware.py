"""Idempotency-Key on POST: a repeat gets the first response again, and nothing is done twice.

A request goes through these steps, each stored in the key's row of the table `idempotency`:

1. The worker acquires a claim on the key, with a lease that it renews while it works.
2. The handler does the work, and stores its result, such as the id of a new client, in the same
   transaction (`do_once`).
3. The response is stored, and then sent.

A repeat gets the stored response after step 3. Before, it waits for the first request. When the
lease has expired, the first worker is dead or cut off from the database, and the repeat continues
the request: with the result, if step 2 was done, or else from the beginning.

Follows draft-ietf-httpapi-idempotency-key-header-07, except that the same key with another body is
409 rather than 422, because it conflicts with the stored request. A key is 1 to 255 visible ASCII
characters; quotes around it, as in the draft, do not count. A key belongs to the actor that sends
it, and is valid for 24 hours.

Page forms that create something are idempotent too. Their URL has a random number, `once`, so that
a form sent twice (double click, reload, Back) creates one object. The key of a form request is its
digest, which includes the fields: a form that is corrected and sent again is a new request. Only
successful form requests are stored. Of their responses only the Location of the created object is
stored, and a repeat is redirected there. So the secret in a response that shows a new API key is
never stored.

Digests are stored. A body may hold a phone or a password, which a reader of the database must not
be able to guess from the digest. So each digest includes a secret of the request that is not
stored: the API key or `once`.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from datetime import timedelta
from http import HTTPStatus
from typing import Any, assert_never
from uuid import uuid4

import structlog
from litestar import Request
from litestar.enums import ScopeType
from litestar.exceptions import HTTPException
from litestar.middleware import ASGIMiddleware
from litestar.types import ASGIApp, Receive, Scope, Send
from sqlalchemy.ext.asyncio import AsyncEngine

from mailer.access.middleware import actor_of
from mailer.db.engine import is_unavailable
from mailer.idempotency import store as claims
from mailer.idempotency.buffering import BufferedRequest, CapturedResponse, ClientDisconnectedError
from mailer.idempotency.keys import CREATES, is_form_sent_once, key_of
from mailer.idempotency.model import Acquired, Continued, IdempotencyClaim, InUse
from mailer.idempotency.responses import ensure_same_body, must_store, replay, to_stored
from mailer.web.body import VALIDATED_AS_OF
from mailer.web.problems import RETRY_SOON, problem_of

log = structlog.get_logger()

CLAIM_STATE_KEY = "idempotency_claim"
"""Key of the claim in the state of a request."""
WAIT_TIMEOUT = 30.0
"""Seconds that a repeat waits for the first response, or half a lease if that is shorter."""
MIN_RESPONSE_POLL_INTERVAL, MAX_RESPONSE_POLL_INTERVAL = 0.02, 0.5
"""Seconds between two checks for the first response, first and last; no database connection is
occupied in between."""


class RequestInProgressError(HTTPException):
    """The first request with this key has no response yet."""

    status_code = HTTPStatus.CONFLICT
    detail = "The request with this Idempotency-Key is still being processed; send it again."

    def __init__(self) -> None:
        super().__init__(headers=RETRY_SOON)


class FormInProgressError(RequestInProgressError):
    """The form was sent before, and that request has no response yet."""

    detail = "This form was sent already and is still being processed. Try again in a moment."


def _in_progress_error(buffered: BufferedRequest) -> RequestInProgressError:
    """Return the error for a repeat of a request, or of a form, that is still being processed."""
    return FormInProgressError() if buffered.is_form else RequestInProgressError()


class Idempotency(ASGIMiddleware):
    """Executes each POST with an Idempotency-Key once, despite repeats and crashes of workers."""

    scopes = (ScopeType.HTTP,)

    def __init__(self, engine: AsyncEngine, *, lease: float, max_buffered_bytes: int) -> None:
        """Create the middleware.

        Claims last `lease` seconds and are renewed while a request is processed. A repeat that
        waits reads its body; a body of up to `max_buffered_bytes` is kept, for the case that the
        repeat must continue the request.
        """
        # each statement is independent, and needs no transaction
        self._engine = engine.execution_options(isolation_level="AUTOCOMMIT")
        self._lease = timedelta(seconds=lease)
        self._timeout = min(WAIT_TIMEOUT, lease / 2)
        self._max_buffered_bytes = max_buffered_bytes

    async def handle(self, scope: Scope, receive: Receive, send: Send, next_app: ASGIApp) -> None:
        """Pass a request on if it has no key, else respond to it.

        Raises `InvalidError` for an invalid key.
        """
        is_form = is_form_sent_once(scope)
        key = None if is_form else key_of(scope)
        if key is None and not is_form:
            await next_app(scope, receive, send)
            return
        request: Request[Any, Any, Any] = Request(scope)
        owner = claims.owner_of(actor_of(request))
        buffered = BufferedRequest(request, receive, self._max_buffered_bytes, is_form=is_form)
        try:
            if is_form:
                await buffered.drain()
            form_key = (buffered.digest or b"").hex()
            claim = IdempotencyClaim(owner, key or form_key, attempt=str(uuid4()))
            response = await self._respond(claim, buffered, next_app)
        except ClientDisconnectedError:
            return
        except Exception as error:  # noqa: BLE001  # the handler's response is captured, so the framework cannot answer errors
            to_response = request.app.exception_handlers[Exception] if is_form else problem_of
            error_response = to_response(request, error).to_asgi_response(app=None, request=request)
            await error_response(scope, receive, send)
        else:
            await response.send(send)

    async def _respond(
        self, claim: IdempotencyClaim, buffered: BufferedRequest, next_app: ASGIApp
    ) -> CapturedResponse:
        """Execute the request, or return the first response if it was executed before."""
        acquisition = await self._acquire(claim)
        if isinstance(acquisition, InUse):
            acquisition = await self._wait(claim, buffered)
        match acquisition:
            case InUse(record=record):
                return replay(record, buffered)
            case Continued():
                return await self._execute(claim, buffered, next_app, earlier=acquisition)
            case Acquired():
                return await self._execute(claim, buffered, next_app)
            case _:
                assert_never(acquisition)

    async def _execute(
        self,
        claim: IdempotencyClaim,
        buffered: BufferedRequest,
        next_app: ASGIApp,
        *,
        earlier: Continued | None = None,
    ) -> CapturedResponse:
        """Execute the request, or the rest of an `earlier` attempt, and store the response."""
        try:
            if earlier is not None:
                await _prepare_to_continue(earlier, claim, buffered)
            response = CapturedResponse()
            async with self._renewed(claim):
                await self._run_handler(claim, buffered, response, next_app)
            return await self._store_response(claim, buffered, response)
        except BaseException:
            await self._release(claim)
            raise

    async def _acquire(self, claim: IdempotencyClaim) -> Acquired | Continued | InUse:
        async with self._engine.connect() as connection:
            return await claims.acquire(connection, claim, self._lease)

    async def _wait(
        self, claim: IdempotencyClaim, buffered: BufferedRequest
    ) -> Acquired | Continued | InUse:
        """Wait for the first response, or until the claim is acquired.

        Raises `RequestInProgressError` after the timeout, and `KeyReusedError`.
        """
        await buffered.drain()
        pause, remaining = MIN_RESPONSE_POLL_INTERVAL, self._timeout
        while True:
            acquisition = await self._acquire(claim)
            if not isinstance(acquisition, InUse) or acquisition.record.status is not None:
                return acquisition
            ensure_same_body(acquisition.record.digest, buffered)
            if remaining <= 0:
                raise _in_progress_error(buffered)
            await asyncio.sleep(pause)
            remaining -= pause
            pause = min(2 * pause, MAX_RESPONSE_POLL_INTERVAL)

    @asynccontextmanager
    async def _renewed(self, claim: IdempotencyClaim) -> AsyncIterator[None]:
        """Renew a claim again and again until the end of the block."""
        async with asyncio.TaskGroup() as tasks:
            renewal = tasks.create_task(self._renew_until_cancelled(claim))
            try:
                yield
            finally:
                renewal.cancel()

    async def _renew_until_cancelled(self, claim: IdempotencyClaim) -> None:
        """Renew a claim three times a lease, until the task is cancelled or the claim is lost."""
        is_valid = True
        while is_valid:
            await asyncio.sleep(self._lease.total_seconds() / 3)
            try:
                async with self._engine.connect() as connection:
                    is_valid = await claims.renew(connection, claim, self._lease)
            except Exception as error:  # a lost connection raises many kinds of errors
                if not is_unavailable(error):
                    raise
                log.warning("database_unavailable", at="idempotency")

    @staticmethod
    async def _run_handler(
        claim: IdempotencyClaim,
        buffered: BufferedRequest,
        response: CapturedResponse,
        next_app: ASGIApp,
    ) -> None:
        """Let the handler respond into `response`, with the claim in the state of the request.

        A form whose object an earlier attempt created is redirected to the object instead.
        """

        async def receive() -> Any:  # noqa: ANN401  # any ASGI message
            message = await buffered.receive()
            claim.digest = buffered.digest
            return message

        if buffered.is_form and claim.result is not None:
            # the fields are not validated again: an end that was in the future may have passed
            redirect = buffered.scope["route_handler"].opt[CREATES](claim.result["id"])
            redirect_response = redirect.to_asgi_response(app=None, request=Request(buffered.scope))
            await redirect_response(buffered.scope, receive, response.capture)
            return
        buffered.scope["state"][CLAIM_STATE_KEY] = claim
        await next_app(buffered.scope, receive, response.capture)

    async def _store_response(
        self, claim: IdempotencyClaim, buffered: BufferedRequest, response: CapturedResponse
    ) -> CapturedResponse:
        """Store the response before it is sent, and return it.

        If another attempt has the claim now, return the response of that attempt instead.
        """
        if not must_store(response, buffered):
            await self._release(claim)
            return response
        claim.digest = buffered.digest
        is_refusal = response.status >= HTTPStatus.BAD_REQUEST
        async with self._engine.connect() as connection:
            if is_refusal and not await claims.can_store_refusal(connection, claim):
                await claims.release(connection, claim)
                return response
            stored = to_stored(response, buffered)
            if await claims.store_response(
                connection, claim, stored.status, stored.media_type, stored.body
            ):
                return response
        return await self._wait_for_other_attempt(claim, buffered)

    async def _wait_for_other_attempt(
        self, claim: IdempotencyClaim, buffered: BufferedRequest
    ) -> CapturedResponse:
        """Return the response that another attempt of the request stores.

        Raises `RequestInProgressError` if that attempt ends without one, or after the timeout.
        """
        remaining = self._timeout
        while remaining > 0:
            async with self._engine.connect() as connection:
                record = await claims.get_record(connection, claim)
            if record is None or record.is_free:
                break
            if record.status is not None:
                return replay(record, buffered)
            await asyncio.sleep(MAX_RESPONSE_POLL_INTERVAL)
            remaining -= MAX_RESPONSE_POLL_INTERVAL
        raise _in_progress_error(buffered)

    async def _release(self, claim: IdempotencyClaim) -> None:
        """End a claim, so that a repeat need not wait for the end of its lease."""
        # if the database cannot be reached, the lease expires instead
        with suppress(Exception):
            async with self._engine.connect() as connection:
                await claims.release(connection, claim)


def claim_of(request: Request[Any, Any, Any]) -> IdempotencyClaim | None:
    """Return the claim on a request; None if the request has no Idempotency-Key."""
    claim: IdempotencyClaim | None = request.scope["state"].get(CLAIM_STATE_KEY)
    return claim


async def _prepare_to_continue(
    earlier: Continued, claim: IdempotencyClaim, buffered: BufferedRequest
) -> None:
    """Give the claim what an earlier attempt of the request has done, if anything.

    If that attempt has done the work, the body must be the same, and is validated as of the time of
    that attempt's claim. Otherwise the handler needs the body.

    Raises `KeyReusedError` if the body is another one, and `RequestInProgressError` if the body is
    needed but was not kept: the next repeat, which need not wait, can send it to the handler.
    """
    claim.digest, claim.result = earlier.digest, earlier.result
    if claim.result is not None:
        await buffered.drain()
        ensure_same_body(claim.digest, buffered)
        buffered.scope["state"][VALIDATED_AS_OF] = earlier.claimed_at
    elif buffered.is_dropped:
        raise _in_progress_error(buffered)
