"""Everything about statuses of messages that is written by hand agrees with `mailer.statuses`.

The schema, styles, pages, dashboard, alerts and README cannot be derived from that module. These
tests find a status that was forgotten in one of them.
"""

import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import get_args

import pytest

from mailer.mailing.model import Mailing
from mailer.statuses import (
    FAILURES,
    MESSAGE_STATUSES,
    NOT_FINAL,
    NOT_SCHEDULED,
    OPEN,
    OUTCOMES,
    RETRYABLE,
    STATUSES,
    MessageCounts,
    MessageStatus,
    OutcomeCounts,
    StatusRules,
)

ROOT = Path(__file__).parents[2]
SCHEMA = (ROOT / "docs" / "schema.sql").read_text()
STYLES = (ROOT / "src" / "mailer" / "web" / "static" / "pages.css").read_text()
PAGES = ROOT / "src" / "mailer" / "admin" / "templates" / "mailings"
DASHBOARD = (ROOT / "deploy" / "grafana" / "mailer.json").read_text()
ALERTS = (ROOT / "deploy" / "prometheus" / "alerts.yaml").read_text()
README = (ROOT / "README.md").read_text()
NO_REQUEST = {"cancelled"}
"""Outcomes of messages for which no request to the gateway ended."""


def sql_function(name: str) -> str:
    """Return the definition of a function from `docs/schema.sql`."""
    found = re.search(rf"CREATE FUNCTION {name}\(.*?END \$\$;", SCHEMA, re.DOTALL)
    assert found, name
    return found[0]


def string_literals(sql: str) -> list[str]:
    """Return the string literals in a piece of SQL."""
    return re.findall(r"'(\w+)'", sql)


def test_types_and_counts_have_every_status_in_the_order_of_the_table() -> None:
    assert get_args(MessageStatus) == MESSAGE_STATUSES
    assert MessageCounts.__struct_fields__ == MESSAGE_STATUSES
    assert OutcomeCounts.__struct_fields__ == OUTCOMES
    counts = [name for name in Mailing.__struct_fields__ if name.endswith("_messages")]
    assert counts == ["created_messages", *(f"{name}_messages" for name in MESSAGE_STATUSES)]


@pytest.mark.parametrize(("name", "rules"), STATUSES.items())
def test_attributes_of_a_status_do_not_contradict_each_other(name: str, rules: StatusRules) -> None:
    has_outcome = rules.is_sent or rules.is_final or rules.is_failure or rules.may_be_retried
    assert rules.is_open != has_outcome, f"{name}: an open status has no outcome"
    assert rules.is_open == (rules.colour is None), f"{name}: outcomes have a colour"
    assert rules.is_final or not rules.is_failure, f"{name}: a failure is final"
    assert rules.is_failure or not rules.may_be_retried, f"{name}: only failures are retried"


def test_the_database_allows_exactly_the_statuses() -> None:
    constraint = re.search(r"message_status_check CHECK \((.*)\)", SCHEMA)
    assert constraint
    assert set(string_literals(constraint[1])) == {*MESSAGE_STATUSES}


@pytest.mark.parametrize(
    ("function", "statuses"),
    [
        ("count_inserted_messages", MESSAGE_STATUSES),
        ("count_updated_messages", MESSAGE_STATUSES),
        ("add_message_deltas_of_insert", OUTCOMES),
        ("add_message_deltas_of_update", OUTCOMES),
    ],
)
def test_a_trigger_counts_every_status(function: str, statuses: Iterable[str]) -> None:
    counted = re.findall(
        r"FILTER \(WHERE status = '(\w+)'\)[ ,0)]* AS \"?(\w+)", sql_function(function)
    )
    counted_messages = set(counted) - {("delivered", "parts")}
    assert counted_messages == {(name, name) for name in statuses}


def test_triggers_exclude_exactly_the_open_statuses() -> None:
    excluded = re.findall(r"status NOT IN \((.*?)\)", SCHEMA)
    assert excluded
    assert {tuple(string_literals(names)) for names in excluded} == {OPEN}


def test_totals_of_settled_mailings_have_every_outcome() -> None:
    added = re.findall(r"\+ counted \* \(?counts\.\"?(\w+)", sql_function("update_settled_totals"))
    assert set(added) == set(OUTCOMES)


@pytest.mark.parametrize("name", [name for name in MESSAGE_STATUSES if name != "scheduled"])
def test_pages_have_a_colour_for_the_status(name: str) -> None:
    assert re.search(rf"  --{name}: (light-dark|var)\(", STYLES)
    assert f".{name} {{ --status: var(--{name}); }}" in STYLES


def test_the_page_of_a_message_explains_every_status() -> None:
    history, future = (PAGES / "message.html").read_text().split('{{ _("What happens next") }}')
    for name in MESSAGE_STATUSES:
        assert name == "scheduled" or f'message.status == "{name}"' in history, name
    for name in NOT_FINAL:
        assert f'message.status == "{name}"' in future, name


def test_the_confirmation_of_a_retry_explains_every_status_that_is_retried() -> None:
    explained = re.findall(r"n=mailing\.(\w+)_messages", (PAGES / "retry.html").read_text())
    assert set(explained) == {*RETRYABLE}


def test_the_bar_of_a_mailing_shows_every_status_but_scheduled() -> None:
    assert {*NOT_SCHEDULED, "scheduled"} == {*MESSAGE_STATUSES}
    assert NOT_SCHEDULED[: len(OUTCOMES)] == OUTCOMES


def test_the_dashboard_shows_every_outcome() -> None:
    panels = {panel["title"]: panel for panel in json.loads(DASHBOARD)["panels"]}
    coloured = panels["Message results"]["fieldConfig"]["overrides"]
    assert {each["matcher"]["options"] for each in coloured} == {*OUTCOMES, "scheduled"}
    failures = panels["Not delivered, by reason"]["targets"][0]["expr"]
    assert f'outcome=~"{"|".join(FAILURES)}"' in failures


def test_the_alert_compares_failed_requests_with_all_requests() -> None:
    failed = "|".join(name for name in FAILURES if name not in NO_REQUEST)
    ended = "|".join(name for name in OUTCOMES if name not in NO_REQUEST)
    assert set(re.findall(r'outcome=~"([^"]*)"', ALERTS)) == {failed, ended}


def test_the_readme_shows_how_a_message_gets_every_status() -> None:
    from_diagram = README[README.index("message    scheduled") :]
    diagram = from_diagram[: from_diagram.index("```")]
    for name in MESSAGE_STATUSES:
        assert re.search(rf"──> (scheduled, )?{name}\b", diagram), name
