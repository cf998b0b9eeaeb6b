"""What each route answers to whom, as the router says it: the table in `docs/security.md`.

Run as a script (`make security`) it writes the table there anew.
"""

from pathlib import Path
from typing import Literal, NamedTuple

from litestar.routes import HTTPRoute
from sqlalchemy.ext.asyncio import create_async_engine

from mailer.access.gate import DOOR, MONITORING, NEEDS, NOTHING
from mailer.access.model import SCOPE_OF
from mailer.app import create_app
from mailer.settings import SCOPES
from mailer.web.origin import SAFE

DOCUMENT = Path(__file__).parents[1] / "docs" / "security.md"
BEGIN, END = "<!-- made by `make security` -->\n", "<!-- to here -->"

Credential = Literal["", "read", "write", "admin", "viewer", "operator", "an admin"]
CREDENTIALS: tuple[Credential, ...] = ("", *SCOPES, "viewer", "operator", "an admin")
"""Nothing, keys by their scopes, people by their roles."""
ROLES = {"viewer": SCOPE_OF["viewer"], "operator": SCOPE_OF["operator"], "an admin": SCOPES[-1]}
Outcome = Literal["in", "401", "403", "sign in"]

SCRIPTS = {("POST", "/clients/import")}
"""Calls of pages that their scripts make: who is not signed in is told so, and led nowhere."""
REASONS = {
    ("POST", "/preferences"): "keeps a language and a time zone in cookies of who asks",
    ("POST", "/login"): "is how one signs in; wrong passwords are counted",
    ("POST", "/logout"): "ends the session of who asks, if there is one",
    ("POST", "/account/password"): "changes the password of who asks, who shows the present one",
    ("POST", "/account/sessions"): "ends sessions of who asks",
}
"""Why calls that change something need less than `write`."""


class Rule(NamedTuple):
    """What a method of a route needs, and what opens it."""

    method: str
    path: str
    needs: str | None
    door: str | None


def rules() -> list[Rule]:
    """Return the rule of each method of each route, OPTIONS apart, in the router's order."""
    app = create_app(create_async_engine("postgresql+asyncpg://"))
    return [
        Rule(method, route.path_format, handler.opt.get(NEEDS), handler.opt.get(DOOR))
        for route in app.routes
        if isinstance(route, HTTPRoute)
        for method, (handler, _) in sorted(route.route_handler_map.items())
        if method != "OPTIONS"
    ]


def expected(rule: Rule, credential: Credential) -> Outcome:
    """Return what a rule means for who shows a credential."""
    if rule.needs in {NOTHING, MONITORING}:
        return "in"
    if rule.door == "session":
        if credential not in ROLES:
            return "401" if (rule.method, rule.path) in SCRIPTS else "sign in"
        scope = ROLES[credential]
    else:
        if credential not in SCOPES:
            return "401"
        scope = credential
    is_enough = rule.needs in SCOPES and SCOPES.index(scope) >= SCOPES.index(rule.needs)
    return "in" if is_enough else "403"


def slight(rules: list[Rule]) -> list[Rule]:
    """Return the rules of calls that change something and need less than `write`."""
    return [r for r in rules if r.method not in SAFE and r.needs not in SCOPES[1:]]


def written(rules: list[Rule]) -> str:
    """Return the table as Markdown."""
    marks = {"in": "✓", "401": "401", "403": "403", "sign in": "303"}
    head = "| | | none | key: read | write | admin | person: viewer | operator | admin |"
    lines = [head, "|" + " --- |" * 9]
    for rule in rules:
        cells = " | ".join(marks[expected(rule, each)] for each in CREDENTIALS)
        mark = " *" if rule.needs == MONITORING else ""
        lines.append(f"| {rule.method} | `{rule.path}`{mark} | {cells} |")
    lines += ["", "What changes something and needs less than `write`:", ""]
    lines += [
        f"- `{rule.method} {rule.path}` {REASONS.get((rule.method, rule.path), '?')}."
        for rule in slight(rules)
    ]
    return "\n".join(lines) + "\n"


def brought_up_to_date(document: str) -> str:
    """Return the document with the table that the router asks for."""
    before, _, rest = document.partition(BEGIN)
    return f"{before}{BEGIN}\n{written(rules())}\n{END}{rest.partition(END)[2]}"


if __name__ == "__main__":
    DOCUMENT.write_text(brought_up_to_date(DOCUMENT.read_text()))
