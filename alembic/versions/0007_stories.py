"""What pages tell of a message, find a mailing by, and take a sample of an audience from.

When a message was claimed and which of its attempts failed; an index of the words in mailings'
texts; an index of clients by all that a filter asks for.
"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None

# Whatever is neither a letter nor a digit parts words, in a text and in what is looked for alike.
WORDS_OF = """
CREATE FUNCTION words_of(said text) RETURNS text[] LANGUAGE sql IMMUTABLE STRICT PARALLEL SAFE
RETURN ARRAY(SELECT DISTINCT left(word, 400)
             FROM regexp_split_to_table(lower(said), '[^[:alnum:]]+') AS word WHERE word <> '')
"""
# Each word, and the status, with the thousand of ids that the mailing is of before it: so all that
# begin with some letters are found thousand by thousand, the newest first, and however many there
# are no more than a thousand are looked at to find those of one. It counts as far dearer than it
# is, so that no plan works it out for each row, even while the table's statistics are missing.
MAILING_WORDS = """
CREATE FUNCTION mailing_words(id bigint, said text, status text) RETURNS tsvector
LANGUAGE sql IMMUTABLE STRICT PARALLEL SAFE COST 100000
RETURN array_to_tsvector(ARRAY(
    SELECT id / 1000 || ' ' || word FROM unnest(words_of(said) || ('=' || status)) AS word))
"""


def upgrade() -> None:
    op.add_column("message", sa.Column("claimed_at", sa.DateTime(timezone=True), nullable=True))
    op.add_column("message", sa.Column("failures", postgresql.JSONB(), nullable=True))
    op.execute(WORDS_OF)
    op.execute(MAILING_WORDS)
    # a list of what is to be added would be read through by every look into the index
    op.create_index(
        "mailing_words_idx",
        "mailing",
        [sa.text("mailing_words(id, text::text, status::text)")],
        postgresql_using="gin",
        postgresql_with={"fastupdate": "off"},
    )
    op.create_index(
        "client_kind_idx",
        "client",
        ["operator_code", "time_zone", "tag"],
        postgresql_where=sa.text("deleted_at IS NULL"),
    )


def downgrade() -> None:
    op.drop_index("client_kind_idx", table_name="client")
    op.drop_index("mailing_words_idx", table_name="mailing")
    op.execute("DROP FUNCTION mailing_words")
    op.execute("DROP FUNCTION words_of")
    op.drop_column("message", "failures")
    op.drop_column("message", "claimed_at")
