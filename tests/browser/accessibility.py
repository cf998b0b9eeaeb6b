"""Accessibility checks of pages by axe-core."""

from collections.abc import Collection
from pathlib import Path
from typing import Any

from playwright.async_api import Page

AXE = Path(__file__).parent / "vendor" / "axe-core" / "axe.min.js"
TAGS = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"]
RUN = """tags => axe.run(document, {
    runOnly: {type: "tag", values: tags}, resultTypes: ["violations"]})"""


async def check_accessibility(page: Page, known: Collection[str] = ()) -> None:
    """Fail if the page violates a rule of WCAG 2.2 AA or of best practice.

    `known` are rules that the page violates for now; they fail as soon as it does not violate them.
    """
    await page.evaluate(AXE.read_text())  # not subject to the page's policy
    result: dict[str, Any] = await page.evaluate(RUN, TAGS)
    violations = {rule["id"]: rule for rule in result["violations"]}
    failures = [_describe(rule) for name, rule in violations.items() if name not in known]
    failures += [
        f"{name}: known, but not violated any more" for name in known if name not in violations
    ]
    assert not failures, "\n".join([f"{page.url}:", *failures])


def _describe(rule: dict[str, Any]) -> str:
    lines = [f"{rule['id']} ({rule['impact']}): {rule['help']}, {rule['helpUrl']}"]
    for node in rule["nodes"]:
        lines.append(f"  at {' '.join(map(str, node['target']))}: {node['html']}")
        lines += [f"    {line}" for line in node["failureSummary"].splitlines()]
    return "\n".join(lines)
