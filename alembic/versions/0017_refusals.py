"""Refusals kept under Idempotency-Key are counted for each owner, by an index."""

import sqlalchemy as sa
from alembic import op

revision = "0017"
down_revision = "0016"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_index(
        "idempotency_refusal_idx",
        "idempotency",
        ["owner"],
        postgresql_where=sa.text("status >= 400"),
    )


def downgrade() -> None:
    op.drop_index("idempotency_refusal_idx", table_name="idempotency")
