"""Decide by a profile's rules what a response of a gateway means."""

from collections.abc import Sequence
from http import HTTPStatus

import msgspec
from msgspec.structs import replace

from mailer.gateway.json_path import JsonPath, shape_of
from mailer.gateway.profile import ResponsePart
from mailer.gateway.protocol import Accepted, Outcome, TemporaryFailure, Unknown
from mailer.gateway.response_rule import ASKING_ALL, JSON_ERRORS, NO_JSON, Response, ResponseRule


class ResponseRules:
    """The rules of a profile, compiled. Raises `ValueError` for a wrong path or pattern.

    No outcome asks to wait for more than `max_wait` seconds, whatever a response says.
    `recognizes_repeats` says whether the gateway does not send a message twice that mailer repeats.
    """

    def __init__(
        self,
        parts: Sequence[ResponsePart],
        *,
        max_wait: float = 900.0,
        recognizes_repeats: bool = False,
    ) -> None:
        self._max_wait = max_wait
        self._recognizes_repeats = recognizes_repeats
        paths: dict[str, JsonPath] = {}  # one for each text: rules with the same one share values

        def path(text: str) -> JsonPath:
            return paths.setdefault(text, JsonPath(text))

        self._rules = [ResponseRule(part, path) for part in parts]
        self._decode_expected = msgspec.json.Decoder(shape_of(paths.values())).decode
        self._rules_of_status: dict[int, list[ResponseRule]] = {}
        """By status, as far as there were responses with it."""
        self.need_text = any(rule.needs_text for rule in self._rules)
        """Whether a body is read as text, for which its header Content-Type is needed."""
        self._needs_json = any(rule.needs_json for rule in self._rules)
        self._last_response: Response | None = None
        self._last_outcome: Outcome = TemporaryFailure("bad_response")
        self._needs_body: dict[int, bool] = {}
        """By status, as far as it was asked for."""

    def needs_body(self, status: int) -> bool:
        """Return whether the outcome of a response with this status may depend on its body."""
        needs_body = self._needs_body.get(status)
        if needs_body is None:
            needs_body = any(rule.needs_body for rule in self._rules_for(status))
            self._needs_body[status] = needs_body
        return needs_body

    def outcome(self, response: Response) -> Outcome:
        """Return the outcome of a response.

        For speed, that of the last response is remembered: many gateways accept every message with
        the same few bytes.
        """
        if response != self._last_response:
            self._last_response, self._last_outcome = response, self._decide(response)
        return self._last_outcome

    def _decide(self, response: Response) -> Outcome:
        """Return the outcome of the first rule that matches; else by the status.

        Without a rule, a failure is temporary, so that no message is lost that the gateway did not
        refuse clearly.
        """
        document: object = NO_JSON
        if self._needs_json and response.body:
            try:
                document = self._decode_expected(response.body)
            except JSON_ERRORS:
                document = response.document()
        status = response.status
        rules = self._rules_of_status.get(status) or self._rules_for(status)
        path: JsonPath | None = None
        found: list[object] = []
        for rule in rules:
            if rule.path is not None:
                if rule.path is not path:  # rules with the same path follow each other
                    path = rule.path
                    found = path.find(document)
                if not found:
                    continue
            matched = rule.match(response, found)
            if matched is not None:
                outcome = rule.outcome(response, document, found, matched)
                return outcome if isinstance(outcome, Accepted) else self._limit_wait(outcome)
        if any(rule.is_acceptance for rule in rules):
            return self._outcome_of_success(response, document)
        asks_all = response.status in ASKING_ALL and bool(response.retry_after)
        reason = f"http_{response.status}"
        return self._limit_wait(
            TemporaryFailure(reason, response.retry_after, affects_all=asks_all)
        )

    def _rules_for(self, status: int) -> list[ResponseRule]:
        """Return the rules for responses with this status."""
        rules = [rule for rule in self._rules if rule.matches_status(status)]
        self._rules_of_status[status] = rules
        return rules

    def _outcome_of_success(self, response: Response, document: object) -> Outcome:
        """Return the outcome of a response with the status of a success that no rule knows.

        Many gateways refuse with the status 200 and a document. Anything else may be an acceptance,
        and a gateway that does not recognize repeats would send the message twice.
        """
        is_refusal = response.status == HTTPStatus.OK and document is not NO_JSON
        if is_refusal or self._recognizes_repeats:
            return TemporaryFailure("bad_response")
        return Unknown("bad_response")

    def _limit_wait(self, outcome: Outcome) -> Outcome:
        if isinstance(outcome, TemporaryFailure) and outcome.retry_after is not None:
            return replace(outcome, retry_after=min(outcome.retry_after, self._max_wait))
        return outcome
