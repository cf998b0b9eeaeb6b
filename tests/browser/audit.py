"""Whether a page is accessible, as far as a program can tell: axe-core's judgement."""

from collections.abc import Collection
from pathlib import Path
from typing import Any

from playwright.async_api import Page

AXE = Path(__file__).parent / "vendor" / "axe-core" / "axe.min.js"
TAGS = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"]
RUN = """tags => axe.run(document, {
    runOnly: {type: "tag", values: tags}, resultTypes: ["violations"]})"""


async def audit(page: Page, known: Collection[str] = ()) -> None:
    """Fail if the page as it stands breaks a rule of WCAG 2.2 AA or of good practice.

    `known` are rules that it does break for now: they fail once it breaks them no more.
    """
    await page.evaluate(AXE.read_text())  # the debugger's way: no policy of the page minds it
    result: dict[str, Any] = await page.evaluate(RUN, TAGS)
    broken = {rule["id"]: rule for rule in result["violations"]}
    wrong = [_told(rule) for name, rule in broken.items() if name not in known]
    wrong += [f"{name}: known, but broken no more" for name in known if name not in broken]
    assert not wrong, "\n".join([f"{page.url}:", *wrong])


def _told(rule: dict[str, Any]) -> str:
    lines = [f"{rule['id']} ({rule['impact']}): {rule['help']}, {rule['helpUrl']}"]
    for node in rule["nodes"]:
        lines.append(f"  at {' '.join(map(str, node['target']))}: {node['html']}")
        lines += [f"    {line}" for line in node["failureSummary"].splitlines()]
    return "\n".join(lines)
