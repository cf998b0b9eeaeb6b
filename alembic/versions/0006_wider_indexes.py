"""Indexes on clients hold all that a page is chosen by, so that it reads no row that is not on it.

Each on one thing that clients are filtered by holds the other two.
"""

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None

FILTERS = ("operator_code", "tag", "time_zone")
ALIVE = "deleted_at IS NULL"
TAGGED = "tag IS NOT NULL"


def upgrade() -> None:
    for column in FILTERS:
        op.drop_index(_name(column), table_name="client")
        others = [other for other in FILTERS if other != column]
        where = f"{TAGGED} AND {ALIVE}" if column == "tag" else ALIVE
        _create_index(column, where, others)


def downgrade() -> None:
    for column in FILTERS:
        op.drop_index(_name(column), table_name="client")
        _create_index(column, TAGGED if column == "tag" else ALIVE)


def _name(column: str) -> str:
    return op.f(f"client_{column}_id_idx")


def _create_index(column: str, where: str, include: list[str] | None = None) -> None:
    op.create_index(
        _name(column),
        "client",
        [column, "id"],
        postgresql_where=sa.text(where),
        postgresql_include=include or [],
    )
