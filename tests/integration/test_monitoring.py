"""Alerts and dashboard in deploy/, compared with the metrics of the application.

promtool is in Debian's package `prometheus`.
"""

import json
import re
import subprocess
from pathlib import Path
from typing import Any

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families
from tests.event_timeout import EVENT_TIMEOUT
from tests.programs import find_program

from mailer.gateway.breaker import BREAKER_STATES

DEPLOY = Path(__file__).parents[2] / "deploy"
ALERTS = DEPLOY / "prometheus" / "alerts.yaml"
DASHBOARD = DEPLOY / "grafana" / "mailer.json"

METRIC_NAME = re.compile(r"\b(?:mailer|process)_[a-z_]+\b")
SUFFIXES = {"counter": ("_total",), "histogram": ("_bucket", "_sum", "_count"), "gauge": ("",)}
"""By type of a metric, what follows its name in the names of its series."""
VARIABLES = {"$__rate_interval": "1m", "$job": ".*", "$instance": ".*", "$gateway": ".*"}
"""Grafana's variables in expressions, with sample values."""


def promtool(*arguments: str | Path, stdin: str = "") -> str:
    """Run promtool and return its output; it must find no errors."""
    program = find_program("promtool")
    result = subprocess.run(  # noqa: S603  # a program found by `needed`
        [program, *arguments],
        input=stdin,
        capture_output=True,
        text=True,
        timeout=EVENT_TIMEOUT,
        check=False,
    )
    output = result.stdout + result.stderr
    assert result.returncode == 0, output
    return output


async def get_metrics(api: httpx.AsyncClient) -> str:
    """Return the text that Prometheus reads."""
    answer = await api.get("http://mailer/metrics")
    assert answer.status_code == 200
    return answer.text


def panels() -> list[dict[str, Any]]:
    """Return the panels of the dashboard."""
    content: list[dict[str, Any]] = json.loads(DASHBOARD.read_text())["panels"]
    return content


def with_sample_values(expression: str) -> str:
    """Return an expression of the dashboard with values in place of Grafana's variables."""
    for variable, value in VARIABLES.items():
        expression = expression.replace(variable, value)
    return expression


def test_the_alerts_and_the_example_configuration_are_valid() -> None:
    assert "SUCCESS" in promtool("check", "rules", ALERTS)
    promtool("check", "config", ALERTS.with_name("prometheus.yaml"))


def test_the_unit_tests_of_the_alerts_pass() -> None:
    assert "SUCCESS" in promtool("test", "rules", ALERTS.with_name("alerts_test.yaml"))


def test_every_alert_has_a_unit_test_in_which_it_fires() -> None:
    alerts = re.findall(r"- alert: (\w+)", ALERTS.read_text())
    fired = re.findall(
        r'labels: ALERTS\{alertname="(\w+)"', ALERTS.with_name("alerts_test.yaml").read_text()
    )
    assert set(alerts) == set(fired)
    assert len(set(alerts)) == len(alerts)


async def test_metric_names_follow_the_advice_of_prometheus(api: httpx.AsyncClient) -> None:
    assert promtool("check", "metrics", stdin=await get_metrics(api)) == ""


@pytest.mark.parametrize("file", [ALERTS, DASHBOARD], ids=lambda file: file.name)
async def test_alerts_and_dashboard_use_only_existing_metrics(
    api: httpx.AsyncClient, file: Path
) -> None:
    existing = {
        family.name + suffix
        for family in text_string_to_metric_families(await get_metrics(api))
        for suffix in SUFFIXES.get(family.type, ())
    }
    used = set(METRIC_NAME.findall(file.read_text()))
    assert used
    assert used - existing == set()


def test_the_expressions_of_the_dashboard_are_valid_promql(tmp_path: Path) -> None:
    expressions = [target["expr"] for panel in panels() for target in panel.get("targets", [])]
    assert expressions
    # promtool checks expressions as those of recording rules
    rules = [
        {"record": f"panel_{n}", "expr": with_sample_values(expression)}
        for n, expression in enumerate(expressions)
    ]
    file = tmp_path / "rules.json"  # promtool reads YAML, which includes JSON
    file.write_text(json.dumps({"groups": [{"name": "dashboard", "rules": rules}]}))
    assert f"{len(rules)} rules found" in promtool("check", "rules", file)


def test_every_metric_with_a_gateway_is_shown_for_the_selected_gateways() -> None:
    expressions = [target["expr"] for panel in panels() for target in panel.get("targets", [])]
    selectors = re.findall(
        r"(?:mailer_gateway_|mailer_message_results)\w+\{[^}]*\}", " ".join(expressions)
    )
    assert selectors
    assert [each for each in selectors if 'gateway=~"$gateway"' not in each] == []


def test_the_dashboard_shows_the_worst_breaker_and_which_gateways_are_paused(
    tmp_path: Path,
) -> None:
    worst, of_each = (
        panel["targets"][0]["expr"] for panel in panels() if panel["title"] == "Breaker"
    )
    values = {"one": ("half_open", 0), "two": ("open", 0), "three": ("closed", 1)}
    series = {}
    for gateway, (current, paused) in values.items():
        labels = f'job="mailer", instance="a", gateway="{gateway}"'
        series[f"mailer_gateway_paused{{{labels}}}"] = paused
        for state in BREAKER_STATES:
            name = f'mailer_gateway_breaker_state{{{labels}, state="{state}"}}'
            series[name] = int(state == current)
    expected = {  # 1 is half-open, 2 open, 3 paused
        worst: {"{}": 2},
        of_each: {
            f'{{gateway="{gateway}", instance="a"}}': number
            for number, gateway in enumerate(values, start=1)
        },
    }
    test = {
        "input_series": [{"series": name, "values": f"{n}x5"} for name, n in series.items()],
        "promql_expr_test": [
            {
                "expr": with_sample_values(expression),
                "eval_time": "1m",
                "exp_samples": [{"labels": labels, "value": n} for labels, n in samples.items()],
            }
            for expression, samples in expected.items()
        ],
    }
    file = tmp_path / "test.json"
    file.write_text(json.dumps({"tests": [test]}))
    assert "SUCCESS" in promtool("test", "rules", file)


def test_the_dashboard_names_no_installation() -> None:
    dashboard = json.loads(DASHBOARD.read_text())
    assert dashboard["id"] is None
    sources = {
        part["datasource"]["uid"]
        for panel in panels()
        for part in (panel, *panel.get("targets", []))
        if panel["type"] != "row"
    }
    assert sources == {"${datasource}"}


def test_panels_of_the_dashboard_have_unique_ids_and_do_not_overlap() -> None:
    ids = [panel["id"] for panel in panels()]
    assert len(set(ids)) == len(ids)
    positions = [panel["gridPos"] for panel in panels()]
    cells = [
        (x, y)
        for position in positions
        for x in range(position["x"], position["x"] + position["w"])
        for y in range(position["y"], position["y"] + position["h"])
    ]
    assert len(set(cells)) == len(cells)
    assert all(x < 24 for x, _ in cells)  # Grafana's grid has 24 columns
