"""Indexes hold all that a page is chosen by, so that it reads no row that is not on it.

That on messages' reasons holds their status, each on one thing that clients are filtered by the
other two. Clients that are erased have no tag: no index on tags needs to hold them.
"""

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0004"
branch_labels = None
depends_on = None

REASON = ("mailing_id", "reason", "id")
REASON_AND_STATUS = ("mailing_id", "reason", "status", "id")
FILTERS = ("operator_code", "tag", "time_zone")
ALIVE = "deleted_at IS NULL"
TAGGED = "tag IS NOT NULL"


def upgrade() -> None:
    _drop_index("message", REASON)
    _create_index("message", REASON_AND_STATUS, "reason IS NOT NULL")
    for column in FILTERS:
        _drop_index("client", (column, "id"))
        others = [other for other in FILTERS if other != column]
        where = f"{TAGGED} AND {ALIVE}" if column == "tag" else ALIVE
        _create_index("client", (column, "id"), where, others)


def downgrade() -> None:
    for column in FILTERS:
        _drop_index("client", (column, "id"))
        _create_index("client", (column, "id"), TAGGED if column == "tag" else ALIVE)
    _drop_index("message", REASON_AND_STATUS)
    _create_index("message", REASON, "reason IS NOT NULL")


def _name(table: str, columns: tuple[str, ...]) -> str:
    return op.f(f"{table}_{'_'.join(columns)}_idx")


def _drop_index(table: str, columns: tuple[str, ...]) -> None:
    op.drop_index(_name(table, columns), table_name=table)


def _create_index(
    table: str, columns: tuple[str, ...], where: str, include: list[str] | None = None
) -> None:
    op.create_index(
        _name(table, columns),
        table,
        list(columns),
        postgresql_where=sa.text(where),
        postgresql_include=include or [],
    )
