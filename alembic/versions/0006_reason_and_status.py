"""The index on messages' reasons holds their status too: pages by both walk over no others."""

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0004"
branch_labels = None
depends_on = None

WITH_STATUS = ("mailing_id", "reason", "status", "id")
WITHOUT = ("mailing_id", "reason", "id")


def upgrade() -> None:
    _replace(WITHOUT, WITH_STATUS)


def downgrade() -> None:
    _replace(WITH_STATUS, WITHOUT)


def _replace(old: tuple[str, ...], new: tuple[str, ...]) -> None:
    op.create_index(
        op.f(f"message_{'_'.join(new)}_idx"),
        "message",
        list(new),
        postgresql_where=sa.text("reason IS NOT NULL"),
    )
    op.drop_index(op.f(f"message_{'_'.join(old)}_idx"), table_name="message")
