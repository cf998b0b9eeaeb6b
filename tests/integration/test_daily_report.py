"""The daily report: its figures and its texts."""

import re
from datetime import UTC, date, datetime, timedelta
from itertools import islice
from zoneinfo import ZoneInfo

import msgspec
import pytest
from sqlalchemy import select, text
from sqlalchemy.ext.asyncio import AsyncEngine
from tests.factories import (
    HOUR,
    NOON,
    add_clients,
    add_mailing,
    add_mailings,
    add_messages,
    do,
    execute,
)

from mailer.daily_report.outcomes import FailureCount
from mailer.daily_report.render import render_html, render_text
from mailer.daily_report.report import (
    MAX_LISTED,
    DailyReport,
    daily_report,
    day_bounds,
    was_active,
)
from mailer.db.tables.mailing import mailing as mailing_table
from mailer.errors import InvalidError
from mailer.message import counters
from mailer.sample_data import SampleMailing
from mailer.statistics.model import GatewayCounts
from mailer.statuses import (
    MESSAGE_STATUSES,
    OUTCOMES,
    STATUSES,
    MessageCounts,
    MessageStatus,
    OutcomeCounts,
)

DAY = date(2020, 1, 15)
"""The day of `NOON`, when sample messages are sent by default."""
SECOND = timedelta(seconds=1)


async def sample_report(engine: AsyncEngine) -> DailyReport:
    """Return a report with one delivered and two undelivered messages, all at 13:00.

    The reason of the undelivered ones has characters that are special in HTML.
    """
    clients = await add_clients(engine, 3)
    mailing_id = await add_mailing(engine, clients=3)
    at = NOON + HOUR
    await add_messages(engine, mailing_id, clients[:1], "delivered", at=at)
    await add_messages(engine, mailing_id, clients[1:], "undelivered", reason="<b>&", at=at)
    return await daily_report(engine, DAY, "UTC")


async def test_the_report_counts_outcomes_of_the_local_day(engine: AsyncEngine) -> None:
    unused_clients = iter(await add_clients(engine, 9))
    start = datetime(2020, 1, 14, tzinfo=UTC)
    mailing_id = await add_mailing(engine, clients=9, start=start, lasts=72 * HOUR)
    day_start = datetime(2020, 1, 14, 21, tzinfo=UTC)  # midnight in Moscow
    day_end = day_start + 24 * HOUR

    async def add(count: int, status: MessageStatus, reason: str | None, at: datetime) -> None:
        clients = list(islice(unused_clients, count))
        await add_messages(engine, mailing_id, clients, status, reason, at)

    # an outcome of the day before, five of the day, and one of the day after
    await add(1, "delivered", None, day_start - SECOND)
    await add(2, "delivered", None, day_start)
    await add(2, "undelivered", "attempts_exhausted", day_start + HOUR)
    await add(1, "undelivered", "rejected_400", day_end - SECOND)
    await add(1, "cancelled", "expired", day_end)
    # no outcome
    await add(2, "scheduled", "timeout", day_start + HOUR)

    report = await daily_report(engine, DAY, "Europe/Moscow")

    assert report.failures == [
        FailureCount("undelivered", "attempts_exhausted", 2),
        FailureCount("undelivered", "rejected_400", 1),
    ]
    assert report.outcomes == OutcomeCounts.of(delivered=2, undelivered=3)
    # the counts of mailings are the current ones, of all days
    assert report.messages == MessageCounts.of(scheduled=2, delivered=3, undelivered=3, cancelled=1)
    (mailing,) = report.mailings
    assert mailing.id == mailing_id
    assert mailing.clients_count == 9
    assert mailing.messages == report.messages
    assert mailing.datetime_start.isoformat() == "2020-01-14T03:00:00+03:00"


async def report_of_gateways(engine: AsyncEngine, *gateways: str) -> DailyReport:
    """Return a report of two delivered, one undelivered and one expired message for each gateway.

    One more message expired without being tried. Each delivered message has two parts.
    """
    mailing_id = await add_mailing(engine, clients=4 * len(gateways) + 1)
    for gateway in gateways:
        clients = await add_clients(engine, 4)
        await add_messages(engine, mailing_id, clients[:2], "delivered")
        await add_messages(engine, mailing_id, clients[2:3], "undelivered", "rejected_400")
        await add_messages(engine, mailing_id, clients[3:], "cancelled", "expired")
        await execute(
            engine,
            f"""UPDATE message SET gateway = '{gateway}',
                parts = CASE status WHEN 'delivered' THEN 2 END WHERE gateway IS NULL""",  # noqa: S608  # a name of the test
        )
    await add_messages(engine, mailing_id, await add_clients(engine, 1), "cancelled", "expired")
    return await daily_report(engine, DAY, "UTC")


async def test_outcomes_and_parts_are_counted_by_gateway(engine: AsyncEngine) -> None:
    report = await report_of_gateways(engine, "second", "first")

    of_each = OutcomeCounts.of(delivered=2, undelivered=1, cancelled=1)
    assert report.gateways == [
        GatewayCounts("first", of_each, parts=4),
        GatewayCounts("second", of_each, parts=4),
    ]
    lines = render_text(report).splitlines()
    title = lines.index("By gateway")
    assert [cells(line) for line in lines[title + 1 : title + 5]] == [
        ["gateway", *(STATUSES[name].label for name in OUTCOMES), "parts"],
        ["first", "0", "2", "1", "0", "1", "4"],
        ["second", "0", "2", "1", "0", "1", "4"],
        [""],  # an empty line after the last gateway
    ]
    html = render_html(report)
    table = visible_text(html[html.index("By gateway") : html.index("Not delivered on that day")])
    assert table[:5] == ["By gateway", "gateway", "delivered", "undelivered", "cancelled"]
    assert table[5:15] == ["parts", *("first", "2", "1", "1", "4"), *("second", "2", "1", "1")]


async def test_failures_name_the_gateway_if_several_were_used(engine: AsyncEngine) -> None:
    report = await report_of_gateways(engine, "first", "second")

    assert report.failures == [
        FailureCount("cancelled", "expired", 1, "first"),
        FailureCount("cancelled", "expired", 1, "second"),
        FailureCount("cancelled", "expired", 1),
        FailureCount("undelivered", "rejected_400", 1, "first"),
        FailureCount("undelivered", "rejected_400", 1, "second"),
    ]
    _, _, failures, *_ = render_text(report).split("\n\n")
    assert [cells(line) for line in failures.splitlines()[1:]] == [
        ["cancelled", "1", "expired", "first"],
        ["cancelled", "1", "expired", "second"],
        ["cancelled", "1", "expired"],
        ["undelivered", "1", "rejected_400", "first"],
        ["undelivered", "1", "rejected_400", "second"],
    ]
    html = render_html(report)
    table = visible_text(html[html.index("Not delivered") : html.index("Mailings active")])
    assert table[1:4] == ["status", "reason and gateway", "messages"]
    assert table[4:8] == ["cancelled", "expired", "first", "1"]
    assert table[8:12] == ["cancelled", "expired", "second", "1"]
    assert table[12:15] == ["cancelled", "expired", "1"]


async def test_failures_do_not_name_the_only_gateway(engine: AsyncEngine) -> None:
    report = await report_of_gateways(engine, "main")

    assert report.failures == [
        FailureCount("cancelled", "expired", 2),
        FailureCount("undelivered", "rejected_400", 1),
    ]
    assert "gateway" not in render_html(report).partition("Not delivered")[2]


async def test_the_report_of_a_day_on_which_nothing_was_tried_has_no_gateways(
    engine: AsyncEngine,
) -> None:
    report = await sample_report(engine)
    assert report.gateways == []
    for rendered in (render_text(report), render_html(report)):
        assert "By gateway" not in rendered


async def add_settled_mailing(engine: AsyncEngine, *, start: datetime, settled_at: datetime) -> int:
    """Add a finished mailing whose last message became final at `settled_at`."""
    mailing_id = await add_mailing(engine, status="finished", start=start)
    async with engine.begin() as connection:
        await connection.execute(
            text("UPDATE mailing SET updated_at = :at WHERE id = :id"),
            {"id": mailing_id, "at": settled_at},
        )
    return mailing_id


async def test_mailings_that_ran_on_the_day_are_listed_newest_first(engine: AsyncEngine) -> None:
    day_start, day_end = day_bounds(DAY, ZoneInfo("UTC"))
    ended_on_the_day = await add_mailing(engine, start=day_start - 2 * HOUR, lasts=3 * HOUR)
    running_all_day = await add_mailing(engine, start=day_start - HOUR, lasts=99 * HOUR)
    starting_on_the_day = await add_mailing(engine, status="scheduled", start=day_end - HOUR)

    report = await daily_report(engine, DAY, "UTC")

    assert [mailing.id for mailing in report.mailings] == [
        *(starting_on_the_day, running_all_day, ended_on_the_day)
    ]
    assert report.mailings_count == 3


async def test_a_mailing_is_listed_until_the_day_on_which_it_is_settled(
    engine: AsyncEngine,
) -> None:
    day_start, _ = day_bounds(DAY, ZoneInfo("UTC"))
    start = day_start - 2 * HOUR
    await add_settled_mailing(engine, start=start, settled_at=day_start - SECOND)
    settled = await add_settled_mailing(engine, start=start, settled_at=day_start + HOUR)
    not_settled = await add_mailing(engine, start=start, lasts=2 * HOUR)  # ends at midnight

    report = await daily_report(engine, DAY, "UTC")

    assert [mailing.id for mailing in report.mailings] == [not_settled, settled]


async def test_a_mailing_that_was_cancelled_before_its_start_was_never_active(
    engine: AsyncEngine,
) -> None:
    await add_mailing(engine, status="cancelled")
    await execute(engine, "UPDATE mailing SET updated_at = datetime_start - interval '1 day'")

    for day in (DAY - timedelta(days=1), DAY):
        assert (await daily_report(engine, day, "UTC")).mailings == []


async def test_old_days_do_not_read_all_mailings_since_then(engine: AsyncEngine) -> None:
    await add_mailings(
        engine,
        *(SampleMailing(start=NOON + n * 24 * HOUR, status="finished") for n in range(1_000)),
    )
    await execute(engine, "ANALYZE mailing")
    day = DAY + timedelta(days=500)
    active = select(mailing_table.c.id).where(was_active(*day_bounds(day, ZoneInfo("UTC"))))

    assert (await daily_report(engine, day, "UTC")).mailings_count == 1
    query = active.compile(engine.sync_engine, compile_kwargs={"literal_binds": True})
    async with engine.connect() as connection:
        plan = (await connection.exec_driver_sql(f"EXPLAIN {query}")).scalars().all()
    assert not [line for line in plan if "Seq Scan" in line]


async def test_later_and_deleted_mailings_are_not_listed(engine: AsyncEngine) -> None:
    _, day_end = day_bounds(DAY, ZoneInfo("UTC"))
    await add_mailing(engine, start=day_end)
    deleted = await add_mailing(engine)
    await execute(engine, f"UPDATE mailing SET deleted_at = now() WHERE id = {deleted}")  # noqa: S608  # a number

    report = await daily_report(engine, DAY, "UTC")

    assert report.mailings == []
    assert report.mailings_count == 0


async def test_a_long_list_of_mailings_is_truncated_but_totals_are_not(engine: AsyncEngine) -> None:
    for _ in range(MAX_LISTED + 2):
        await add_mailing(engine, status="scheduled", clients=10)

    report = await daily_report(engine, DAY, "UTC")

    assert len(report.mailings) == MAX_LISTED
    assert report.mailings_count == MAX_LISTED + 2
    assert report.clients_count == report.messages.scheduled == 10 * (MAX_LISTED + 2)
    assert "and 2 older ones" in render_text(report)
    assert "and 2 older ones" in render_html(report)


async def test_the_report_of_a_day_without_mailings_says_so(engine: AsyncEngine) -> None:
    report = await daily_report(engine, DAY, "UTC")

    assert report.messages == MessageCounts.of()
    assert "No mailing was active" in render_text(report)
    assert "None." in render_html(report)


@pytest.mark.parametrize(
    ("day", "zone", "hours"),
    [
        (date(2020, 1, 15), "UTC", 24),
        (date(2030, 3, 31), "Europe/Berlin", 23),
        (date(2030, 10, 27), "Europe/Berlin", 25),
        (date(2018, 11, 4), "America/Sao_Paulo", 23),  # midnight is skipped
        (date(2011, 12, 30), "Pacific/Apia", 0),  # the day is skipped
    ],
)
def test_the_length_of_a_day_depends_on_the_time_zone(day: date, zone: str, hours: int) -> None:
    day_start, day_end = day_bounds(day, ZoneInfo(zone))
    assert (day_end - day_start) / HOUR == hours


@pytest.mark.parametrize("day", [date.min, date.max])
def test_a_day_out_of_range_is_refused(day: date) -> None:
    with pytest.raises(InvalidError, match="date"):
        day_bounds(day, ZoneInfo("Asia/Tokyo"))


def cells(line: str) -> list[str]:
    """Return the cells of a line of the text; several spaces separate them."""
    return re.split("  +", line.strip())


async def test_the_text_contains_every_figure(engine: AsyncEngine) -> None:
    _, on_that_day, *_ = render_text(await sample_report(engine)).split("\n\n")
    outcomes = [cells(line) for line in on_that_day.splitlines()[1:]]
    expected = {"delivered": "1", "undelivered": "2"}
    assert outcomes == [[STATUSES[name].label, expected.get(name, "0")] for name in OUTCOMES]


async def test_outcomes_are_counted_by_local_hour(engine: AsyncEngine) -> None:
    clients = await add_clients(engine, 5)
    start = datetime(2030, 10, 26, tzinfo=UTC)
    mailing_id = await add_mailing(engine, clients=5, start=start, lasts=72 * HOUR)
    # midnight in Berlin; three hours later, at 03:00, the clocks are set back to 02:00
    day_start = datetime(2030, 10, 26, 22, tzinfo=UTC)
    day_end = day_start + 25 * HOUR
    set_back_at = day_start + 3 * HOUR
    await add_messages(engine, mailing_id, clients[:1], "delivered", at=day_start - SECOND)
    await add_messages(engine, mailing_id, clients[1:2], "delivered", at=set_back_at - SECOND)
    await add_messages(engine, mailing_id, clients[2:3], "unknown", reason="x", at=set_back_at)
    await do(engine, lambda db: counters.merge_deltas(db, 5))  # merges a part of the deltas
    await add_messages(engine, mailing_id, clients[3:4], "cancelled", reason="x", at=day_end)
    await add_messages(engine, mailing_id, clients[4:], "delivered", at=set_back_at)

    report = await daily_report(engine, date(2030, 10, 27), "Europe/Berlin")

    assert len(report.hours) == 25
    assert [(f"{hour.start:%H %z}", hour.messages) for hour in report.busy_hours] == [
        ("02 +0200", OutcomeCounts.of(delivered=1)),
        ("02 +0100", OutcomeCounts.of(delivered=1, unknown=1)),
    ]
    lines = render_text(report).splitlines()
    title = lines.index("By hour")
    first_hour, second_hour = {"delivered": "1"}, {"delivered": "1", "unknown": "1"}
    assert [cells(line) for line in lines[title + 1 : title + 5]] == [
        ["from", *(STATUSES[name].label for name in OUTCOMES)],
        ["02:00", *(first_hour.get(name, "0") for name in OUTCOMES)],
        ["02:00 again", *(second_hour.get(name, "0") for name in OUTCOMES)],
        [""],  # an empty line after the last hour
    ]


async def test_the_html_shows_every_hour_with_bars_and_numbers(engine: AsyncEngine) -> None:
    html = render_html(await sample_report(engine))
    hours = html[html.index("By hour, UTC") : html.index("Not delivered on that day")]
    texts = visible_text(hours)

    assert texts[:4] == ["By hour, UTC", "from", "delivered", "undelivered"]
    assert [text for text in texts if text.endswith(":00")] == [
        f"{hour:02}:00" for hour in range(24)
    ]
    busy_hour = texts.index("13:00")
    assert texts[busy_hour : busy_hour + 4] == ["13:00", "1", "2", "14:00"]
    delivered, undelivered = width_of(hours, "delivered"), width_of(hours, "undelivered")
    assert undelivered == pytest.approx(2 * delivered, rel=0.05)
    assert delivered + undelivered == pytest.approx(100)


def visible_text(html: str) -> list[str]:
    """Return the texts between tags."""
    return [text for part in re.split("<[^>]*>", html) if (text := part.strip())]


def width_of(html: str, outcome: MessageStatus) -> float:
    """Return the width of the only cell of a bar that has an outcome's colour, in percent."""
    [width] = re.findall(rf'<td width="([\d.]+)%" [^>]*bgcolor="{STATUSES[outcome].colour}">', html)
    return float(width)


async def test_the_html_refers_to_nothing_outside_the_mail(engine: AsyncEngine) -> None:
    assert not re.search(
        r"<(?:img|link|script)|src=|href=|url\(", render_html(await sample_report(engine))
    )


async def test_the_html_of_a_day_without_outcomes_has_no_hours(engine: AsyncEngine) -> None:
    assert "By hour" not in render_html(await daily_report(engine, DAY, "UTC"))


async def test_the_report_needs_no_message_rows(engine: AsyncEngine) -> None:
    report = await sample_report(engine)
    await execute(engine, "DELETE FROM message")

    repeated = await daily_report(engine, DAY, "UTC")

    assert msgspec.structs.replace(repeated, as_of=report.as_of) == report
    assert repeated.busy_hours[0].messages == OutcomeCounts.of(delivered=1, undelivered=2)


@pytest.mark.parametrize(
    ("day", "zone", "hours"),
    [
        (date(2030, 3, 31), "Europe/Berlin", 23),
        (date(2030, 10, 27), "Europe/Berlin", 25),
        (date(2018, 11, 4), "America/Sao_Paulo", 23),
        (date(2011, 12, 30), "Pacific/Apia", 0),
        (date(1999, 12, 31), "UTC", 24),
    ],
)
async def test_the_report_has_every_hour_of_its_day(
    engine: AsyncEngine, day: date, zone: str, hours: int
) -> None:
    assert len((await daily_report(engine, day, zone)).hours) == hours


async def test_the_longest_report_is_not_clipped_by_mail_programs(engine: AsyncEngine) -> None:
    statuses = [status for status in MESSAGE_STATUSES if status != "sending"]
    clients = await add_clients(engine, len(statuses))
    for _ in range(MAX_LISTED + 1):
        mailing_id = await add_mailing(engine, clients=1_000_000)
        for client, status in zip(clients, statuses, strict=True):
            await add_messages(engine, mailing_id, [client], status, reason="x")
    report = await daily_report(engine, DAY, "UTC")
    [busy_hour] = report.busy_hours
    # as if every hour had been as busy
    hours = [msgspec.structs.replace(busy_hour, start=hour.start) for hour in report.hours]

    assert len(render_html(msgspec.structs.replace(report, hours=hours))) < 100_000


async def test_the_report_contains_no_texts_or_phones(engine: AsyncEngine) -> None:
    report = await sample_report(engine)
    for rendered in (render_text(report), render_html(report)):
        assert "Come by" not in rendered  # words of the text of sample mailings
        assert "7916" not in rendered  # the beginning of the phones of sample clients


async def test_reasons_are_escaped_in_html(engine: AsyncEngine) -> None:
    assert "<b>&" in render_text(await sample_report(engine))
    assert "&lt;b&gt;&amp;" in render_html(await sample_report(engine))


async def test_the_report_says_that_it_changes_while_messages_await_receipts(
    engine: AsyncEngine,
) -> None:
    clients = await add_clients(engine, 5)
    mailing_id = await add_mailing(engine, clients=5)
    await add_messages(engine, mailing_id, clients[:2], "sent")
    await add_messages(engine, mailing_id, clients[2:3], "sent", "no_receipt")
    await add_messages(engine, mailing_id, clients[3:], "delivered")
    sentence = "2 accepted messages still await their receipts: these counts will change,"

    report = await daily_report(engine, DAY, "UTC")

    assert report.outcomes == OutcomeCounts.of(sent=3, delivered=2)
    assert sentence in render_text(report)
    assert sentence in render_html(report)

    # the receipts come days later; the messages still count on the day on which they were sent
    await execute(engine, "UPDATE message SET status = 'delivered', updated_at = now()")
    report = await daily_report(engine, DAY, "UTC")
    assert report.outcomes == OutcomeCounts.of(delivered=5)
    assert "await" not in render_text(report)
    assert "await" not in render_html(report)
