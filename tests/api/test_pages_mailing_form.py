"""The form of a new mailing or a copy of one, and its errors, which keep what the user typed."""

from datetime import UTC, datetime, timedelta

import httpx
import pytest
from tests.api.browser_session import BROWSER
from tests.api.calls import DUE, NEW, create_mailing
from tests.api.forms import (
    HOSTILE,
    HTMX,
    NEW_FORM,
    SITE,
    form_errors,
    form_values,
    get_html,
    post_form,
    preview_form,
    save_form,
)

# ---- a new mailing ---------------------------------------------------------------------------


async def test_a_new_form_proposes_a_day_and_a_sending_window(api: httpx.AsyncClient) -> None:
    now = datetime.now(UTC)
    form = form_values(await get_html(api, "/mailings/new", "Asia/Tokyo"))
    start = datetime.fromisoformat(f"{form['start']}+09:00")
    assert timedelta() <= start - now <= timedelta(minutes=6)  # 5, and 1 for a slow machine
    assert datetime.fromisoformat(f"{form['end']}+09:00") - start == timedelta(days=1)
    assert (form["opens"], form["closes"]) == ("09:00", "21:00")
    assert form["zone"] == "Asia/Tokyo"
    assert "audience" not in form  # must be chosen
    assert form["on_unknown"] == "retry"


async def test_the_form_says_that_a_receipt_ends_an_unknown_delivery(
    api: httpx.AsyncClient,
) -> None:
    page = await get_html(api, "/mailings/new")
    assert "“delivery unknown” until a receipt comes, or until you send" in page


async def test_the_form_creates_a_mailing_in_its_time_zone(api: httpx.AsyncClient) -> None:
    mailing = await save_form(api, "/mailings/new", NEW_FORM)
    assert mailing["datetime_start"] == "2040-01-01T08:00:00Z"
    assert mailing["datetime_end"] == "2040-01-02T08:00:00Z"
    assert (mailing["text"], mailing["on_unknown"]) == ("Half price.", "hold")
    assert mailing["send_interval_time_start"] == "09:00"
    assert mailing["client_filter"] is None


@pytest.mark.parametrize(
    ("typed", "client_filter"),
    [
        ({"audience": "terms", "terms": "912, vip"}, "912, vip"),
        (
            {"audience": "lists", "operator_codes": "912 ,916,", "tags": '"a,b", say "x"'},
            {"operator_codes": ["912", "916"], "tags": ["a,b", 'say "x"']},
        ),
        ({"audience": "lists", "time_zones": "Asia/Tokyo"}, {"time_zones": ["Asia/Tokyo"]}),
        ({"audience": "everybody", "terms": "912", "tags": "vip"}, None),
    ],
)
async def test_the_form_has_three_ways_to_choose_the_audience(
    api: httpx.AsyncClient, typed: dict[str, str], client_filter: object
) -> None:
    mailing = await save_form(api, "/mailings/new", NEW_FORM | typed)
    assert mailing["client_filter"] == client_filter


@pytest.mark.parametrize(
    ("typed", "expected"),
    [
        ({"text": ""}, {"text": "must have 1 to 1,600 characters"}),
        ({"text": "x" * 1601}, {"text": "must have 1 to 1,600 characters"}),
        ({"start": ""}, {"start": "is required"}),
        ({"start": "soon"}, {"start": "must be a date and a time"}),
        ({"start": "2040-02-30T09:00"}, {"start": "must be a date and a time"}),
        ({"start": "0001-01-01T00:00"}, {"start": "must be a date and a time"}),
        ({"end": "9500-01-01T00:00"}, {"end": "must lie between the years 1970 and 9000"}),
        ({"end": "2040-01-01T09:00"}, {"end": "must be after the start"}),
        (
            {"start": "2020-01-01T09:00", "end": "2020-01-02T09:00"},
            {"end": "must be in the future"},
        ),
        ({"opens": ""}, {"opens": "is needed too, or leave both empty"}),
        ({"closes": ""}, {"closes": "is needed too, or leave both empty"}),
        ({"opens": "21:00"}, {"closes": "must differ from the time when the window opens"}),
        ({"opens": "9"}, {"opens": "must be a time of day, such as 09:00, or empty"}),
        ({"audience": ""}, {"audience": "must be chosen: all clients, or some of them"}),
        (
            {"audience": "terms", "terms": " , "},
            {"terms": "must have an entry; to reach all clients, choose “All clients”"},
        ),
        (
            {"audience": "lists"},
            {"operator_codes": "must have an entry; to reach all clients, choose “All clients”"},
        ),
        (
            {"audience": "lists", "tags": ",".join(["vip"] * 1_001)},
            {"tags": "must have 1,000 entries at most"},
        ),
        (
            {"audience": "lists", "operator_codes": "91", "time_zones": "Mars/Base"},
            {
                "operator_codes": "must be codes of three digits, separated by commas",
                "time_zones": "must be a time zone such as Europe/Moscow",
            },
        ),
        ({"audience": "lists", "tags": "x" * 200_000}, {"tags": "must be tags of up to 64"}),
        ({"on_unknown": ""}, {"on_unknown": "must be one of the two"}),
        ({"purpose": ""}, {"purpose": "must be marketing or service"}),
        ({"rate": "0"}, {"rate": "must be a number from 0.01 to 10,000, or empty"}),
        ({"rate": "fast"}, {"rate": "must be a number from 0.01 to 10,000, or empty"}),
        (
            {"text": "", "end": "", "opens": "", "audience": "lists"},
            {
                "text": "must have 1 to 1,600 characters",
                "end": "is required",
                "opens": "is needed too, or leave both empty",
                "operator_codes": "must have an entry",
            },
        ),
    ],
)
async def test_errors_are_beside_their_fields_and_typed_values_are_kept(
    api: httpx.AsyncClient, typed: dict[str, str], expected: dict[str, str]
) -> None:
    form = NEW_FORM | typed
    response = await post_form(api, "/mailings/new", form)
    assert response.status_code == 400
    shown_errors = form_errors(response.text)
    assert shown_errors.keys() == expected.keys()
    assert all(shown_errors[name].startswith(message) for name, message in expected.items()), (
        shown_errors
    )
    form_after = form_values(response.text)
    assert {name: form_after.get(name, "") for name in form} == form
    assert (await api.get("/mailings")).json()["count"] == 0


async def test_a_skipped_local_time_is_refused_and_an_ambiguous_one_is_the_first(
    api: httpx.AsyncClient,
) -> None:
    # in Berlin, the clocks go forward from 02:00 to 03:00
    skipped = NEW_FORM | {"start": "2040-03-25T02:30", "end": "2040-03-26T09:00"}
    response = await post_form(api, "/mailings/new", skipped)
    message = "does not exist on that day: the clocks go forward and skip this time"
    assert form_errors(response.text) == {"start": message}

    # the clocks go back from 03:00 to 02:00
    ambiguous = NEW_FORM | {"start": "2040-10-28T02:30", "end": "2040-10-29T09:00"}
    assert "28 Oct 2040, 02:30 28 Oct 2040, 00:30 UTC" in await preview_form(api, ambiguous)
    mailing = await save_form(api, "/mailings/new", ambiguous)
    assert mailing["datetime_start"] == "2040-10-28T00:30:00Z"


async def test_an_unknown_time_zone_is_read_as_utc(api: httpx.AsyncClient) -> None:
    mailing = await save_form(api, "/mailings/new", NEW_FORM | {"zone": "Mars/Base"})
    assert mailing["datetime_start"] == "2040-01-01T09:00:00Z"


async def test_hostile_text_is_escaped(api: httpx.AsyncClient) -> None:
    await api.post("/clients", json={"phone": "79160000001", "tag": "<b>bold</b>"})
    form = NEW_FORM | {"audience": "terms", "opens": HOSTILE, "text": f"\n{HOSTILE}\n"}
    form |= dict.fromkeys(("terms", "operator_codes", "tags", "time_zones"), HOSTILE)
    response = await post_form(api, "/mailings/new", form | {"seen": HOSTILE, "zone": HOSTILE})
    assert response.status_code == 400
    assert "<script>" not in response.text
    form_after = form_values(response.text)
    kept = ("terms", "tags", "opens")
    assert {name: form_after[name] for name in kept} == {name: form[name] for name in kept}
    assert form_after["text"] == f"\n{HOSTILE}\n"

    preview = (await api.post(f"{SITE}/mailings/preview", data=NEW_FORM, headers=HTMX)).text
    assert "&lt;b&gt;bold&lt;/b&gt;" in preview

    created = await create_mailing(api, NEW | {"text": HOSTILE, "client_filter": HOSTILE})
    for path in (f"/mailings/{created['id']}/edit", f"/mailings/new?from={created['id']}"):
        assert "<script>" not in await get_html(api, path)


async def test_a_malformed_form_is_refused(api: httpx.AsyncClient) -> None:
    response = await api.post(f"{SITE}/mailings/new", content=b"text=%ff", headers=BROWSER)
    assert response.status_code == 400
    assert (await post_form(api, "/mailings/new", {})).status_code == 400


# ---- a copy ----------------------------------------------------------------------------------


async def test_a_copy_has_all_fields_and_the_same_duration(api: httpx.AsyncClient) -> None:
    payload = {
        **DUE,
        "datetime_end": "2040-01-01T09:00:00Z",
        "text": "Zeile\r\nzwei",
        "send_interval_time_start": "22:00:30",
        "send_interval_time_end": "06:00",
        "client_filter": {"tags": ["a,b", "vip"]},
        "on_unknown": "hold",
        "purpose": "service",
    }
    original = await create_mailing(api, payload)
    page = await get_html(api, f"/mailings/new?from={original['id']}", "Europe/Berlin")
    assert f"Copy of mailing #{original['id']}" in page
    assert "Nothing is saved yet" in page
    copy = await save_form(api, f"/mailings/new?from={original['id']}", form_values(page))
    window = ("send_interval_time_start", "send_interval_time_end")
    same = (*window, "client_filter", "on_unknown", "purpose")
    assert {name: copy[name] for name in same} == {name: original[name] for name in same}
    assert copy["text"] == "Zeile\nzwei"

    start, end = (datetime.fromisoformat(copy[f"datetime_{name}"]) for name in ("start", "end"))
    assert start > datetime.now(UTC)
    original_duration = datetime(2040, 1, 1, 9, tzinfo=UTC) - datetime(2020, 1, 1, 9, tzinfo=UTC)
    difference = abs(end - start - original_duration)
    assert difference <= timedelta(hours=1)  # daylight saving time may apply at one end alone


async def test_a_copy_keeps_a_start_in_the_future(api: httpx.AsyncClient) -> None:
    original = await create_mailing(api, NEW)
    form = form_values(await get_html(api, f"/mailings/new?from={original['id']}"))
    assert (form["start"], form["end"]) == ("2040-01-01T09:00", "2040-01-02T09:00")


async def test_a_copy_with_errors_is_still_labelled_as_a_copy(api: httpx.AsyncClient) -> None:
    original = await create_mailing(api, NEW)
    path = f"/mailings/new?from={original['id']}"
    form = form_values(await get_html(api, path))
    response = await post_form(api, path, form | {"text": ""})
    assert f"Copy of mailing #{original['id']}" in response.text


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/mailings/new?from=77", 404),
        ("/mailings/new?from=0", 400),
        ("/mailings/new?from=x", 400),
        ("/mailings/77/edit", 404),
        ("/mailings/x/edit", 404),
        (f"/mailings/{10**30}/edit", 400),
    ],
)
async def test_an_unknown_or_invalid_id_is_an_error_page(
    api: httpx.AsyncClient, path: str, status: int
) -> None:
    assert "<h1>" in await get_html(api, path, status=status)
