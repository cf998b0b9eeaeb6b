"""The sandbox gateway: a server that stands in for an SMS gateway and sends nothing.

It speaks the protocol of any kind that is shipped (docs/gateways.md), with latency and faults on
request. It serves the demo, the tests, the measurements, and the command `mailer sandbox`.
"""

import asyncio
import json
import logging
import random
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from http import HTTPStatus

import msgspec
from aiohttp import web

from mailer.errors import FieldError, InvalidError
from mailer.gateway.faults import Faults, RequestKind
from mailer.gateway.profile_file import load_profile, shipped_kinds
from mailer.gateway.profile_mistakes import account_keys
from mailer.gateway.protocol import AccountTrouble
from mailer.gateway.recent_ids import RecentIds
from mailer.gateway.sandbox_caller import SandboxCaller, expected_answers
from mailer.gateway.sandbox_http import (
    drop_parse_error,
    listen,
    reset,
    to_http,
    wait_for_cancellation,
)
from mailer.gateway.sandbox_options import CallOptions
from mailer.gateway.sandbox_plans import CallPlanner
from mailer.gateway.sandbox_records import (
    PollRequest,
    SandboxCall,
    SandboxCallCounts,
    SandboxCounts,
    SandboxMessage,
    SandboxRequest,
)
from mailer.gateway.sandbox_reports import SandboxReports, Signer
from mailer.gateway.sandbox_requests import JsonReader, ProfileReader
from mailer.gateway.sandbox_responses import SampleName, SandboxResponse, SandboxResponses
from mailer.gateway.sandbox_values import HttpRequest, base_path
from mailer.limits import RateLimiter

__all__ = [
    "CallOptions",
    "Faults",
    "RequestKind",
    "SandboxCall",
    "SandboxCallCounts",
    "SandboxCounts",
    "SandboxGateway",
    "SandboxMessage",
    "SandboxRequest",
]

NO_OPTIONS = CallOptions()


class SandboxGateway:
    """An SMS gateway that sends nothing: it checks requests, responds to them and counts them.

    `kind` is a kind that is shipped with mailer, and `account` the keys of the account that it
    requires: `account`, `username`, `password` or `token`, as the kind has them. A key that is not
    given, or None, may have any value. `on_request` is called in the event loop once for each
    request, when its kind is final, and `on_call` once for each of its own calls to mailer, when it
    has ended. Raises InvalidError for an unknown kind, and for a key that the kind does not use.

    A gateway that recognizes repeats accepts a message that it accepted before without faults, but
    with the rate limit and the latency. Memory is bounded for any number of requests.
    """

    def __init__(
        self,
        faults: Faults,
        *,
        kind: str = "json",
        on_request: Callable[[SandboxRequest], None] | None = None,
        calls: CallOptions = NO_OPTIONS,
        on_call: Callable[[SandboxCall], None] | None = None,
        **account: str | None,
    ) -> None:
        self.kind = kind
        self._account = {key: value for key, value in account.items() if value is not None}
        _check_account(kind, self._account)
        self._profile = load_profile(kind)
        self._reader = (
            JsonReader(self._account.get("token"))
            if kind == "json"
            else ProfileReader(self._profile, self._account)
        )
        self._recognizes_repeats = self._profile.limits.recognizes_repeats
        self._faults = faults
        self._fault_rates = [(fault, rate) for fault, rate in faults.rates() if rate]
        self._random = random.Random(faults.seed)  # noqa: S311  # to be repeatable, not secret
        self._responses = SandboxResponses(kind, self._random)
        self._options = calls
        self._signer = Signer(self._profile, calls.callback_secret, self._account.get("token"))
        self._caller = SandboxCaller(self._signer.sign, expected_answers(self._profile), on_call)
        random_source = random.Random(faults.seed)  # noqa: S311  # faults do not depend on calls
        planner = CallPlanner(self._profile, self._responses.calls, calls, random_source)
        self._reports = SandboxReports(self._profile, self._responses, planner, self._caller)
        self._limiter = RateLimiter(faults.rate_limit, burst=1.0) if faults.rate_limit else None
        self._failure: SampleName = "temporary"
        self._fails_until = 0.0
        """Moment of `time.monotonic()` until which every message gets the response `_failure`."""
        self._on_request = on_request
        self._accepted_ids = RecentIds()
        self._open_ids: set[int | None] = set()
        """Ids of messages with a request that has no response yet; None for those without an id."""
        self._handlers: set[asyncio.Task[None]] = set()
        self._counts = dict.fromkeys(SandboxCounts.__struct_fields__, 0)

    @property
    def counts(self) -> SandboxCounts:
        """Counts of requests. A request is counted when its kind is final."""
        return SandboxCounts(**self._counts)

    @property
    def call_counts(self) -> SandboxCallCounts:
        """Counts of the calls to mailer. A call is counted when it has ended."""
        return self._caller.counts

    @property
    def callback_secret(self) -> str | None:
        """The `callback_secret` with which mailer verifies the calls; None if it needs none."""
        has_calls = self._profile.receipt is not None or self._profile.reply is not None
        is_given = self._options.callback_secret is not None
        return self._signer.callback_secret if has_calls and is_given else None

    def fail_for(self, seconds: float, trouble: AccountTrouble | None = None) -> None:
        """Refuse every message from now on for some seconds; 0 ends this.

        The failure is temporary, or with `trouble` one of the account. Raises `ValueError` if no
        response of the kind means this trouble.
        """
        if trouble is not None and not self._responses.has(trouble):
            raise ValueError(f"no response of the kind {self.kind} means {trouble}")
        self._failure = trouble or "temporary"
        self._fails_until = time.monotonic() + seconds

    def gateway_table(self, name: str, url: str) -> str:
        """Return a table `[[gateway]]` of `gateways.toml` with which mailer sends to the sandbox.

        `url` is the address that `run` yields. Lines with other keys may be added at the end.
        """
        required = [key for key, is_required in account_keys(self._profile).items() if is_required]
        account = dict.fromkeys(required, "sandbox") | self._account
        keys = {"name": name, "kind": self.kind, "url": url, **account}
        if self.callback_secret is not None:
            keys["callback_secret"] = self.callback_secret
        # a text of JSON is a text of TOML too
        lines = (
            f"{key} = {json.dumps(value, ensure_ascii=False)}\n" for key, value in keys.items()
        )
        receipts = "receipts = true\n" if self._options.receipts_url is not None else ""
        return "".join(("[[gateway]]\n", *lines, receipts))

    @asynccontextmanager
    async def run(self, host: str = "127.0.0.1", port: int = 0) -> AsyncIterator[str]:
        """Serve on `host` and `port`, and yield the URL for the configuration of mailer.

        Port 0 selects a free port. At the end, requests without a response are aborted within
        0.2 s. Raises UnavailableError when it cannot listen there.
        """
        logger = logging.getLogger(__name__)
        logger.addFilter(drop_parse_error)
        server = web.Server(
            self._handle,
            handler_cancellation=True,  # else a request that hangs would outlive its connection
            access_log=None,
            auto_decompress=False,  # the protocol has no encodings: respond with 400, do not raise
            logger=logger,
        )
        runner = web.ServerRunner(server, shutdown_timeout=0.05)  # 0 would wait forever
        await runner.setup()
        site = web.TCPSite(runner, host, port, backlog=1_024)
        async with self._caller.run():
            try:
                await listen(site, host, port)
                yield site.name + base_path(self._profile.request)
            finally:
                await runner.cleanup()
                if self._handlers:  # cancelled already; wait until they are counted
                    await asyncio.wait(self._handlers)

    async def _handle(self, request: web.BaseRequest) -> web.Response:
        """Respond to any request, record it and count it."""
        message: SandboxMessage | PollRequest | HTTPStatus
        try:
            body = await request.read()
        except web.HTTPRequestEntityTooLarge:
            message = HTTPStatus.REQUEST_ENTITY_TOO_LARGE
        else:
            message = self._reader.read(
                HttpRequest(request.method, request.raw_path, request.headers, body)
            )
        arrived, monotonic = time.time_ns() // 1_000, time.monotonic()
        if not isinstance(message, SandboxMessage):
            response = (
                self._reports.answer_poll(message)
                if isinstance(message, PollRequest)
                else self._responses.respond(message)
            )
            self._record(SandboxRequest(None, arrived, monotonic, response.kind))
            return to_http(response)
        task, message_id = request.task, message.id
        is_overlap = message_id is not None and message_id in self._open_ids
        self._open_ids.add(message_id)
        self._handlers.add(task)
        try:
            response = self._choose_response(message, monotonic)
            record = SandboxRequest(message, arrived, monotonic, response.kind, overlap=is_overlap)
            if self._faults.latency or record.kind == "hang":
                await self._delay(record)
            is_new = self._finish(record)
            if is_new:
                await self._reports.report(message, response.new_id)
            if record.kind == "reset":
                reset(request.transport)
                await wait_for_cancellation()
            return to_http(response)
        finally:
            self._open_ids.discard(message_id)
            self._handlers.discard(task)

    def _choose_response(self, message: SandboxMessage, now: float) -> SandboxResponse:
        """Return the response to a valid request: over the limit, with a fault, or accepted."""
        if now < self._fails_until:
            return self._responses.choose(self._failure, message)
        if self._limiter is not None and (seconds := self._limiter.retry_after("all", now)):
            return self._responses.limit(message, seconds)
        is_repeat = (
            self._recognizes_repeats and message.id is not None and message.id in self._accepted_ids
        )
        if is_repeat or not self._fault_rates:
            return self._responses.accept(message, is_repeat=is_repeat)
        # each fault has an interval of the length of its rate between 0 and 1
        position = self._random.random()
        for fault, rate in self._fault_rates:
            if position < rate:
                return self._responses.create_fault(fault, message)
            position -= rate
        return self._responses.accept(message, is_repeat=False)

    async def _delay(self, record: SandboxRequest) -> None:
        """Sleep for the latency with its jitter; with the fault `hang`, until it is cancelled."""
        if record.kind == "hang":
            self._record(record)
            await wait_for_cancellation()
        deviation = self._random.uniform(-1.0, 1.0) * self._faults.jitter
        try:
            await asyncio.sleep(self._faults.latency * (1.0 + deviation))
        except asyncio.CancelledError:
            self._record(msgspec.structs.replace(record, kind="disconnected"))
            raise

    def _finish(self, record: SandboxRequest) -> bool:
        """Record a request whose response is due; an accepted message may be a repeat.

        Return whether the gateway delivers the message because of this request.
        """
        message_id, is_accepted = record.id, record.kind == "accepted"
        if is_accepted and message_id is not None:
            is_repeat = message_id in self._accepted_ids
            self._accepted_ids.add(message_id)
            if is_repeat:
                record = msgspec.structs.replace(record, repeat=True)
        self._record(record)
        return is_accepted and not (record.repeat and self._recognizes_repeats)

    def _record(self, record: SandboxRequest) -> None:
        """Count a request, and pass its record to `on_request`."""
        self._counts[record.kind] += 1
        if record.repeat:
            self._counts["repeats"] += 1
        if record.overlap:
            self._counts["overlaps"] += 1
        if self._on_request is not None:
            self._on_request(record)


def _check_account(kind: str, account: Mapping[str, str]) -> None:
    """Raise InvalidError if the kind is unknown or does not use a key of the account."""
    if kind not in shipped_kinds():
        raise InvalidError([FieldError("kind", f"must be one of {', '.join(shipped_kinds())}")])
    keys = account_keys(load_profile(kind))
    if unused := [key for key in account if key not in keys]:
        raise InvalidError([FieldError(key, f"is not used by the kind {kind}") for key in unused])
