"""The alerts and the dashboard in deploy/, against what the application shows.

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
from tests.patience import PATIENCE
from tests.programs import needed

DEPLOY = Path(__file__).parents[2] / "deploy"
ALERTS = DEPLOY / "prometheus" / "alerts.yaml"
DASHBOARD = DEPLOY / "grafana" / "mailer.json"

NAME = re.compile(r"\b(?:mailer|process)_[a-z_]+\b")
SUFFIXES = {"counter": ("_total",), "histogram": ("_bucket", "_sum", "_count"), "gauge": ("",)}
VARIABLES = {"$__rate_interval": "1m", "$job": ".*", "$instance": ".*"}
"""What Grafana puts into an expression."""


def promtool(*arguments: str | Path, given: str = "") -> str:
    """Run promtool and return what it says; it must find nothing wrong."""
    program = needed("promtool")
    done = subprocess.run(  # noqa: S603  # a program that was found
        [program, *arguments],
        input=given,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    said = done.stdout + done.stderr
    assert done.returncode == 0, said
    return said


async def exposed(api: httpx.AsyncClient) -> str:
    answer = await api.get("http://mailer/metrics")
    assert answer.status_code == 200
    return answer.text


def panels() -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(DASHBOARD.read_text())["panels"]
    return found


def test_alerts_and_the_example_that_reads_them_are_well_formed() -> None:
    assert "SUCCESS" in promtool("check", "rules", ALERTS)
    promtool("check", "config", ALERTS.with_name("prometheus.yaml"))


def test_alerts_fire_and_stay_silent_when_they_should() -> None:
    assert "SUCCESS" in promtool("test", "rules", ALERTS.with_name("alerts_test.yaml"))


def test_every_alert_is_seen_to_fire() -> None:
    alerts = re.findall(r"- alert: (\w+)", ALERTS.read_text())
    fired = re.findall(
        r'labels: ALERTS\{alertname="(\w+)"', ALERTS.with_name("alerts_test.yaml").read_text()
    )
    assert set(alerts) == set(fired)
    assert len(set(alerts)) == len(alerts)


async def test_metrics_are_named_as_prometheus_advises(api: httpx.AsyncClient) -> None:
    assert promtool("check", "metrics", given=await exposed(api)) == ""


@pytest.mark.parametrize("file", [ALERTS, DASHBOARD], ids=lambda file: file.name)
async def test_only_metrics_that_are_shown_are_asked_for(
    api: httpx.AsyncClient, file: Path
) -> None:
    shown = {
        family.name + suffix
        for family in text_string_to_metric_families(await exposed(api))
        for suffix in SUFFIXES.get(family.type, ())
    }
    asked = set(NAME.findall(file.read_text()))
    assert asked
    assert asked - shown == set()


def test_dashboard_asks_in_promql(tmp_path: Path) -> None:
    expressions = [target["expr"] for panel in panels() for target in panel.get("targets", [])]
    assert expressions
    for variable, value in VARIABLES.items():
        expressions = [expression.replace(variable, value) for expression in expressions]
    rules = [{"record": f"panel_{n}", "expr": text} for n, text in enumerate(expressions)]
    file = tmp_path / "rules.json"  # JSON is YAML
    file.write_text(json.dumps({"groups": [{"name": "dashboard", "rules": rules}]}))
    assert f"{len(rules)} rules found" in promtool("check", "rules", file)


def test_dashboard_belongs_to_no_installation() -> None:
    dashboard = json.loads(DASHBOARD.read_text())
    assert dashboard["id"] is None
    sources = {
        part["datasource"]["uid"]
        for panel in panels()
        for part in (panel, *panel.get("targets", []))
        if panel["type"] != "row"
    }
    assert sources == {"${datasource}"}


def test_panels_of_the_dashboard_have_ids_and_places_of_their_own() -> None:
    ids = [panel["id"] for panel in panels()]
    assert len(set(ids)) == len(ids)
    places = [
        (x, y)
        for panel in panels()
        for at in [panel["gridPos"]]
        for x in range(at["x"], at["x"] + at["w"])
        for y in range(at["y"], at["y"] + at["h"])
    ]
    assert len(set(places)) == len(places)
    assert all(x < 24 for x, _ in places)
