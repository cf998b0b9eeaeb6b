"""The record of the soak: all changes in the database and all requests in the gateways' logs.

The soak adds triggers to mailer's tables. They write every state of every message and mailing into
tables of the schema `soak`, in the transaction of the change. So each request at the gateway can be
matched to the claim under which it was sent, and to the outcome that mailer recorded.
"""

from collections import defaultdict
from collections.abc import Iterator
from datetime import time as time_of_day
from itertools import pairwise
from typing import Any

import asyncpg
import msgspec

from soaking.claims import (
    END_OF_TIME,
    Change,
    Message,
    Request,
    build_claims,
    match_requests,
)
from soaking.journal import JITTER, LAG, Fault, Journal, Receipt
from soaking.sandbox import SandboxLog

# Tables and triggers of the recording. `n` orders the changes. `session_user` is the database role,
# and with it the worker. From `xid`, the time of the commit is found later. Changes of other
# columns are not recorded.
CREATE_RECORDING = """
CREATE SCHEMA soak;
CREATE TABLE soak.message_change (
    n bigint GENERATED ALWAYS AS IDENTITY, at timestamptz DEFAULT clock_timestamp(),
    worker name DEFAULT session_user, message_id bigint, mailing_id bigint, client_id bigint,
    status text, reason text, attempts int, leased_until timestamptz, unknown_reason text,
    route int, gateway text);
CREATE INDEX ON soak.message_change (n);
CREATE TABLE soak.probe AS SELECT clock_timestamp() AS at;
CREATE TABLE soak.mailing_change (
    n bigint GENERATED ALWAYS AS IDENTITY, at timestamptz DEFAULT clock_timestamp(),
    xid xid DEFAULT pg_current_xact_id()::xid, mailing_id bigint, status text,
    datetime_end timestamptz, opens time, closes time, client_filter jsonb, on_unknown text,
    is_deleted boolean, gateway text, purpose text);
CREATE TABLE soak.pause_change (
    n bigint GENERATED ALWAYS AS IDENTITY, at timestamptz DEFAULT clock_timestamp(),
    xid xid DEFAULT pg_current_xact_id()::xid, gateway text, is_paused boolean);

CREATE FUNCTION soak.message_created() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
    INSERT INTO soak.message_change
        (message_id, mailing_id, client_id, status, reason, attempts, leased_until, unknown_reason,
            route, gateway)
    SELECT id, mailing_id, client_id, status, reason, attempts, lease_expires_at, unknown_reason,
        route, gateway
    FROM new_row;
    RETURN NULL;
END $$;
CREATE FUNCTION soak.message_changed() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
    INSERT INTO soak.message_change
        (message_id, mailing_id, client_id, status, reason, attempts, leased_until, unknown_reason,
            route, gateway)
    SELECT new_row.id, new_row.mailing_id, new_row.client_id, new_row.status, new_row.reason,
        new_row.attempts, new_row.lease_expires_at, new_row.unknown_reason, new_row.route,
        new_row.gateway
    FROM new_row JOIN old_row USING (id)
    WHERE (new_row.status, new_row.reason, new_row.attempts, new_row.lease_owner,
            new_row.lease_expires_at)
        IS DISTINCT FROM (old_row.status, old_row.reason, old_row.attempts, old_row.lease_owner,
            old_row.lease_expires_at)
        OR new_row.status = 'scheduled' AND new_row.route <> old_row.route;
    RETURN NULL;
END $$;
CREATE FUNCTION soak.mailing_changed() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
    INSERT INTO soak.mailing_change (mailing_id, status, datetime_end, opens, closes,
        client_filter, on_unknown, is_deleted, gateway, purpose)
    VALUES (NEW.id, NEW.status, NEW.datetime_end, NEW.send_interval_time_start,
        NEW.send_interval_time_end, NEW.client_filter, NEW.on_unknown, NEW.deleted_at IS NOT NULL,
        NEW.gateway, NEW.purpose);
    RETURN NULL;
END $$;
CREATE FUNCTION soak.pause_changed() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
    INSERT INTO soak.pause_change (gateway, is_paused)
    VALUES (coalesce(NEW.gateway, OLD.gateway), TG_OP = 'INSERT');
    RETURN NULL;
END $$;

CREATE TRIGGER soak_created AFTER INSERT ON message REFERENCING NEW TABLE AS new_row
FOR EACH STATEMENT EXECUTE FUNCTION soak.message_created();
CREATE TRIGGER soak_changed AFTER UPDATE ON message REFERENCING OLD TABLE AS old_row
NEW TABLE AS new_row FOR EACH STATEMENT EXECUTE FUNCTION soak.message_changed();
CREATE TRIGGER soak_created AFTER INSERT ON mailing
FOR EACH ROW EXECUTE FUNCTION soak.mailing_changed();
CREATE TRIGGER soak_changed AFTER UPDATE ON mailing FOR EACH ROW
WHEN ((OLD.status, OLD.datetime_end, OLD.send_interval_time_start, OLD.send_interval_time_end,
        OLD.client_filter, OLD.on_unknown, OLD.deleted_at, OLD.gateway) IS DISTINCT FROM
    (NEW.status, NEW.datetime_end, NEW.send_interval_time_start, NEW.send_interval_time_end,
        NEW.client_filter, NEW.on_unknown, NEW.deleted_at, NEW.gateway))
EXECUTE FUNCTION soak.mailing_changed();
CREATE TRIGGER soak_changed AFTER INSERT OR DELETE ON gateway_pause
FOR EACH ROW EXECUTE FUNCTION soak.pause_changed()"""
# All changes of messages, in order; the columns are the fields of `Change`. Times are Unix times.
SELECT_CHANGES = """
    SELECT extract(epoch FROM at)::float8, worker::text, message_id, mailing_id, client_id, status,
        reason, attempts, extract(epoch FROM leased_until)::float8, unknown_reason, route, gateway
    FROM soak.message_change ORDER BY message_id, n"""
# All states of mailings, in order; the columns are the fields of `Version`. Times are Unix times.
SELECT_VERSIONS = """
    SELECT mailing_id, extract(epoch FROM at)::float8,
        extract(epoch FROM pg_xact_commit_timestamp(xid))::float8, status,
        extract(epoch FROM datetime_end)::float8, opens, closes, client_filter, on_unknown,
        is_deleted, gateway, purpose
    FROM soak.mailing_change ORDER BY mailing_id, n"""
# All pauses and resumptions of gateways, in order.
SELECT_PAUSES = """
    SELECT gateway, is_paused, extract(epoch FROM pg_xact_commit_timestamp(xid))::float8 AS at
    FROM soak.pause_change ORDER BY n"""
SELECT_ROUTES = "SELECT id, gateways FROM route"


class Version(msgspec.Struct):
    """A state of a mailing, between two changes. Times are Unix times in seconds."""

    mailing_id: int
    since: float
    """Shortly before the commit of the change that led to this state."""
    committed_at: float
    """The commit itself."""
    status: str
    end: float
    """End of the mailing."""
    opens: time_of_day | None
    closes: time_of_day | None
    """Sending window; None if the mailing has none."""
    client_filter: Any
    """The filter as JSON; None for all clients."""
    on_unknown: str
    is_deleted: bool
    gateway: str | None
    """The gateway of its own; None if it has none."""
    purpose: str
    until: float = END_OF_TIME
    """The commit of the next change."""


class Pause(msgspec.Struct):
    """A pause of a gateway. Times are the commits of its start and its end, in Unix time."""

    gateway: str
    since: float
    until: float = END_OF_TIME


class Record(msgspec.Struct):
    """All messages, versions of mailings, requests, and what the database said of gateways."""

    messages: dict[int, Message]
    """By id."""
    mailings: dict[int, list[Version]]
    """The versions of each mailing in order, by the mailing's id."""
    requests: list[Request]
    """In the order of their arrival."""
    unmatched_requests: list[Request]
    """Requests with an id that no message has had."""
    receipts: list[Receipt]
    """Receipts, in the order in which the calls began."""
    replies: list[Receipt]
    """Replies, likewise. None of them has a stop word."""
    pauses: list[Pause]
    routes: dict[int, frozenset[str]]
    """The names of the gateways of each route, by the route's id."""


async def start_recording(database_url: str) -> None:
    """Create the triggers that record every change of messages and mailings."""
    connection = await asyncpg.connect(database_url)
    await connection.execute(CREATE_RECORDING)
    await connection.close()


async def read_record(
    connection: asyncpg.Connection, logs: list[SandboxLog], journal: Journal
) -> Record:
    """Read all changes and the gateways' logs, and match the requests to the claims."""
    by_message: dict[int, list[Change]] = defaultdict(list)
    for row in await connection.fetch(SELECT_CHANGES):
        by_message[row["message_id"]].append(Change(*row))
    calls = sorted([*_read_calls(logs), *journal.receipts], key=lambda call: call.started)
    receipts = [call for call in calls if call.content != "reply"]
    receipts_by_id: dict[int, list[Receipt]] = defaultdict(list)
    for receipt in receipts:
        receipts_by_id[receipt.message_id].append(receipt)
    messages = {
        message_id: Message(changes, build_claims(changes), receipts_by_id[message_id])
        for message_id, changes in by_message.items()
    }
    mailings: dict[int, list[Version]] = defaultdict(list)
    for row in await connection.fetch(SELECT_VERSIONS):
        version = Version(*row)
        version.client_filter = msgspec.json.decode(row["client_filter"] or "null")
        mailings[version.mailing_id].append(version)
    for versions in mailings.values():
        for version, following in pairwise(versions):
            version.until = following.committed_at
    freezes = [fault for fault in journal.faults if fault.name == "gateway frozen"]
    requests = sorted(read_logs(logs, freezes), key=lambda request: request.arrived)
    by_id: dict[int | None, list[Request]] = defaultdict(list)
    for request in requests:
        by_id[request.id].append(request)
    for message_id, message in messages.items():
        match_requests(message, by_id.get(message_id, []))
    unmatched_requests = [request for request in requests if request.id not in messages]
    pauses = await _read_pauses(connection)
    rows = await connection.fetch(SELECT_ROUTES)
    routes = {row["id"]: frozenset(row["gateways"]) for row in rows}
    replies = [call for call in calls if call.content == "reply"]
    return Record(
        messages, mailings, requests, unmatched_requests, receipts, replies, pauses, routes
    )


async def _read_pauses(connection: asyncpg.Connection) -> list[Pause]:
    """Return all pauses, in the order of their starts."""
    pauses: list[Pause] = []
    for row in await connection.fetch(SELECT_PAUSES):
        if row["is_paused"]:
            pauses.append(Pause(row["gateway"], row["at"]))
        else:
            [pause] = [p for p in pauses if p.gateway == row["gateway"] and p.until == END_OF_TIME]
            pause.until = row["at"]
    return pauses


def read_logs(logs: list[SandboxLog], freezes: list[Fault]) -> Iterator[Request]:
    """Yield every request in the gateways' logs.

    `freezes` are the times for which gateways were frozen. A request that it read right after a
    freeze may have been written during the freeze, so its `earliest` is the start of the freeze.
    """
    for log in logs:
        for row in _rows(log):
            if row["kind"] == "call":
                continue
            arrived = row["arrived"] / 1e6
            freeze_starts = [
                freeze.began
                for freeze in freezes
                if freeze.gateway == log.gateway and freeze.began <= arrived <= freeze.ended + LAG
            ]
            yield Request(
                id=row["id"],
                arrived=arrived,
                earliest=min([arrived, *freeze_starts]),
                kind=row["kind"],
                gateway=log.gateway,
                answered=arrived + log.latency * (1 + JITTER),
                is_overlap=row["overlap"],
            )


def _read_calls(logs: list[SandboxLog]) -> Iterator[Receipt]:
    """Yield every call of a gateway to mailer."""
    for log in logs:
        for row in _rows(log):
            if row["kind"] == "call":
                yield Receipt(
                    message_id=row["message_id"],
                    gateway=log.gateway,
                    content=row["content"],
                    gateway_id=str(row["new_id"]),
                    started=row["started"] / 1e6,
                    ended=row["ended"] / 1e6,
                    attempts=row["attempts"],
                    is_taken=row["is_taken"],
                    is_early=row["is_early"],
                )


def _rows(log: SandboxLog) -> Iterator[dict[str, Any]]:
    return map(msgspec.json.decode, log.path.read_bytes().splitlines())
