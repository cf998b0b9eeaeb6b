"""Tags are compared without case: as they are folded, beside as they were written."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import ARRAY

from mailer.client.model import tag_columns
from mailer.text import clean_label

revision = "0014"
down_revision = "0013"
branch_labels = None
depends_on = None

CHUNK = 10_000
"""Tags that are read and folded at once."""
LONGEST_TAG = 64
TAGS = sa.text("""
    SELECT DISTINCT tag FROM client WHERE tag > :after AND deleted_at IS NULL
    ORDER BY tag LIMIT :chunk""")
FOLD = sa.text("""
    UPDATE client SET tag = folded.tag, tag_written = folded.tag_written
    FROM unnest(:before, :tag, :tag_written) AS folded (before, tag, tag_written)
    WHERE client.tag = folded.before AND client.deleted_at IS NULL""").bindparams(
    *(sa.bindparam(name, type_=ARRAY(sa.String)) for name in ("before", "tag", "tag_written"))
)


def upgrade() -> None:
    op.add_column("client", sa.Column("tag_written", sa.String(), nullable=True))
    op.drop_constraint(op.f("client_tag_check"), "client")
    op.create_check_constraint(
        op.f("client_tag_check"), "client", "char_length(tag) BETWEEN 1 AND 192"
    )
    op.create_check_constraint(
        op.f("client_tag_written_check"),
        "client",
        "tag_written IS NULL OR (tag IS NOT NULL AND char_length(tag_written) BETWEEN 1 AND 64)",
    )
    database, last = op.get_bind(), ""
    while tags := database.scalars(TAGS, {"after": last, "chunk": CHUNK}).all():
        last = tags[-1]
        # composed, a text may grow: what is beyond the limit goes
        clean = [clean_label(clean_label(tag)[:LONGEST_TAG]) or None for tag in tags]
        columns = [{"before": tag, **tag_columns(to)} for tag, to in zip(tags, clean, strict=True)]
        changed = [each for each in columns if each["tag"] != each["before"] or each["tag_written"]]
        if changed:
            database.execute(FOLD, {name: [each[name] for each in changed] for name in changed[0]})


def downgrade() -> None:
    op.execute("UPDATE client SET tag = tag_written WHERE tag_written IS NOT NULL")
    op.drop_column("client", "tag_written")
    op.drop_constraint(op.f("client_tag_check"), "client")
    op.create_check_constraint(
        op.f("client_tag_check"), "client", "char_length(tag) BETWEEN 1 AND 64"
    )
