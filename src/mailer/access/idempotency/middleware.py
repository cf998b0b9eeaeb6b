"""Idempotency-Key on POST: a repeat gets the first answer again, and nothing is done twice.

After draft-ietf-httpapi-idempotency-key-header-07, but for what another body gets: 409, since it
clashes with what stands. A key is 1 to 255 visible ASCII characters; one in quotes, as the draft
writes it, is the same key as without them. It belongs to who sends it, and counts for 24 hours.

A form of a page that creates something has a random number in its address, `once`: sent twice, by
a double click, a browser's repeat or Back, it creates one. Its key is the digest of the request,
with what was typed: a form that is corrected and sent again is a new request, and only successful
requests are kept. Of an answer that shows what was created (201, with a Location) the address
alone is kept, and a repeat is redirected there: no secret of a key is stored.

A digest is stored, and so must not allow anybody who reads the database to guess the body, which
may hold a phone or a password: each digest includes a secret of the request that is not stored,
the API key or `once`.
"""

import asyncio
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from datetime import datetime, timedelta
from http import HTTPStatus
from typing import Any
from uuid import uuid4

import msgspec
import structlog
from litestar import Request
from litestar.enums import ScopeType
from litestar.exceptions import HTTPException
from litestar.middleware import ASGIMiddleware
from litestar.types import ASGIApp, Receive, Scope, Send
from sqlalchemy.ext.asyncio import AsyncEngine

from mailer.access.gate import DOOR, actor_of
from mailer.access.idempotency import store as claims
from mailer.access.idempotency.exchange import Answer, Asked, ClientGoneError
from mailer.access.model import Actor, Claim
from mailer.db.engine import is_away
from mailer.errors import ConflictError, FieldError, InvalidError
from mailer.web.body import ASKED_AT
from mailer.web.problems import SOON, problem_of

log = structlog.get_logger()

HEADER = b"idempotency-key"
CREATES = "creates"
"""The name in the `opt` of a page's route of whether its form creates something."""
ONCE = re.compile(rb"(?:^|&)once=[0-9a-f]{32}(?:&|$)")
"""The random number of a form, in the query of its address. It is stored nowhere."""
LOCATION = "text/uri-list"
"""The media type under which the address is kept that a form's answer leads on to."""
KEY = re.compile(r'(?!""$)[!-~]{1,255}')
QUOTED = re.compile(r'"(.+)"')
REPLAYED = (b"idempotency-replayed", b"true")
DONE = frozenset({HTTPStatus.SEE_OTHER, HTTPStatus.CREATED})
"""Answers to a form that did what it asks for."""
NOT_KEPT = frozenset(
    {
        HTTPStatus.UNAUTHORIZED,
        HTTPStatus.FORBIDDEN,
        HTTPStatus.REQUEST_TIMEOUT,
        HTTPStatus.TOO_MANY_REQUESTS,
    }
)
"""Answers that may be another the next time, beside those that tell of a failure here."""
LARGEST_REFUSAL = 16 * 1024
"""Bytes of a refusal that is kept, which costs who asks nothing: a larger one is made anew, and so
is one past the `MOST_REFUSALS` of its owner. What did something is kept whatever its size, which
its model bounds."""
PATIENCE = 30.0
"""Seconds that a repeat waits for the first answer, or half a lease if that is shorter."""
FIRST_PAUSE, LONGEST_PAUSE = 0.02, 0.5
"""Seconds between looks whether it is there, with no connection held."""


class KeyReusedError(ConflictError):
    """The Idempotency-Key came with another request before; each needs one of its own."""


class AnswerErasedError(ConflictError):
    """What this Idempotency-Key made was deleted since."""


class StillInWorkError(HTTPException):
    """The first request under this key has no answer yet."""

    status_code = HTTPStatus.CONFLICT
    detail = "The request with this Idempotency-Key is still being processed; ask again."

    def __init__(self) -> None:
        super().__init__(headers=SOON)


class FormInWorkError(StillInWorkError):
    """The form was sent before, and that request has no answer yet."""

    detail = "This form was sent already and is still being processed. Try again in a moment."


def _in_work(asked: Asked) -> StillInWorkError:
    return FormInWorkError() if asked.is_form else StillInWorkError()


class Idempotency(ASGIMiddleware):
    """Answers each POST with an Idempotency-Key once, whoever repeats it, and whatever dies."""

    scopes = (ScopeType.HTTP,)

    def __init__(self, engine: AsyncEngine, *, lease: float, at_hand: int) -> None:
        """Take claims for `lease` seconds, renewed while a request is worked on.

        Of a repeat a body of up to `at_hand` bytes is held, in case it has to be worked on.
        """
        # each statement stands for itself, and needs no transaction around it
        self._engine = engine.execution_options(isolation_level="AUTOCOMMIT")
        self._lease = timedelta(seconds=lease)
        self._patience = min(PATIENCE, lease / 2)
        self._at_hand = at_hand

    async def handle(self, scope: Scope, receive: Receive, send: Send, next_app: ASGIApp) -> None:
        """Answer a request; raises `InvalidError` for what is no key."""
        is_form = _is_form(scope)
        key = None if is_form else _key_of(scope)
        if key is None and not is_form:
            await next_app(scope, receive, send)
            return
        request: Request[Any, Any, Any] = Request(scope)
        owner = claims.owner_of(actor_of(request))
        asked = Asked(request, receive, self._at_hand, is_form=is_form)
        try:
            if is_form:
                await asked.drain()
            claim = Claim(owner, key or (asked.digest or b"").hex(), str(uuid4()))
            answer = await self._answer(claim, asked, next_app)
        except ClientGoneError:
            return
        except Exception as error:  # noqa: BLE001  # the framework answers no error after an answer that is held back
            answer_error = request.app.exception_handlers[Exception] if is_form else problem_of
            problem = answer_error(request, error).to_asgi_response(app=None, request=request)
            await problem(scope, receive, send)
        else:
            await answer.send(send)

    async def _answer(self, claim: Claim, asked: Asked, next_app: ASGIApp) -> Answer:
        """Do what is asked for, unless it is done: then return the first answer."""
        taken = await self._take(claim)
        if isinstance(taken, claims.Standing):
            taken = await self._wait(claim, asked)
        if isinstance(taken, claims.Standing):
            return _again(taken, asked)
        try:
            if taken is not None:
                await _prepare_to_go_on(taken, claim, asked)
            answer = Answer()
            async with self._kept(claim):
                await self._work(claim, asked, answer, next_app)
            return await self._settled(claim, asked, answer)
        except BaseException:
            await self._give_up(claim)
            raise

    async def _take(self, claim: Claim) -> claims.Standing | datetime | None:
        async with self._engine.connect() as connection:
            return await claims.take(connection, claim, self._lease)

    async def _wait(self, claim: Claim, asked: Asked) -> claims.Standing | datetime | None:
        """Wait for the first answer, or until who was to give it is gone; raises if neither is."""
        await asked.drain()
        pause, patience = FIRST_PAUSE, self._patience
        while True:
            taken = await self._take(claim)
            if not isinstance(taken, claims.Standing) or taken.status is not None:
                return taken
            _refuse_another(taken.digest, asked)
            if patience <= 0:
                raise _in_work(asked)
            await asyncio.sleep(pause)
            patience -= pause
            pause = min(2 * pause, LONGEST_PAUSE)

    @asynccontextmanager
    async def _kept(self, claim: Claim) -> AsyncIterator[None]:
        """Renew a claim until the end of the block."""
        async with asyncio.TaskGroup() as tasks:
            keeping = tasks.create_task(self._keep(claim))
            try:
                yield
            finally:
                keeping.cancel()

    async def _keep(self, claim: Claim) -> None:
        is_mine = True
        while is_mine:
            await asyncio.sleep(self._lease.total_seconds() / 3)
            try:
                async with self._engine.connect() as connection:
                    is_mine = await claims.renew(connection, claim, self._lease)
            except Exception as error:
                if not is_away(error):
                    raise
                log.warning("database_away", at="idempotency")

    @staticmethod
    async def _work(claim: Claim, asked: Asked, answer: Answer, next_app: ASGIApp) -> None:
        async def receive() -> Any:  # noqa: ANN401  # whatever the server says
            message = await asked.receive()
            claim.digest = asked.digest
            return message

        actor = actor_of(Request(asked.scope))
        asked.scope["user"] = msgspec.structs.replace(actor, claim=claim)
        await next_app(asked.scope, receive, answer.take)

    async def _settled(self, claim: Claim, asked: Asked, answer: Answer) -> Answer:
        """Keep the answer before anybody sees it, or that of who was faster."""
        if not _is_final(answer, asked):
            await self._give_up(claim)
            return answer
        claim.digest = asked.digest
        is_refusal = answer.status >= HTTPStatus.BAD_REQUEST
        async with self._engine.connect() as connection:
            if is_refusal and not await claims.may_keep_refusal(connection, claim):
                await claims.give_up(connection, claim)
                return answer
            if asked.is_form and answer.location is not None:
                kept = Answer(HTTPStatus.SEE_OTHER, LOCATION, answer.location)
            else:
                kept = answer
            if await claims.answer(connection, claim, kept.status, kept.media_type, kept.body):
                return answer
        patience = self._patience
        while patience > 0:
            async with self._engine.connect() as connection:
                standing = await claims.look(connection, claim)
            if standing is None or standing.is_free:
                break
            if standing.status is not None:
                return _again(standing, asked)
            await asyncio.sleep(LONGEST_PAUSE)
            patience -= LONGEST_PAUSE
        raise _in_work(asked)

    async def _give_up(self, claim: Claim) -> None:
        # where that cannot be written down the lease runs out
        with suppress(Exception):
            async with self._engine.connect() as connection:
                await claims.give_up(connection, claim)


def _key_of(scope: Scope) -> str | None:
    """Return the key that a request to the API comes under; raises `InvalidError`."""
    if scope.get("method") != "POST" or scope["route_handler"].opt.get(DOOR) != "key":
        return None
    given = [value.decode("latin-1") for name, value in scope["headers"] if name == HEADER]
    if not given:
        return None
    if len(given) > 1 or not KEY.fullmatch(given[0]):
        rule = "must come once, as 1 to 255 visible ASCII characters"
        raise InvalidError([FieldError("Idempotency-Key", rule)])
    quoted = QUOTED.fullmatch(given[0])
    return quoted[1] if quoted else given[0]


def _is_form(scope: Scope) -> bool:
    """Whether a request sends a form that creates something, and that is to be done once."""
    is_sent = scope.get("method") == "POST" and isinstance(scope.get("user"), Actor)
    creates = bool(scope["route_handler"].opt.get(CREATES))
    return is_sent and creates and ONCE.search(scope["query_string"]) is not None


def _is_final(answer: Answer, asked: Asked) -> bool:
    """Whether a repeat would be answered likewise, and can be known by its body."""
    if asked.is_form:
        return answer.status in DONE and answer.location is not None
    is_ours = answer.status >= HTTPStatus.INTERNAL_SERVER_ERROR
    is_refusal = answer.status >= HTTPStatus.BAD_REQUEST
    if is_refusal and len(answer.body) > LARGEST_REFUSAL:
        return False
    return not is_ours and answer.status not in NOT_KEPT and asked.digest is not None


def _refuse_another(digest: bytes | None, asked: Asked) -> None:
    if digest is not None and digest != asked.digest:
        raise KeyReusedError


async def _prepare_to_go_on(taken_at: datetime, claim: Claim, asked: Asked) -> None:
    """Prepare to go on where an attempt that died has left off, `taken_at` or after.

    Raises `KeyReusedError`, and `StillInWorkError` when the body is needed and gone.
    """
    if claim.effect is not None:
        await asked.drain()
        _refuse_another(claim.digest, asked)
        asked.scope["state"][ASKED_AT] = taken_at
    elif asked.is_dropped:
        raise _in_work(asked)


def _again(standing: claims.Standing, asked: Asked) -> Answer:
    """Return the first answer; raises `KeyReusedError` and `AnswerErasedError`."""
    if standing.status is None or standing.body is None:
        raise AnswerErasedError  # whatever was asked for, since that is erased too
    _refuse_another(standing.digest, asked)
    if standing.media_type == LOCATION:
        return Answer(standing.status, None, b"", (b"location", standing.body), REPLAYED)
    return Answer(standing.status, standing.media_type, standing.body, REPLAYED)
