"""Accessibility checks of pages by axe-core."""

from collections.abc import Collection
from pathlib import Path
from typing import Any

from playwright.async_api import Page

AXE_SCRIPT = Path(__file__).parent / "vendor" / "axe-core" / "axe.min.js"
RULE_TAGS = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"]
"""The rules to check: WCAG 2.0, 2.1 and 2.2 at the levels A and AA, and best practice."""
RUN_AXE = """tags => axe.run(document, {
    runOnly: {type: "tag", values: tags}, resultTypes: ["violations"]})"""


async def check_accessibility(page: Page, allowed_violations: Collection[str] = ()) -> None:
    """Fail if the page violates a rule of WCAG 2.2 AA or of best practice.

    `allowed_violations` are ids of rules that the page may violate; it must violate them.
    """
    await page.evaluate(AXE_SCRIPT.read_text())  # not subject to the page's policy
    result: dict[str, Any] = await page.evaluate(RUN_AXE, RULE_TAGS)
    violations = {rule["id"]: rule for rule in result["violations"]}
    failures = [
        _describe(rule) for rule_id, rule in violations.items() if rule_id not in allowed_violations
    ]
    failures += [
        f"{rule_id}: allowed, but not violated any more"
        for rule_id in allowed_violations
        if rule_id not in violations
    ]
    assert not failures, "\n".join([f"{page.url}:", *failures])


def _describe(rule: dict[str, Any]) -> str:
    """Return the violated rule, and each element that violates it."""
    lines = [f"{rule['id']} ({rule['impact']}): {rule['help']}, {rule['helpUrl']}"]
    for node in rule["nodes"]:
        lines.append(f"  at {' '.join(map(str, node['target']))}: {node['html']}")
        lines += [f"    {line}" for line in node["failureSummary"].splitlines()]
    return "\n".join(lines)
