"""An index for each kind of work that is to be done for mailings: none looks through all."""

import sqlalchemy as sa
from alembic import op

revision = "0018"
down_revision = "0017"
branch_labels = None
depends_on = None

LIVE = "NOT is_settled AND deleted_at IS NULL"
OVER = """
    (LEAST(datetime_end, CASE WHEN status = 'cancelled' THEN '-infinity'::timestamptz END))"""
INDEXES: dict[str, tuple[list[str | sa.TextClause], str]] = {
    "mailing_start_idx": (["datetime_start"], "audience_until IS NULL"),
    "mailing_over_idx": ([sa.text(OVER)], "audience_until IS NOT NULL"),
    "mailing_take_idx": (
        ["audience_cursor", "id"],
        "audience_cursor < audience_until AND NOT replanning",
    ),
    "mailing_retry_idx": (["retry_cursor", "retry_before"], "retry_before IS NOT NULL"),
}


def upgrade() -> None:
    _index_live("id")
    for name, (columns, condition) in INDEXES.items():
        where = sa.text(f"{LIVE} AND {condition}")
        op.create_index(name, "mailing", columns, postgresql_where=where)


def downgrade() -> None:
    for name in INDEXES:
        op.drop_index(name, table_name="mailing")
    _index_live("datetime_start")


def _index_live(column: str) -> None:
    op.drop_index("mailing_live_idx", table_name="mailing")
    op.create_index("mailing_live_idx", "mailing", [column], postgresql_where=sa.text(LIVE))
