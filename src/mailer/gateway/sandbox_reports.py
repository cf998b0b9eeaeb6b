"""What the sandbox gateway reports to mailer: by calls, and when it is asked."""

import base64
import hashlib
import time
from collections import OrderedDict
from collections.abc import Mapping
from datetime import UTC, datetime

from mailer.gateway.callback import Callback, ReceiptStatus
from mailer.gateway.profile import GatewayProfile
from mailer.gateway.sandbox_caller import SandboxCaller
from mailer.gateway.sandbox_options import CallContent
from mailer.gateway.sandbox_plans import CallPlan, CallPlanner, message_values
from mailer.gateway.sandbox_records import PollRequest, SandboxMessage
from mailer.gateway.sandbox_responses import SandboxResponse, SandboxResponses
from mailer.gateway.signatures import SIGNATURE_SCHEMES, sign, telnyx

MAX_STATUSES = 100_000
"""Messages whose status the sandbox remembers, for a kind that is asked for it."""


class SandboxReports:
    """The reports of one sandbox gateway about the messages that it accepts."""

    def __init__(
        self,
        profile: GatewayProfile,
        responses: SandboxResponses,
        planner: CallPlanner,
        caller: SandboxCaller,
    ) -> None:
        self._responses = responses
        self._planner = planner
        self._caller = caller
        self._statuses = _Statuses(has_own_ids=_is_asked_by_own_id(profile))
        self._is_polled = profile.poll is not None

    async def report(self, message: SandboxMessage, new_id: int) -> None:
        """Report about an accepted message, which the gateway knows as `new_id`.

        Returns at once, unless a receipt is to come before the response to the request.
        """
        if not self._is_polled and self._planner.receipts_url(message) is None:
            return
        new_id = new_id or self._responses.create_id()
        plan = self._planner.plan(message, new_id)
        if self._is_polled:
            self._statuses.add(message, new_id, plan)
        self._caller.schedule([call for call in plan.calls if not call.is_early], plan.lost)
        if early := [call for call in plan.calls if call.is_early]:
            await self._caller.call_now(early)

    def answer_poll(self, request: PollRequest) -> SandboxResponse:
        """Return the response to a request for the status of messages."""
        return self._responses.answer_poll(self._statuses.find(request.keys))


class Signer:
    """Signs calls as the provider does.

    A provider that always signs does so with the secret, or else with the token of the account or a
    secret of the sandbox. One that signs on request needs the secret.
    """

    def __init__(self, profile: GatewayProfile, secret: str | None, token: str | None) -> None:
        receipt = profile.receipt
        self._scheme = scheme = None if receipt is None else receipt.signature
        if secret is None and receipt is not None and not receipt.may_be_unsigned:
            has_token = scheme is not None and SIGNATURE_SCHEMES[scheme].account_key == "token"
            secret = token if has_token and token is not None else "sandbox"
        self._secret = secret
        self._given = secret
        if self._scheme == "telnyx" and secret is not None:
            key = hashlib.sha256(secret.encode()).digest()
            self._secret = base64.b64encode(key).decode()
            self._given = telnyx.public_key(self._secret)

    @property
    def callback_secret(self) -> str | None:
        """The `callback_secret` of mailer's configuration that belongs to the signatures."""
        return self._given

    def sign(self, callback: Callback) -> Callback:
        """Return the call with its signature, if the provider signs."""
        if self._scheme is None or self._secret is None:
            return callback
        return sign(self._scheme, callback, self._secret, datetime.now(UTC))


def _is_asked_by_own_id(profile: GatewayProfile) -> bool:
    """Return whether a request for the status has mailer's id, not that of the gateway."""
    return profile.poll is not None and "{ids}" not in repr(profile.poll)


class _Statuses:
    """The status of each of the last messages, by mailer's id or by that of the gateway."""

    def __init__(self, *, has_own_ids: bool) -> None:
        self._has_own_ids = has_own_ids
        self._plans: OrderedDict[int, tuple[ReceiptStatus, float, Mapping[str, str]]] = (
            OrderedDict()
        )

    def add(self, message: SandboxMessage, new_id: int, plan: CallPlan) -> None:
        key = (message.id or 0) if self._has_own_ids else new_id
        due = time.monotonic() + plan.delay
        self._plans[key] = plan.status, due, message_values(message, new_id)
        if len(self._plans) > MAX_STATUSES:
            self._plans.popitem(last=False)

    def find(self, keys: tuple[int, ...]) -> list[tuple[CallContent, Mapping[str, str]]]:
        """Return status and values of the messages that are known."""
        now = time.monotonic()
        found: list[tuple[CallContent, Mapping[str, str]]] = []
        for key in keys:
            if key in self._plans:
                status, due, values = self._plans[key]
                found.append((status if due <= now else "sent", values))
        return found
