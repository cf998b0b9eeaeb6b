"""What happened, as the database and the gateway's logs tell it, side by side.

Triggers of the soak's own write down every state that a message and a mailing pass through, in the
transaction that moves them. So each request at the gateway can be laid beside the one claim that
it was made under, and beside what mailer believed became of it.
"""

from collections import defaultdict
from collections.abc import Iterator
from datetime import time as time_of_day
from itertools import pairwise
from pathlib import Path
from typing import Any

import asyncpg
import msgspec

from soaking.claims import END_OF_TIME, Change, Message, Request, claims_of, lay_beside
from soaking.journal import LAG, Journal, Trouble

FOLLOW = """
CREATE SCHEMA soak;
CREATE TABLE soak.message_change (
    n bigint GENERATED ALWAYS AS IDENTITY, at timestamptz DEFAULT clock_timestamp(),
    life name DEFAULT session_user, message_id bigint, mailing_id bigint, client_id bigint,
    status text, reason text, attempts int, leased_until timestamptz);
CREATE TABLE soak.mailing_change (
    n bigint GENERATED ALWAYS AS IDENTITY, at timestamptz DEFAULT clock_timestamp(),
    xid xid DEFAULT pg_current_xact_id()::xid, mailing_id bigint, status text,
    datetime_end timestamptz, opens time, closes time, client_filter jsonb, on_unknown text,
    is_deleted boolean);

CREATE FUNCTION soak.message_added() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
    INSERT INTO soak.message_change
        (message_id, mailing_id, client_id, status, reason, attempts, leased_until)
    SELECT id, mailing_id, client_id, status, reason, attempts, lease_expires_at FROM come;
    RETURN NULL;
END $$;
CREATE FUNCTION soak.message_changed() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
    INSERT INTO soak.message_change
        (message_id, mailing_id, client_id, status, reason, attempts, leased_until)
    SELECT come.id, come.mailing_id, come.client_id, come.status, come.reason, come.attempts,
        come.lease_expires_at
    FROM come JOIN gone USING (id)
    WHERE (come.status, come.reason, come.attempts, come.lease_owner, come.lease_expires_at)
        IS DISTINCT FROM
        (gone.status, gone.reason, gone.attempts, gone.lease_owner, gone.lease_expires_at);
    RETURN NULL;
END $$;
CREATE FUNCTION soak.mailing_changed() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
    INSERT INTO soak.mailing_change (mailing_id, status, datetime_end, opens, closes,
        client_filter, on_unknown, is_deleted)
    VALUES (NEW.id, NEW.status, NEW.datetime_end, NEW.send_interval_time_start,
        NEW.send_interval_time_end, NEW.client_filter, NEW.on_unknown, NEW.deleted_at IS NOT NULL);
    RETURN NULL;
END $$;

CREATE TRIGGER soak_added AFTER INSERT ON message REFERENCING NEW TABLE AS come
FOR EACH STATEMENT EXECUTE FUNCTION soak.message_added();
CREATE TRIGGER soak_changed AFTER UPDATE ON message REFERENCING OLD TABLE AS gone
NEW TABLE AS come FOR EACH STATEMENT EXECUTE FUNCTION soak.message_changed();
CREATE TRIGGER soak_made AFTER INSERT ON mailing
FOR EACH ROW EXECUTE FUNCTION soak.mailing_changed();
CREATE TRIGGER soak_changed AFTER UPDATE ON mailing FOR EACH ROW
WHEN ((OLD.status, OLD.datetime_end, OLD.send_interval_time_start, OLD.send_interval_time_end,
        OLD.client_filter, OLD.on_unknown, OLD.deleted_at) IS DISTINCT FROM
    (NEW.status, NEW.datetime_end, NEW.send_interval_time_start, NEW.send_interval_time_end,
        NEW.client_filter, NEW.on_unknown, NEW.deleted_at))
EXECUTE FUNCTION soak.mailing_changed()"""
CHANGES = """
    SELECT extract(epoch FROM at)::float8, life::text, message_id, mailing_id, client_id, status,
        reason, attempts, extract(epoch FROM leased_until)::float8
    FROM soak.message_change ORDER BY message_id, n"""
VERSIONS = """
    SELECT mailing_id, extract(epoch FROM at)::float8,
        extract(epoch FROM pg_xact_commit_timestamp(xid))::float8, status,
        extract(epoch FROM datetime_end)::float8, opens, closes, client_filter, on_unknown,
        is_deleted
    FROM soak.mailing_change ORDER BY mailing_id, n"""


class Version(msgspec.Struct):
    """A mailing as it was from `since` until `until`, when the next version was committed."""

    mailing_id: int
    since: float
    """Unix time, shortly before the commit."""
    committed_at: float
    status: str
    end: float
    opens: time_of_day | None
    closes: time_of_day | None
    client_filter: Any
    on_unknown: str
    is_deleted: bool
    until: float = END_OF_TIME


class Record(msgspec.Struct):
    """All that happened."""

    messages: dict[int, Message]
    mailings: dict[int, list[Version]]
    requests: list[Request]
    strangers: list[Request]
    """Requests that name no message that ever was."""


async def follow(database_url: str) -> None:
    """Write down from now on what becomes of messages and mailings."""
    connection = await asyncpg.connect(database_url)
    await connection.execute(FOLLOW)
    await connection.close()


async def read_record(connection: asyncpg.Connection, logs: list[Path], journal: Journal) -> Record:
    """Read everything, and lay the requests beside the claims."""
    by_message: dict[int, list[Change]] = defaultdict(list)
    for row in await connection.fetch(CHANGES):
        by_message[row["message_id"]].append(Change(*row))
    messages = {key: Message(changes, claims_of(changes)) for key, changes in by_message.items()}
    mailings: dict[int, list[Version]] = defaultdict(list)
    for row in await connection.fetch(VERSIONS):
        version = Version(*row)
        version.client_filter = msgspec.json.decode(row["client_filter"] or "null")
        mailings[version.mailing_id].append(version)
    for versions in mailings.values():
        for version, following in pairwise(versions):
            version.until = following.committed_at
    frozen = [trouble for trouble in journal.troubles if trouble.what == "gateway frozen"]
    requests = sorted(read_logs(logs, frozen), key=lambda request: request.arrived)
    by_id: dict[int | None, list[Request]] = defaultdict(list)
    for request in requests:
        by_id[request.id].append(request)
    for key, message in messages.items():
        lay_beside(message, by_id.get(key, []))
    strangers = [request for request in requests if request.id not in messages]
    return Record(messages, mailings, requests, strangers)


def read_logs(logs: list[Path], frozen: list[Trouble]) -> Iterator[Request]:
    """Yield every request; one that came right after a freeze may have been written during it."""
    for log in logs:
        for line in log.read_bytes().splitlines():
            row = msgspec.json.decode(line)
            arrived = row["arrived"] / 1e6
            began = [
                freeze.began for freeze in frozen if freeze.began <= arrived <= freeze.ended + LAG
            ]
            earliest = min([arrived, *began])
            yield Request(row["id"], arrived, earliest, row["kind"], row.get("overlap", False))
