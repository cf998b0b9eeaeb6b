"""The data set of `scale.py` and `admin_pages.py`: a service that has run for two years.

`create` fills an empty database with clients, mailings and messages by SQL. mailer's triggers
update the counters. Random numbers come from PostgreSQL with a fixed seed, so each run creates the
same data.
"""

import asyncpg
from sqlalchemy.ext.asyncio import AsyncEngine

from mailer.client import segment_counts
from mailer.db.engine import create_engine
from mailer.db.migrate import migrate
from mailer.mailing import downsampling
from mailer.message import counters
from mailer.sample_data import TEXT

MESSAGES_PER_CLIENT = 10
CLIENTS_PER_MAILING = 100
"""One mailing is created for this many clients of the directory, and ten at least. It is not the
size of an audience."""
MESSAGES_PER_STATEMENT = 500_000
"""A statement creates about this many messages. It never splits a mailing, so there may be more."""
ALL_DELTAS = 10**9
"""A limit higher than the number of deltas, so that all are merged at once."""

# work_mem: enough memory to sort and join so many rows. synchronous_commit: the data need not
# survive a power failure. jit: compiling the statements takes longer than it saves.
LOADING_PARAMETERS = "SET work_mem = '256MB'; SET synchronous_commit = off; SET jit = off"

# Parameter: $1 the number of clients.
# random() ^ 2 is near 0 more often than near 1, so that the first values of a list are frequent: a
# few operator codes have most of the clients. Most clients of a code share one time zone. Every
# second client has a tag, about four clients in all have the tag `rare`, and 1 % are erased.
CREATE_CLIENTS = """
    INSERT INTO client (phone, operator_code, tag, time_zone, created_at, updated_at, deleted_at)
    SELECT CASE WHEN NOT is_erased THEN '79' || lpad(n::text, 9, '0') END, (900 + code)::text,
        CASE WHEN is_erased THEN NULL WHEN n % ($1 / 4) = 1 THEN 'rare'
            WHEN n % 2 = 0 THEN 'tag-' || lpad(floor(50 * tag_draw ^ 2)::text, 2, '0') END,
        zones[1 + CASE WHEN zone_draw < 0.7 THEN code % 12
            ELSE floor(12 * zone_draw ^ 9)::int END],
        created_at, created_at, CASE WHEN is_erased THEN created_at + interval '1 day' END
    FROM (SELECT n, n % 100 = 7 AS is_erased, floor(90 * random() ^ 2)::int AS code,
            random() AS tag_draw, random() AS zone_draw,
            now() - interval '730 days' * (1 - n / ($1 + 1.0)) AS created_at,
            ARRAY['Europe/Moscow', 'Asia/Yekaterinburg', 'Europe/Samara', 'Asia/Omsk',
                'Asia/Krasnoyarsk', 'Europe/Kaliningrad', 'Asia/Irkutsk', 'Asia/Yakutsk',
                'Asia/Vladivostok', 'Asia/Magadan', 'Asia/Kamchatka', 'UTC'] AS zones
        FROM generate_series(1, $1::bigint) AS n) AS drawn
    ORDER BY n"""
# Parameters: $1 the number of clients, $2 of messages, $3 of mailings without messages, $4 of
# mailings with messages; $5 the text. The mailings are numbered (`n`), first those with messages.
#
# - `sized`: the audience of mailing $4 is all clients; that of three mailings in a thousand is a
#   tenth of them.
# - `shared`: the other mailings have audiences of equal size, so that there are about $2 messages.
# - `planned`: the starts of mailings 1 to $4 are spread over 22 months and end three days ago.
#   Mailing $4 runs, up to eight before it run or are paused, and one in fifty is cancelled. The
#   mailings after $4 start in the future, or were cancelled before their start.
#
# Filters are stored only to be shown: the size of an audience does not follow from them.
CREATE_MAILINGS = """
    WITH sized AS (
        SELECT n, CASE WHEN n = $4 THEN $1 WHEN n % 333 = 0 THEN $1 / 10 END AS size
        FROM generate_series(1, $4::bigint + $3) AS n
    ), shared AS (
        SELECT ($2::bigint - sum(size)) / count(*) FILTER (WHERE size IS NULL) AS share
        FROM sized WHERE n <= $4
    ), planned AS (
        SELECT n, n <= $4 AS has_started,
            coalesce(size, least($1, share))::bigint AS size,
            CASE WHEN n > $4 THEN CASE WHEN n % 4 = 0 THEN 'cancelled' ELSE 'scheduled' END
                WHEN n = $4 THEN 'running'
                WHEN n > $4 - least(8, $4 / 5) THEN (ARRAY['running', 'paused'])[1 + n % 2]
                WHEN n % least(50, $4 / 2) = 0 THEN 'cancelled' ELSE 'finished' END AS status,
            now() - interval '1 hour' * CASE WHEN n > $4 THEN -24 * (n - $4)
                ELSE 72 + 16000.0 * ($4 - n) / $4 END AS start
        FROM sized CROSS JOIN shared
    )
    INSERT INTO mailing (datetime_start, datetime_end, send_interval_time_start,
        send_interval_time_end, text, client_filter, status, clients_count, audience_cursor,
        audience_until, audience_snapshot, created_at, updated_at)
    SELECT start, start + interval '1 hour' * CASE WHEN status IN ('finished', 'cancelled') THEN 48
            ELSE 2000 END,
        CASE WHEN n % 10 = 0 THEN '09:00'::time END, CASE WHEN n % 10 = 0 THEN '21:00'::time END,
        $5, CASE WHEN n % 3 > 0 THEN '{"tags": ["tag-00", "tag-01"]}'::jsonb END, status, size,
        CASE WHEN has_started THEN $1 ELSE 0 END, CASE WHEN has_started THEN $1 END,
        CASE WHEN has_started THEN pg_current_snapshot()::text END,
        least(start, now()) - interval '1 day', least(start + interval '1 day', now())
    FROM planned ORDER BY n"""
CREATE_COUNTS = "INSERT INTO mailing_counts (mailing_id) SELECT id FROM mailing"

# Parameters: $1 the number of clients, $2 and $3 the ids of the first and the last mailing that get
# messages.
#
# - `chosen`: the clients of a mailing are spread evenly over the directory. `id * 7919`, with a
#   prime, makes each mailing begin with another client. `k` numbers its messages from 0.
# - `with_status`: `moment` is the time at which a message was sent or is due. 500 messages of a
#   mailing are sent a second. Each further attempt delays a message by up to five minutes. In a
#   mailing with a sending window, hours are added that depend on the time zone: the length of the
#   zone's name serves for that.
# - A tenth of the messages of a mailing that has not ended is still to be sent.
# - `pick` is 1 to 5, mostly 1, and selects one of several reasons. The reason rejected_451 is very
#   rare, so that a search for it finds few messages among many.
CREATE_MESSAGES = """
    INSERT INTO message (mailing_id, client_id, operator_code, time_zone, due_at, sent_at,
        lease_owner, lease_expires_at, created_at, updated_at, attempts, status, reason,
        last_failure)
    SELECT mailing_id, client_id, operator_code, time_zone, moment,
        CASE WHEN status IN ('delivered', 'unknown') THEN moment END,
        CASE WHEN status = 'sending' THEN gen_random_uuid() END,
        CASE WHEN status = 'sending' THEN now() + interval '10 days' END,
        start, CASE WHEN status = 'scheduled' THEN start ELSE moment END, attempts, status,
        CASE status
            WHEN 'undelivered' THEN CASE WHEN draw < 0.00002 THEN 'rejected_451'
                WHEN attempts = 4 THEN 'attempts_exhausted' ELSE rejections[pick] END
            WHEN 'unknown' THEN (ARRAY['timeout', 'connection_lost', 'lease_expired'])[1 + pick / 2]
            WHEN 'cancelled' THEN CASE WHEN mailing_status = 'cancelled' THEN 'mailing_cancelled'
                ELSE (ARRAY['expired', 'no_window', 'client_deleted', 'filter_changed'])
                    [1 + pick * 2 / 3] END
            WHEN 'scheduled' THEN CASE WHEN attempts > 1 THEN 'http_503' END END,
        CASE WHEN status = 'undelivered' THEN rejections[pick]
            WHEN attempts > 1 THEN 'http_503' END
    FROM (
        SELECT chosen.*, operator_code, time_zone,
            start + interval '2 ms' * k + interval '5 minutes' * (attempts - 1) * random()
                + CASE WHEN has_window THEN (length(time_zone) - 3) * interval '1 hour'
                    ELSE interval '0' END AS moment,
            CASE WHEN NOT has_ended AND draw > 0.9
                    THEN CASE WHEN draw > 0.9999 THEN 'sending' ELSE 'scheduled' END
                WHEN mailing_status = 'cancelled' AND draw > 0.5 THEN 'cancelled'
                WHEN draw < 0.03 THEN 'undelivered' WHEN draw < 0.04 THEN 'unknown'
                WHEN draw < 0.05 THEN 'cancelled' ELSE 'delivered' END AS status,
            1 + floor(5 * random() ^ 4)::int AS pick,
            ARRAY['rejected_400', 'rejected_404', 'rejected_422', 'rejected_410', 'rejected_403']
                AS rejections
        FROM (
            SELECT id AS mailing_id, status AS mailing_status, datetime_start AS start, k,
                1 + (k * ($1 / clients_count) + id * 7919) % $1 AS client_id,
                send_interval_time_start IS NOT NULL AS has_window,
                status IN ('finished', 'cancelled') AS has_ended,
                random() AS draw, 1 + floor(4 * random() ^ 6)::int AS attempts
            FROM mailing CROSS JOIN LATERAL generate_series(0, clients_count - 1) AS k
            WHERE id BETWEEN $2 AND $3 AND audience_until IS NOT NULL
        ) AS chosen JOIN client ON client.id = client_id
    ) AS with_status
    ORDER BY mailing_id, k"""
# The ids of the first and the last mailing of each batch: one statement creates its messages.
# Parameter: $1 the number of messages after which a new batch begins.
BATCHES = """
    SELECT min(id), max(id) FROM (
        SELECT id, sum(clients_count) OVER (ORDER BY id)::bigint / $1 AS batch FROM mailing
    ) AS numbered
    GROUP BY batch ORDER BY batch"""
MAILINGS_PER_STATEMENT = 500
"""Mailings that one statement marks as settled. For each of them a trigger updates the row of
totals, and each update reads all old versions of the row that the statement has left. So the cost
grows with the square of this number."""
# Parameters: $1 the id of the first mailing, $2 the number of ids.
SETTLE = """
    UPDATE mailing SET is_closed = true, is_settled = true
    WHERE status IN ('finished', 'cancelled') AND id >= $1 AND id < $1 + $2"""
SELECT_SIZE = "SELECT pg_database_size(current_database())"


async def create(url: str, clients: int) -> int:
    """Create the data set for `clients` clients in an empty database; return its size in bytes."""
    mailings = max(10, clients // CLIENTS_PER_MAILING)
    messages = clients * MESSAGES_PER_CLIENT
    engine = create_engine(url)
    await migrate(engine)
    database = await asyncpg.connect(url)
    try:
        await database.execute(LOADING_PARAMETERS)
        await database.execute("SELECT setseed(0.5)")
        await database.execute(CREATE_CLIENTS, clients)
        await database.execute("ANALYZE client")
        mailings_without_messages = max(2, mailings // 500)
        await database.execute(
            CREATE_MAILINGS, clients, messages, mailings_without_messages, mailings, TEXT
        )
        await database.execute(CREATE_COUNTS)
        for first, last in await database.fetch(BATCHES, MESSAGES_PER_STATEMENT):
            await database.execute(CREATE_MESSAGES, clients, first, last)
            await merge_deltas(engine)
        async with engine.begin() as connection:
            await downsampling.downsample(connection)
        last_mailing = mailings + mailings_without_messages
        for first in range(1, last_mailing + 1, MAILINGS_PER_STATEMENT):
            await database.execute(SETTLE, first, MAILINGS_PER_STATEMENT)
        # A delta left at the end of its table would keep VACUUM from shortening the table, and each
        # read of counters would scan all its empty pages.
        await merge_deltas(engine)
        await database.execute("VACUUM ANALYZE")
        size: int = await database.fetchval(SELECT_SIZE)
    finally:
        await database.close()
        await engine.dispose()
    return size


async def merge_deltas(engine: AsyncEngine) -> None:
    """Merge the deltas that the triggers wrote, as a periodic job of mailer does."""
    async with engine.begin() as connection:
        await counters.merge_deltas(connection, ALL_DELTAS)
        await segment_counts.merge_deltas(connection, ALL_DELTAS)
